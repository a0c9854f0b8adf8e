"""Draws what a model found on an image, for a person to look at."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from service.domain import MIN_KEYPOINT_CONFIDENCE, ClassScore, Detection, Keypoint
from service.images.pixels import Pixels

_COLORS = (  # BGR, visible on light and dark backgrounds
    (56, 56, 255), (29, 178, 255), (49, 210, 72), (255, 157, 37), (236, 24, 132),
    (180, 119, 31), (151, 157, 255), (134, 219, 61), (255, 56, 203), (0, 215, 207),
)  # fmt: skip
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE = (255, 255, 255)
_MASK_OPACITY = 0.4
_SHIFT = 3  # OpenCV draws at eighths of a pixel

# Which keypoints of COCO's 17 are joined: https://cocodataset.org/#keypoints-2020
_BONES = (
    ("left_ankle", "left_knee"), ("left_knee", "left_hip"),
    ("right_ankle", "right_knee"), ("right_knee", "right_hip"), ("left_hip", "right_hip"),
    ("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"),
    ("left_shoulder", "right_shoulder"), ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"), ("left_elbow", "left_wrist"),
    ("right_elbow", "right_wrist"), ("left_eye", "right_eye"), ("nose", "left_eye"),
    ("nose", "right_eye"), ("left_eye", "left_ear"), ("right_eye", "right_ear"),
    ("left_ear", "left_shoulder"), ("right_ear", "right_shoulder"),
)  # fmt: skip

_Color = tuple[int, int, int]
_Canvas = npt.NDArray[np.uint8]


def annotate(
    pixels: Pixels, detections: Sequence[Detection], classes: Sequence[ClassScore] = ()
) -> Pixels:
    """Return a copy of a uint8 HxWx3 BGR image with what was found on it.

    A detection is drawn as its translucent mask, as its rotated box, or else as its box. Keypoints
    are dots, and lines join COCO's keypoints to a skeleton. The classes of an image are text in its
    top left corner.
    """
    canvas: _Canvas = pixels.copy()
    unit = max(canvas.shape[0], canvas.shape[1]) / 640  # lines and text grow with the image
    best_last = sorted(detections, key=lambda item: item.confidence)  # the best on top
    canvas = _with_masks(canvas, best_last)
    for detection in best_last:
        thickness = max(1, round(2 * unit))
        lines = [_fixed_point(points) for points in _outlines(detection)]
        color = _color(detection)
        cv2.polylines(canvas, lines, True, color, thickness, cv2.LINE_AA, _SHIFT)
        _draw_keypoints(canvas, detection.keypoints, color, thickness)
    for detection in best_last:  # no outline hides a text
        _draw_text(canvas, detection, (round(detection.box.x1), round(detection.box.y1)), unit)
    top = 0
    for score in classes:
        top = _draw_text(canvas, score, (0, top), unit, is_below=True)
    return np.asarray(canvas, np.uint8)


def _with_masks(canvas: _Canvas, detections: Sequence[Detection]) -> _Canvas:
    masks = [detection for detection in detections if detection.polygons]
    if not masks:
        return canvas
    filled = canvas.copy()
    for detection in masks:
        # All rings in one call: OpenCV fills by the even-odd rule.
        rings = [_fixed_point(ring.points) for ring in detection.polygons]
        cv2.fillPoly(filled, rings, _color(detection), cv2.LINE_8, _SHIFT)
    return np.asarray(
        cv2.addWeighted(filled, _MASK_OPACITY, canvas, 1 - _MASK_OPACITY, 0), np.uint8
    )


def _outlines(detection: Detection) -> list[Sequence[float]]:
    if detection.polygons:
        return [ring.points for ring in detection.polygons]
    if detection.rotated_box:
        return [detection.rotated_box.corners]
    box = detection.box
    return [(box.x1, box.y1, box.x2, box.y1, box.x2, box.y2, box.x1, box.y2)]


def _draw_keypoints(
    canvas: _Canvas, keypoints: Sequence[Keypoint], color: _Color, thickness: int
) -> None:
    shown = {
        point.name: (round(point.x), round(point.y))
        for point in keypoints
        if point.confidence >= MIN_KEYPOINT_CONFIDENCE
    }
    for start, end in _BONES:
        if start in shown and end in shown:
            cv2.line(canvas, shown[start], shown[end], color, thickness, cv2.LINE_AA)
    for at in shown.values():
        cv2.circle(canvas, at, 2 * thickness, _WHITE, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(canvas, at, 2 * thickness, color, max(1, thickness // 2), cv2.LINE_AA)


def _draw_text(
    canvas: _Canvas,
    found: Detection | ClassScore,
    at: tuple[int, int],
    unit: float,
    *,
    is_below: bool = False,
) -> int:
    """Write a label and its confidence above or below a point. Return the text's lower edge."""
    text = f"{found.label} {found.confidence:.2f}"
    scale, stroke = 0.45 * unit, max(1, round(unit))
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, stroke)
    plate_height = height + 2 * baseline
    left, top = at[0], at[1] if is_below else max(at[1] - plate_height, 0)
    corner = (left + width + baseline, top + plate_height)
    cv2.rectangle(canvas, (left, top), corner, _color(found), cv2.FILLED)
    origin = (left + baseline // 2, top + height + baseline)
    cv2.putText(canvas, text, origin, _FONT, scale, _WHITE, stroke, cv2.LINE_AA)
    return corner[1]


def _color(found: Detection | ClassScore) -> _Color:
    return _COLORS[found.class_id % len(_COLORS)]


def _fixed_point(points: Sequence[float]) -> npt.NDArray[np.int32]:
    """Return x1, y1, ... as OpenCV's fixed-point coordinates, int32 of shape (n, 1, 2).

    (0, 0) is the outer corner of the first pixel here, but the middle of that pixel in OpenCV.
    """
    corners = (np.asarray(points, np.float64) - 0.5) * 2**_SHIFT
    return np.asarray(np.round(corners), np.int32).reshape(-1, 1, 2)
