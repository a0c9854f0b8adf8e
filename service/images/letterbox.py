"""The geometry of the letterbox, and pixels put into it."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from service.domain import Box
from service.images.pixels import Pixels, checked


@dataclass(frozen=True)
class Letterbox:
    """A picture resized into a frame whose sides are multiples of the stride, centred on grey.

    The formula is ultralytics' `LetterBox(auto=True)` with its `scale_boxes`, rounding included
    (ultralytics 8.4, data/augment.py and utils/ops.py).
    """

    resized_width: int
    resized_height: int
    left: int
    top: int
    frame_width: int
    frame_height: int
    width: int  # of the picture, in pixels
    height: int

    def apply(self, pixels: Pixels, out: Pixels | None = None) -> Pixels:
        """Return the frame: uint8, frame_height x frame_width x 3.

        Args:
            pixels: the picture.
            out: contiguous memory of the frame's shape to write into; None makes some.

        Raises:
            ValueError: the pixels are not uint8 HxWx3 of this letterbox's size, or not all of
                `out` would have been written.
        """
        if checked(pixels).shape[:2] != (self.height, self.width):
            raise ValueError(f"Pixels of {pixels.shape} for a letterbox of {self}")
        frame_shape = (self.frame_height, self.frame_width, 3)
        if out is not None and checked(out).shape != frame_shape:
            raise ValueError(f"Memory of {out.shape} for a frame of {frame_shape}")
        resized = _resize(pixels, self.resized_width, self.resized_height)
        bottom = self.frame_height - self.resized_height - self.top
        right = self.frame_width - self.resized_width - self.left
        framed = cv2.copyMakeBorder(
            resized, self.top, bottom, self.left, right, cv2.BORDER_CONSTANT, out, value=_GREY
        )
        # OpenCV writes to memory of its own where `out` is not what it needs.
        if out is not None and framed.__array_interface__ != out.__array_interface__:
            raise ValueError("OpenCV wrote the frame to other memory than `out`")
        return checked(framed)

    def box(self, x1: float, y1: float, x2: float, y2: float) -> Box:
        """Take a box from the frame's pixels back to the picture's, clipped to it."""
        gain_x = self.resized_width / self.width
        gain_y = self.resized_height / self.height
        return Box(
            _clip((x1 - self.left) / gain_x, self.width),
            _clip((y1 - self.top) / gain_y, self.height),
            _clip((x2 - self.left) / gain_x, self.width),
            _clip((y2 - self.top) / gain_y, self.height),
        )


_GREY = (114, 114, 114)  # the padding that YOLO is trained with


def letterbox(
    width: int, height: int, *, image_size: int, stride: int, min_frame_pixels: int = 0
) -> Letterbox:
    """Smallest frame of whole strides that holds the picture with its longer side at `image_size`.

    `image_size` is a multiple of `stride`. A frame of fewer than `min_frame_pixels` (as a very thin
    picture's would be) gets more padding at its shorter side.
    """
    resized_width, resized_height = _resized(width, height, image_size)
    frame_width = resized_width + (image_size - resized_width) % stride
    frame_height = resized_height + (image_size - resized_height) % stride
    while frame_width * frame_height < min_frame_pixels:
        if frame_width < frame_height:
            frame_width += stride
        else:
            frame_height += stride
    return _centred(width, height, image_size, (frame_height, frame_width))


# Shorter side to longer side of the pictures that cameras take: 16:9, 3:2, 4:3, and square.
_RATIOS = (9 / 16, 2 / 3, 3 / 4, 1.0)


def frame_sizes(
    image_size: int, *, stride: int, min_frame_pixels: int = 0
) -> tuple[tuple[int, int], ...]:
    """The few frames, as (height, width), that every picture is put into, smallest first.

    Few, because a network is compiled for each of them. They hold the ratios of cameras, upright
    and lying, without more padding than `letterbox` gives those; other pictures get more.
    """
    sizes = set()
    for ratio in _RATIOS:
        framed = letterbox(
            image_size, round(image_size * ratio), image_size=image_size, stride=stride,
            min_frame_pixels=min_frame_pixels,
        )  # fmt: skip
        size = framed.frame_height, framed.frame_width
        sizes |= {size, size[::-1]}
    return tuple(sorted(sizes, key=lambda size: (size[0] * size[1], size)))


def fit(width: int, height: int, *, image_size: int, sizes: Sequence[tuple[int, int]]) -> Letterbox:
    """Letterbox into the smallest of the `frame_sizes` that holds the picture.

    So the same picture always gets the same frame, whatever came before it.
    """
    resized_width, resized_height = _resized(width, height, image_size)
    size = next(s for s in sizes if s[0] >= resized_height and s[1] >= resized_width)
    return _centred(width, height, image_size, size)


def _resized(width: int, height: int, image_size: int) -> tuple[int, int]:
    scale = min(image_size / height, image_size / width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _centred(width: int, height: int, image_size: int, size: tuple[int, int]) -> Letterbox:
    resized_width, resized_height = _resized(width, height, image_size)
    frame_height, frame_width = size
    return Letterbox(
        resized_width,
        resized_height,
        left=round((frame_width - resized_width) / 2 - 0.1),
        top=round((frame_height - resized_height) / 2 - 0.1),
        frame_width=frame_width,
        frame_height=frame_height,
        width=width,
        height=height,
    )


def shrink(pixels: Pixels, *, image_size: int) -> Pixels:
    """Resize a picture down to the size that the letterbox would give it; never up.

    So a queued picture takes at most `image_size` squared pixels, and the letterbox that follows
    only pads: the network sees the same pixels as from the full picture.
    """
    height, width = pixels.shape[:2]
    if max(height, width) <= image_size:
        return pixels
    return _resize(pixels, *_resized(width, height, image_size))


def enlarge_box(box: Box, *, small: tuple[int, int], full: tuple[int, int]) -> Box:
    """Take a box from a shrunk picture to the full one; sizes are (width, height) in pixels."""
    x, y = full[0] / small[0], full[1] / small[1]
    return Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y)


def _resize(pixels: Pixels, width: int, height: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _clip(value: float, limit: int) -> float:
    return min(max(value, 0.0), float(limit))
