"""PBM, PGM and PPM (netpbm.sourceforge.net/doc).

This is our own decoder, because three libraries were unsuitable. Pillow takes 22 s for 12
megapixels of 10 bits. OpenCV does not scale samples by the maximum in the header. A malformed
header of 100 bytes makes the regular expressions of netpbmfile run without end.
"""

import re

import cv2
import numpy as np
from numpy.typing import NDArray

from service.domain import ImageInfo
from service.errors import BadImageError
from service.images.pixels import DecodedImage, check_pixels

_SKIPPED = re.compile(rb"(?:[ \t\n\v\f\r]|#[^\n\r]*[\n\r])*+")  # whitespace and comments
_NUMBER = re.compile(rb"[0-9]{1,9}")
_COMMENT = re.compile(rb"#[^\n\r]*")
_WHITESPACE = b" \t\n\v\f\r"
_MAX_HEADER_BYTES = 2**20
_MAX_SAMPLE = 65535


class Netpbm:
    """The first image of a Netpbm file."""

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            BadImageError: the header is damaged, or the file is a PFM.
        """
        self._kind = data[1:2]  # the digit of the signature, P1 to P6
        if self._kind not in b"123456":
            raise BadImageError.unsupported("PFM, whose floating-point values have no upper limit,")
        is_bitmap = self._kind in b"14"
        end = 2
        numbers = []
        for _ in range(2 if is_bitmap else 3):
            number, end = _read_number(data, end)
            numbers.append(number)
        width, height, self._max_sample = (*numbers, 1)[:3]
        if not (width > 0 and height > 0 and 0 < self._max_sample <= _MAX_SAMPLE):
            raise _corrupt("header")
        self.info = ImageInfo(width, height, "PPM")
        self._channels = 3 if self._kind in b"36" else 1
        # One whitespace character, or the line end of a comment, ends the header.
        comment = _COMMENT.match(data, end)
        self._data = memoryview(data)[(comment.end() if comment else end) + 1 :]

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode in full to uint8 BGR pixels. The maximum in the header becomes 255.

        Raises:
            BadImageError: data are missing, or the file is damaged.
            MemoryError: there is not enough memory now.
        """
        del image_size
        shape = (self.info.height, self.info.width, self._channels)
        is_plain = self._kind in b"123"
        samples = self._read_plain(shape) if is_plain else self._read_binary(shape)
        if self._kind in b"14":
            samples = 1 - samples  # in a bitmap, 1 is black
        if self._max_sample != 255:
            table = np.arange(np.iinfo(samples.dtype).max + 1, dtype=np.uint32)
            half = self._max_sample // 2  # rounds to the nearest
            table = (np.minimum(table, self._max_sample) * 255 + half) // self._max_sample
            samples = table.astype(np.uint8)[samples]
        conversion = cv2.COLOR_GRAY2BGR if self._channels == 1 else cv2.COLOR_RGB2BGR
        return DecodedImage(check_pixels(cv2.cvtColor(samples, conversion)), self.info)

    def _read_binary(self, shape: tuple[int, int, int]) -> NDArray[np.uint8 | np.uint16]:
        """Read binary samples of one bit, one byte, or two bytes in big-endian order."""
        height, width, channels = shape
        dtype = np.dtype(">u2" if self._max_sample > 255 else "u1")
        row = -(-width // 8) if self._kind == b"4" else width * channels
        if len(self._data) < height * row * dtype.itemsize:
            raise _corrupt("data")
        samples = np.frombuffer(self._data, dtype, height * row)
        if self._kind == b"4":
            return np.unpackbits(samples.reshape(height, row), axis=1)[:, :width, None]
        return samples.reshape(shape).astype(dtype.newbyteorder("="), copy=False)

    def _read_plain(self, shape: tuple[int, int, int]) -> NDArray[np.uint8 | np.uint16]:
        """Read samples in decimal digits. In a bitmap, whitespace between them is optional."""
        count = shape[0] * shape[1] * shape[2]
        text = _COMMENT.sub(b" ", bytes(self._data)).strip(_WHITESPACE)
        if text.translate(None, _WHITESPACE + b"0123456789"):
            raise _corrupt("data")
        if self._kind == b"1":
            samples = np.frombuffer(text.translate(None, _WHITESPACE), np.uint8) - ord("0")
        else:
            # No `count`: with it, numpy leaves samples uninitialised if the text is too short.
            samples = np.fromstring(text, np.int64, sep=" ")
        samples = samples[:count]
        if len(samples) < count or samples.max() > self._max_sample:
            raise _corrupt("data")
        return samples.reshape(shape).astype(np.uint8 if self._max_sample < 256 else np.uint16)


def _read_number(data: bytes, start: int) -> tuple[int, int]:
    """Return the number after whitespace and comments in a header, and the offset of its end."""
    skipped = _SKIPPED.match(data, start, _MAX_HEADER_BYTES)
    digits = _NUMBER.match(data, skipped.end() if skipped else start)
    if not digits:
        raise _corrupt("header")
    return int(digits[0]), digits.end()


def _corrupt(part: str) -> BadImageError:
    return BadImageError.corrupt(f"The Netpbm file's {part} is damaged or truncated.")
