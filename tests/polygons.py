"""Masks from polygons, for tests."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from service.domain import Polygon

Mask = NDArray[np.bool_]


def rasterised(polygons: Iterable[Polygon], width: int, height: int) -> Mask:
    """Return which pixels have their centre inside of the polygons, by the even-odd rule."""
    columns = np.arange(width) + 0.5
    inside = np.zeros((height, width), bool)
    for polygon in polygons:
        points = np.array(polygon.points, float).reshape(-1, 2)
        x, y = points.T
        next_x, next_y = np.roll(points, -1, axis=0).T
        for row in range(max(0, int(y.min())), min(height, int(y.max()) + 1)):
            crosses = (y <= row + 0.5) != (next_y <= row + 0.5)
            share = (row + 0.5 - y[crosses]) / (next_y[crosses] - y[crosses])
            edges = np.sort(x[crosses] + share * (next_x[crosses] - x[crosses]))
            inside[row] ^= np.searchsorted(edges, columns) % 2 == 1
    return inside


def mask_iou(first: Mask, second: Mask) -> float:
    """Return the intersection over union of two masks, which are not both empty."""
    return float((first & second).sum() / (first | second).sum())
