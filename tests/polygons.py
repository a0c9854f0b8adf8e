"""Masks from polygons, for tests."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from service.domain import Polygon
from service.inference.similarity import rasterize

Mask = NDArray[np.bool_]


def rasterised(polygons: Iterable[Polygon], width: int, height: int) -> Mask:
    """Return which pixels have their centre inside of the polygons, by the even-odd rule."""
    return rasterize(list(polygons), np.arange(width) + 0.5, np.arange(height) + 0.5)


def mask_iou(first: Mask, second: Mask) -> float:
    """Return the intersection over union of two masks, which are not both empty."""
    return float((first & second).sum() / (first | second).sum())
