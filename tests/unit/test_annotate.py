"""Annotated copies: what each task looks like, drawn from a stored document."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from service.cli.main import main
from service.document import to_document
from service.domain import (
    Box,
    ClassScore,
    Detection,
    ImageRef,
    ImageResult,
    Keypoint,
    ModelInfo,
    Polygon,
    RotatedBox,
    Task,
)
from service.images import annotate as annotate_module
from service.images.annotate import annotate
from service.images.pixels import Pixels
from service.operate.detect import save_annotated
from tests.task_models import write_model

BOX = Box(40.0, 40.0, 160.0, 160.0)
FOUND = Detection("ring", 3, 0.8, BOX)
RING = Polygon((40.0, 40.0, 160.0, 40.0, 160.0, 160.0, 40.0, 160.0))
HOLE = Polygon((80.0, 80.0, 120.0, 80.0, 120.0, 120.0, 80.0, 120.0))
MASKED = replace(FOUND, polygons=(RING, HOLE), area=12_800.0)
SHOULDERS = (
    Keypoint("left_shoulder", 60.0, 60.0, 0.9),
    Keypoint("right_shoulder", 140.0, 60.0, 0.9),
    Keypoint("left_hip", 60.0, 140.0, 0.2),
)
TURNED = RotatedBox(100.0, 100.0, 80.0, 40.0, 45.0)


def drawn(detection: Detection, *classes: ClassScore, gray: int = 100) -> Pixels:
    return annotate(np.full((200, 200, 3), gray, np.uint8), [detection], classes)


def is_drawn(image: Pixels, x: int, y: int, gray: int = 100) -> bool:
    """Return whether something is drawn within two pixels of a point."""
    return bool((image[y - 2 : y + 3, x - 2 : x + 3] != gray).any())


def test_mask_is_translucent_and_its_hole_stays_empty() -> None:
    dark, light = drawn(MASKED, gray=0), drawn(MASKED, gray=200)
    assert not is_drawn(dark, 100, 100, gray=0)
    assert dark[140, 60].any()
    assert (light[140, 60].astype(int) - dark[140, 60] == 120).all()  # 60 % of the image's 200


def test_mask_is_outlined_along_the_hole_too() -> None:
    image = drawn(MASKED)
    assert not np.array_equal(image[100, 80], image[100, 60])
    assert not np.array_equal(image[160, 100], image[140, 100])


def test_skeleton_joins_the_visible_keypoints_only() -> None:
    image = drawn(replace(FOUND, keypoints=SHOULDERS))
    assert is_drawn(image, 100, 60)
    assert not is_drawn(image, 60, 140)
    assert not is_drawn(image, 60, 100)


def test_keypoints_of_other_names_are_dots() -> None:
    points = [replace(point, name=f"k{i}") for i, point in enumerate(SHOULDERS)]
    image = drawn(replace(FOUND, keypoints=tuple(points)))
    assert is_drawn(image, 60, 60) and is_drawn(image, 140, 60)
    assert not is_drawn(image, 100, 60)


def test_rotated_box_replaces_the_upright_one() -> None:
    image = drawn(replace(FOUND, rotated_box=TURNED))
    corners = np.asarray(TURNED.corners).reshape(4, 2)
    for x, y in np.round((corners + np.roll(corners, 1, axis=0)) / 2).astype(int):
        assert is_drawn(image, x, y)
    assert not is_drawn(image, 160, 100) and not is_drawn(image, 100, 160)


def test_classes_are_text_below_each_other() -> None:
    scores = [ClassScore("tabby", 281, 0.8), ClassScore("lynx", 287, 0.1)]
    one = annotate(np.zeros((200, 200, 3), np.uint8), [], scores[:1])
    two = annotate(np.zeros((200, 200, 3), np.uint8), [], scores)
    assert one[:20, :60].any() and not one[40:].any()
    assert np.nonzero(two)[0].max() >= 1.8 * np.nonzero(one)[0].max()


# --- labels ------------------------------------------------------------------------------------

SIZE = (640, 480)
EDGES = {
    "left": Box(-30.0, 100.0, 20.0, 150.0),
    "right": Box(620.0, 100.0, 640.0, 150.0),
    "top": Box(100.0, 0.0, 150.0, 30.0),
    "bottom": Box(100.0, 479.0, 150.0, 480.0),
    "top right": Box(635.0, 0.0, 640.0, 5.0),
    "far below": Box(100.0, 900.0, 150.0, 950.0),
    "no number": Box(float("nan"), float("inf"), 1e30, -1e30),
}


@pytest.mark.parametrize("edge", EDGES)
def test_label_is_never_cut_off_at_an_edge(edge: str) -> None:
    assert text_of(EDGES[edge]) == text_of(Box(100.0, 100.0, 150.0, 150.0))


def text_of(box: Box, label: str = "person") -> list[list[int]]:
    """Return which pixels are text, within the bounds of the text."""
    detection = Detection(label, 2, 0.9, box)
    image = annotate(np.zeros((SIZE[1], SIZE[0], 3), np.uint8), [detection])
    ink = image[..., 0] > 150  # the plate has little blue
    rows, columns = np.nonzero(ink.any(axis=1))[0], np.nonzero(ink.any(axis=0))[0]
    bounded: list[list[int]] = (
        ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(int).tolist()
    )
    return bounded


@pytest.mark.parametrize("label", ["日本", "Řeka", "Ελλάδα", "Привет", "한국", "Straße"])
def test_labels_of_many_scripts_are_drawn(label: str) -> None:
    box = Box(100.0, 100.0, 150.0, 150.0)
    assert text_of(box, label) != text_of(box, "?" * len(label))
    assert text_of(box, label) != text_of(box, "")


@pytest.mark.parametrize("label", ["", "\ud800", "a\nb", "\0", "😀", "\u202e", "x" * 100_000])
def test_any_label_is_drawn_without_a_crash(label: str) -> None:
    assert text_of(Box(100.0, 100.0, 150.0, 150.0), label)


def test_long_label_is_made_smaller_and_then_shortened() -> None:
    text, size, width, _ = fitted("person", 640, 480)
    assert (text, size) == ("person 0.90", 14)
    text, small, *_ = fitted("a label of a middle length, that fits", 250, 480)
    assert text.endswith("fits 0.90") and small < size
    assert fitted("person", width // 2, 480)[0] == "person"
    text, _, width, _ = fitted("a label of such a length that it does not fit", 120, 480)
    assert text.startswith("a label of") and text.endswith("…") and width <= 120
    assert annotate_module.fit_text("person", " 0.90", 5, 480, 1.0) is None
    assert annotate_module.fit_text("person", " 0.90", 480, 8, 1.0) is None


def fitted(label: str, width: int, height: int) -> tuple[str, int, int, int]:
    result = annotate_module.fit_text(label, " 0.90", width, height, 1.0)
    assert result
    return result


@pytest.mark.parametrize("size", [(12, 12), (30, 20), (20, 300), (300, 16), (7, 7)], ids=str)
def test_text_in_a_tiny_image_is_whole_or_left_out(size: tuple[int, int]) -> None:
    scores = [ClassScore("tabby", 2, 0.9)] * 5
    image = annotate(np.zeros((size[1], size[0], 3), np.uint8), [], scores)
    result = annotate_module.fit_text("tabby", " 0.90", *size, max(size) / 640)
    rows = np.nonzero(image.any(axis=(1, 2)))[0]
    if not result:
        assert not image.any()
    else:
        assert (rows.max() + 1) % result[3] == 0  # whole plates only
        assert not image[:, result[2] :].any()


def test_detections_are_scaled_to_the_image() -> None:
    full = replace(MASKED, keypoints=SHOULDERS, rotated_box=TURNED)
    half = annotate(np.zeros((200, 200, 3), np.uint8), [full], scale=(0.5, 0.5))
    assert half[25, 25].any() and not half[110:].any() and not half[:, 110:].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300, 1e300])
def test_coordinates_that_are_no_numbers_do_not_crash(value: float) -> None:
    broken = Detection(
        "ring", 0, 0.5, Box(value, value, value, 9.0),
        polygons=(Polygon((value, 1.0, 2.0, value, 3.0, 3.0)),),
        keypoints=(Keypoint("nose", value, value, 0.9),),
        rotated_box=RotatedBox(value, value, value, value, value),
    )  # fmt: skip
    with np.errstate(all="ignore"):
        assert annotate(np.zeros((50, 60, 3), np.uint8), [broken]).shape == (50, 60, 3)


# --- copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", Task)
def test_saved_copy_shows_everything_that_the_document_has(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detections: tuple[Detection, ...] = {
        Task.DETECT: (FOUND,),
        Task.SEGMENT: (replace(MASKED, area=None),),
        Task.POSE: (replace(FOUND, keypoints=SHOULDERS),),
        Task.OBB: (replace(FOUND, rotated_box=TURNED),),
        Task.CLASSIFY: (),
    }[task]
    classes = (ClassScore("tabby", 281, 0.8),) if task is Task.CLASSIFY else ()
    model = ModelInfo("yolo.pt", "ab", 640, "fp32", "fake", task)
    result = ImageResult(
        ImageRef("uploads", "a.png", 1), model=model, detections=detections, classes=classes
    )
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), np.zeros((200, 200, 3), np.uint8))
    shown: list[Any] = []

    def see(
        pixels: Pixels, found: Sequence[Detection], scores: Sequence[ClassScore] = ()
    ) -> Pixels:
        shown.extend([tuple(found), tuple(scores)])
        return pixels

    monkeypatch.setattr("service.operate.detect.annotate", see)
    save_annotated(file, to_document(result), tmp_path / "out.jpg")
    assert shown == [detections, classes]


# What each task's model returns for one image: two detections, or the scores of three classes.
ROWS: dict[Task, list[Any]] = {
    Task.DETECT: [[10, 20, 90, 80, 0.9, 0], [60, 60, 150, 140, 0.6, 1]],
    Task.SEGMENT: [[10, 20, 90, 80, 0.9, 0, 1, 1, 1], [60, 60, 150, 140, 0.6, 1, 1, 0, 0]],
    Task.POSE: [[10, 20, 90, 80, 0.9, 0, *[50, 40, 0.9] * 17]],
    Task.OBB: [[50, 50, 60, 20, 0.9, 0, 0.5], [100, 100, 40, 30, 0.6, 1, 0.1]],
    Task.CLASSIFY: [0.2, 0.7, 0.1],
}
SHOWN = {
    Task.DETECT: "1 cat, 1 dog",
    Task.SEGMENT: "1 cat, 1 dog (",
    Task.POSE: "1 cat (17 of 17 keypoints visible)",
    Task.OBB: "1 cat, 1 dog (29°, 6°)",
    Task.CLASSIFY: "dog 0.70",
}


@pytest.mark.parametrize("task", Task)
def test_detect_shows_and_saves_what_any_task_finds(task: Task, tmp_path: Path) -> None:
    extra: dict[str, Any] = {"kpt_shape": [17, 3]} if task is Task.POSE else {}
    model = write_model(tmp_path / "model", str(task), ROWS[task], **extra)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), np.full((160, 160, 3), 200, np.uint8))
    arguments = ["detect", str(file), "--model", str(model), "--save", str(tmp_path / "out")]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert SHOWN[task] in shown.stdout
    copy = cv2.imread(str(tmp_path / "out" / "a.png.jpg"))
    assert copy is not None and copy.std() > 5
    printed = CliRunner().invoke(main, [*arguments, "--json"])
    document = json.loads(printed.stdout)
    assert document["task"] == task
    assert bool(document["classes"]) == (task is Task.CLASSIFY) != bool(document["detections"])
