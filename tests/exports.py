"""Documents for tests of exports, and a process that exports them."""

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
    RotatedBox,
    Task,
)
from service.gcp.result_pages import StoredResult
from service.result_exports.exporting import Tally, exported_images, write_export
from service.result_exports.folder import ExportFolder
from service.result_exports.formats import FORMATS
from service.result_exports.names import FileNames
from service.result_exports.records import ExportOptions
from service.result_exports.selection import Selection

NEWEST = datetime(2026, 11, 30, 12, tzinfo=UTC)
MODEL = ModelInfo("shapes.pt", "ab" * 32, 320, "fp32", "openvino 2026.0.0")
INFO = ImageInfo(640, 480, "JPEG")
REQUEST = {"test": 1}
KEPT = Selection()  # the detections that the service kept


def detection(label: str = "star", confidence: float = 0.9, **fields: Any) -> Detection:
    class_id = fields.pop("class_id", {"star": 0, "heart": 2}.get(label, 5))
    return Detection(label, class_id, confidence, Box(64.0, 48.0, 128.0, 144.0), **fields)


def stored(name: str, *detections: Detection, **fields: Any) -> StoredResult:
    """Return the document of a result."""
    edited = fields.pop("edited", {})
    ref = ImageRef("uploads", name, 7)
    result = ImageResult(ref, image_info=INFO, model=MODEL, detections=detections, faint=())
    result = replace(result, **fields)
    document = to_document(result) | {"created_at": NEWEST} | edited
    return StoredResult(ref.document_id, document)


def every_kind() -> list[StoredResult]:
    """Return results of every task and kind."""
    ring = Polygon((64.0, 48.0, 128.0, 48.0, 128.0, 144.0, 64.0, 144.0))
    hole = Polygon((80.0, 60.0, 100.0, 60.0, 100.0, 80.0))
    points = (Keypoint("nose", 70.0, 50.0, 0.9), Keypoint("tail", 100.0, 140.0, 0.1))
    rotated = RotatedBox(96.0, 96.0, 40.0, 20.0, 30.0)
    return [
        stored("cam1/two.jpg", detection(), detection("heart", 0.6)),
        stored("cam1/nothing.jpg"),
        stored(
            "mask.jpg",
            detection(polygons=(ring, hole), area=5000.0),
            model=replace(MODEL, task=Task.SEGMENT),
        ),
        stored("pose.jpg", detection(keypoints=points), model=replace(MODEL, task=Task.POSE)),
        stored("obb.jpg", detection(rotated_box=rotated), model=replace(MODEL, task=Task.OBB)),
        stored(
            "class.jpg",
            model=replace(MODEL, task=Task.CLASSIFY),
            classes=(ClassScore("fox", 1, 0.8), ClassScore("wolf", 2, 0.1)),
            kept_classes=(ClassScore("fox", 1, 0.8),),
        ),
        stored("failed.jpg", image_info=None, failure=Failure(ErrorCode.CORRUPT_IMAGE, "Broken.")),
        stored("../=1+1.jpg", detection('=cmd|"<script>'), edited={"uri": "=HYPERLINK(1)"}),
        stored("edited.jpg", edited={"detections": "none"}),
        stored("endless.jpg", edited={"image": {"width": 0, "height": 1, "format": "JPEG"}}),
        stored("two.png", detection(), faint=(detection("heart", 0.2),)),
    ]


def many(count: int) -> Iterator[StoredResult]:
    """Yield results of one task, each with two detections."""
    for number in range(count):
        age = timedelta(seconds=number)
        yield stored(
            f"cam{number % 7}/{number:06}.jpg",
            detection(),
            detection("heart", 0.6),
            edited={"created_at": NEWEST - age},
        )


def with_cursors(results: Iterator[StoredResult] | list[StoredResult]) -> Iterator[Any]:
    """Yield results with cursors: the number of results before them."""
    for number, result in enumerate(results, 1):
        yield result, str(number)


def export_to(
    folder: Path,
    format_name: str,
    results: Iterator[StoredResult] | list[StoredResult],
    selection: Selection = KEPT,
    *,
    is_resumed: bool = False,
    kill_at: int | None = None,
    **options: Any,
) -> tuple[Tally, list[str]]:
    """Export results to a folder. Return the tally and the notes.

    With `kill_at`, print a line after this many images, and wait for the end.
    """
    writer = FORMATS[format_name].writer(ExportOptions(**options))
    with closing(ExportFolder(folder)) as target:
        cursor, state = target.resume(REQUEST) if is_resumed else (None, {})
        if not is_resumed:
            target.begin(REQUEST)
        if cursor is None:
            writer.begin(target)
        else:
            writer.restore(state["writer"])
        left = (pair for pair in with_cursors(results) if int(pair[1]) > int(cursor or 0))
        tally = Tally(**state.get("tally", {}))

        def wait(image: Any) -> None:
            if tally.images == kill_at:
                print("ready", flush=True)
                sys.stdin.read()

        images = exported_images(left, FileNames(target), selection)
        write_export(images, writer, target, target, wait, tally=tally)
        target.finish()
    return tally, list(writer.notes())


if __name__ == "__main__":
    export_to(Path(sys.argv[1]), sys.argv[2], many(int(sys.argv[3])), kill_at=int(sys.argv[4]))
