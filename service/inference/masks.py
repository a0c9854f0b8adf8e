"""Masks of a segmentation model, as polygons in pixels of the full image.

A mask is where a weighted sum of the model's prototypes is positive, inside of the box. The
interpolation is that of `process_mask_native` in ultralytics 8.4 (utils/ops.py), which
`retina_masks=True` uses. Here, it is computed only inside of the box.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from service.domain import Box, Polygon
from service.images.letterbox import Letterbox

Floats = NDArray[np.floating[Any]]

MAX_TOLERANCE = 1.0  # how far a simplified ring may be off, in pixels
# A ring's tolerance is at most this share of its area divided by its length, so that small and thin
# rings keep their area.
_TOLERANCE_OF_WIDTH = 0.1
# A larger box is sampled at fewer points than it has pixels. This bounds time and memory.
MAX_SAMPLES = 2**20
# Points of all rings of an image, which take 64 bytes each. Beyond it, a mask keeps only its
# largest ring. Only an untrained model finds so many.
MAX_POINTS = 2**18
_BAND_SAMPLES = 2**16  # interpolated at once, so that the floats stay in the CPU's cache
_PROTOTYPE_STRIDE = 4  # pixels of the input for each pixel of a prototype


@dataclass(frozen=True)
class Mask:
    """A mask.

    Attributes:
        polygons: its simplified rings, in pixels of the full image, the largest first.
        area: its area in pixels, before the rings are simplified.
    """

    polygons: tuple[Polygon, ...]
    area: float


class Masks:
    """The masks of one image."""

    def __init__(self, prototypes: NDArray[np.float32], letterbox: Letterbox) -> None:
        """Take the prototypes.

        Args:
            prototypes: channels x height x width. A quarter of the input's size.
            letterbox: how the full image lies in the input.

        Raises:
            ValueError: the prototypes are not a quarter of the input's size.
        """
        self._prototypes = prototypes
        self._points_left = MAX_POINTS
        size = letterbox.input_height, letterbox.input_width
        if tuple(_PROTOTYPE_STRIDE * side for side in prototypes.shape[1:]) != size:
            raise ValueError(f"Prototypes {prototypes.shape} do not fit an input of {size}")
        padding = (
            letterbox.input_height - letterbox.resized_height,
            letterbox.input_width - letterbox.resized_width,
        )
        # The smallest scale of the prototypes at which the padding ends between two pixels.
        bits = padding[0] | padding[1]
        scale = 4 // math.gcd(4, bits | bits // 2)
        self._rows, self._columns = (
            _Axis(size, prototype, start * scale // 4, content * scale // 4, scale)
            for size, prototype, start, content in (
                (letterbox.height, prototypes.shape[1], letterbox.top, letterbox.resized_height),
                (letterbox.width, prototypes.shape[2], letterbox.left, letterbox.resized_width),
            )
        )

    def mask(self, coefficients: NDArray[np.float32], box: Box) -> Mask | None:
        """Return the mask of one detection, or None if it has no pixel.

        Args:
            coefficients: the weight of each prototype.
            box: in pixels of the full image. The mask is cropped to it.
        """
        if not (box.x1 < box.x2 and box.y1 < box.y2):  # also if a side is NaN
            return None
        x, y = math.ceil(box.x1), math.ceil(box.y1)
        width, height = math.ceil(box.x2) - x, math.ceil(box.y2) - y
        if width <= 0 or height <= 0:
            return None
        step = max(1.0, math.sqrt(width * height / MAX_SAMPLES))
        columns, rows = math.ceil(width / step), math.ceil(height / step)
        scale = width / columns, height / rows
        pixels = self._sample(coefficients, _centers(x, width, columns), _centers(y, height, rows))
        area = int(np.count_nonzero(pixels)) * scale[0] * scale[1]
        if not area:
            return None
        polygons: list[Polygon] = []
        for ring in sorted(rings_of(pixels, scale, (x, y)), key=cv2.contourArea, reverse=True):
            if polygons and self._points_left <= 0:
                break
            polygons.append(_simplified(ring))
            self._points_left -= len(polygons[-1].points) // 2
        return Mask(tuple(polygons), area)

    def _sample(self, coefficients: NDArray[np.float32], x: Floats, y: Floats) -> NDArray[np.uint8]:
        """Return whether the mask covers each point of a grid, as uint8 rows x columns.

        Args:
            coefficients: the weight of each prototype.
            x: columns of the grid. The centre of the image's first pixel is 0.
            y: rows of the grid.
        """
        to_rows, positions_y, rows = self._rows.plan(y)
        to_columns, positions_x, columns = self._columns.plan(x)
        logits = np.tensordot(coefficients, self._prototypes[:, rows, columns], 1)
        logits = _interpolate(_interpolate(logits, to_rows).T, to_columns)
        logits = np.ascontiguousarray(_interpolate(logits, positions_x).T)
        result = np.empty((len(y), len(x)), np.uint8)
        band = max(1, _BAND_SAMPLES // len(x))
        for start in range(0, len(y), band):
            part = slice(start, start + band)
            np.greater(_interpolate(logits, positions_y[part]), 0, out=result[part])
        return result


@dataclass(frozen=True)
class _Axis:
    """One axis of an image, and of its prototypes.

    Attributes:
        size: the full image's side in pixels.
        prototypes: the prototypes' side.
        start: where the image starts in the scaled prototypes.
        content: the image's side in the scaled prototypes.
        scale: by which the prototypes are enlarged first.
    """

    size: int
    prototypes: int
    start: int
    content: int
    scale: int

    def plan(self, points: Floats) -> tuple[Floats, Floats, slice]:
        """Plan the interpolation at some points of the image.

        Returns:
            The positions at which to interpolate the slice of the prototypes, then the positions
            at which to interpolate its result, and the slice.
        """
        positions = (points + 0.5) * (self.content / self.size) - 0.5
        positions = np.clip(positions, 0, self.content - 1) + self.start
        first = math.floor(positions[0])
        last = min(math.floor(positions[-1]) + 1, self.start + self.content - 1)
        enlarged = (np.arange(first, last + 1) + 0.5) / self.scale - 0.5
        enlarged = np.clip(enlarged, 0, self.prototypes - 1)
        used = slice(math.floor(enlarged[0]), min(math.floor(enlarged[-1]) + 2, self.prototypes))
        return enlarged - used.start, positions - first, used


def _centers(start: int, length: int, count: int) -> Floats:
    """Return `count` evenly spaced points in pixels from `start`. 0 is the first pixel's centre."""
    points: Floats = start + (np.arange(count) + 0.5) * (length / count) - 0.5
    return points


