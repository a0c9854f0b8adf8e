"""The formats that Pillow reads: its view of orientation, range and frames agrees with browsers."""

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

from service.domain import ImageInfo
from service.errors import BadImageError
from service.images.exif import orientation_of
from service.images.pixels import DecodedImage, Pixels, check_pixels
from service.images.transforms import turn_upright

# One path for every TIFF: without libtiff, Pillow reads subsampled colour as if it were not.
TiffImagePlugin.READ_LIBTIFF = True
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded side by side already
Image.MAX_IMAGE_PIXELS = None  # our own limit takes its place: it refuses, rather than warns

_PLUGINS: dict[str, Callable[[io.BytesIO], Any]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
FORMATS = tuple(_PLUGINS)
# Modes of 8 bits that Pillow turns into RGB. Not float, 32-bit integers, or Lab, whose range or
# colours no header tells.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_STRIP_PIXELS = 2**20  # converted at once, so that no second copy of all of it is needed

_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF 6.0, and a value

_NOT_SUPPORTED = re.compile(
    r"unsupported (?!bmp palette)|not (yet )?supported|unable to determine|unknown pixel mode",
    re.IGNORECASE,
)


class PillowFile:
    """One file that Pillow reads, and of several frames the first one."""

    def __init__(self, data: bytes, kind: str) -> None:
        """Read the header.

        Raises:
            BadImageError: it is damaged, or says something that is not supported.
        """
        self._kind = kind
        with translate_errors(kind):
            self._image = _PLUGINS[kind](io.BytesIO(data))
            width, height = self._image.size
            self.info = ImageInfo(width, height, kind)

    @property
    def orientation(self) -> int:
        """The EXIF orientation; of a TIFF, what is left of it once Pillow has turned it."""
        return orientation_of(self._image)

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode in full, turned upright.

        Raises:
            BadImageError: data are missing, the file is damaged, or its pixels not supported.
        """
        del image_size
        with translate_errors(self._kind):
            self._image.load()
            if self._image.mode.startswith("I;16"):
                pixels = _grey_of_16_bits(self._image)
            else:
                pixels = _colours(self._image)
        pixels = turn_upright(pixels, self.orientation)
        return DecodedImage(pixels, ImageInfo(pixels.shape[1], pixels.shape[0], self._kind))


def _grey_of_16_bits(image: Any) -> Pixels:
    grey = np.asarray(image)
    bits, photometric = 16, None
    if image.format == "TIFF":  # whose samples Pillow takes as they are
        bits = max(image.tag_v2.get(_BITS, (16,)))
        photometric = image.tag_v2.get(_PHOTOMETRIC)
    grey = (grey >> (bits - 8)).astype(np.uint8)
    if photometric == _WHITE_IS_ZERO:
        grey = 255 - grey
    return check_pixels(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))


def _colours(image: Any) -> Pixels:
    """Return BGR of an image of 8 bits a channel; an alpha channel is dropped."""
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
    """Turn whatever Pillow raises into a reason for a person."""
    try:
        yield
    except (BadImageError, MemoryError):
        raise
    except Exception as exc:  # Pillow's parsers raise many kinds on damaged files
        reason = str(exc).strip(" .")
        if isinstance(exc.__cause__, KeyError) or _NOT_SUPPORTED.search(reason):
            raise BadImageError.unsupported(f"This kind of {kind} ({reason})") from exc
        raise BadImageError.corrupt(f"The {kind} file is damaged or cut short: {reason}.") from exc
