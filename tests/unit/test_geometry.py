"""Geometry of zones."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sources.geometry import Point, area, contains, fault, overlap_area

SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
L_SHAPE = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.5, 0.5), (0.5, 1.0), (0.0, 1.0))
SHARE = st.floats(0, 1)


def regular(corners: int, radius: float) -> tuple[Point, ...]:
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return tuple((0.5 + radius * math.cos(a), 0.5 + radius * math.sin(a)) for a in angles)


@given(SHARE, SHARE)
def test_zone_of_the_whole_image_contains_every_point(x: float, y: float) -> None:
    assert contains(SQUARE, (x, y))


@given(SHARE, SHARE)
def test_point_in_a_shape_with_a_notch(x: float, y: float) -> None:
    assert contains(L_SHAPE, (x, y)) == (x <= 0.5 + 1e-9 or y <= 0.5 + 1e-9)


def test_points_on_corners_and_edges_are_inside() -> None:
    for corner in L_SHAPE:
        assert contains(L_SHAPE, corner)
    assert contains(L_SHAPE, (0.75, 0.5))
    assert not contains(L_SHAPE, (0.75, 0.51))


@given(st.tuples(SHARE, SHARE), st.tuples(SHARE, SHARE))
def test_overlap_with_a_notch_is_that_of_its_two_rectangles(a: Point, b: Point) -> None:
    (x1, x2), (y1, y2) = sorted((a[0], b[0])), sorted((a[1], b[1]))
    top = (x2 - x1) * max(0.0, min(y2, 0.5) - y1)
    bottom = max(0.0, min(x2, 0.5) - x1) * max(0.0, y2 - max(y1, 0.5))
    assert overlap_area(L_SHAPE, (x1, y1), (x2, y2)) == pytest.approx(top + bottom, abs=1e-12)


@given(st.integers(3, 100))
def test_area_of_regular_polygons(corners: int) -> None:
    expected = corners / 2 * 0.16 * math.sin(2 * math.pi / corners)
    assert area(regular(corners, 0.4)) == pytest.approx(expected)
    assert overlap_area(regular(corners, 0.4), (0, 0), (1, 1)) == pytest.approx(expected)


@given(st.integers(3, 100))
def test_regular_polygon_has_no_fault(corners: int) -> None:
    assert fault(regular(corners, 0.4)) is None


@pytest.mark.parametrize(
    ("polygon", "reason"),
    [
        (((0, 0), (1, 1), (1, 0), (0, 1)), "crosses"),
        (((0, 0), (1, 0), (0.5, 0), (0.5, 1)), "crosses or touches"),  # turns back
        (((0, 0), (1, 0), (1, 1), (0.5, 0), (0, 1)), "touches"),
        (((0, 0), (0.5, 0.5), (1, 1)), "crosses or touches"),  # a line
        (((0, 0), (1, 0), (1, 1), (0, 0)), "twice"),
        (((0, 0), (1e-6, 0), (1e-6, 1e-6)), "no area"),
    ],
)
def test_fault_of_a_polygon_is_named(polygon: tuple[Point, ...], reason: str) -> None:
    assert reason in (fault(polygon) or "")


def test_points_on_a_straight_edge_are_no_fault() -> None:
    assert fault(((0, 0), (0.5, 0), (1, 0), (1, 1))) is None
    assert fault(L_SHAPE) is None
