"""Conversions of a model's rows, as pure functions."""

import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import UNKNOWN_CLASS, Box, ImageInfo, RotatedBox, Task
from service.errors import ModelError
from service.images.letterbox import letterbox
from service.inference.heads import (
    Head,
    KeypointLayout,
    columns_of,
    enclosing_box,
    regularized,
    task_of,
)

sides = st.floats(0.5, 500, allow_nan=False)
angles = st.floats(-20, 20, allow_nan=False)


@given(sides, sides, angles)
def test_rotated_box_is_the_same_rectangle_in_a_quarter(
    width: float, height: float, angle: float
) -> None:
    before = RotatedBox(3.0, -7.0, width, height, math.degrees(angle))
    after = regularized(3.0, -7.0, width, height, angle)
    assert 0 <= after.angle_degrees < 90
    distances = [
        min(math.dist(corner, other) for other in points(after)) for corner in points(before)
    ]
    assert max(distances) < 1e-6 * (width + height)


def test_prototypes_of_a_wrong_size_are_reported_without_a_mask() -> None:
    fitted = letterbox(160, 160, image_size=160, stride=32)
    head = Head(Task.SEGMENT, {0: "cat"}, 0.25)
    nothing = np.zeros((1, 9), np.float32)
    right, wrong = np.ones((3, 40, 40), np.float32), np.ones((3, 20, 20), np.float32)
    info = ImageInfo(160, 160, "PNG")
    assert not head.prediction(nothing, fitted, info, right).detections
    with pytest.raises(ValueError, match="do not fit an input"):
        head.prediction(nothing, fitted, info, wrong)


@pytest.mark.parametrize("sign", [1, -1])
def test_object_with_an_empty_mask_is_only_unusable(sign: int) -> None:
    fitted = letterbox(160, 160, image_size=160, stride=32)
    row = np.array([[20, 30, 60, 90, 0.5, 0, sign, sign, sign]], np.float32)
    prototypes = np.ones((3, 40, 40), np.float32)
    head = Head(Task.SEGMENT, {0: "cat"}, 0.25)
    found = head.prediction(row, fitted, ImageInfo(160, 160, "PNG"), prototypes)
    assert (len(found.detections), len(found.unusable)) == ((1, 0) if sign == 1 else (0, 1))
    (cat,) = found.detections + found.unusable
    assert cat.label == "cat" and cat.box == Box(20.0, 30.0, 60.0, 90.0)


@pytest.mark.parametrize("task", [Task.DETECT, Task.POSE, Task.OBB], ids=str)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=str)
def test_object_with_a_number_not_finite_is_only_unusable(task: Task, number: float) -> None:
    """Its box is known only if its own four numbers are sound, and not turned by an angle."""
    fitted = letterbox(160, 160, image_size=160, stride=32)
    row = [20, 30, 60, 90, 0.5, 0]
    sound = [*row, number], [math.nan, *row[1:], 0]
    head = Head(task, {0: "cat"}, 0.25, KeypointLayout(1, False, {}))
    found = head.prediction(np.array(sound, np.float32), fitted, ImageInfo(160, 160, "PNG"))
    known, unknown = found.unusable
    assert found.detections == () and known.label == unknown.label == "cat"
    assert math.isnan(unknown.box.x1) and math.isnan(known.box.x1) == (task is Task.OBB)
    assert task is Task.OBB or known.box == Box(20.0, 30.0, 60.0, 90.0)


def points(rotated: RotatedBox) -> list[tuple[float, ...]]:
    corners = rotated.corners
    return [corners[i : i + 2] for i in range(0, 8, 2)]


@given(st.floats(-1, -1e-320, allow_subnormal=True) | st.sampled_from([-1e-300, -1e-17, -0.0]))
def test_tiny_negative_angle_is_not_ninety_degrees(angle: float) -> None:
    assert 0 <= regularized(0, 0, 30, 10, angle).angle_degrees < 90
    assert astuple(regularized(0, 0, 30, 10, -1e-18)) == (0, 0, 30, 10, 0)


@pytest.mark.parametrize(
    ("angle", "expected"),
    [
        (0.0, (30, 10, 0)),
        (math.pi / 6, (30, 10, 30)),
        (math.pi / 2, (10, 30, 0)),
        (math.pi / 2 + math.pi / 6, (10, 30, 30)),
        (math.pi, (30, 10, 0)),
        (-math.pi / 6, (10, 30, 60)),
        (math.pi * 3 / 4, (10, 30, 45)),
    ],
)
def test_rotated_box_is_as_ultralytics_regularises(
    angle: float, expected: tuple[float, float, float]
) -> None:
    assert astuple(regularized(1, 2, 30, 10, angle)) == pytest.approx((1, 2, *expected))


