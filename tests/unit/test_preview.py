"""What other sources would change in stored results."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import click
import hypothesis
import pytest
from hypothesis import given

from service.cli.sources import _report
from service.cli.sources import preview as preview_command
from service.document import to_document
from service.domain import (
    Box,
    ClassScore,
    Detection,
    ErrorCode,
    Failure,
    ImageInfo,
    ImageRef,
    ImageResult,
    Keypoint,
    ModelInfo,
    Polygon,
    Prediction,
    RotatedBox,
    SourceVersion,
    Task,
)
from service.evaluation import evaluate
from service.operate.preview import Summary, Verdict, change_of, preview
from service.sources.current import SourceSettings
from service.sources.rules import Rules
from service.sources.schema import Mode, Zone
from tests.unit.test_evaluation import PREDICTIONS, RULES

MODEL = ModelInfo("m.pt", "0" * 64, 640, "fp32", "fake")
REF = ImageRef("uploads", "a.jpg", 1)
FLOOR = 0.05
BOX = Box(1.0, 2.0, 11.0, 22.0)
PERSON, CAR, DOG = (
    Detection("person", 0, 0.9, BOX),
    Detection("car", 2, 0.5, replace(BOX, x2=15.5)),
    Detection("dog", 16, 0.1, BOX),
)
ZONE = Zone(name="gate", mode=Mode.INCLUDE, points=((0, 0), (1, 0), (1, 1)))
# Edited by a person:
NO_SIZE = {"width": 0, "height": 0, "format": "JPEG"}
NEGATIVE_ID = {"label": "a", "class_id": -1, "confidence": 0.9, "box": asdict(BOX), "zones": []}
NEW = SourceVersion("yard", datetime(2026, 1, 1, tzinfo=UTC))


def document(
    *found: Detection,
    rules: Rules = Rules(),  # noqa: B008 - immutable
    task: Task = Task.DETECT,
    classes: tuple[ClassScore, ...] = (),
    **fields: Any,
) -> dict[str, Any]:
    """The document that the service writes under these rules."""
    result = ImageResult(
        REF,
        image_info=ImageInfo(100, 80, "JPEG"),
        model=replace(MODEL, task=task),
        source=SourceVersion("yard"),
        store_confidence=FLOOR,
    )
    evaluated = evaluate(result, Prediction(found, classes), rules)
    return to_document(evaluated) | fields


def settings(rules: Rules, **fields: Any) -> Any:
    return lambda ref: SourceSettings(rules, NEW, **fields)


def test_same_rules_change_nothing() -> None:
    for task in Task:
        stored = document(*_details(task), task=task)
        assert change_of(stored, settings(Rules()), FLOOR).verdict is Verdict.UNCHANGED, task


def _details(task: Task) -> tuple[Detection, ...]:
    if task is Task.CLASSIFY:
        return ()
    return (
        replace(
            PERSON,
            polygons=(Polygon((1.0, 2.0, 11.0, 2.0, 11.0, 22.0)),),
            area=100.5,
            keypoints=(Keypoint("nose", 2.0, 3.0, 0.5),),
            rotated_box=RotatedBox(6.0, 12.0, 10.0, 20.0, 5.0),
        ),
        CAR,
        DOG,
    )


def test_lower_threshold_keeps_faint_detections() -> None:
    change = change_of(document(PERSON, CAR, DOG), settings(Rules(0.1)), FLOOR)
    assert change.verdict is Verdict.CHANGED
    assert (change.kept, change.dropped) == ({"dog": 1}, {})
    assert change.fields["labels"] == ["car", "dog", "person"]
    assert change.fields["source"] == {"id": "yard", "version": NEW.version}


@pytest.mark.parametrize("task", Task)
def test_change_has_the_fields_that_a_commit_would_write(task: Task) -> None:
    details = _details(task)[:2]  # faint detections have boxes only, so none of them is kept
    classes = (ClassScore("dog", 16, 0.6), ClassScore("cat", 15, 0.2))
    after = Rules(0.55, keep_faint=False)
    stored = document(*details, task=task, classes=classes)
    change = change_of(stored, settings(after), FLOOR)
    expected = document(*details, task=task, classes=classes, rules=after)
    assert {**stored, **change.fields, "source": expected["source"]} == expected


@hypothesis.settings(max_examples=100, deadline=None)
@given(PREDICTIONS, RULES, RULES)
def test_document_becomes_what_a_commit_would_have_written(
    prediction: Prediction, before: Rules, after: Rules
) -> None:
    """Whatever the rules before: unless faint detections are missing, as those below the cut."""
    stored = document(*prediction.detections, rules=before)
    change = change_of(stored, settings(after), FLOOR)
    expected = document(*prediction.detections, rules=after)
    assert change.verdict in (Verdict.CHANGED, Verdict.UNCHANGED)
    assert {**stored, **change.fields, "source": expected["source"]} == expected


def test_higher_threshold_drops_detections_and_keeps_them_faint() -> None:
    stored = document(PERSON, CAR)
    change = change_of(stored, settings(Rules(0.8)), FLOOR)
    assert (change.kept, change.dropped) == ({}, {"car": 1})
    back = change_of(stored | dict(change.fields), settings(Rules()), FLOOR)
    assert (back.kept, back.dropped) == ({"car": 1}, {})


@pytest.mark.parametrize(
    ("rules", "fields", "verdict"),
    [
        (Rules(0.04), {}, Verdict.INCOMPLETE),
        (Rules(0.05), {}, Verdict.CHANGED),
        (Rules(0.3, {"dog": 0.2}), {"faint_cut": 0.25}, Verdict.INCOMPLETE),
        (Rules(0.3), {"faint_cut": 0.3}, Verdict.INCOMPLETE),
        (Rules(0.6), {"faint_cut": 0.3}, Verdict.CHANGED),
        (Rules(0.6), {"faint": None, "faint_cut": None}, Verdict.INCOMPLETE),
        (Rules(0.6), {"detections_uri": "gs://results/x"}, Verdict.LARGE),
        (Rules(0.6), {"schema": 1}, Verdict.UNREADABLE),
        (Rules(0.6), {"faint": b"x"}, Verdict.UNREADABLE),
        (Rules(0.6), {"detections": [5]}, Verdict.UNREADABLE),
        (Rules(0.6), {"detections": [{"label": "car"}]}, Verdict.UNREADABLE),
        (Rules(0.6), {"image": None}, Verdict.UNREADABLE),
        (Rules(0.6, zones=(ZONE,)), {"image": NO_SIZE}, Verdict.UNREADABLE),
        (Rules(0.999), {"detections": [NEGATIVE_ID]}, Verdict.UNREADABLE),
        (Rules(0.6), {"model": None}, Verdict.UNREADABLE),
        (Rules(0.6), {"source": None}, Verdict.UNREADABLE),
    ],
)
def test_documents_that_cannot_be_compared_are_named(
    rules: Rules, fields: dict[str, Any], verdict: Verdict
) -> None:
    stored = document(PERSON, CAR, DOG, **fields)
    assert change_of(stored, settings(rules), FLOOR).verdict is verdict


def test_document_that_was_cut_at_the_floor_is_incomplete() -> None:
    """The cut must not look as if all detections were recorded."""
    many = [replace(DOG, confidence=FLOOR, box=replace(BOX, x2=500.0 + i)) for i in range(300)]
    stored = document(*many)
    assert stored["faint_cut"] > FLOOR
    assert change_of(stored, settings(Rules(FLOOR)), FLOOR).verdict is Verdict.INCOMPLETE
    assert change_of(stored, settings(Rules(0.06)), FLOOR).verdict is Verdict.UNCHANGED


def test_failed_and_disabled_documents_stay_as_they_are() -> None:
    failed = to_document(ImageResult(REF, failure=Failure(ErrorCode.CORRUPT_IMAGE, "cut short")))
    assert change_of(failed, settings(Rules()), FLOOR).verdict is Verdict.NOT_DONE
    disabled = settings(Rules(0.9), is_enabled=False)
    assert change_of(document(PERSON, CAR), disabled, FLOOR).verdict is Verdict.DISABLED


def test_document_of_another_source_is_changed() -> None:
    stored = document(PERSON, source={"id": "gate", "version": None})
    change = change_of(stored, settings(Rules()), FLOOR)
    assert change.verdict is Verdict.CHANGED
    assert not change.kept and not change.dropped


def test_newer_version_alone_changes_nothing() -> None:
    stored = document(PERSON, source={"id": "yard", "version": datetime(2020, 1, 1, tzinfo=UTC)})
    assert change_of(stored, settings(Rules()), FLOOR).verdict is Verdict.UNCHANGED


@dataclass
class FakeVersion:
    id: str
    fields: dict[str, Any]


@dataclass
class FakeRewriter:
    """Documents in memory. The first rewrites of a document find that it was changed."""

    documents: dict[str, dict[str, Any] | None]
    conflicts: int = 0
    writes: list[str] = field(default_factory=list)

    def versions(self) -> list[FakeVersion]:
        return [FakeVersion(id, fields) for id, fields in self.documents.items() if fields]

    def version(self, document_id: str) -> FakeVersion | None:
        fields = self.documents[document_id]
        return FakeVersion(document_id, fields) if fields else None

    def rewrite(self, version: FakeVersion, fields: Mapping[str, Any]) -> bool:
        if self.conflicts:
            self.conflicts -= 1
            return False
        current = self.documents[version.id]
        if current is None:
            return False
        self.documents[version.id] = {**current, **fields}
        self.writes.append(version.id)
        return True


def applied(rewriter: FakeRewriter, versions: Any, rules: Rules) -> Summary:
    return preview(versions, settings(rules), store_confidence=FLOOR, rewriter=rewriter)


def test_apply_writes_only_what_changes_and_is_idempotent() -> None:
    rewriter = FakeRewriter({"a": document(PERSON, CAR), "b": document(PERSON)})
    first = applied(rewriter, rewriter.versions(), Rules(0.8))
    assert (first.rewritten, first.dropped, rewriter.writes) == (1, {"car": 1}, ["a"])
    second = applied(rewriter, rewriter.versions(), Rules(0.8))
    assert (second.rewritten, second.verdicts[Verdict.UNCHANGED]) == (0, 2)


def test_document_that_changed_meanwhile_is_compared_again() -> None:
    rewriter = FakeRewriter({"a": document(PERSON, CAR)}, conflicts=2)
    read = rewriter.versions()
    rewriter.documents["a"] = document(PERSON, CAR, CAR)
    summary = applied(rewriter, read, Rules(0.8))
    assert (summary.rewritten, summary.dropped) == (1, {"car": 2})


def test_document_that_was_deleted_meanwhile_is_not_created() -> None:
    rewriter = FakeRewriter({"a": document(PERSON, CAR)})
    read = rewriter.versions()
    rewriter.documents["a"] = None
    assert applied(rewriter, read, Rules(0.8)).rewritten == 0
    assert rewriter.documents == {"a": None}


def test_preview_alone_writes_nothing() -> None:
    rewriter = FakeRewriter({"a": document(PERSON, CAR)})
    before = dict(rewriter.documents)
    summary = preview(rewriter.versions(), settings(Rules(0.8)), store_confidence=FLOOR)
    assert summary.verdicts == {Verdict.CHANGED: 1}
    assert rewriter.documents == before


def test_help_lists_every_key_of_the_report() -> None:
    [option] = [each for each in preview_command.params if "--json" in each.opts]
    assert isinstance(option, click.Option)
    keys = re.findall(r"\w+", (option.help or "").partition(":")[2])
    assert keys == list(_report(Summary(), ("uploads", "")))
