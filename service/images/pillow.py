"""Decode with Pillow, which agrees with browsers on orientation, value range and first frame."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from service.domain import Capture, ImageInfo
from service.errors import BadImageError
from service.images.exif import capture_of, orientation_of
from service.images.pixels import DecodedImage, Pixels, check_pixels
from service.images.transforms import turn_upright

# Read every TIFF with libtiff: Pillow's own reader treats subsampled colour as not subsampled.
TiffImagePlugin.READ_LIBTIFF = True
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one decoder process per core decodes already
Image.MAX_IMAGE_PIXELS = None  # Pillow's limit only warns. The service checks its own limit.

_PLUGINS: dict[str, Callable[[io.BytesIO], Any]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
FORMATS = tuple(_PLUGINS)
# 8-bit modes that Pillow converts to RGB. Float, 32-bit integers and Lab are left out: no header
# states their range or colours.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_STRIP_PIXELS = 2**20  # converting in strips avoids a second copy of the whole image

_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF 6.0, and a value

_NOT_SUPPORTED = re.compile(
    r"unsupported (?!bmp palette)|not (yet )?supported|unable to determine|unknown pixel mode",
    re.IGNORECASE,
)


class PillowFile:
    """A file that Pillow decodes. Only the first frame of several is used."""

    def __init__(self, data: bytes, kind: str) -> None:
        """Read the header.

        Args:
            data: the file.
            kind: its format, one of `FORMATS`.

        Raises:
            BadImageError: the header is damaged or describes an unsupported kind of image.
        """
        self._kind = kind
        with translate_errors(kind):
            self._image = _PLUGINS[kind](io.BytesIO(data))
            width, height = self._image.size
            self.info = ImageInfo(width, height, kind)

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 to 8. It is 1 once Pillow has loaded a TIFF and turned it."""
        return orientation_of(self._image)

    @property
    def capture(self) -> Capture:
        """What the EXIF data state about the capture."""
        return capture_of(self._image)

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode in full to upright uint8 BGR pixels.

        Raises:
            BadImageError: data are missing, the file is damaged, or its pixels are unsupported.
            MemoryError: there is not enough memory now.
        """
        del image_size
        capture = self.capture  # before Pillow has loaded the image, and closed its file
        with translate_errors(self._kind):
            self._image.load()
            if self._image.mode.startswith("I;16"):
                pixels = _convert_16_bit_grey(self._image)
            else:
                pixels = _convert_8_bit(self._image)
        pixels = turn_upright(pixels, self.orientation)
        info = ImageInfo(pixels.shape[1], pixels.shape[0], self._kind)
        return DecodedImage(pixels, info, capture)


def _convert_16_bit_grey(image: Any) -> Pixels:
    """Return uint8 BGR pixels."""
    grey = np.asarray(image)
    bits, photometric = 16, None
    if image.format == "TIFF":  # Pillow neither scales nor inverts these samples
        bits = max(image.tag_v2.get(_BITS, (16,)))
        photometric = image.tag_v2.get(_PHOTOMETRIC)
    grey = (grey >> (bits - 8)).astype(np.uint8)
    if photometric == _WHITE_IS_ZERO:
        grey = 255 - grey
    return check_pixels(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))


def _convert_8_bit(image: Any) -> Pixels:
    """Return uint8 BGR pixels, without alpha.

    Raises:
        BadImageError: the mode is unsupported.
    """
    if image.mode not in (*_MODES, *_PREMULTIPLIED):
        raise BadImageError.unsupported(f"{image.format} with the sample type {image.mode}")
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        if strip.mode in _PREMULTIPLIED:
            strip = strip.convert(_PREMULTIPLIED[strip.mode])
        rgb = np.asarray(strip.convert("RGB"))
        pixels[top : top + rows] = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return pixels


@contextmanager
def translate_errors(kind: str) -> Iterator[None]:
    """Raise every error of Pillow as a BadImageError, except MemoryError.

    Args:
        kind: the file's format, for the message.
    """
    try:
        yield
    except (BadImageError, MemoryError):
        raise
    except Exception as exc:  # Pillow's parsers raise many kinds on damaged files
        reason = str(exc).strip(" .")
        if isinstance(exc.__cause__, KeyError) or _NOT_SUPPORTED.search(reason):
            raise BadImageError.unsupported(f"This kind of {kind} ({reason})") from exc
        raise BadImageError.corrupt(f"The {kind} file is damaged or truncated: {reason}.") from exc
