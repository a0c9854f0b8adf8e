"""Images of an export for the round trips: every task, hostile texts, empty and failed images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from service.document import to_document
from service.domain import (
    Box,
    CapturedAtSource,
    ClassScore,
    Detection,
    ErrorCode,
    Failure,
    GeoPoint,
    ImageInfo,
    ImageRef,
    ImageResult,
    Keypoint,
    ModelInfo,
    Polygon,
    RotatedBox,
    Task,
)

WIDTH, HEIGHT = 1920, 1081  # an odd side, so that no division is exact
TAKEN = datetime(2026, 5, 4, 6, 7, 8, 900_000, UTC)
HOSTILE = (
    "plain",
    "with, comma",
    'with "quotes"',
    "it's",
    "two\nlines",
    "tab\tand\rreturn",
    "<script>alert(1)</script>",
    "&amp; ]]> <!--",
    "=cmd|' /C calc'!A0",
    "+1",
    "@SUM(1)",
    "-2",
    "007",
    "true",
    "null",
    "a|b",
    "$image",
    "emoji \U0001f98a",
    "\u202eright to left \u05d0",
    "e\u0301 is not \u00e9",
    "control \x01\x0b\x1f",
    " leading and trailing ",
    "k" * 1000,
    "",
)


@dataclass(frozen=True)
class Sample:
    """One image of an export."""

    document_id: str
    document: Mapping[str, Any]
    result: ImageResult | None
    status: str
    error: str | None
    path: str


def model(task: Task) -> ModelInfo:
    return ModelInfo(f"yolo26n-{task}.pt", "0" * 64, 640, "fp32", "openvino", task)


def box(number: int) -> Box:
    """A box with the decimals that documents have."""
    x, y = 10.01 + number * 7.13, 20.02 + number * 3.57
    return Box(round(x, 2), round(y, 2), round(x + 100.37, 2), round(y + 55.91, 2))


def detection(number: int, label: str, **fields: Any) -> Detection:
    return Detection(label, number, round(0.9876 - number * 0.013, 4), box(number), **fields)


def ring(*points: float) -> Polygon:
    return Polygon(points)


def done(name: str, task: Task, found: Sequence[Detection] = (), **fields: Any) -> Sample:
    result = ImageResult(
        ImageRef("uploads", name, 1_796_034_281_846_152),
        image_info=ImageInfo(WIDTH, HEIGHT, "JPEG"),
        model=model(task),
        detections=tuple(found),
        **fields,
    )
    return sample(result)


def failed(name: str, code: ErrorCode, message: str, **fields: Any) -> Sample:
    ref = ImageRef("uploads", name, 7)
    return sample(ImageResult(ref, failure=Failure(code, message), **fields))


def sample(result: ImageResult, **document: Any) -> Sample:
    fields = to_document(result) | {"created_at": TAKEN + timedelta(hours=1)} | document
    return Sample(
        result.ref.document_id,
        fields,
        None if result.failure else result,
        str(fields["status"]),
        result.failure.message if result.failure else None,
        result.ref.name,
    )


def detect() -> Sample:
    found = [detection(number, label) for number, label in enumerate(HOSTILE)]
    return done("detect/a.jpg", Task.DETECT, found)


def segment() -> Sample:
    outer, hole = ring(10, 20, 210.5, 20, 210.5, 220.25, 10, 220.25), ring(50, 60, 90, 60, 90, 99)
    island = ring(500.33, 500, 600, 500, 600, 601.5)
    fields: dict[str, Any] = {"polygons": (outer, hole, island), "area": 1234.0}
    return done("segment/a.jpg", Task.SEGMENT, [detection(0, "fox", **fields)])


def pose() -> Sample:
    points = (
        Keypoint("nose", 50.25, 60.75, 0.9),
        Keypoint("left eye", 55.0, 58.5, 0.7),
        Keypoint("hidden", 12.0, 13.0, 0.1),
        Keypoint("outside", -4.0, 13.0, 0.9),
    )
    return done("pose/a.jpg", Task.POSE, [detection(0, "person", keypoints=points)])


def rotated() -> Sample:
    boxes = (
        RotatedBox(900.5, 500.25, 300.5, 80.75, 33.4),
        RotatedBox(5.0, 540.0, 60.0, 20.0, 10.0),  # one corner is outside
        RotatedBox(300.0, 540.0, 1000.0, 50.0, 85.0),
    )
    found = [detection(n, "ship", rotated_box=item) for n, item in enumerate(boxes)]
    return done("obb/a.jpg", Task.OBB, found)


def classify() -> Sample:
    scores = (ClassScore("owl", 2, 0.8123), ClassScore("with, comma", 5, 0.15))
    below = ClassScore("dog", 1, 0.01)
    fields = {"classes": (*scores, below), "kept_classes": scores}
    return done("classify/a.jpg", Task.CLASSIFY, **fields)


def empty() -> Sample:
    return done("empty/nothing.jpg", Task.DETECT)


def damaged() -> Sample:
    return failed(
        "bad/\u202edamaged, \U0001f98a.jpg", ErrorCode.CORRUPT_IMAGE, '"It" is <damaged>.'
    )


def parked() -> Sample:
    return failed("bad/parked.jpg", ErrorCode.DAILY_IMAGE_LIMIT, "The day's limit is reached.")


def unreadable() -> Sample:
    """A done document that a person has broken."""
    return replace(empty(), result=None, path="bad/unreadable.jpg", document_id="f" * 40)


def every_sample() -> list[Sample]:
    return [
        detect(), segment(), pose(), rotated(), classify(), empty(), damaged(), parked(),
        unreadable(),
    ]  # fmt: skip


def trapped(item: Sample, *, source: str, place: GeoPoint, minutes: int) -> Sample:
    """The same image, with a time and a place."""
    return replace(
        item,
        document=dict(item.document)
        | {
            "captured_at": TAKEN + timedelta(minutes=minutes),
            "captured_at_source": str(CapturedAtSource.EXIF_OFFSET),
            "location": place,
            "source": {"id": source, "version": None},
        },
    )
