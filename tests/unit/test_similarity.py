"""How similar two masks, poses and rotated boxes are."""

import math
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from service.domain import Box, Detection, Keypoint, Polygon, RotatedBox
from service.inference.similarity import (
    keypoint_similarity,
    mask_iou,
    rasterize,
    rotated_iou,
    shape_similarity,
)

SQUARE = Polygon((0, 0, 10, 0, 10, 10, 0, 10))
HOLE = Polygon((2, 2, 8, 2, 8, 8, 2, 8))
BOX = Box(0, 0, 100, 100)


def centres(count: int) -> NDArray[np.floating[Any]]:
    return np.arange(count) + 0.5


def test_hole_is_outside_of_a_mask_by_even_odd() -> None:
    mask = rasterize([SQUARE, HOLE], centres(12), centres(11))
    assert mask.shape == (11, 12)
    assert mask.sum() == 100 - 36
    assert mask[0, 0] and not mask[5, 5] and not mask[10, 0] and not mask[0, 10]


def test_direction_of_a_ring_does_not_matter() -> None:
    points = np.reshape(HOLE.points, (-1, 2))[::-1].ravel().tolist()
    turned = Polygon(tuple(points))
    assert np.array_equal(
        rasterize([SQUARE, turned], centres(10), centres(10)),
        rasterize([SQUARE, HOLE], centres(10), centres(10)),
    )


def test_mask_without_rings_is_empty() -> None:
    assert not rasterize([], centres(4), centres(4)).any()


@pytest.mark.parametrize("scale", [0.01, 1, 100])
def test_mask_iou_is_that_of_the_areas_in_any_unit(scale: float) -> None:
    square, hole = (Polygon(tuple(scale * v for v in ring.points)) for ring in (SQUARE, HOLE))
    half = Polygon(tuple(scale * v for v in (0, 0, 5, 0, 5, 10, 0, 10)))
    assert mask_iou([square], [square]) == 1
    assert mask_iou([square], [half]) == pytest.approx(0.5, abs=0.01)
    assert mask_iou([square], [square, hole]) == pytest.approx(0.64, abs=0.01)


def test_mask_iou_with_nothing_is_zero_and_of_nothing_one() -> None:
    assert mask_iou([SQUARE], []) == mask_iou([], [SQUARE]) == 0
    assert mask_iou([], []) == 1


def test_mask_iou_is_a_number_that_yaml_can_write() -> None:
    assert yaml.safe_dump(mask_iou([SQUARE], [HOLE])).startswith("0.36")


def test_rotated_iou_ignores_which_side_is_called_width() -> None:
    box = RotatedBox(500, 400, 60, 20, 30)
    assert rotated_iou(box, box) == pytest.approx(1, abs=1e-9)
    assert rotated_iou(box, RotatedBox(500, 400, 20, 60, 120)) == pytest.approx(1, abs=1e-9)


def test_rotated_iou_of_nearly_equal_boxes_is_nearly_one() -> None:
    """Functions of OpenCV find a too small intersection of some of them."""
    random = np.random.default_rng(1)
    for cx, cy, width, height, angle in random.uniform(5, 90, (2000, 5)).tolist():
        box = RotatedBox(10 * cx, 10 * cy, 5 * width, 5 * height, angle - 5)
        for shift in (0, 1e-5):
            same = RotatedBox(box.cx + shift, box.cy, box.width, box.height, box.angle_degrees)
            swapped = RotatedBox(box.cx, box.cy, box.height, box.width, box.angle_degrees - 270)
            assert rotated_iou(box, same) > 0.9999
            assert rotated_iou(box, swapped) > 0.9999


def test_rotated_iou_of_a_turned_square_is_that_of_geometry() -> None:
    """The common part of two squares, one turned by 45 degrees, is a regular octagon."""
    upright, turned = RotatedBox(0, 0, 2, 2, 0), RotatedBox(0, 0, 2, 2, 45)
    octagon = 8 * (math.sqrt(2) - 1)
    assert rotated_iou(upright, turned) == pytest.approx(octagon / (8 - octagon), abs=1e-9)
    assert rotated_iou(upright, RotatedBox(9, 9, 2, 2, 10)) == 0
    assert rotated_iou(RotatedBox(0, 0, 0, 0, 0), RotatedBox(0, 0, 0, 0, 0)) == 0


def pose(x: float, confidence: float = 0.9, count: int = 2) -> Detection:
    points = tuple(Keypoint("", x, 50, confidence) for _ in range(count))
    return Detection("person", 0, 0.9, BOX, keypoints=points)


def test_keypoint_similarity_falls_with_the_distance() -> None:
    near, far = keypoint_similarity(pose(50), pose(52)), keypoint_similarity(pose(50), pose(70))
    assert keypoint_similarity(pose(50), pose(50)) == 1
    assert 0.95 < near < 1
    assert far < 0.3


def test_keypoints_that_are_not_visible_do_not_count() -> None:
    assert keypoint_similarity(pose(50, confidence=0.1), pose(90)) == 1


def test_poses_with_other_keypoints_are_not_similar() -> None:
    assert keypoint_similarity(pose(50), pose(50, count=3)) == 0


def test_shape_similarity_is_that_of_the_task() -> None:
    plain = Detection("person", 0, 0.9, BOX)
    mask = Detection("person", 0, 0.9, BOX, polygons=(SQUARE,))
    rotated = Detection("person", 0, 0.9, BOX, rotated_box=RotatedBox(0, 0, 2, 2, 0))
    turned = Detection("person", 0, 0.9, BOX, rotated_box=RotatedBox(0, 0, 2, 2, 45))
    assert shape_similarity(plain, plain) == 1
    assert shape_similarity(mask, plain) == 0
    assert shape_similarity(rotated, turned) < 0.8
    assert shape_similarity(rotated, plain) == 0
    assert shape_similarity(pose(50), plain) == 0
