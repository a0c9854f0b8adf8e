"""The geometry of the letterbox, and pixels put into it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Box
from service.images.pixels import Pixels, check_pixels


@dataclass(frozen=True)
class Letterbox:
    """An image resized into the model's input, whose sides are multiples of the stride, on grey.

    The formula is ultralytics' `LetterBox(auto=True)` with its `scale_boxes`, rounding included
    (ultralytics 8.4, data/augment.py and utils/ops.py).
    """

    resized_width: int
    resized_height: int
    left: int
    top: int
    input_width: int
    input_height: int
    width: int  # of the image, in pixels
    height: int

    def apply(self, pixels: Pixels, out: Pixels | None = None) -> Pixels:
        """Return the model's input: uint8, input_height x input_width x 3.

        Args:
            pixels: the image.
            out: memory of this shape to write into; None: new memory.

        Raises:
            ValueError: the pixels are not uint8 HxWx3 of this letterbox's size, or `out` has
                another shape than the input.
        """
        if check_pixels(pixels).shape[:2] != (self.height, self.width):
            raise ValueError(f"Pixels of {pixels.shape} for a letterbox of {self}")
        input_shape = (self.input_height, self.input_width, 3)
        if out is not None and check_pixels(out).shape != input_shape:
            raise ValueError(f"Memory of {out.shape} for an input of {input_shape}")
        resized = _resize(pixels, self.resized_width, self.resized_height)
        result = np.empty(input_shape, np.uint8) if out is None else out
        bottom, right = self.top + self.resized_height, self.left + self.resized_width
        result[: self.top] = result[bottom:] = _GREY
        result[self.top : bottom, : self.left] = result[self.top : bottom, right:] = _GREY
        result[self.top : bottom, self.left : right] = resized
        return result

    def box(self, x1: float, y1: float, x2: float, y2: float) -> Box:
        """Take a box from the input's pixels back to the image's, clipped to it."""
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
    width: int, height: int, *, image_size: int, stride: int, min_pixels: int = 0
) -> Letterbox:
    """Return the smallest input of whole strides for an image with its longer side at `image_size`.

    `image_size` is a multiple of `stride`. An input of fewer than `min_pixels` (that of a very thin
    image) gets more padding at its shorter side.
    """
    resized_width, resized_height = _resized(width, height, image_size)
    input_width = resized_width + (image_size - resized_width) % stride
    input_height = resized_height + (image_size - resized_height) % stride
    while input_width * input_height < min_pixels:
        if input_width < input_height:
            input_width += stride
        else:
            input_height += stride
    return _centred(width, height, image_size, (input_height, input_width))


# Shorter side to longer side of the images that cameras take: 16:9, 3:2, 4:3, and square.
_RATIOS = (9 / 16, 2 / 3, 3 / 4, 1.0)


def input_shapes(
    image_size: int, *, stride: int, min_pixels: int = 0
) -> tuple[tuple[int, int], ...]:
    """Return the few inputs, as (height, width), that every image is put into, smallest first.

    Few, because a network is compiled for each of them. They suit the aspect ratios of cameras,
    upright and lying, without more padding than `letterbox` gives; other images get more.
    """
    sizes = set()
    for ratio in _RATIOS:
        framed = letterbox(
            image_size, round(image_size * ratio), image_size=image_size, stride=stride,
            min_pixels=min_pixels,
        )  # fmt: skip
        size = framed.input_height, framed.input_width
        sizes |= {size, size[::-1]}
    return tuple(sorted(sizes, key=lambda size: (size[0] * size[1], size)))


def fit(
    width: int, height: int, *, image_size: int, shapes: Sequence[tuple[int, int]]
) -> Letterbox:
    """Letterbox into the smallest of the `input_shapes` that holds the image.

    So the same image always gets the same input, whatever came before it.
    """
    resized_width, resized_height = _resized(width, height, image_size)
    size = next(s for s in shapes if s[0] >= resized_height and s[1] >= resized_width)
    return _centred(width, height, image_size, size)


def _resized(width: int, height: int, image_size: int) -> tuple[int, int]:
    scale = min(image_size / height, image_size / width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _centred(width: int, height: int, image_size: int, size: tuple[int, int]) -> Letterbox:
    resized_width, resized_height = _resized(width, height, image_size)
    input_height, input_width = size
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
    """Resize an image down to the size that the letterbox would give it; never up.

    So a queued image takes at most `image_size` squared pixels, and the letterbox that follows
    only pads: the model sees the same pixels as from the full image.
    """
    height, width = pixels.shape[:2]
    if max(height, width) <= image_size:
        return pixels
    return _resize(pixels, *_resized(width, height, image_size))


def enlarge_box(box: Box, *, small: tuple[int, int], full: tuple[int, int]) -> Box:
    """Take a box from a shrunk image to the full one; sizes are (width, height) in pixels."""
    x, y = full[0] / small[0], full[1] / small[1]
    return Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y)


def _resize(pixels: Pixels, width: int, height: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    # OpenCV takes a sixth of a second to import. Decoders have resized all but small images.
    from service.images.transforms import resize

    return resize(pixels, width, height)


def _clip(value: float, limit: int) -> float:
    return min(max(value, 0.0), float(limit))
