"""Draws detections on an image, for a person to look at."""

from collections.abc import Sequence

import cv2
import numpy as np

from service.domain import Detection
from service.images.pixels import Pixels

_COLORS = (  # BGR, visible on light and dark backgrounds
    (56, 56, 255), (29, 178, 255), (49, 210, 72), (255, 157, 37), (236, 24, 132),
    (180, 119, 31), (151, 157, 255), (134, 219, 61), (255, 56, 203), (0, 215, 207),
)  # fmt: skip
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE = (255, 255, 255)


def annotate(pixels: Pixels, detections: Sequence[Detection]) -> Pixels:
    """Return a copy of a uint8 HxWx3 BGR image with boxes, labels and confidences on it."""
    canvas = pixels.copy()
    unit = max(canvas.shape[0], canvas.shape[1]) / 640  # lines and text grow with the image
    thickness = max(1, round(2 * unit))
    for detection in sorted(detections, key=lambda item: item.confidence):  # the best on top
        color = _COLORS[detection.class_id % len(_COLORS)]
        box = detection.box
        top_left = (round(box.x1), round(box.y1))
        bottom_right = (round(box.x2), round(box.y2))
        cv2.rectangle(canvas, top_left, bottom_right, color, thickness, cv2.LINE_AA)
        text = f"{detection.label} {detection.confidence:.2f}"
        scale, stroke = 0.45 * unit, max(1, round(unit))
        (width, height), baseline = cv2.getTextSize(text, _FONT, scale, stroke)
        left, top = top_left[0], max(top_left[1] - height - 2 * baseline, 0)
        corner = (left + width + baseline, top + height + 2 * baseline)
        cv2.rectangle(canvas, (left, top), corner, color, cv2.FILLED)
        origin = (left + baseline // 2, top + height + baseline)
        cv2.putText(canvas, text, origin, _FONT, scale, _WHITE, stroke, cv2.LINE_AA)
    return np.asarray(canvas, np.uint8)