def _interpolate(values: Floats, positions: Floats) -> Floats:
    """Interpolate linearly between the rows of an array."""
    low = np.floor(positions).astype(np.intp)
    weight = (positions - low).astype(np.float32)[:, None]
    high = np.minimum(low + 1, len(values) - 1)
    result: Floats = values[low]
    if weight.any():
        result *= 1 - weight
        result += values[high] * weight
    return result


_NO_MOVE = -1
# The eight moves between neighbouring pixels, clockwise from east, by dx + 1 and dy + 1.
_MOVES = np.array([[5, 4, 3], [6, _NO_MOVE, 2], [7, 0, 1]])
# The middle of a pixel's right, lower, left and upper edge, from the pixel's upper left corner.
_EDGES = np.array([[1.0, 0.5], [0.5, 1.0], [0.0, 0.5], [0.5, 0.0]])


def rings_of(
    mask: NDArray[np.uint8],
    scale: tuple[float, float] = (1.0, 1.0),
    start: tuple[int, int] = (0, 0),
) -> Iterator[NDArray[np.float32]]:
    """Yield the outlines of a mask and of its holes.

    A ring goes through the middles of the edges between the pixels of the mask and the others. By
    the even-odd rule, exactly the centres of the mask's pixels are inside.

    `cv2.findContours` connects the centres of the mask's outermost pixels, half a pixel too far
    inside. But these pixels and the moves between them determine the edges.

    Args:
        mask: rows x columns. Not 0: the pixel is in the mask.
        scale: width and height of the mask's pixels.
        start: x and y of the mask's upper left corner.

    Yields:
        float32 points x 2: x and y. The centre of the mask's first pixel is half a pixel away from
        `start` in both.
    """
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return
    # All contours at once. Reversed, so that the pixels outside of the mask are on the left.
    pixels = np.concatenate(contours)[::-1, 0]
    lengths = np.array([len(contour) for contour in reversed(contours)])
    ends = np.cumsum(lengths)
    following = np.arange(1, len(pixels) + 1)
    following[ends - 1] = ends - lengths
    moves = pixels[following] - pixels
    leave = _MOVES[moves[:, 0] + 1, moves[:, 1] + 1]
    enter = np.empty_like(leave)
    enter[following] = leave
    # Edges are numbered clockwise. The outline enters a pixel at its edge `first`.
    first = (enter // 2 + 3) % 4
    count = ((leave + 1) // 2 - first) % 4
    # All four edges of a single pixel, or of one whose outline leaves as it came, diagonally.
    count[(count == 0) | (leave == _NO_MOVE)] = 4
    pixel = np.repeat(np.arange(len(pixels)), count)
    edges_before = np.cumsum(count) - count
    nth = np.arange(len(pixel)) - edges_before[pixel]
    outlines = (pixels[pixel] + _EDGES[(first[pixel] + nth) % 4]) * scale + start
    yield from np.split(outlines.astype(np.float32), edges_before[(ends - lengths)[1:]])


def _simplified(ring: NDArray[np.float32]) -> Polygon:
    """Return a ring in pixels of the full image, simplified by at most `MAX_TOLERANCE`."""
    width = cv2.contourArea(ring) / cv2.arcLength(ring, closed=True)
    tolerance = min(MAX_TOLERANCE, _TOLERANCE_OF_WIDTH * width)
    return Polygon(tuple(cv2.approxPolyDP(ring, tolerance, closed=True).ravel().tolist()))
