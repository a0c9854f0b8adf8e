"""The table of results, and the notes that commands print."""

from dataclasses import replace
from typing import Any

import pytest

from devtools.fuzz.corpus import NAMES
from service.cli.report import bucket_note, say_results
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
    RotatedBox,
    Task,
    Timings,
)

REF = ImageRef("uploads", "cat.jpg", 1)
BOX = Box(0.0, 0.0, 1.0, 1.0)
HEADER = ["image", "status", "detections", "best", "batch", "ms"]


def done(*detections: Detection) -> dict[str, Any]:
    timings = Timings(download_ms=10.0, decode_ms=5.0, queue_ms=20.0, inference_ms=6.6)
    return to_document(ImageResult(REF, detections=detections, batch_size=4, timings=timings))


def of_task(task: Task, *detections: Detection, **fields: Any) -> dict[str, Any]:
    model = ModelInfo("yolo.pt", "ab", 640, "fp32", "fake", task)
    info = ImageInfo(100, 50, "JPEG")
    return to_document(
        ImageResult(REF, detections=detections, model=model, image_info=info, **fields)
    )


def lines(capsys: pytest.CaptureFixture[str], *documents: dict[str, Any]) -> list[str]:
    say_results(documents)
    return capsys.readouterr().out.splitlines()


def test_row_counts_labels_and_sums_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    detections = [Detection("person", 0, 0.876, BOX), Detection("cat", 15, 0.5, BOX)]
    header, row = lines(capsys, done(*detections, detections[0]))
    assert header.split() == HEADER
    assert row.split() == ["cat.jpg", "done", "1", "cat,", "2", "person", "0.88", "4", "42"]


def test_labels_cannot_break_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    detections = [Detection("a\n\x1b[2Jb", 0, 0.5, BOX), Detection("[bold]light", 9, 0.5, BOX)]
    _, row = lines(capsys, done(*detections))
    assert "1 [bold]light, 1 a??[2Jb" in row


def test_row_without_detections_says_none(capsys: pytest.CaptureFixture[str]) -> None:
    _, row = lines(capsys, done())
    assert row.split() == ["cat.jpg", "done", "none", "4", "42"]


def test_row_of_masks_says_how_much_they_cover(capsys: pytest.CaptureFixture[str]) -> None:
    masks = [Detection("cat", 15, 0.9, BOX, area=area) for area in (500.0, 130.0)]
    _, row = lines(capsys, of_task(Task.SEGMENT, *masks))
    assert "  2 cat (12.6 % of the image)  " in row


def test_row_of_poses_counts_the_visible_keypoints(capsys: pytest.CaptureFixture[str]) -> None:
    points = tuple(Keypoint(f"k{i}", 1.0, 1.0, i / 10) for i in range(10))
    person = Detection("person", 0, 0.9, BOX, keypoints=points)
    _, row = lines(capsys, of_task(Task.POSE, person, person))
    assert "  2 person (10 of 20 keypoints visible)  " in row


def test_row_of_rotated_boxes_has_the_best_three_angles(capsys: pytest.CaptureFixture[str]) -> None:
    turned = RotatedBox(10.0, 10.0, 8.0, 4.0, 0.0)
    ships = [
        Detection("ship", 1, 0.9, BOX, rotated_box=replace(turned, angle_degrees=angle))
        for angle in (12.4, 80.0, 45.0, 3.0)
    ]
    assert "  3 ship (12°, 80°, 45°)  " in lines(capsys, of_task(Task.OBB, *ships[:3]))[1]
    assert "  4 ship (12°, 80°, 45°, ...)  " in lines(capsys, of_task(Task.OBB, *ships))[1]


def test_row_of_classes_has_those_that_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    scores = (ClassScore("tabby", 281, 0.8), ClassScore("lynx", 287, 0.1))
    fields: dict[str, Any] = {"classes": scores, "kept_classes": scores[:1]}
    _, row = lines(capsys, of_task(Task.CLASSIFY, **fields))
    assert "  tabby 0.80  0.80  " in row
    _, row = lines(capsys, of_task(Task.CLASSIFY, classes=scores))
    assert "  none  " in row


@pytest.mark.parametrize("task", Task)
def test_row_of_any_task_without_detections_says_none(
    task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "  none  " in lines(capsys, of_task(task))[1]


def test_row_of_a_failed_image_has_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    failure = Failure(ErrorCode.CORRUPT_IMAGE, "The JPEG file is damaged.")
    _, row = lines(capsys, to_document(ImageResult(REF, failure=failure)))
    assert row == "cat.jpg  failed  corrupt_image: The JPEG file is damaged."


def test_row_of_a_parked_image_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    failure = Failure(ErrorCode.DAILY_IMAGE_LIMIT, "The limit was reached.")
    _, row = lines(capsys, to_document(ImageResult(REF, failure=failure)))
    assert row == "cat.jpg  parked  daily_image_limit: The limit was reached."


@pytest.mark.parametrize(
    "edited",
    [{"error": "none"}, {"timings": {"queue_ms": "5"}}, {"counts": 3}, {"max_confidence": "high"}],
    ids=str,
)
def test_document_that_a_person_edited_is_one_row(
    capsys: pytest.CaptureFixture[str], edited: dict[str, Any]
) -> None:
    _, row = lines(capsys, done() | edited)
    assert row.split() == ["cat.jpg", "done", "unreadable:", "see", "--json"]


def test_name_that_looks_like_a_number_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    _, row = lines(capsys, done() | {"name": "1e5"})
    assert row.startswith("1e5 ")


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_any_name_is_one_row_and_obeyed_by_no_terminal(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say_results([done() | {"name": name}])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 2
    assert printed.replace("\n", "").isprintable()


def test_table_without_rows_has_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split() for line in lines(capsys)] == [HEADER]


@pytest.mark.parametrize(
    ("allowed", "is_warned"), [((), False), (("a", "b"), False), (("b",), True)], ids=str
)
def test_bucket_that_is_not_allowed_is_warned_of(allowed: tuple[str, ...], is_warned: bool) -> None:
    note = bucket_note("a", allowed)
    assert (note is not None) == is_warned
    assert not note or "gs://a is not in ALLOWED_BUCKETS" in note
