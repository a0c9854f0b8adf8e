"""Bytes to an upright picture within limits, and the geometry of the letterbox."""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from service.domain import Box, ErrorCode, ImageInfo
from service.errors import BadImageError

# Pillow reads the header (format, size, no pixels); OpenCV decodes, as ultralytics does, so that
# both see the same pixels. These are the formats that both know.
_PLUGINS = (
    AvifImagePlugin.AvifImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    Jpeg2KImagePlugin.Jpeg2KImageFile,
    JpegImagePlugin.JpegImageFile,  # and MPO: several pictures, of which the first counts
    PngImagePlugin.PngImageFile,
    PpmImagePlugin.PpmImageFile,
    TiffImagePlugin.TiffImageFile,
    WebPImagePlugin.WebPImageFile,
)
FORMATS = tuple(str(plugin.format) for plugin in _PLUGINS)
_PREFIX_BYTES = 16  # what Pillow hands to a format's signature test

Image.MAX_IMAGE_PIXELS = None  # our own limit takes its place: it refuses, rather than warns

Pixels = NDArray[np.uint8]  # HxWx3, BGR


@dataclass(frozen=True)
class Picture:
    """A decoded picture: uint8 HxWx3 BGR pixels, upright, and what its file said."""

    pixels: Pixels
    info: ImageInfo


def decode(data: bytes, *, max_pixels: int) -> Picture:
    """Decode a picture, turned upright by its EXIF orientation, 8 bits a channel, no alpha.

    Raises:
        BadImageError: not a picture, a damaged one, or one of more than `max_pixels` pixels; the
            size is read from the header, before any memory for the pixels is taken.
    """
    if not data:
        raise BadImageError(ErrorCode.EMPTY_OBJECT, "The object has no bytes.")
    image_format, width, height = _header(data)
    if width * height > max_pixels:
        raise BadImageError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"The picture has {width}x{height} pixels, more than MAX_IMAGE_PIXELS={max_pixels}.",
        )
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.size == 0:
        raise BadImageError(
            ErrorCode.CORRUPT_IMAGE, f"The {image_format} file is damaged or cut short."
        )
    upright = np.asarray(pixels, np.uint8)
    return Picture(upright, ImageInfo(upright.shape[1], upright.shape[0], image_format))


def _header(data: bytes) -> tuple[str, int, int]:
    """Read format, width and height (as stored, before EXIF) without decoding."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return str(image.format), image.width, image.height
    except Exception as exc:  # noqa: BLE001 - Pillow's parsers raise many kinds on damaged headers
        if _has_known_signature(data):
            raise BadImageError(
                ErrorCode.CORRUPT_IMAGE, "The picture's header is damaged or cut short."
            ) from exc
        raise BadImageError(
            ErrorCode.UNSUPPORTED_MEDIA,
            "The object is not a picture of a supported format: " + ", ".join(sorted(FORMATS)),
        ) from exc


def _has_known_signature(data: bytes) -> bool:
    accepts = (Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN)
    return any(accept(data[:_PREFIX_BYTES]) is True for accept in accepts if accept)


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

    def apply(self, pixels: Pixels) -> Pixels:
        """Return the frame: uint8, frame_height x frame_width x 3."""
        resized = _resize(pixels, self.resized_width, self.resized_height)
        bottom = self.frame_height - self.resized_height - self.top
        right = self.frame_width - self.resized_width - self.left
        framed = cv2.copyMakeBorder(
            resized, self.top, bottom, self.left, right, cv2.BORDER_CONSTANT, value=_GREY
        )
        return np.asarray(framed, np.uint8)

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
    scale = min(image_size / height, image_size / width)
    resized_width, resized_height = max(round(width * scale), 1), max(round(height * scale), 1)
    pad_x = (image_size - resized_width) % stride
    pad_y = (image_size - resized_height) % stride
    while (resized_width + pad_x) * (resized_height + pad_y) < min_frame_pixels:
        if resized_width + pad_x < resized_height + pad_y:
            pad_x += stride
        else:
            pad_y += stride
    return Letterbox(
        resized_width,
        resized_height,
        left=round(pad_x / 2 - 0.1),
        top=round(pad_y / 2 - 0.1),
        frame_width=resized_width + pad_x,
        frame_height=resized_height + pad_y,
        width=width,
        height=height,
    )


def shrink(pixels: Pixels, *, image_size: int) -> Pixels:
    """Resize a picture down to the size that the letterbox would give it; never up.

    So a queued picture takes at most `image_size` squared pixels, and the letterbox that follows
    only pads: the network sees the same pixels as from the full picture.
    """
    height, width = pixels.shape[:2]
    scale = min(image_size / height, image_size / width)
    if scale >= 1:
        return pixels
    return _resize(pixels, max(round(width * scale), 1), max(round(height * scale), 1))


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
