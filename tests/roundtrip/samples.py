"""Images of an export for the round trips: every task, hostile texts, empty and failed images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from service.document import to_document
from service.domain import (
    Box,
    CapturedAtSource,
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
    RotatedBox,
    Task,
)
from service.gcp.result_pages import StoredResult
from service.result_exports.exporting import exported_images, write_export
from service.result_exports.folder import ExportFolder
from service.result_exports.formats import FORMATS
from service.result_exports.names import FileNames
from service.result_exports.records import ExportedImage, ExportOptions
from service.result_exports.selection import Selection

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


def done(name: str, task: Task, found: Sequence[Detection] = (), **fields: Any) -> StoredResult:
    result = ImageResult(
        ImageRef("uploads", name, 1_796_034_281_846_152),
        image_info=ImageInfo(WIDTH, HEIGHT, "JPEG"),
        model=model(task),
        detections=tuple(found),
        **fields,
    )
    return sample(result)


def failed(name: str, code: ErrorCode, message: str, **fields: Any) -> StoredResult:
    ref = ImageRef("uploads", name, 7)
    return sample(ImageResult(ref, failure=Failure(code, message), **fields))


def sample(result: ImageResult, **document: Any) -> StoredResult:
    fields = to_document(result) | {"created_at": TAKEN + timedelta(hours=1)} | document
    return StoredResult(result.ref.document_id, fields)


def detect() -> StoredResult:
    found = [detection(number, label) for number, label in enumerate(HOSTILE)]
    return done("detect/a.jpg", Task.DETECT, found)


def segment() -> StoredResult:
    outer, hole = ring(10, 20, 210.5, 20, 210.5, 220.25, 10, 220.25), ring(50, 60, 90, 60, 90, 99)
    island = ring(500.33, 500, 600, 500, 600, 601.5)
    fields: dict[str, Any] = {"polygons": (outer, hole, island), "area": 1234.0}
    return done("segment/a.jpg", Task.SEGMENT, [detection(0, "fox", **fields)])


def pose() -> StoredResult:
    points = (
        Keypoint("nose", 50.25, 60.75, 0.9),
        Keypoint("left eye", 55.0, 58.5, 0.7),
        Keypoint("hidden", 12.0, 13.0, 0.1),
        Keypoint("outside", -4.0, 13.0, 0.9),
    )
    return done("pose/a.jpg", Task.POSE, [detection(0, "person", keypoints=points)])


def rotated() -> StoredResult:
    boxes = (
        RotatedBox(900.5, 500.25, 300.5, 80.75, 33.4),
        RotatedBox(5.0, 540.0, 60.0, 20.0, 10.0),  # one corner is outside
        RotatedBox(300.0, 540.0, 1000.0, 50.0, 85.0),
    )
    found = [detection(n, "ship", rotated_box=item) for n, item in enumerate(boxes)]
    return done("obb/a.jpg", Task.OBB, found)


def classify() -> StoredResult:
    scores = (ClassScore("owl", 2, 0.8123), ClassScore("with, comma", 5, 0.15))
    below = ClassScore("dog", 1, 0.01)
    fields: dict[str, Any] = {"classes": (*scores, below), "kept_classes": scores}
    return done("classify/a.jpg", Task.CLASSIFY, **fields)


def empty() -> StoredResult:
    return done("empty/nothing.jpg", Task.DETECT)


def damaged() -> StoredResult:
    return failed(
        "bad/\u202edamaged, \U0001f98a.jpg", ErrorCode.CORRUPT_IMAGE, '"It" is <damaged>.'
    )


def parked() -> StoredResult:
    return failed("bad/parked.jpg", ErrorCode.DAILY_IMAGE_LIMIT, "The day's limit is reached.")


def unreadable() -> StoredResult:
    """A done document that a person has broken."""
    ref = ImageRef("uploads", "bad/unreadable.jpg", 7)
    result = ImageResult(ref, image_info=ImageInfo(WIDTH, HEIGHT, "JPEG"), model=model(Task.DETECT))
    return sample(result, detections=[{"label": 7}])


def every_sample() -> list[StoredResult]:
    return [
        detect(), segment(), pose(), rotated(), classify(), empty(), damaged(), parked(),
        unreadable(),
    ]  # fmt: skip


def trapped(item: StoredResult, *, source: str, place: Any, minutes: int) -> StoredResult:
    """The same image, with a time and a place."""
    fields = {
        "captured_at": TAKEN + timedelta(minutes=minutes),
        "captured_at_source": str(CapturedAtSource.EXIF_OFFSET),
        "location": place,
        "source": {"id": source, "version": None},
    }
    return edited(item, **fields)


def edited(item: StoredResult, **fields: Any) -> StoredResult:
    """The same image, after a person has edited its document."""
    return StoredResult(item.id, item.document | fields)


def image_of(item: StoredResult) -> ExportedImage:
    """What a writer gets of one image."""
    [(image, _)] = exported_images([(item, "")], FileNames(Paths()), Selection())
    return image


class Paths:
    """The paths that were given, in memory."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def add(self, key: str) -> bool:
        is_new = key not in self._keys
        self._keys.add(key)
        return is_new

    def has(self, key: str) -> bool:
        return key in self._keys


@dataclass
class Exported:
    """An export in a folder: its images in order, and the notes for the user."""

    folder: Path
    images: list[ExportedImage]
    notes: Sequence[str]

    def path(self, item: StoredResult) -> str:
        return self.image(item).path

    def image(self, item: StoredResult) -> ExportedImage:
        [image] = [image for image in self.images if image.document_id == item.id]
        return image

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def export_to(
    folder: Path,
    format_name: str,
    items: Sequence[StoredResult],
    options: ExportOptions = ExportOptions(),  # noqa: B008
) -> Exported:
    """Export as the command does."""
    output, images = ExportFolder(folder), list[ExportedImage]()
    output.begin({})
    writer = FORMATS[format_name].writer(options)
    writer.begin(output)
    results = exported_images([(item, "") for item in items], FileNames(output), Selection())
    write_export(results, writer, output, on_image=images.append)
    output.finish()
    return Exported(folder, images, list(writer.notes()))
