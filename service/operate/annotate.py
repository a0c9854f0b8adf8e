"""Draws detections on a picture, for a person to look at."""

from collections.abc import Sequence

import cv2
import numpy as np

from service.domain import Detection
from service.images.pixels import Pixels

_COLORS = (  # BGR; told apart on light and dark grounds
    (56, 56, 255), (29, 178, 255), (49, 210, 72), (255, 157, 37), (236, 24, 132),
    (180, 119, 31), (151, 157, 255), (134, 219, 61), (255, 56, 203), (0, 215, 207),
)  # fmt: skip
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE = (255, 255, 255)


def annotate(pixels: Pixels, detections: Sequence[Detection]) -> Pixels:
    """Return a copy of an uint8 HxWx3 BGR picture with boxes, labels and confidences on it."""
    canvas = pixels.copy()
    unit = max(canvas.shape[0], canvas.shape[1]) / 640  # lines and letters grow with the picture
    thickness = max(1, round(2 * unit))
    for found in sorted(detections, key=lambda found: found.confidence):  # the best on top
        color = _COLORS[found.class_id % len(_COLORS)]
        corner = (round(found.box.x1), round(found.box.y1))
        opposite = (round(found.box.x2), round(found.box.y2))
        cv2.rectangle(canvas, corner, opposite, color, thickness, cv2.LINE_AA)
        text = f"{found.label} {found.confidence:.2f}"
        scale, stroke = 0.45 * unit, max(1, round(unit))
        (width, height), below = cv2.getTextSize(text, _FONT, scale, stroke)
        top = max(corner[1] - height - 2 * below, 0)
        plate = (corner[0] + width + below, top + height + 2 * below)
        cv2.rectangle(canvas, (corner[0], top), plate, color, cv2.FILLED)
        origin = (corner[0] + below // 2, top + height + below)
        cv2.putText(canvas, text, origin, _FONT, scale, _WHITE, stroke, cv2.LINE_AA)
    return np.asarray(canvas, np.uint8)
