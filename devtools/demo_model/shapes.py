"""Draws images of coloured shapes on cluttered backgrounds, with exact ground truth.

The same code draws the training images of the demo model, the held-out images that measure its
accuracy, and the sample images of the demo. Only the seeds differ. It needs numpy and OpenCV only,
so the demo does not install a training stack.

Every image has its own random generator, made from a seed and the image's index. Any image can
therefore be drawn without the images before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

SEGMENTATION_MODEL = Path(__file__).with_name("shapes-seg_openvino_model")

CLASS_NAMES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "cross")

# The four sets of images share no seed, so no image is in two sets.
TRAIN_SEED = 2601
VALIDATION_SEED = 2602  # picks the best epoch while training
HELD_OUT_SEED = 2603  # measured after training, for the figures in the model card
SAMPLE_SEED = 2604  # the images of the demo

SAMPLE_COUNT = 12
SAMPLE_SIZES: tuple[tuple[int, int], ...] = (
    (960, 720),
    (720, 960),
    (800, 800),
    (1000, 640),
    (640, 480),
    (600, 900),
)
SAMPLE_JPEG_QUALITY = 92

MAX_OBJECTS = 7
MIN_VISIBLE = 0.65  # share of a shape that later shapes must leave visible
MAX_OUTSIDE = 0.15  # share of a shape's width or height that may be outside the image
MIN_RADIUS = 0.065  # a shape's radius relative to the square root of the image's area
MAX_RADIUS = 0.20

_SUPERSAMPLING = 4
_PLACEMENT_TRIES = 12
_BLUR_REFERENCE_PIXELS = 320.0  # blur lengths are for a square image of this size

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Patch:
    """A part of an image, with how much of each pixel a shape covers.

    Attributes:
        left: Column of the patch's first pixel.
        top: Row of the patch's first pixel.
        coverage: Share of each pixel that the shape covers, float32 from 0 to 1.
    """

    left: int
    top: int
    coverage: Mask

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the patch covers."""
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def rings(self) -> list[Points]:
        """Trace the outlines of the pixels that are covered by at least a half.

        A shape in two parts has two rings. A hole is a ring of its own (even-odd rule).

        Returns:
            Corners of each ring in pixels of the image, float64 of shape (n, 2).
        """
        scale = _SUPERSAMPLING
        size = (self.coverage.shape[1] * scale, self.coverage.shape[0] * scale)
        fine = cv2.resize(self.coverage, size, interpolation=cv2.INTER_LINEAR)
        filled = np.pad((fine >= 0.5).astype(np.uint8), 1)
        contours, _ = cv2.findContours(filled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        offset = np.array([self.left, self.top])
        corners = (cv2.approxPolyDP(ring, 1.0, True).reshape(-1, 2) for ring in contours)
        # Without the padding, and from OpenCV's pixel centres to pixel corners.
        return [(ring - 0.5) / scale + offset for ring in corners if len(ring) >= 3]


@dataclass(frozen=True)
class SceneObject:
    """One shape of an image.

    Attributes:
        label: Name of the class, one of ``CLASS_NAMES``.
        class_id: Index of the label in ``CLASS_NAMES``.
        box: Tight box (x1, y1, x2, y2) of the part inside the image, in pixels, where
            (0, 0) is the outer corner of the top left pixel. Shapes that cover this shape
            do not shrink the box.
        visible: The part of the shape that later shapes do not cover.
    """

    label: str
    class_id: int
    box: Box
    visible: Patch = field(compare=False)


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and its ground truth.

    Attributes:
        image: Image, uint8 of shape (height, width, 3), channels in BGR order.
        objects: The shapes, from the one at the bottom to the one on top.
    """

    image: Image
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True, eq=False)
class _Placed:
    """A shape on the image. `visible_coverage` is its coverage without what later shapes cover."""

    class_id: int
    points: Points
    centre: tuple[float, float]
    box: Box
    patch: Patch
    visible_coverage: Mask

    @property
    def visible(self) -> float:
        """The share of the shape that later shapes leave visible."""
        return float(self.visible_coverage.sum()) / float(self.patch.coverage.sum())

    def as_object(self) -> SceneObject:
        """Return the shape's ground truth."""
        visible = replace(self.patch, coverage=self.visible_coverage)
        return SceneObject(CLASS_NAMES[self.class_id], self.class_id, self.box, visible)


def scene_generator(seed: int, index: int) -> np.random.Generator:
    """Return the random generator of one image of a set.

    Args:
        seed: Seed of the set, for example ``TRAIN_SEED``.
        index: Number of the image within the set, from 0.

    Returns:
        A generator that depends only on these two numbers.
    """
    return np.random.default_rng([seed, index])


def shape_outline(class_id: int) -> Points:
    """Return the outline of a class, upright and of unit size.

    Args:
        class_id: Index of the class in ``CLASS_NAMES``.

    Returns:
        Corners, float64 of shape (n, 2), x to the right and y down. The farthest corner has
        distance 1 from the origin, the centre of rotation.

    Raises:
        ValueError: If there is no such class.
    """
    if not 0 <= class_id < len(CLASS_NAMES):
        raise ValueError(f"no class {class_id}: there are {len(CLASS_NAMES)}")
    name = CLASS_NAMES[class_id]
    if name == "circle":
        points = _regular(180, 0.0)
    elif name == "square":
        points = _regular(4, 45.0)
    elif name == "triangle":
        points = _regular(3, -90.0)
    elif name == "star":
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        points = _regular(10, -90.0) * radii[:, None]
    elif name == "heart":
        points = _heart()
    else:
        points = _cross(0.34)
    return points / float(np.hypot(points[:, 0], points[:, 1]).max())


def place(outline: Points, centre: tuple[float, float], radius: float, degrees: float) -> Points:
    """Rotate, scale and move an outline.

    Args:
        outline: Corners of unit size, float64 of shape (n, 2).
        centre: New position of the outline's origin, (x, y) in pixels.
        radius: Distance in pixels of the farthest corner from the centre.
        degrees: Angle of rotation, clockwise on the image.

    Returns:
        Corners in pixels, float64 of shape (n, 2).
    """
    angle = math.radians(degrees)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    placed: Points = outline @ rotation * radius + np.asarray(centre)
    return placed


def tight_box(points: Points, width: int, height: int) -> Box | None:
    """Return the box of the part of a polygon that is inside an image.

    The function cuts the polygon at the border, not the polygon's box. If a corner is outside,
    the box of the remaining polygon can be smaller than the cut box.

    Args:
        points: Corners in pixels, float64 of shape (n, 2).
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        Box (x1, y1, x2, y2) in pixels, or None if the polygon is outside.
    """
    inside = points
    for axis, limit, keep_above in ((0, 0, True), (0, width, False), (1, 0, True)):
        inside = _cut(inside, axis, float(limit), keep_above)
    inside = _cut(inside, 1, float(height), False)
    if len(inside) < 3:
        return None
    low, high = inside.min(axis=0), inside.max(axis=0)
    x1, x2 = (min(max(float(v), 0.0), float(width)) for v in (low[0], high[0]))
    y1, y2 = (min(max(float(v), 0.0), float(height)) for v in (low[1], high[1]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def fill_polygon(image: Image, points: Points, colour: Colour) -> None:
    """Fill a polygon, anti-aliased and exact to a fraction of a pixel, in place.

    Args:
        image: Image to draw on, uint8 of shape (height, width, 3), BGR.
        points: Corners in pixels, float64 of shape (n, 2).
        colour: BGR colour, 0 to 255 each.
    """
    patch = _rasterise(points, image.shape[1], image.shape[0])
    if patch is not None:
        _blend(image, patch, np.asarray(colour, dtype=np.float32))


def draw_scene(rng: np.random.Generator, width: int, height: int, *, min_objects: int = 1) -> Scene:
    """Draw one image.

    Args:
        rng: Source of randomness.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        min_objects: Minimum number of shapes to try to place. A shape without room is left
            out.

    Returns:
        The image and the ground truth.
    """
    image, dark = _background(rng, width, height)
    placed: list[_Placed] = []
    for _ in range(int(rng.integers(min_objects, MAX_OBJECTS + 1))):
        class_id = int(rng.integers(len(CLASS_NAMES)))
        for _ in range(_PLACEMENT_TRIES):
            new = _try_to_place(rng, class_id, width, height)
            if new is None:
                continue
            covered = [_cover(below, new.patch) for below in placed]
            if all(below.visible >= MIN_VISIBLE for below in covered):
                _paint(rng, image, new, dark)
                placed = [*covered, new]
                break
    return Scene(_degrade(rng, image), tuple(shape.as_object() for shape in placed))


def sample_scenes(
    *, count: int = SAMPLE_COUNT, seed: int = SAMPLE_SEED
) -> Iterator[tuple[str, Scene]]:
    """Draw the sample images of the demo.

    Args:
        count: How many images to draw.
        seed: Seed of the set.

    Yields:
        File name, such as ``shapes-01.jpg``, and the image with its ground truth.
    """
    for index in range(count):
        width, height = SAMPLE_SIZES[index % len(SAMPLE_SIZES)]
        scene = draw_scene(scene_generator(seed, index), width, height, min_objects=3)
        yield f"shapes-{index + 1:02d}.jpg", scene


def write_samples(
    directory: Path, *, count: int = SAMPLE_COUNT, seed: int = SAMPLE_SEED
) -> list[tuple[Path, Scene]]:
    """Draw the sample images of the demo and write them as JPEG files.

    Args:
        directory: Folder to write to. It is created if it does not exist.
        count: How many images to draw.
        seed: Seed of the set.

    Returns:
        The path of each file, and the scene. Its ``image`` is not compressed yet.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, scene in sample_scenes(count=count, seed=seed):
        path = directory / name
        path.write_bytes(encode_jpeg(scene.image, SAMPLE_JPEG_QUALITY))
        written.append((path, scene))
    return written


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Compress an image as JPEG.

    Args:
        image: Image, uint8 of shape (height, width, 3), BGR.
        quality: JPEG quality, 1 to 100.

    Returns:
        The file's bytes.

    Raises:
        ValueError: If OpenCV cannot encode the image.
    """
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError("the image could not be encoded as JPEG")
    return data.tobytes()


# --- outlines -----------------------------------------------------------------------------


def _regular(corners: int, first_degrees: float) -> Points:
    """Corners of a regular polygon of radius 1."""
    angles = np.radians(first_degrees + 360.0 / corners * np.arange(corners))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _heart() -> Points:
    """Outline of a heart, tip down, around the middle of its box."""
    t = np.linspace(0.0, 2.0 * math.pi, 120, endpoint=False)
    x = 16.0 * np.sin(t) ** 3
    y = -(13.0 * np.cos(t) - 5.0 * np.cos(2 * t) - 2.0 * np.cos(3 * t) - np.cos(4 * t))
    points = np.stack([x, y], axis=1)
    middle: Points = (points.min(axis=0) + points.max(axis=0)) / 2.0
    return points - middle


def _cross(half_arm: float) -> Points:
    """Outline of a plus sign whose arms are ``2 * half_arm`` wide and reach to 1."""
    quarter = [(half_arm, -1.0), (half_arm, -half_arm), (1.0, -half_arm)]
    corners = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return np.asarray(corners)


def _cut(points: Points, axis: int, limit: float, keep_above: bool) -> Points:
    """Cut a polygon at an axis-parallel line (one step of Sutherland-Hodgman)."""
    if len(points) == 0:
        return points
    depth = points[:, axis] - limit if keep_above else limit - points[:, axis]
    kept: list[npt.NDArray[np.float64]] = []
    for i in range(len(points)):
        j = (i + 1) % len(points)
        if depth[i] >= 0:
            kept.append(points[i])
        if (depth[i] >= 0) != (depth[j] >= 0):
            share = depth[i] / (depth[i] - depth[j])
            kept.append(points[i] + share * (points[j] - points[i]))
    return np.asarray(kept).reshape(-1, 2)


# --- placing and painting shapes -----------------------------------------------------------


def _random_pose(
    rng: np.random.Generator, width: int, height: int
) -> tuple[tuple[float, float], float, float]:
    """Pick a centre (pixels), a radius (pixels) and an angle (degrees)."""
    unit = math.sqrt(width * height)
    # Small shapes are as likely as large ones on a logarithmic scale.
    radius = unit * math.exp(rng.uniform(math.log(MIN_RADIUS), math.log(MAX_RADIUS)))
    reach = 0.8 * radius
    centre = (
        float(rng.uniform(min(reach, width / 2), max(width - reach, width / 2))),
        float(rng.uniform(min(reach, height / 2), max(height - reach, height / 2))),
    )
    return centre, radius, float(rng.uniform(0.0, 360.0))


def _try_to_place(
    rng: np.random.Generator, class_id: int, width: int, height: int
) -> _Placed | None:
    """Pick a position for a shape. None if too much of it would be outside the image."""
    centre, radius, degrees = _random_pose(rng, width, height)
    points = place(shape_outline(class_id), centre, radius, degrees)
    box = tight_box(points, width, height)
    patch = _rasterise(points, width, height)
    if box is None or patch is None or _too_far_out(points, width, height):
        return None
    return _Placed(class_id, points, centre, box, patch, patch.coverage)


def _too_far_out(points: Points, width: int, height: int) -> bool:
    """Return whether too much of a shape is outside the image."""
    low, high = points.min(axis=0), points.max(axis=0)
    slack = (high - low) * MAX_OUTSIDE
    size = np.array([width, height])
    return bool(np.any(low < -slack) or np.any(high > size + slack))


def _rasterise(points: Points, width: int, height: int) -> Patch | None:
    """Return the share of each pixel that a polygon covers, or None if it covers none."""
    low = np.floor(points.min(axis=0)).astype(int)
    high = np.ceil(points.max(axis=0)).astype(int)
    left, top = max(int(low[0]), 0), max(int(low[1]), 0)
    right, bottom = min(int(high[0]), width), min(int(high[1]), height)
    if right <= left or bottom <= top:
        return None
    scale = _SUPERSAMPLING
    fine = np.zeros(((bottom - top) * scale, (right - left) * scale), dtype=np.uint8)
    # This module counts from pixel corners, but OpenCV from pixel centres. So subtract a half.
    corners = (points - np.array([left, top])) * scale - 0.5
    cv2.fillPoly(fine, [np.round(corners * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    coarse = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return Patch(left, top, coarse.astype(np.float32) / np.float32(255.0))


def _blend(image: Image, patch: Patch, colour: npt.NDArray[np.float32]) -> None:
    """Blend a colour, or a field of colours of the patch's size, into the image in place."""
    under = image[patch.window].astype(np.float32)
    mixed = under + (colour - under) * patch.coverage[:, :, None]
    image[patch.window] = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def _cover(below: _Placed, above: Patch) -> _Placed:
    """Return a shape without the visible part that another shape covers now."""
    rows, columns = below.patch.window
    other_rows, other_columns = above.window
    top, bottom = max(rows.start, other_rows.start), min(rows.stop, other_rows.stop)
    left, right = max(columns.start, other_columns.start), min(columns.stop, other_columns.stop)
    if bottom <= top or right <= left:
        return below
    visible_coverage = below.visible_coverage.copy()
    visible_coverage[
        top - below.patch.top : bottom - below.patch.top,
        left - below.patch.left : right - below.patch.left,
    ] *= (
        1.0
        - above.coverage[
            top - above.top : bottom - above.top, left - above.left : right - above.left
        ]
    )
    return replace(below, visible_coverage=visible_coverage)


def _paint(rng: np.random.Generator, image: Image, shape: _Placed, dark: bool) -> None:
    """Paint a shape: a bright fill, often shaded, sometimes with a rim."""
    hue = float(rng.uniform(0.0, 180.0))
    value = rng.uniform(0.82, 1.0) if dark else rng.uniform(0.6, 0.95)
    fill = _colour(hue, float(rng.uniform(0.7, 1.0)), float(value))
    shaded = _shade(rng, shape.patch, fill) if rng.random() < 0.6 else fill
    if rng.random() >= 0.4:
        _blend(image, shape.patch, shaded)
        return
    rim = np.clip(fill * rng.uniform(0.35, 0.6), 0, 255).astype(np.float32)
    _blend(image, shape.patch, rim)
    centre = np.asarray(shape.centre)
    inner = (shape.points - centre) * rng.uniform(0.84, 0.92) + centre
    inside = _rasterise(inner, image.shape[1], image.shape[0])
    if inside is not None:
        _blend(image, inside, _shade(rng, inside, fill))


def _shade(
    rng: np.random.Generator, patch: Patch, fill: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return a field of colours (height, width, 3) that runs from dull to bright."""
    height, width = patch.coverage.shape
    angle = float(rng.uniform(0.0, 2.0 * math.pi))
    across = np.linspace(-1.0, 1.0, width, dtype=np.float32) * math.cos(angle)
    down = np.linspace(-1.0, 1.0, height, dtype=np.float32) * math.sin(angle)
    light = 1.0 + 0.16 * (down[:, None] + across[None, :])
    return np.asarray(np.clip(fill * light[:, :, None], 0, 255), dtype=np.float32)


def _colour(hue: float, saturation: float, value: float) -> npt.NDArray[np.float32]:
    """Convert hue (0..180), saturation and value (0..1) to BGR, float32 of shape (3,)."""
    pixel = np.array([[[hue * 2.0, saturation, value]]], dtype=np.float32)
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0] * 255.0, dtype=np.float32)


# --- background ----------------------------------------------------------------------------


def _background(rng: np.random.Generator, width: int, height: int) -> tuple[Image, bool]:
    """Draw a cluttered background in dull colours. Also return whether it is dark."""
    dark = bool(rng.random() < 0.5)
    image = _clouds(rng, width, height, dark)
    for _ in range(int(rng.integers(4, 12))):
        _draw_clutter(rng, image, dark)
    return image, dark


def _dull(rng: np.random.Generator, dark: bool) -> npt.NDArray[np.float32]:
    """Pick a dull colour, BGR float32 of shape (3,)."""
    value = rng.uniform(0.1, 0.42) if dark else rng.uniform(0.68, 0.98)
    saturation = rng.uniform(0.05, 0.45 if dark else 0.28)
    return _colour(float(rng.uniform(0.0, 180.0)), float(saturation), float(value))


def _clouds(rng: np.random.Generator, width: int, height: int, dark: bool) -> Image:
    """Draw a smooth random texture between two dull colours."""
    coarse = (int(rng.integers(2, 7)), int(rng.integers(2, 7)))
    soft = _noise_field(rng, coarse, width, height)
    soft += 0.3 * _noise_field(rng, (coarse[0] * 5, coarse[1] * 5), width, height)
    shares = np.clip(soft * (255.0 / 1.3), 0.0, 255.0).astype(np.uint8)
    first, second = _dull(rng, dark), _dull(rng, dark)
    steps = np.linspace(0.0, 1.0, 256, dtype=np.float32)[:, None]
    ramp = np.clip(first + (second - first) * steps, 0, 255).astype(np.uint8)
    return np.asarray(ramp[shares], dtype=np.uint8)


def _noise_field(rng: np.random.Generator, cells: tuple[int, int], width: int, height: int) -> Mask:
    """Stretch a coarse grid of random numbers over an image."""
    grid = rng.random(cells, dtype=np.float32)
    return np.asarray(
        cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32
    )


def _draw_clutter(rng: np.random.Generator, image: Image, dark: bool) -> None:
    """Draw one object that has no class: a line, a bar, a curve or a shard."""
    height, width = image.shape[:2]
    unit = math.sqrt(width * height)
    colour = _dull(rng, dark)
    start = np.array([rng.uniform(0, width), rng.uniform(0, height)])
    kind = int(rng.integers(4))
    if kind == 0:
        bgr = tuple(float(c) for c in colour)
        stop = np.array([rng.uniform(0, width), rng.uniform(0, height)])
        thick = max(1, int(unit * rng.uniform(0.003, 0.012)))
        _line(image, np.stack([start, stop]), bgr, thick)
    elif kind == 1:
        length, breadth = unit * rng.uniform(0.3, 0.9), unit * rng.uniform(0.015, 0.05)
        bar = np.array(
            [[-length, -breadth], [length, -breadth], [length, breadth], [-length, breadth]]
        )
        _fill(image, place(bar, (start[0], start[1]), 0.5, rng.uniform(0, 360)), colour)
    elif kind == 2:
        steps = np.linspace(0.0, 1.0, 24)[:, None]
        bends = rng.uniform(-0.5, 0.5, size=(2, 2)) * unit
        curve = start + steps * bends[0] + np.sin(steps * math.pi * rng.uniform(1, 3)) * bends[1]
        bgr = tuple(float(c) for c in colour)
        _line(image, curve, bgr, max(1, int(unit * rng.uniform(0.004, 0.014))))
    else:
        _fill(image, _shard(rng, start, unit), colour)


def _shard(rng: np.random.Generator, centre: Points, unit: float) -> Points:
    """Return the corners of an irregular, long shard with five to seven corners."""
    corners = int(rng.integers(5, 8))
    angles = np.sort(rng.uniform(0.0, 2.0 * math.pi, corners))
    radii = rng.uniform(0.5, 1.0, corners) * unit * rng.uniform(0.12, 0.4)
    flat = np.stack([np.cos(angles) * radii, np.sin(angles) * radii * rng.uniform(0.25, 0.5)], 1)
    return place(flat, (float(centre[0]), float(centre[1])), 1.0, float(rng.uniform(0, 360)))


def _fill(image: Image, points: Points, colour: npt.NDArray[np.float32]) -> None:
    """Fill a polygon of the background. Its edges are exact to a pixel only."""
    bgr = tuple(float(c) for c in colour)
    cv2.fillPoly(image, [np.round(points).astype(np.int32)], bgr, cv2.LINE_AA)


def _line(image: Image, points: Points, bgr: Any, thick: int) -> None:
    """Draw an open line through points."""
    corners = [np.round(points).astype(np.int32)]
    cv2.polylines(image, corners, False, bgr, thick, cv2.LINE_AA)


# --- degradation by a camera ------------------------------------------------------------------


def _degrade(rng: np.random.Generator, image: Image) -> Image:
    """Blur an image, change its brightness, add noise and JPEG artefacts."""
    kind = rng.random()
    scale = math.sqrt(image.shape[0] * image.shape[1]) / _BLUR_REFERENCE_PIXELS
    if kind < 0.35:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), scale * rng.uniform(0.3, 1.2)), np.uint8)
    elif kind < 0.5:
        image = _motion_blur(image, scale * rng.uniform(2.0, 5.0), float(rng.uniform(0, math.pi)))
    gain, offset = rng.uniform(0.8, 1.15), rng.uniform(-14.0, 14.0)
    sigma = rng.uniform(0.0, 12.0)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noisy = image.astype(np.float32) * np.float32(gain) + noise * np.float32(sigma)
    image = np.clip(noisy + np.float32(offset), 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        data = np.frombuffer(encode_jpeg(image, int(rng.integers(40, 90))), dtype=np.uint8)
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
    return image


def _motion_blur(image: Image, length: float, angle: float) -> Image:
    """Smear an image along a line of the given length (pixels) and angle (radians)."""
    half = max(1, round(length / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), dtype=np.float32)
    reach = np.array([math.cos(angle), math.sin(angle)]) * half
    start, stop = np.round(half - reach).astype(int), np.round(half + reach).astype(int)
    cv2.line(kernel, (int(start[0]), int(start[1])), (int(stop[0]), int(stop[1])), 1.0)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), dtype=np.uint8)
