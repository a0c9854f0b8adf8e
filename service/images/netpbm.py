"""PBM, PGM and PPM (netpbm.sourceforge.net/doc).

Pillow takes 22 s for 12 megapixels of 10 bits, OpenCV does not scale them, and netpbmfile's regular
expressions take for ever on a header of 100 bytes.
"""

import re

import cv2
import numpy as np
from numpy.typing import NDArray

from service.domain import ImageInfo
from service.errors import BadImageError
from service.images.pixels import DecodedImage, check_pixels

_SKIPPED = re.compile(rb"(?:[ \t\n\v\f\r]|#[^\n\r]*[\n\r])*+")  # blanks and comments
_NUMBER = re.compile(rb"[0-9]{1,9}")
_COMMENT = re.compile(rb"#[^\n\r]*")
_BLANKS = b" \t\n\v\f\r"
_MAX_HEADER_BYTES = 2**20
_MAX_TOP = 65535


class Netpbm:
    """One Netpbm file, or the first image of several."""

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            BadImageError: it is damaged, or the file is of another kind, for example PFM.
        """
        self._kind = data[1:2]
        if self._kind not in b"123456":
            raise BadImageError.unsupported("PFM, whose floating-point values have no upper limit,")
        is_bitmap = self._kind in b"14"
        at = 2
        numbers = []
        for _ in range(2 if is_bitmap else 3):
            number, at = _number(data, at)
            numbers.append(number)
        width, height, self._top = (*numbers, 1)[:3]
        if not (width > 0 and height > 0 and 0 < self._top <= _MAX_TOP):
            raise _corrupt("header")
        self.info = ImageInfo(width, height, "PPM")
        self._channels = 3 if self._kind in b"36" else 1
        # One blank ends the header; a comment that follows the last number ends with its line.
        comment = _COMMENT.match(data, at)
        self._data = memoryview(data)[(comment.end() if comment else at) + 1 :]

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode in full. The maximum that the header names becomes 255.

        Raises:
            BadImageError: data are missing, or the file is damaged.
            MemoryError: there is no memory now.
        """
        del image_size
        shape = (self.info.height, self.info.width, self._channels)
        samples = self._text(shape) if self._kind in b"123" else self._bytes(shape)
        if self._kind in b"14":
            samples = 1 - samples  # in a bitmap, 1 is black
        if self._top != 255:
            table = np.arange(np.iinfo(samples.dtype).max + 1, dtype=np.uint32)
            table = (np.minimum(table, self._top) * 255 + self._top // 2) // self._top
            samples = table.astype(np.uint8)[samples]
        conversion = cv2.COLOR_GRAY2BGR if self._channels == 1 else cv2.COLOR_RGB2BGR
        return DecodedImage(check_pixels(cv2.cvtColor(samples, conversion)), self.info)

    def _bytes(self, shape: tuple[int, int, int]) -> NDArray[np.uint8 | np.uint16]:
        """Read samples of one bit, a byte, or two bytes, the most significant one first."""
        height, width, channels = shape
        kind = np.dtype(">u2" if self._top > 255 else "u1")
        row = -(-width // 8) if self._kind == b"4" else width * channels
        if len(self._data) < height * row * kind.itemsize:
            raise _corrupt("data")
        samples = np.frombuffer(self._data, kind, height * row)
        if self._kind == b"4":
            return np.unpackbits(samples.reshape(height, row), axis=1)[:, :width, None]
        return samples.reshape(shape).astype(kind.newbyteorder("="), copy=False)

    def _text(self, shape: tuple[int, int, int]) -> NDArray[np.uint8 | np.uint16]:
        """Read samples in decimal digits; those of a bitmap need no blanks between them."""
        count = shape[0] * shape[1] * shape[2]
        text = _COMMENT.sub(b" ", bytes(self._data)).strip(_BLANKS)
        if text.translate(None, _BLANKS + b"0123456789"):
            raise _corrupt("data")
        if self._kind == b"1":
            samples = np.frombuffer(text.translate(None, _BLANKS), np.uint8) - ord("0")
        else:
            # Not with a count: numpy leaves what a short text lacks unwritten.
            samples = np.fromstring(text, np.int64, sep=" ")
        samples = samples[:count]
        if len(samples) < count or samples.max() > self._top:
            raise _corrupt("data")
        return samples.reshape(shape).astype(np.uint8 if self._top < 256 else np.uint16)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that follows a header's blanks and comments, and its end."""
    skipped = _SKIPPED.match(data, at, _MAX_HEADER_BYTES)
    found = _NUMBER.match(data, skipped.end() if skipped else at)
    if not found:
        raise _corrupt("header")
    return int(found[0]), found.end()


def _corrupt(part: str) -> BadImageError:
    return BadImageError.corrupt(f"The Netpbm file's {part} is damaged or cut short.")