@given(sides, sides, st.floats(0, 89.9), st.floats(-100, 700), st.floats(-100, 700))
def test_enclosing_box_contains_the_visible_corners(
    width: float, height: float, angle: float, cx: float, cy: float
) -> None:
    rotated = RotatedBox(cx, cy, width, height, angle)
    box = enclosing_box(rotated, 600, 400)
    assert 0 <= box.x1 <= box.x2 <= 600
    assert 0 <= box.y1 <= box.y2 <= 400
    for x, y in points(rotated):
        if 0 <= x <= 600 and 0 <= y <= 400:
            assert box.x1 <= x <= box.x2
            assert box.y1 <= y <= box.y2


def test_enclosing_box_touches_the_corners() -> None:
    rotated = RotatedBox(100, 100, 40, 20, 90)
    assert astuple(enclosing_box(rotated, 600, 400)) == pytest.approx((90, 80, 110, 120))


def test_points_and_boxes_share_one_letterbox() -> None:
    fitted = letterbox(451, 300, image_size=160, stride=32)
    assert fitted.box(10, 20, 90, 80) == Box(*fitted.point(10, 20), *fitted.point(90, 80))
    cx, cy, width, height = fitted.centered_box(50, 50, 20, 10)
    left, upper = fitted.point(40, 45)
    right, lower = fitted.point(60, 55)
    assert (cx, cy) == pytest.approx(((left + right) / 2, (upper + lower) / 2))
    assert (width, height) == pytest.approx((right - left, lower - upper))


def test_coco_names_are_for_17_points_only() -> None:
    def names(count: int) -> tuple[str, ...]:
        return KeypointLayout.of([count, 3], None, model="m").default_names

    assert names(17)[::16] == ("nose", "right_ankle")
    assert names(3) == ("k0", "k1", "k2")


@pytest.mark.parametrize("names", [None, {}, {"0": ["a", "b"]}, {0: ("a", 7)}])
def test_point_names_may_be_absent_or_text(names: Any) -> None:
    layout = KeypointLayout.of((2, 3), names, model="m")
    assert layout.columns == 6
    assert all(isinstance(name, str) for points in layout.names.values() for name in points)


def test_surrogate_in_a_point_name_is_refused() -> None:
    with pytest.raises(ModelError, match="`kpt_names` must have 1 names for each class"):
        KeypointLayout.of([1, 2], {0: ["\ud800"]}, model="m")


def test_columns_follow_from_the_task() -> None:
    layout = KeypointLayout.of([17, 3], None, model="m")
    columns = [columns_of(task, layout, 32) for task in Task if task is not Task.CLASSIFY]
    assert columns == [6, 38, 57, 7]


@pytest.mark.parametrize("task", ["semantic", "depth", "", None, 7])
def test_task_that_is_not_supported_is_named(task: object) -> None:
    with pytest.raises(ModelError, match=f"m.pt is a model for the task {task}"):
        task_of(task, model="m.pt")


@pytest.mark.parametrize("class_id", [math.nan, math.inf, -1, 1e9], ids=str)
@pytest.mark.parametrize("confidence", [0.5, math.nan], ids=str)
def test_object_of_an_impossible_class_is_only_unusable(class_id: float, confidence: float) -> None:
    fitted = letterbox(160, 160, image_size=160, stride=32)
    row = np.array([[20, 30, 60, 90, confidence, class_id]], np.float32)
    found = Head(Task.DETECT, {0: "cat"}, 0.25).prediction(row, fitted, ImageInfo(160, 160, "PNG"))
    (unknown,) = found.unusable
    assert found.detections == () and unknown.class_id == UNKNOWN_CLASS
    assert unknown.box == Box(20.0, 30.0, 60.0, 90.0)


def test_object_with_a_confidence_of_nan_is_only_unusable() -> None:
    fitted = letterbox(160, 160, image_size=160, stride=32)
    row = np.array([[20, 30, 60, 90, math.nan, 0]], np.float32)
    head = Head(Task.DETECT, {0: "cat"}, 0.25)
    found = head.prediction(row, fitted, ImageInfo(160, 160, "PNG"))
    assert found.detections == () and [cat.label for cat in found.unusable] == ["cat"]
    assert found.unusable[0].box == Box(20.0, 30.0, 60.0, 90.0)
