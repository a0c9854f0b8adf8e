"""Makes polygons simpler."""

import cv2
import numpy as np

from service.domain import Polygon


def simplify(polygon: Polygon, tolerance_pixels: float) -> Polygon | None:
    """Return the polygon with fewer points, by the algorithm of Douglas and Peucker.

    Each point that is left out is within the tolerance of the new polygon. All points of the new
    polygon are points of the old one.

    Args:
        polygon: one ring, in pixels.
        tolerance_pixels: the tolerance in pixels.

    Returns:
        The new polygon, or None if fewer than three points are left.
    """
    points = np.asarray(polygon.points, np.float32).reshape(-1, 1, 2)
    kept = cv2.approxPolyDP(points, tolerance_pixels, closed=True)
    if len(kept) < 3:
        return None
    return Polygon(tuple(round(value, 2) for value in kept.ravel().tolist()))
