"""How similar two detections are: their boxes, and their masks, keypoints or rotated boxes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain import MIN_KEYPOINT_CONFIDENCE, Box, Detection, Polygon, RotatedBox

# Standard deviation of a keypoint's position, divided by the square root of the object's area. It
# is near the mean of COCO's 17 values (0.025 for eyes to 0.107 for hips).
_KEYPOINT_SIGMA = 0.06
_GRID = 256  # samples along each side of two masks


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, in 0..1."""
    width = max(min(a.x2, b.x2) - max(a.x1, b.x1), 0.0)
    height = max(min(a.y2, b.y2) - max(a.y1, b.y1), 0.0)
    intersection = width * height
    union = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - intersection
    return intersection / union if union > 0 else 0.0


def match_detections(
    first: Sequence[Detection], second: Sequence[Detection], *, min_iou: float
) -> list[tuple[Detection, Detection]]:
    """Pair detections of the same class one to one, beginning with the pair of the highest IoU."""
    candidates = [
        (iou(a.box, b.box), i, j)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if a.class_id == b.class_id
    ]
    pairs: dict[int, int] = {}
    for value, i, j in sorted(candidates, key=lambda row: (-row[0], row[1], row[2])):
        if value >= min_iou and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return [(first[i], second[j]) for i, j in pairs.items()]


def shape_similarity(a: Detection, b: Detection) -> float:
    """Return how similar two detections are beyond their boxes, in 0..1.

    This is the IoU of their masks or rotated boxes, or the similarity of their keypoints. It is 1
    if neither detection has any of these.
    """
    if a.rotated_box or b.rotated_box:
        return rotated_iou(a.rotated_box, b.rotated_box) if a.rotated_box and b.rotated_box else 0.0
    if a.keypoints or b.keypoints:
        return keypoint_similarity(a, b)
    return mask_iou(a.polygons, b.polygons)


def rotated_iou(a: RotatedBox, b: RotatedBox) -> float:
    """Return the intersection over union of two rotated boxes, in 0..1.

    It is computed in float64. OpenCV's functions use float32. For some boxes that are nearly equal,
    they return no intersection, or one that is too small.
    """
    first, second = _points(a), _points(b)
    intersection = _area(_clip(first, second))
    union = a.width * a.height + b.width * b.height - intersection
    return min(intersection / union, 1.0) if union > 0 else 0.0


_Points = list[tuple[float, float]]


def _points(box: RotatedBox) -> _Points:
    """Return the corners in the direction in which `_area` is positive."""
    corners = box.corners
    return list(zip(corners[::2], corners[1::2], strict=True))[::-1]


def _clip(polygon: _Points, window: _Points) -> _Points:
    """Return the part of a convex polygon that is inside of another (Sutherland-Hodgman)."""
    for (px, py), (qx, qy) in zip(window, window[1:] + window[:1], strict=True):
        clipped: _Points = []
        sides = [(qx - px) * (y - py) - (qy - py) * (x - px) for x, y in polygon]
        for index, (x, y) in enumerate(polygon):
            following = (index + 1) % len(polygon)
            if sides[index] >= 0:
                clipped.append((x, y))
            if (sides[index] >= 0) != (sides[following] >= 0):
                share = sides[index] / (sides[index] - sides[following])
                next_x, next_y = polygon[following]
                clipped.append((x + share * (next_x - x), y + share * (next_y - y)))
        polygon = clipped
    return polygon


def _area(polygon: _Points) -> float:
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs) / 2


def keypoint_similarity(a: Detection, b: Detection) -> float:
    """Return the object keypoint similarity (OKS) of two poses, in 0..1.

    It is COCO's formula with one standard deviation for all keypoints. The area of an object is
    that of the box of `a`. Keypoints that are not visible in `a` do not count.
    """
    if len(a.keypoints) != len(b.keypoints):
        return 0.0
    area = (a.box.x2 - a.box.x1) * (a.box.y2 - a.box.y1)
    pairs = [
        (p, q)
        for p, q in zip(a.keypoints, b.keypoints, strict=True)
        if p.confidence >= MIN_KEYPOINT_CONFIDENCE
    ]
    if not pairs:
        return 1.0
    if area <= 0:
        return 0.0
    scale = 2 * area * (2 * _KEYPOINT_SIGMA) ** 2
    squares = ((p.x - q.x) ** 2 + (p.y - q.y) ** 2 for p, q in pairs)
    return sum(math.exp(-square / scale) for square in squares) / len(pairs)


def mask_iou(a: Sequence[Polygon], b: Sequence[Polygon]) -> float:
    """Return the intersection over union of two masks, in 0..1. It is 1 if both are empty.

    It is estimated from samples in the box around both masks. The masks may be in any unit, if it
    is the same for both.
    """
    points = [point for polygon in (*a, *b) for point in polygon.points]
    if not points:
        return 1.0
    samples = (
        np.linspace(min(values), max(values), 2 * _GRID + 1)[1::2]
        for values in (points[::2], points[1::2])
    )
    xs, ys = samples
    first, second = rasterize(a, xs, ys), rasterize(b, xs, ys)
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0


def rasterize(
    polygons: Sequence[Polygon], xs: NDArray[np.floating[Any]], ys: NDArray[np.floating[Any]]
) -> NDArray[np.bool_]:
    """Return which samples are inside of a mask, by the even-odd rule.

    Args:
        polygons: the rings of the mask.
        xs: the samples' columns, ascending. The centres of an image's pixels are `arange(w) + 0.5`.
        ys: the samples' rows, ascending.

    Returns:
        Bools of shape (len(ys), len(xs)).
    """
    changes = np.zeros((len(ys), len(xs) + 1), np.int32)
    for polygon in polygons:
        x1, y1 = np.asarray(polygon.points, np.float64).reshape(-1, 2).T
        x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
        # An edge swaps inside and outside to the right of its crossing. Horizontal edges cross no
        # row.
        low, high = np.minimum(y1, y2), np.maximum(y1, y2)
        rows, edges = np.nonzero((ys[:, None] >= low) & (ys[:, None] < high))
        share = (ys[rows] - y1[edges]) / (y2[edges] - y1[edges])
        crossings = x1[edges] + share * (x2[edges] - x1[edges])
        np.add.at(changes, (rows, np.searchsorted(xs, crossings)), 1)
    inside: NDArray[np.bool_] = np.cumsum(changes, axis=1)[:, :-1] % 2 == 1
    return inside
