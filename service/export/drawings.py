"""Draw the images of a canary, so that an export contains no copyrighted photographs.

A model trained on COCO recognises the stop sign, the traffic lights and the clock. The demo's model
recognises the flat shapes. For other models, use `yolo-batch export --canary FOLDER` with images of
objects that they detect. All drawn images have the ratio 4:3, so that the model is compiled for one
input shape only. Their sizes differ, so that the canary also runs reduced decoding and resizing.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from service.images.pixels import Pixels

_QUALITY = 85
_SIZES = (640, 1000, 1280)  # widths, in pixels

_Colour = tuple[int, int, int]  # BGR


def draw() -> dict[str, bytes]:
    """Return JPEG files by name. They are the same on every machine with the same OpenCV."""
    scenes: tuple[Callable[[Pixels], None], ...] = (_street, _shapes, _street_and_shapes)
    files = {}
    for width, scene in zip(_SIZES, scenes, strict=True):
        pixels = _background(width, width * 3 // 4)
        scene(pixels)
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        files[f"{scene.__name__.strip('_').replace('_', '-')}.jpg"] = data.tobytes()
    return files


def _background(width: int, height: int) -> Pixels:
    """Return uint8 HxWx3 BGR pixels of a textured sky over a textured meadow."""
    down = np.linspace(0, 1, height)[:, None, None]
    sky, meadow = np.array([235, 190, 140]), np.array([60, 120, 90])
    smooth = np.where(down < 0.6, sky + 25 * down, meadow - 40 * (down - 0.6))
    coarse = np.random.default_rng(26).normal(0, 12, (15, 20, 1)).astype(np.float32)
    texture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[:, :, None]
    return np.asarray(np.clip(smooth + texture, 0, 255), np.uint8)


def _street(pixels: Pixels) -> None:
    _stop_sign(pixels, 0.26, 0.40, 0.17)
    _traffic_lights(pixels, 0.56, 0.38, 0.24)
    _clock(pixels, 0.83, 0.36, 0.13)


def _shapes(pixels: Pixels) -> None:
    _disc(pixels, 0.22, 0.3, 0.13, (40, 40, 220))
    _polygon(pixels, 0.55, 0.32, 0.17, 4, (30, 170, 250), turn=20)
    _polygon(pixels, 0.82, 0.6, 0.16, 3, (200, 60, 160), turn=10)
    _polygon(pixels, 0.3, 0.72, 0.18, 10, (60, 230, 240), inner=0.45, turn=15)


def _street_and_shapes(pixels: Pixels) -> None:
    _stop_sign(pixels, 0.7, 0.45, 0.25)
    _disc(pixels, 0.14, 0.78, 0.1, (30, 130, 250))
    _polygon(pixels, 0.4, 0.76, 0.15, 10, (230, 90, 60), inner=0.45)
    _clock(pixels, 0.25, 0.3, 0.2)


def _stop_sign(pixels: Pixels, x: float, y: float, radius: float) -> None:
    height = pixels.shape[0]
    _bar(pixels, x - 0.06 * radius, y, x + 0.06 * radius, 1.0, (120, 120, 120))
    for share, colour in ((1.0, (245, 245, 245)), (0.92, (35, 25, 190))):
        _polygon(pixels, x, y, radius * share, 8, colour, turn=22.5)
    scale = radius * height / 42
    thick = max(round(scale * 3.5), 1)
    (wide, high), _ = cv2.getTextSize("STOP", cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    origin = round(x * pixels.shape[1] - wide / 2), round(y * height + high / 2)
    white = (250, 250, 250)
    cv2.putText(pixels, "STOP", origin, cv2.FONT_HERSHEY_SIMPLEX, scale, white, thick, cv2.LINE_AA)


def _traffic_lights(pixels: Pixels, x: float, y: float, size: float) -> None:
    _bar(pixels, x - 0.01, y, x + 0.01, 1.0, (70, 70, 70))
    _bar(pixels, x - 0.3 * size, y - size, x + 0.3 * size, y + size, (25, 30, 30))
    for step, colour in enumerate(((40, 30, 240), (20, 90, 110), (40, 80, 30))):
        _disc(pixels, x, y + (step - 1) * 0.62 * size, 0.25 * size, colour)


def _clock(pixels: Pixels, x: float, y: float, radius: float) -> None:
    _disc(pixels, x, y, radius, (40, 40, 45))
    _disc(pixels, x, y, 0.9 * radius, (240, 245, 245))
    for hour in range(12):
        _hand(pixels, x, y, 0.74 * radius, 0.85 * radius, 30 * hour, (20, 20, 20))
    _hand(pixels, x, y, 0.0, 0.45 * radius, 300, (20, 20, 20))
    _hand(pixels, x, y, 0.0, 0.7 * radius, 50, (20, 20, 20))


def _hand(
    pixels: Pixels, x: float, y: float, start: float, stop: float, degrees: float, colour: _Colour
) -> None:
    """Draw a line from `start` to `stop` along a radius, `degrees` clockwise from twelve o'clock.

    `start` and `stop` are fractions of the image's height.
    """
    height, width = pixels.shape[:2]
    radius = np.array([np.sin(np.radians(degrees)), -np.cos(np.radians(degrees))]) * height
    centre = np.array([x * width, y * height])
    ends = [np.round(centre + radius * share).astype(int).tolist() for share in (start, stop)]
    cv2.line(pixels, ends[0], ends[1], colour, max(height // 120, 1), cv2.LINE_AA)


def _disc(pixels: Pixels, x: float, y: float, radius: float, colour: _Colour) -> None:
    _polygon(pixels, x, y, radius, 90, colour)


def _bar(
    pixels: Pixels, left: float, top: float, right: float, bottom: float, colour: _Colour
) -> None:
    """Draw a rectangle. Its sides are fractions of the image's width and height."""
    height, width = pixels.shape[:2]
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    _fill(pixels, np.array(corners) * (width, height), colour)


def _polygon(
    pixels: Pixels,
    x: float,
    y: float,
    radius: float,
    corners: int,
    colour: _Colour,
    *,
    turn: float = 0.0,
    inner: float = 1.0,
) -> None:
    """Draw a filled regular polygon or star.

    Args:
        pixels: uint8 HxWx3 BGR, drawn on.
        x: centre, as a fraction of the image's width.
        y: centre, as a fraction of the image's height.
        radius: outer radius, as a fraction of the image's height.
        corners: number of corners.
        colour: the polygon's colour.
        turn: angle of the first corner, in degrees clockwise from the top.
        inner: for a star, the radius of every second corner, as a fraction of `radius`.
    """
    height, width = pixels.shape[:2]
    angles = np.radians(turn + 360 / corners * np.arange(corners))
    radii = radius * height * np.where(np.arange(corners) % 2, inner, 1.0)
    around = np.stack([np.sin(angles), -np.cos(angles)], axis=1) * radii[:, None]
    _fill(pixels, around + (x * width, y * height), colour)


def _fill(pixels: Pixels, corners: NDArray[np.float64], colour: _Colour) -> None:
    """Fill a polygon whose corners are in pixels."""
    fixed_point = np.round(corners * 16).astype(np.int32)  # with 4 fractional bits
    cv2.fillPoly(pixels, [fixed_point], colour, cv2.LINE_AA, 4)
