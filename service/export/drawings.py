"""The pictures of the canary: drawn here, so that an export carries nobody's photographs.

A network trained on photographs knows some of them (the stop sign, the traffic lights, the clock),
the demo's network the flat shapes; any other answers with rows of low confidence, which tell a
broken network as well. All have the ratio 4:3: one frame, compiled once, serves them all. They
differ in size, so that they go through the decoding at reduced scale and the resizing too.
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
    """Draw the pictures: JPEG files by name. The same on every machine with the same OpenCV."""
    scenes: tuple[Callable[[Pixels], None], ...] = (_street, _shapes, _street_and_shapes)
    files = {}
    for width, scene in zip(_SIZES, scenes, strict=True):
        picture = _ground(width, width * 3 // 4)
        scene(picture)
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        files[f"{scene.__name__.strip('_').replace('_', '-')}.jpg"] = data.tobytes()
    return files


def _ground(width: int, height: int) -> Pixels:
    """A sky over a meadow, both with some texture."""
    down = np.linspace(0, 1, height)[:, None, None]
    sky, meadow = np.array([235, 190, 140]), np.array([60, 120, 90])
    smooth = np.where(down < 0.6, sky + 25 * down, meadow - 40 * (down - 0.6))
    coarse = np.random.default_rng(26).normal(0, 12, (15, 20, 1)).astype(np.float32)
    texture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[:, :, None]
    return np.asarray(np.clip(smooth + texture, 0, 255), np.uint8)


def _street(picture: Pixels) -> None:
    _stop_sign(picture, 0.26, 0.40, 0.17)
    _traffic_lights(picture, 0.56, 0.38, 0.24)
    _clock(picture, 0.83, 0.36, 0.13)


def _shapes(picture: Pixels) -> None:
    _disc(picture, 0.22, 0.3, 0.13, (40, 40, 220))
    _polygon(picture, 0.55, 0.32, 0.17, 4, (30, 170, 250), turn=20)
    _polygon(picture, 0.82, 0.6, 0.16, 3, (200, 60, 160), turn=10)
    _polygon(picture, 0.3, 0.72, 0.18, 10, (60, 230, 240), inner=0.45, turn=15)


def _street_and_shapes(picture: Pixels) -> None:
    _stop_sign(picture, 0.7, 0.45, 0.25)
    _disc(picture, 0.14, 0.78, 0.1, (30, 130, 250))
    _polygon(picture, 0.4, 0.76, 0.15, 10, (230, 90, 60), inner=0.45)
    _clock(picture, 0.25, 0.3, 0.2)


def _stop_sign(picture: Pixels, x: float, y: float, radius: float) -> None:
    height = picture.shape[0]
    _bar(picture, x - 0.06 * radius, y, x + 0.06 * radius, 1.0, (120, 120, 120))
    for share, colour in ((1.0, (245, 245, 245)), (0.92, (35, 25, 190))):
        _polygon(picture, x, y, radius * share, 8, colour, turn=22.5)
    scale = radius * height / 42
    thick = max(round(scale * 3.5), 1)
    (wide, high), _ = cv2.getTextSize("STOP", cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    at = round(x * picture.shape[1] - wide / 2), round(y * height + high / 2)
    white = (250, 250, 250)
    cv2.putText(picture, "STOP", at, cv2.FONT_HERSHEY_SIMPLEX, scale, white, thick, cv2.LINE_AA)


def _traffic_lights(picture: Pixels, x: float, y: float, size: float) -> None:
    _bar(picture, x - 0.01, y, x + 0.01, 1.0, (70, 70, 70))
    _bar(picture, x - 0.3 * size, y - size, x + 0.3 * size, y + size, (25, 30, 30))
    for step, colour in enumerate(((40, 30, 240), (20, 90, 110), (40, 80, 30))):
        _disc(picture, x, y + (step - 1) * 0.62 * size, 0.25 * size, colour)


def _clock(picture: Pixels, x: float, y: float, radius: float) -> None:
    _disc(picture, x, y, radius, (40, 40, 45))
    _disc(picture, x, y, 0.9 * radius, (240, 245, 245))
    for hour in range(12):
        _hand(picture, x, y, 0.74 * radius, 0.85 * radius, 30 * hour, (20, 20, 20))
    _hand(picture, x, y, 0.0, 0.45 * radius, 300, (20, 20, 20))
    _hand(picture, x, y, 0.0, 0.7 * radius, 50, (20, 20, 20))


def _hand(
    picture: Pixels, x: float, y: float, start: float, stop: float, degrees: float, colour: _Colour
) -> None:
    """A line along a radius, clockwise from twelve; lengths in heights of the picture."""
    height, width = picture.shape[:2]
    way = np.array([np.sin(np.radians(degrees)), -np.cos(np.radians(degrees))]) * height
    centre = np.array([x * width, y * height])
    ends = [np.round(centre + way * share).astype(int).tolist() for share in (start, stop)]
    cv2.line(picture, ends[0], ends[1], colour, max(height // 120, 1), cv2.LINE_AA)


def _disc(picture: Pixels, x: float, y: float, radius: float, colour: _Colour) -> None:
    _polygon(picture, x, y, radius, 90, colour)


def _bar(
    picture: Pixels, left: float, top: float, right: float, bottom: float, colour: _Colour
) -> None:
    """A rectangle, in widths and heights of the picture."""
    height, width = picture.shape[:2]
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    _fill(picture, np.array(corners) * (width, height), colour)


def _polygon(
    picture: Pixels,
    x: float,
    y: float,
    radius: float,
    corners: int,
    colour: _Colour,
    *,
    turn: float = 0.0,
    inner: float = 1.0,
) -> None:
    """A regular polygon, or a star.

    Args:
        picture: to draw on.
        x: of the centre, in widths of the picture.
        y: of the centre, in heights.
        radius: in heights.
        corners: how many.
        colour: to fill it with.
        turn: of the first corner from twelve, clockwise, in degrees.
        inner: radius of every second corner, as a share of the others': a star.
    """
    height, width = picture.shape[:2]
    angles = np.radians(turn + 360 / corners * np.arange(corners))
    radii = radius * height * np.where(np.arange(corners) % 2, inner, 1.0)
    around = np.stack([np.sin(angles), -np.cos(angles)], axis=1) * radii[:, None]
    _fill(picture, around + (x * width, y * height), colour)


def _fill(picture: Pixels, corners: NDArray[np.float64], colour: _Colour) -> None:
    """Fill a polygon, given in pixels."""
    fixed = np.round(corners * 16).astype(np.int32)  # 4 bits of fractions
    cv2.fillPoly(picture, [fixed], colour, cv2.LINE_AA, 4)
