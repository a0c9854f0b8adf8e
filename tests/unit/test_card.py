"""What a page shows of a result, whatever a person has edited in its document."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask

from service.document import to_document
from service.domain import (
    Box,
    DerivedImage,
    DerivedKind,
    Detection,
    ErrorCode,
    Failure,
    ImageInfo,
    ImageRef,
    ImageResult,
    Keypoint,
    ModelInfo,
    Polygon,
    RotatedBox,
    Task,
)
from service.gallery import images
from service.gallery.card import card
from service.gcp.result_pages import StoredResult

REF = ImageRef("uploads", "cam1/a.jpg", 7)
BOX = Box(1.0, 2.0, 3.0, 4.0)
RING = Polygon((1.0, 2.0, 3.0, 2.0, 3.0, 4.0))
DONE = ImageResult(
    REF,
    image_info=ImageInfo(640, 480, "JPEG"),
    model=ModelInfo("a.pt", "0" * 64, 640, "fp32", "openvino"),
    detections=(Detection("fox", 1, 0.9, BOX, zones=("door",)), Detection("fox", 1, 0.5, BOX)),
    faint=(Detection("hare", 2, 0.125, BOX),),
)
# What a person may have written in place of any value.
EDITS: tuple[Any, ...] = (
    None, True, -1, 2**63 - 1, 0.5, float("nan"), float("inf"), "", "<script>", b"\xff\x00",
    [], ["text", None, {"label": 1}], {}, {"x": {"y": 1}}, datetime(1, 1, 1, tzinfo=UTC),
)  # fmt: skip


@pytest.fixture(autouse=True)
def request_context() -> Iterator[None]:
    app = Flask(__name__)
    app.register_blueprint(images.blueprint)
    with app.test_request_context():
        yield


def card_of(result: ImageResult, **edited: Any) -> dict[str, Any]:
    return card(StoredResult(result.ref.document_id, to_document(result) | edited))


def of_task(task: Task, **fields: Any) -> dict[str, Any]:
    """Return the detection of a card whose model has this task."""
    assert DONE.model
    found = Detection("fox", 1, 0.9, BOX, **fields)
    model = replace(DONE.model, task=task)
    [shown] = card_of(replace(DONE, model=model, detections=(found,)))["detections"]
    assert isinstance(shown, dict)
    return shown


def test_card_has_what_the_page_shows() -> None:
    shown = card_of(DONE)
    assert (shown["name"], shown["generation"], shown["shown"]) == ("cam1/a.jpg", 7, "found")
    assert (shown["width"], shown["height"]) == (640, 480)
    assert shown["thumbnail"] == f"/images/{REF.document_id}/7/thumbnail"
    assert shown["alt"] == "cam1/a.jpg: 2 fox"
    first, second = shown["detections"]
    assert first == {
        "label": "fox",
        "class_id": 1,
        "confidence": 0.9,
        "box": [1.0, 2.0, 3.0, 4.0],
        "zones": ["door"],
    }
    assert "zones" not in second
    assert [(each["label"], each["confidence"]) for each in shown["faint"]] == [("hare", 0.125)]


def test_shapes_of_each_task_are_in_the_card() -> None:
    assert of_task(Task.SEGMENT, polygons=(RING,))["polygons"] == [list(RING.points)]
    points = (Keypoint("nose", 5.0, 6.0, 0.75),)
    [point] = of_task(Task.POSE, keypoints=points)["keypoints"]
    assert point == {"x": 5.0, "y": 6.0, "confidence": 0.75, "name": "nose"}
    assert len(of_task(Task.OBB, rotated_box=RotatedBox(5, 5, 4, 2, 30))["corners"]) == 8


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (replace(DONE, detections=()), "nothing_found"),
        (ImageResult(REF, failure=Failure(ErrorCode.CORRUPT_IMAGE, "cut")), "failed"),
        (ImageResult(REF, failure=Failure(ErrorCode.DAILY_IMAGE_LIMIT, "full")), "parked"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outcomes_are_different_things(result: ImageResult, shown: str) -> None:
    made = card_of(result)
    assert made["shown"] == shown
    assert made["alt"] == f"cam1/a.jpg: {shown.replace('_', ' ')}"


def test_failed_image_has_a_reason_and_no_address() -> None:
    made = card_of(ImageResult(REF, failure=Failure(ErrorCode.CORRUPT_IMAGE, "cut")))
    assert made["error"] == {"code": "corrupt_image", "message": "cut"}
    assert made["thumbnail"] is None


def test_redacted_results_say_so() -> None:
    copy = DerivedImage(DerivedKind.REDACTED, b"x", "image/jpeg", uri="gs://b/c")
    assert card_of(replace(DONE, derived=(copy,)))["redacted"]
    assert not card_of(DONE)["redacted"]


@pytest.mark.parametrize("document", [{}, {"status": 1}, {"status": "done", "image": 3}], ids=str)
def test_unreadable_document_still_has_a_card(document: dict[str, Any]) -> None:
    made = card(StoredResult("any id", document))
    assert (made["thumbnail"], made["width"], made["detections"]) == (None, None, [])


def edited(value: Any, chosen: random.Random) -> Any:
    """Return a value of a document with some parts replaced by what a person may have written."""
    if chosen.random() < 0.15:
        return chosen.choice(EDITS)
    if isinstance(value, dict):
        return {key: edited(item, chosen) for key, item in value.items()}
    if isinstance(value, list):
        return [edited(item, chosen) for item in value]
    return value


def test_any_edit_of_a_document_gives_a_card() -> None:
    chosen = random.Random(1)
    document = to_document(DONE) | {"derived": [{"kind": "redacted"}], "error": {"code": "x"}}
    for _ in range(2000):
        fields = {key: edited(value, chosen) for key, value in document.items()}
        made = card(StoredResult("any id", fields))
        json.dumps(made, allow_nan=False)
        for each in made["detections"]:
            assert len(each["box"]) == 4


def test_labels_are_text_whatever_they_have() -> None:
    label = "<script>" + "x" * 1000
    fields = {"box": {"x1": 0, "y1": 0, "x2": 1, "y2": 1}, "confidence": 1, "label": label}
    [shown] = card_of(DONE, detections=[fields])["detections"]
    assert shown["label"] == label


def test_replaced_result_has_other_addresses() -> None:
    earlier, later = (
        card_of(DONE, created_at=datetime(2026, 11, day, tzinfo=UTC)) for day in (29, 30)
    )
    for view in ("thumbnail", "large"):
        assert earlier[view] != later[view]
        assert earlier[view] == card_of(DONE, created_at=datetime(2026, 11, 29, tzinfo=UTC))[view]
