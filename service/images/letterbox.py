"""The letterbox: resize an image, and pad it to an input that the model takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from service.domain import Box, ImageInfo
from service.images.pixels import Pixels, check_pixels


@dataclass(frozen=True)
class Letterbox:
    """The position and size of an image in the model's input. All attributes are in pixels.

    The formula, rounding included, is that of `LetterBox(auto=True)` and `scale_boxes` in
    ultralytics 8.4 (data/augment.py and utils/ops.py).
    """

    resized_width: int  # the image's size within the input
    resized_height: int
    left: int  # padding on the left
    top: int  # padding at the top
    input_width: int  # the input's size, a multiple of the model's stride
    input_height: int
    width: int  # the image's own size
    height: int

    def apply(self, pixels: Pixels, out: Pixels | None = None) -> Pixels:
        """Resize and pad an image to the model's input.

        Args:
            pixels: the image, uint8 HxWx3.
            out: array to write into. It has the shape of the returned array. None: a new array.

        Returns:
            uint8 input_height x input_width x 3, padded with grey.

        Raises:
            ValueError: `pixels` is not uint8 HxWx3 of this letterbox's image size, or `out` is
                not uint8 of the input's shape.
        """
        if check_pixels(pixels).shape[:2] != (self.height, self.width):
            raise ValueError(f"Pixels of shape {pixels.shape} do not fit {self}")
        input_shape = (self.input_height, self.input_width, 3)
        if out is not None and check_pixels(out).shape != input_shape:
            raise ValueError(
                f"An array of shape {out.shape} does not fit an input of {input_shape}"
            )
        resized = _resize(pixels, self.resized_width, self.resized_height)
        result = np.empty(input_shape, np.uint8) if out is None else out
        bottom, right = self.top + self.resized_height, self.left + self.resized_width
        result[: self.top] = result[bottom:] = _GREY
        result[self.top : bottom, : self.left] = result[self.top : bottom, right:] = _GREY
        result[self.top : bottom, self.left : right] = resized
        return result

    def onto(self, info: ImageInfo) -> Self:
        """Return the letterbox that converts to pixels of the full image, not of the shrunk one."""
        return replace(self, width=info.width, height=info.height)

    def box(self, x1: float, y1: float, x2: float, y2: float) -> Box:
        """Convert a box from pixels of the input to pixels of the image, clipped to the image."""
        return Box(*self.point(x1, y1), *self.point(x2, y2))

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Convert a point from pixels of the input to pixels of the image, clipped to the image."""
        return (
            _clip((x - self.left) / self._gain_x, self.width),
            _clip((y - self.top) / self._gain_y, self.height),
        )

    def centered_box(
        self, cx: float, cy: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        """Convert centre and sides of a rotated box to pixels of the image, without clipping.

        Rounding makes the scales of the two axes slightly different. At any angle, `width` takes
        the scale of x, and `height` that of y, as `scale_boxes(xywh=True)` in ultralytics 8.4.

        Returns:
            cx, cy, width and height.
        """
        return (
            (cx - self.left) / self._gain_x,
            (cy - self.top) / self._gain_y,
            width / self._gain_x,
            height / self._gain_y,
        )

    @property
    def _gain_x(self) -> float:
        return self.resized_width / self.width

    @property
    def _gain_y(self) -> float:
        return self.resized_height / self.height


_GREY = (114, 114, 114)  # the padding that YOLO is trained with


def letterbox(
    width: int, height: int, *, image_size: int, stride: int, min_pixels: int = 0
) -> Letterbox:
    """Letterbox an image into the smallest input whose sides are multiples of the stride.

    Args:
        width: the image's width in pixels.
        height: the image's height in pixels.
        image_size: longer side of the resized image, in pixels. A multiple of `stride`.
        stride: the model's stride in pixels.
        min_pixels: the fewest pixels of an input. Very thin images get more padding to reach it.
    """
    resized_width, resized_height = _resized_size(width, height, image_size)
    input_width = resized_width + (image_size - resized_width) % stride
    input_height = resized_height + (image_size - resized_height) % stride
    while input_width * input_height < min_pixels:
        if input_width < input_height:
            input_width += stride
        else:
            input_height += stride
    return _center(width, height, image_size, (input_height, input_width))


# Shorter side divided by longer side of camera images: 16:9, 3:2, 4:3, and square.
_CAMERA_RATIOS = (9 / 16, 2 / 3, 3 / 4, 1.0)


def input_shapes(
    image_size: int, *, stride: int, min_pixels: int = 0
) -> tuple[tuple[int, int], ...]:
    """Return a fixed set of input shapes, as (height, width), the smallest area first.

    The set is small, because the model is compiled for each shape. Images with the aspect ratio of
    a camera, landscape or portrait, get no more padding than with `letterbox`. Other images may get
    more. The arguments are those of `letterbox`.
    """
    shapes = set()
    for ratio in _CAMERA_RATIOS:
        landscape = letterbox(
            image_size, round(image_size * ratio), image_size=image_size, stride=stride,
            min_pixels=min_pixels,
        )  # fmt: skip
        shape = landscape.input_height, landscape.input_width
        shapes |= {shape, shape[::-1]}
    return tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)))


def fit(
    width: int, height: int, *, image_size: int, shapes: Sequence[tuple[int, int]]
) -> Letterbox:
    """Letterbox an image into the smallest of `shapes` that is large enough.

    The choice depends on the image alone, not on the images before it.

    Args:
        width: the image's width in pixels.
        height: the image's height in pixels.
        image_size: longer side of the resized image, in pixels.
        shapes: what `input_shapes` returned.
    """
    resized_width, resized_height = _resized_size(width, height, image_size)
    shape = next(s for s in shapes if s[0] >= resized_height and s[1] >= resized_width)
    return _center(width, height, image_size, shape)


def _resized_size(width: int, height: int, image_size: int) -> tuple[int, int]:
    """Return (width, height) of the image after its longer side is resized to `image_size`."""
    scale = min(image_size / height, image_size / width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _center(width: int, height: int, image_size: int, input_shape: tuple[int, int]) -> Letterbox:
    resized_width, resized_height = _resized_size(width, height, image_size)
    input_height, input_width = input_shape
    return Letterbox(
        resized_width,
        resized_height,
        left=round((input_width - resized_width) / 2 - 0.1),
        top=round((input_height - resized_height) / 2 - 0.1),
        input_width=input_width,
        input_height=input_height,
        width=width,
        height=height,
    )


def shrink(pixels: Pixels, *, image_size: int) -> Pixels:
    """Resize a large image to the size that the letterbox will give it. Never enlarge an image.

    A queued image then has at most `image_size` squared pixels, and the letterbox only pads it.
    The model gets the same pixels as if the letterbox had resized the full image.

    Args:
        pixels: uint8 HxWx3.
        image_size: longer side of the image as the model gets it, in pixels.

    Returns:
        uint8 HxWx3, whose longer side is at most `image_size`.
    """
    height, width = pixels.shape[:2]
    if max(height, width) <= image_size:
        return pixels
    return _resize(pixels, *_resized_size(width, height, image_size))


def _resize(pixels: Pixels, width: int, height: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    # Importing OpenCV takes a sixth of a second. The service seldom needs it here, because decoder
    # processes have shrunk large images already. It only enlarges small images.
    from service.images.transforms import resize

    return resize(pixels, width, height)


def _clip(value: float, limit: int) -> float:
    return min(max(value, 0.0), float(limit))
