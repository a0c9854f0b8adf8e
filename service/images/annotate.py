"""Draws what a model found on an image, for a person to look at."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from service.domain import (
    MIN_KEYPOINT_CONFIDENCE,
    Box,
    ClassScore,
    Detection,
    Keypoint,
    Polygon,
    RotatedBox,
)
from service.images.pixels import Pixels

_COLORS = (  # BGR, visible on light and dark backgrounds
    (56, 56, 255), (29, 178, 255), (49, 210, 72), (255, 157, 37), (236, 24, 132),
    (180, 119, 31), (151, 157, 255), (134, 219, 61), (255, 56, 203), (0, 215, 207),
)  # fmt: skip
_FONT_PIXELS = 14  # height of text in an image of 640 pixels
_MIN_FONT_PIXELS = 9  # the smallest that a person can read
_FONT_WEIGHT = 500
_MAX_CHARACTERS = 100  # of a label
_ELLIPSIS = "…"
_WHITE = (255, 255, 255)
_MASK_OPACITY = 0.4
_SHIFT = 3  # OpenCV draws at eighths of a pixel
_MAX_COORDINATE = 1e5  # pixels. Farther points are moved here, because OpenCV takes int32.

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
    pixels: Pixels,
    detections: Sequence[Detection],
    classes: Sequence[ClassScore] = (),
    *,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Pixels:
    """Return a copy of a uint8 HxWx3 BGR image with what was found on it.

    A detection is drawn as its translucent mask, as its rotated box, or else as its box. Keypoints
    are dots, and lines join COCO's keypoints to a skeleton. The classes of an image are text in its
    top left corner.

    A label is never cut off at the image's edge: it is moved into the image, or else drawn smaller
    or shortened. An image too small for one readable character has no labels.

    Args:
        pixels: the image.
        detections: what was found.
        classes: the classes of the image.
        scale: horizontal and vertical factor from the detections' pixels to those of the image.
    """
    canvas: _Canvas = pixels.copy()
    unit = max(canvas.shape[0], canvas.shape[1]) / 640  # lines and text grow with the image
    best_last = sorted(detections, key=lambda item: item.confidence)  # the best on top
    if scale != (1.0, 1.0):
        best_last = [_scaled(item, *scale) for item in best_last]
    canvas = _with_masks(canvas, best_last)
    for detection in best_last:
        thickness = max(1, round(2 * unit))
        lines = [_fixed_point(points) for points in _outlines(detection)]
        color = _color(detection)
        cv2.polylines(canvas, lines, True, color, thickness, cv2.LINE_AA, _SHIFT)
        _draw_keypoints(canvas, detection.keypoints, color, thickness)
    for detection in best_last:  # no outline hides a text
        left, top, *_ = _limited((detection.box.x1, detection.box.y1))
        _draw_text(canvas, detection, (round(left), round(top)), unit)
    top = 0
    for score in classes:
        top = _draw_text(canvas, score, (0, top), unit, is_below=True)
    return np.asarray(canvas, np.uint8)


def _scaled(item: Detection, x: float, y: float) -> Detection:
    """Return a detection in pixels of an image that is scaled by these factors."""

    def scaled(points: Sequence[float]) -> tuple[float, ...]:
        return tuple(value * (x, y)[i % 2] for i, value in enumerate(points))

    box = item.box
    return replace(
        item,
        box=Box(*scaled((box.x1, box.y1, box.x2, box.y2))),
        polygons=tuple(Polygon(scaled(ring.points)) for ring in item.polygons),
        keypoints=tuple(replace(p, x=p.x * x, y=p.y * y) for p in item.keypoints),
        rotated_box=item.rotated_box and _scaled_rotated_box(item.rotated_box, x, y),
    )


def _scaled_rotated_box(box: RotatedBox, x: float, y: float) -> RotatedBox:
    # The two factors differ by rounding only.
    return RotatedBox(box.cx * x, box.cy * y, box.width * x, box.height * y, box.angle_degrees)


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
        point.name: tuple(map(round, _limited((point.x, point.y))))
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
    """Write a label and its confidence above or below a point. Return the text's lower edge.

    The text is moved so that it is within the image.
    """
    height, width = canvas.shape[:2]
    label = "".join(character if character.isprintable() else "?" for character in found.label)
    fitted = fit_text(label, f" {found.confidence:.2f}", width, height, unit)
    if not fitted:
        return at[1]
    text, size, plate_width, plate_height = fitted
    left = min(max(at[0], 0), width - plate_width)
    top = min(max(at[1] if is_below else at[1] - plate_height, 0), height - plate_height)
    if is_below and top < at[1]:
        return at[1]  # no room below the other classes
    right, bottom = left + plate_width, top + plate_height
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), _color(found), cv2.FILLED)
    origin = left + _padding(size), top + _padding(size) + size
    cv2.putText(canvas, text, origin, _WHITE, cv2.FontFace("sans"), size, _FONT_WEIGHT)
    return int(bottom)


def fit_text(
    label: str, suffix: str, width: int, height: int, unit: float
) -> tuple[str, int, int, int] | None:
    """Make a text fit into an image by a smaller font, without the suffix, or shortened.

    Args:
        label: the text whose end may be left out.
        suffix: the text after it, which is left out before a part of the label is.
        width: the image's width in pixels.
        height: the image's height in pixels.
        unit: the size of the font, as a multiple of `_FONT_PIXELS`.

    Returns:
        The text, its font size, and the width and height of its plate, all in pixels. None: the
        image is too small for one readable character.
    """
    largest, smallest = max(round(_FONT_PIXELS * unit), _MIN_FONT_PIXELS), _MIN_FONT_PIXELS
    label = label[:_MAX_CHARACTERS]
    starts = (label[:end] for end in range(len(label) - 1, 0, -1))
    candidates = [
        *((label + suffix, size) for size in (largest, (largest + smallest) // 2, smallest)),
        (label, smallest),
        *((start + _ELLIPSIS, smallest) for start in starts),
        (label[:1], smallest),
    ]
    for text, size in candidates:
        plate = _plate(text, size)
        if text and plate[0] <= width and plate[1] <= height:
            return text, size, *plate
    return None


def _plate(text: str, size: int) -> tuple[int, int]:
    """Return width and height of the plate behind a text, in pixels."""
    font = cv2.FontFace("sans")
    _, top, width, height = cv2.getTextSize((0, 0), text, (0, 0), font, size, _FONT_WEIGHT)
    padding = _padding(size)
    return width + 2 * padding, max(height + top, 0) + size + 2 * padding


def _padding(size: int) -> int:
    return max(1, size // 7)


def _color(found: Detection | ClassScore) -> _Color:
    return _COLORS[found.class_id % len(_COLORS)]


def _fixed_point(points: Sequence[float]) -> npt.NDArray[np.int32]:
    """Return x1, y1, ... as OpenCV's fixed-point coordinates, int32 of shape (n, 1, 2).

    (0, 0) is the outer corner of the first pixel here, but the middle of that pixel in OpenCV.
    """
    corners = (_limited(points) - 0.5) * 2**_SHIFT
    return np.asarray(np.round(corners), np.int32).reshape(-1, 1, 2)


def _limited(points: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return coordinates that OpenCV takes. One that is no number becomes 0."""
    return np.clip(np.nan_to_num(np.asarray(points, np.float64)), -_MAX_COORDINATE, _MAX_COORDINATE)
