"""The audit finds each kind of problem, and nothing where there is none."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.chaos.audit import Answer, Excuse, Expectation, Found, LogLine, Report, Wanted, audit
from service.chaos.plan import FaultKind

NOW = datetime(2026, 11, 21, tzinfo=UTC)
IMAGE = {"width": 480, "height": 360, "format": "JPEG"}


def detection(x: float = 10.0, label: str = "star", confidence: float = 0.9) -> dict[str, Any]:
    box = {"x1": x, "y1": 20.0, "x2": x + 30, "y2": 60.0}
    return {"label": label, "class_id": 3, "confidence": confidence, "box": box}


GOOD = Expectation(
    "gs://uploads/a.jpg", 1, 100, "md5-a", Wanted.DONE, detections=[detection()], image=IMAGE
)
OTHER = replace(GOOD, uri="gs://uploads/b.jpg", md5="md5-b", detections=[detection(x=200)])
BAD = Expectation("gs://uploads/c.jpg", 3, 5, "md5-c", Wanted.FAILED, code="corrupt_image")
GONE = replace(GOOD, uri="gs://uploads/d.jpg", wanted=Wanted.NOTHING)
ALL = [GOOD, OTHER, BAD, GONE]


def record(expectation: Expectation, **other: Any) -> Found:
    """The right document of an upload, but for `other`."""
    fields = {
        "uri": expectation.uri,
        "generation": expectation.generation,
        "size": expectation.size,
        "md5": expectation.md5,
        "status": "failed" if expectation.code else "done",
        "error": {"code": expectation.code} if expectation.code else None,
        "image": expectation.image,
        "detections": list(expectation.detections),
    }
    return Found(fields | other, NOW, NOW)


RIGHT = [record(GOOD), record(OTHER), record(BAD)]


def problems(report: Report) -> dict[str, list[str]]:
    return {kind: found for kind, found in report.problems.items() if found}


def test_right_documents_are_clean() -> None:
    report = audit(ALL, RIGHT)
    assert report.is_clean
    assert (report.uploads, report.done, report.failed, report.superseded) == (4, 2, 1, 1)


def test_missing_document_is_lost() -> None:
    assert problems(audit(ALL, RIGHT[1:])) == {"lost": ["gs://uploads/a.jpg#1 has no document"]}


def test_missing_failure_is_lost() -> None:
    assert list(problems(audit(ALL, RIGHT[:2]))) == ["lost"]


def test_second_document_is_a_duplicate() -> None:
    assert problems(audit(ALL, [*RIGHT, RIGHT[0]])) == {
        "duplicated": ["gs://uploads/a.jpg#1 has 2 documents"]
    }


def test_document_written_again_is_a_duplicate() -> None:
    again = replace(RIGHT[0], updated=NOW + timedelta(microseconds=1))
    assert problems(audit(ALL, [again, *RIGHT[1:]])) == {
        "duplicated": ["gs://uploads/a.jpg#1 was written more than once"]
    }


def test_detections_of_another_picture_are_crossed_and_name_it() -> None:
    crossed = record(GOOD, detections=list(OTHER.detections))
    assert problems(audit(ALL, [crossed, *RIGHT[1:]])) == {
        "crossed": ["gs://uploads/a.jpg#1 has the detections of gs://uploads/b.jpg#1"]
    }


@pytest.mark.parametrize(
    "other",
    [
        {"md5": "md5-b"},
        {"size": 101},
        {"image": IMAGE | {"width": 360}},
        {"detections": []},
        {"detections": [detection(), detection()]},
        {"detections": [detection(label="cross")]},
        {"detections": [detection(confidence=0.8)]},
        {"detections": [detection(x=12)]},
    ],
    ids=["md5", "size", "shape", "none", "twice", "label", "confidence", "box"],
)
def test_document_of_something_else_is_crossed(other: dict[str, Any]) -> None:
    found = problems(audit(ALL, [record(GOOD, **other), *RIGHT[1:]]))
    assert list(found) == ["crossed"]


def test_order_and_last_digits_of_detections_do_not_matter() -> None:
    two = replace(GOOD, detections=[detection(), detection(x=90)])
    found = record(two, detections=[detection(x=90.1), detection(confidence=0.901)])
    assert audit([two], [found]).is_clean


@pytest.mark.parametrize(
    ("expectation", "other"),
    [
        (BAD, {"error": {"code": "unsupported_media"}}),
        (BAD, {"status": "done", "error": None}),
        (GOOD, {"status": "failed", "error": {"code": "corrupt_image"}}),
        (GONE, {}),
    ],
    ids=["other-code", "done-though-bad", "failed-though-good", "was-gone"],
)
def test_record_of_the_wrong_kind_is_wrong(expectation: Expectation, other: dict[str, Any]) -> None:
    found = problems(audit([expectation], [record(expectation, **other)]))
    assert list(found) == ["wrong"]


def test_document_of_nothing_uploaded_is_wrong() -> None:
    stray = record(replace(GOOD, generation=2))
    assert list(problems(audit(ALL, [*RIGHT, stray]))) == ["wrong"]


@pytest.mark.parametrize("is_there", [True, False])
def test_object_that_went_during_its_delivery_may_have_its_document(is_there: bool) -> None:
    raced = replace(GOOD, wanted=Wanted.DONE_OR_NOTHING)
    report = audit([raced], [record(raced)] if is_there else [])
    assert report.is_clean
    assert (report.done, report.superseded) == ((1, 0) if is_there else (0, 1))


def test_object_that_went_during_its_delivery_may_not_have_another_document() -> None:
    raced = replace(GOOD, wanted=Wanted.DONE_OR_NOTHING)
    assert list(problems(audit([raced], [record(raced, md5="md5-b")]))) == ["crossed"]


def test_event_never_acknowledged_is_stuck() -> None:
    assert problems(audit(ALL, RIGHT, stuck=["a.jpg"])) == {"stuck": ["a.jpg"]}


def test_service_that_did_not_come_back_is_unexpected() -> None:
    assert problems(audit(ALL, RIGHT, failures=["service-0"])) == {"unexpected": ["service-0"]}


MEMORY = Excuse("service-0", FaultKind.MEMORY, 100.0, 103.0)


@pytest.mark.parametrize(
    ("service", "seconds", "is_excused"),
    [
        ("service-0", 104, True),
        ("service-0", 99, False),
        ("service-0", 200, False),
        ("service-1", 104, False),
    ],
    ids=["during", "before", "long-after", "elsewhere"],
)
def test_errors_are_unexpected_but_while_memory_is_short(
    service: str, seconds: float, is_excused: bool
) -> None:
    log = [LogLine(service, seconds, "ERROR", "Failed to handle a message")]
    answers = [Answer(service, seconds, 500)]
    found = problems(audit(ALL, RIGHT, log=log, answers=answers, excuses=[MEMORY]))
    assert len(found.get("unexpected", [])) == (0 if is_excused else 2)


@pytest.mark.parametrize("kind", [FaultKind.KILL_WORKER, FaultKind.STOP])
@pytest.mark.parametrize(
    "message",
    ["Worker (pid:17) was sent SIGKILL!", "The process died while the network ran; ..."],
    ids=["server", "service"],
)
def test_worker_may_be_missed_only_when_it_was_killed(message: str, kind: FaultKind) -> None:
    line = LogLine("service-0", 50, "ERROR", message)
    report = audit(ALL, RIGHT, log=[line], excuses=[Excuse("service-0", kind, 49, 51)])
    assert report.is_clean == (kind is FaultKind.KILL_WORKER)


def test_usual_answers_are_counted() -> None:
    answers = [Answer("service-0", 1, status) for status in (204, 204, 429, 503, None)]
    report = audit(ALL, RIGHT, answers=answers)
    assert report.is_clean
    assert report.answers == {"204": 2, "429": 1, "503": 1, "none": 1}


@pytest.mark.parametrize(("limit", "is_clean"), [(True, False), (False, True)])
def test_waste_counts_only_where_it_is_limited(limit: bool, is_clean: bool) -> None:
    log = [LogLine("service-0", 1, "INFO", "Inferring a batch", inferring=3)]
    report = audit(ALL, RIGHT, log=log, limit_waste=limit)
    assert report.waste == 0.5
    assert report.is_clean == is_clean


def test_table_tells_figures_and_the_first_problems() -> None:
    lost = [replace(GOOD, generation=number) for number in range(10, 18)]
    table = audit([*ALL, *lost], RIGHT).table()
    assert "uploads                   12" in table
    assert "lost                      8" in table
    assert "lost: gs://uploads/a.jpg#10 has no document" in table
    assert "lost: ... and 3 more" in table
