"""The audit reports each kind of problem, and none in a clean run."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from devtools.chaos.audit import Ending, Expectation, Report, StoredDocument, audit
from devtools.chaos.excuses import Excuse, Faults, LogLine, Replacement, Response, Silence
from devtools.chaos.plan import FaultKind

NOW = datetime(2026, 11, 21, tzinfo=UTC)
IMAGE = {"width": 480, "height": 360, "format": "JPEG"}
MODEL = {"name": "shapes.pt", "sha256": "0d79", "image_size": 320}


def detection(x: float = 10.0, label: str = "star", confidence: float = 0.9) -> dict[str, Any]:
    box = {"x1": x, "y1": 20.0, "x2": x + 30, "y2": 60.0}
    return {"label": label, "class_id": 3, "confidence": confidence, "box": box}


GOOD = Expectation(
    "gs://uploads/a.jpg", 1, 100, "md5-a", Ending.DONE, detections=[detection()], image=IMAGE,
    model=MODEL,
)  # fmt: skip
OTHER = replace(GOOD, uri="gs://uploads/b.jpg", md5="md5-b", detections=[detection(x=200)])
BAD = Expectation("gs://uploads/c.jpg", 3, 5, "md5-c", Ending.FAILED, code="corrupt_image")
GONE = replace(GOOD, uri="gs://uploads/d.jpg", ending=Ending.NOTHING)
ALL = [GOOD, OTHER, BAD, GONE]


def record(expectation: Expectation, **other: Any) -> StoredDocument:
    """Return the correct document of an upload, with other values for some fields."""
    detections = list(expectation.detections)
    labels = [detection["label"] for detection in detections]
    confidences = [detection["confidence"] for detection in detections]
    id = hashlib.sha256(f"{expectation.uri}#{expectation.generation}".encode()).hexdigest()[:40]
    is_done = not expectation.code
    fields = {
        "schema": 2,
        "uri": expectation.uri,
        "bucket": "uploads",
        "name": expectation.uri.removeprefix("gs://uploads/"),
        "generation": expectation.generation,
        "content_type": "image/jpeg",
        "size": expectation.size,
        "md5": expectation.md5,
        "status": "failed" if expectation.code else "done",
        "error": {"code": expectation.code, "message": "It is damaged."}
        if expectation.code
        else None,
        "image": expectation.image,
        "model": expectation.model,
        "detections": detections,
        "labels": sorted(set(labels)),
        "counts": {label: labels.count(label) for label in labels},
        "num_detections": len(detections),
        "max_confidence": max(confidences, default=None),
        "uncertain_confidence": min(confidences, default=None),
        "best": {label: max(confidences) for label in labels},
        "top_label": labels[0] if labels else None,
        "counts_by_zone": {},
        "zone_labels": [],
        "found": bool(labels) if is_done else None,
        "classes": [],
        "faint": b"\x01\x00" if is_done else None,
        "faint_cut": 0.05 if is_done else None,
        "detections_uri": None,
        "left_out": [],
        "simplified_pixels": None,
        "metadata": {},
        "metadata_cut": False,
        "captured_at": None,
        "captured_at_source": "none",
        "camera": None,
        "location": None,
        "task": "detect" if is_done else None,
        "source": {"id": None, "version": None},
        "derived": [],
        "derived_error": None,
        "alerts": [],
        "shard": int(id[-8:], 16) % 10,
        "day": "2026-11-21",
        "batch_size": 3,
        "timings": {"decode_ms": 1.0},
        "event_time": NOW,
        "created_at": NOW,
    }
    return StoredDocument(id, fields | other, NOW, NOW)


RIGHT = [record(GOOD), record(OTHER), record(BAD)]


def infer(images: int) -> list[LogLine]:
    return [LogLine("service-0", 1, "INFO", "Inferring a batch", inferring=images)]


def judge(
    expectations: list[Expectation],
    documents: list[StoredDocument],
    *,
    inferences: int | None = None,
    log: list[LogLine] | None = None,
    **others: Any,
) -> Report:
    """Audit. By default there are as many inferences as good documents."""
    if inferences is None:
        inferences = audit(expectations, documents).done
    return audit(expectations, documents, log=[*infer(inferences), *(log or [])], **others)


def problems(report: Report) -> dict[str, list[str]]:
    return {kind: sentences for kind, sentences in report.problems.items() if sentences}


def test_right_documents_are_clean() -> None:
    report = judge(ALL, RIGHT)
    assert report.is_clean
    assert (report.uploads, report.done, report.failed, report.superseded) == (4, 2, 1, 1)


def test_missing_document_is_lost() -> None:
    assert problems(judge(ALL, RIGHT[1:])) == {"lost": ["gs://uploads/a.jpg#1 has no document"]}


def test_missing_failed_document_is_lost() -> None:
    assert list(problems(judge(ALL, RIGHT[:2]))) == ["lost"]


def test_second_document_is_a_duplicate() -> None:
    assert problems(judge(ALL, [*RIGHT, RIGHT[0]])) == {
        "duplicated": ["gs://uploads/a.jpg#1 has 2 documents"]
    }


def test_document_written_again_is_a_duplicate() -> None:
    rewritten = replace(RIGHT[0], updated=NOW + timedelta(microseconds=1))
    assert problems(judge(ALL, [rewritten, *RIGHT[1:]])) == {
        "duplicated": ["gs://uploads/a.jpg#1 was written more than once"]
    }


def test_detections_of_another_image_are_reported_with_its_uri() -> None:
    crossed = record(GOOD, detections=list(OTHER.detections))
    assert problems(judge(ALL, [crossed, *RIGHT[1:]])) == {
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
        {"detections": [detection() | {"class_id": 4}]},
    ],
    ids=["md5", "size", "shape", "none", "twice", "label", "confidence", "box", "class"],
)
def test_document_with_values_of_another_image_is_crossed(other: dict[str, Any]) -> None:
    report = judge(ALL, [record(GOOD, **other), *RIGHT[1:]])
    assert list(problems(report)) == ["crossed"]


@pytest.mark.parametrize(
    "other",
    [{"detections": [detection()]}, {"image": IMAGE}],
    ids=["detections", "shape"],
)
def test_failed_document_with_image_fields_is_crossed(other: dict[str, Any]) -> None:
    report = judge(ALL, [*RIGHT[:2], record(BAD, **other)])
    assert list(problems(report)) == ["crossed"]


@pytest.mark.parametrize("expectation", [GOOD, BAD], ids=["done", "failed"])
@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"bucket": "downloads"}, "bucket"),
        ({"name": "b.jpg"}, "name"),
        ({"content_type": "image/png"}, "content_type"),
        ({"model": MODEL | {"sha256": "1e8a"}}, "model"),
        ({"labels": ["heart"]}, "labels"),
        ({"counts": {"star": 2}}, "counts"),
        ({"num_detections": 2}, "num_detections"),
        ({"max_confidence": 0.8}, "max_confidence"),
        ({"uncertain_confidence": 0.8}, "uncertain_confidence"),
        ({"best": {"star": 0.8}}, "best"),
        ({"top_label": "heart"}, "top_label"),
        ({"faint": b"\x07"}, "faint"),
        ({"shard": 11}, "shard"),
        ({"schema": 1}, "schema"),
        ({"source": {"id": "cam1", "version": NOW}}, "source"),
        ({"crc32c": "AAAA"}, "crc32c"),
        ({"colour": "red"}, "colour"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_field_is_reported_by_name(
    expectation: Expectation, other: dict[str, Any], name: str
) -> None:
    report = judge([expectation], [record(expectation, **other)])
    assert problems(report)["wrong"] == [f"{expectation.shown} has another {name}"]
    assert (report.done, report.failed) == (0, 0)


@pytest.mark.parametrize("name", ["timings", "batch_size", "day", "created_at", "labels"])
def test_missing_field_is_reported_by_name(name: str) -> None:
    document = record(BAD)
    fields = {key: value for key, value in document.fields.items() if key != name}
    assert problems(judge([BAD], [replace(document, fields=fields)])) == {
        "wrong": [f"gs://uploads/c.jpg#3 has another {name}"]
    }


@pytest.mark.parametrize(
    ("expectation", "error"),
    [(BAD, {"code": "corrupt_image"}), (GOOD, {"code": None, "message": "It is damaged."})],
    ids=["failed-without", "done-with"],
)
def test_only_failed_documents_have_an_error_message(
    expectation: Expectation, error: dict[str, Any]
) -> None:
    report = judge([expectation], [record(expectation, error=error)])
    assert problems(report)["wrong"] == [f"{expectation.shown} has another error"]


def test_document_under_another_id_is_wrong() -> None:
    stray = replace(RIGHT[0], id=RIGHT[1].id)
    assert problems(judge(ALL, [stray, *RIGHT[1:]])) == {
        "wrong": ["gs://uploads/a.jpg#1 has another id"]
    }


def test_order_and_last_digits_of_detections_do_not_matter() -> None:
    two = replace(GOOD, detections=[detection(), detection(x=90)])
    document = record(two, detections=[detection(x=90.1), detection(confidence=0.901)])
    document = replace(document, fields=dict(document.fields) | {"max_confidence": 0.901})
    assert judge([two], [document]).is_clean


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
def test_document_with_another_status_or_code_is_wrong(
    expectation: Expectation, other: dict[str, Any]
) -> None:
    report = judge([expectation], [record(expectation, **other)])
    assert list(problems(report)) == ["wrong"]


def test_document_without_an_upload_is_wrong() -> None:
    stray = record(replace(GOOD, generation=2))
    assert list(problems(judge(ALL, [*RIGHT, stray]))) == ["wrong"]


@pytest.mark.parametrize("is_there", [True, False])
def test_object_deleted_during_delivery_may_have_a_document(is_there: bool) -> None:
    raced = replace(GOOD, ending=Ending.DONE_OR_NOTHING)
    report = judge([raced], [record(raced)] if is_there else [])
    assert report.is_clean
    assert (report.done, report.superseded) == ((1, 0) if is_there else (0, 1))


def test_object_deleted_during_delivery_has_no_other_document() -> None:
    raced = replace(GOOD, ending=Ending.DONE_OR_NOTHING)
    assert list(problems(judge([raced], [record(raced, md5="md5-b")]))) == ["crossed"]


def test_event_never_acknowledged_is_stuck() -> None:
    assert problems(judge(ALL, RIGHT, stuck=["a.jpg"])) == {"stuck": ["a.jpg"]}


def test_service_that_did_not_recover_is_unexpected() -> None:
    assert problems(judge(ALL, RIGHT, failures=["service-0"])) == {"unexpected": ["service-0"]}


def test_unexplained_errors_and_responses_are_unexpected() -> None:
    log = [LogLine("service-0", 1, "ERROR", "It failed")]
    responses = [Response("service-0", 0, 1, 500), Response("service-0", 0, 1, None)]
    assert problems(judge(ALL, RIGHT, log=log, responses=responses)) == {
        "unexpected": [
            "service-0 logged: It failed",
            "service-0 returned 500",
            "1 connections broke, and no fault explains it",
        ]
    }


def test_missing_responses_without_a_fault_are_unexpected() -> None:
    report = judge(ALL, RIGHT, responses=[Response("service-0", 0, 10, None)] * 1000)
    assert problems(report) == {
        "unexpected": ["1000 of 1000 deliveries had no response in time, with no process fault"]
    }


def test_explained_errors_and_responses_are_counted_and_clean() -> None:
    log = [LogLine("service-0", 1, "ERROR", "Worker (pid:17) was sent SIGKILL!")]
    responses = [Response("service-0", 0, 1, status) for status in (204, 204, 429, 503, None)]
    faults = Faults([Excuse("service-0", FaultKind.KILL_WORKER, 0.5, 0.6, 2)])
    report = judge(ALL, RIGHT, log=log, responses=responses, faults=faults)
    assert report.is_clean
    assert report.responses == {"204": 2, "429": 1, "503": 1, "none": 1}
    assert report.silences == {Silence.PROCESS: 1}


def test_unexplained_crash_or_replacement_is_a_killed_service() -> None:
    log = [LogLine("service-0", 1, "ERROR", "Worker (pid:17) was sent SIGSEGV!")]
    faults = Faults(replacements=[Replacement("service-1", 1, 2)])
    report = judge(ALL, RIGHT, log=log, faults=faults)
    assert report.replacements == 1
    assert problems(report) == {
        "services killed": [
            "service-0 logged: Worker (pid:17) was sent SIGSEGV!",
            "service-1 failed its liveness",
        ]
    }


POISONOUS = replace(BAD, is_poisonous=True)
MISBEHAVES = LogLine("service-0", 1, "INFO", "A file is about to misbehave", is_poisoned=True)


def test_poisonous_file_costs_a_decoder() -> None:
    report = judge([POISONOUS], [record(POISONOUS)], log=[MISBEHAVES])
    assert report.is_clean
    assert (report.poisonous, report.decoders_lost) == (1, 1)
    assert "decoders lost            1 to 1 files" in report.table()


def test_poisonous_file_that_cost_no_decoder_is_unexpected() -> None:
    assert problems(judge([POISONOUS], [record(POISONOUS)])) == {
        "unexpected": ["0 decoders lost to 1 files"]
    }


def count(*, done: int = 0, superseded: int = 0) -> LogLine:
    return LogLine("service-0", 1, "INFO", "Committed", done=done, superseded=superseded)


def test_more_outcomes_than_documents_are_duplicates() -> None:
    assert judge(ALL, RIGHT, log=[count(done=1), count(done=1)]).is_clean
    assert problems(judge(ALL, RIGHT, log=[count(done=2), count(done=1)])) == {
        "duplicated": ["3 images were counted as done, with 2 documents"]
    }


def test_superseded_inference_needs_a_second_delivery() -> None:
    log = [count(superseded=2)]
    assert judge(ALL, RIGHT, log=log, messages=6).is_clean
    responses = [Response("service-0", 0, 1, 503)] * 2
    assert judge(ALL, RIGHT, log=log, responses=responses).is_clean
    assert problems(judge(ALL, RIGHT, log=log, messages=5)) == {
        "unexpected": ["2 superseded inferences, with 1 second deliveries"]
    }


def struck_by(kind: FaultKind, times: int = 1) -> Faults:
    return Faults([Excuse("service-0", kind, 0, 1, 2)] * times)


HUNDRED = [replace(GOOD, generation=number) for number in range(1, 101)]


@pytest.mark.parametrize(
    ("inferences", "superseded", "is_clean"),
    [(100, 0, True), (144, 0, True), (145, 0, False), (164, 20, True), (165, 20, False)],
    ids=["none", "little", "much", "superseded", "more-than-superseded"],
)
def test_waste_is_limited(inferences: int, superseded: int, is_clean: bool) -> None:
    documents = [record(expectation) for expectation in HUNDRED]
    log = [count(superseded=superseded)]
    report = judge(HUNDRED, documents, inferences=inferences, log=log, messages=200)
    assert report.is_clean == is_clean
    if not is_clean:
        assert problems(report) == {"wasted": [f"{inferences - 100}% more inferences than images"]}


@pytest.mark.parametrize(
    ("inferences", "faults", "is_clean"),
    [
        (0, Faults(), False),
        (99, Faults(), False),
        (99, struck_by(FaultKind.KILL), False),
        (50, struck_by(FaultKind.DISK), True),
        (49, struck_by(FaultKind.DISK), False),
        (50, struck_by(FaultKind.MEMORY), True),
    ],
    ids=["none", "one-missing", "killed", "disk", "more-than-the-disk", "memory"],
)
def test_fewer_inferences_than_images_are_a_problem(
    inferences: int, faults: Faults, is_clean: bool
) -> None:
    documents = [record(expectation) for expectation in HUNDRED]
    report = judge(HUNDRED, documents, inferences=inferences, faults=faults)
    assert report.is_clean == is_clean
    if not is_clean:
        assert problems(report) == {"wasted": [f"only {inferences} inferences of 100 images"]}


def test_table_shows_figures_and_first_problems() -> None:
    lost = [replace(GOOD, generation=number) for number in range(10, 18)]
    table = judge([*ALL, *lost], RIGHT).table()
    assert "uploads                  12" in table
    assert "lost                     8" in table
    assert "lost: gs://uploads/a.jpg#10 has no document" in table
    assert "lost: ... and 3 more" in table
