"""PBM, PGM and PPM. Pillow reads them too, but takes 22 s for 12 megapixels of 10 bits."""

import io

import cv2
import numpy as np
from netpbmfile import NetpbmFile

from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError
from service.images.pixels import Picture, checked

_MAX_HEADER_BYTES = 4096  # which is what the library reads of it


class Netpbm:
    """One Netpbm file, or the first image of several."""

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            BadImageError: it is damaged, or the file is of another kind, as PFM.
        """
        if data[1:2] not in b"123456":
            raise BadImageError(
                ErrorCode.UNSUPPORTED_MEDIA,
                "PFM is not supported: its floating-point values have no upper limit.",
            )
        is_text = data[1:2] in b"123"
        try:
            header = NetpbmFile(io.BytesIO(data[:_MAX_HEADER_BYTES]))
        except ValueError as exc:
            raise _corrupt("header") from exc
        width, height, top = header.width, header.height, header.maxval
        if not (width > 0 and height > 0 and 0 < top < 65536):
            raise _corrupt("header")
        self._channels = 3 if data[1:2] in b"36" else 1
        if is_text:
            data += b"\n"  # a last number that nothing follows is a number too
        else:  # drop a second image behind this one: the library would mix both
            row = (
                -(-width // 8) if data[1:2] == b"4" else width * self._channels * (1 + (top > 255))
            )
            data = data[: len(header.header) + height * row]
        self._data, self._top = data, top
        self.info = ImageInfo(width, height, "PPM")

    def decode(self, image_size: int | None) -> Picture:
        """Decode in full. The maximum that the header names becomes 255.

        Raises:
            BadImageError: pixels are missing.
        """
        del image_size
        try:
            samples = NetpbmFile(io.BytesIO(self._data)).asarray(copy=False)
            samples = samples.reshape(self.info.height, self.info.width, self._channels)
        except ValueError as exc:
            raise _corrupt("data") from exc
        top = self._top
        if samples.dtype == np.bool_:
            scaled = np.where(samples, np.uint8(0), np.uint8(255))  # in a PBM, 1 is black
        elif top == 255:
            scaled = samples
        else:
            table = np.arange(np.iinfo(samples.dtype).max + 1, dtype=np.uint32)
            table = (np.minimum(table, top) * 255 + top // 2) // top
            scaled = table.astype(np.uint8)[samples]
        conversion = cv2.COLOR_GRAY2BGR if self._channels == 1 else cv2.COLOR_RGB2BGR
        return Picture(checked(cv2.cvtColor(scaled, conversion)), self.info)


def _corrupt(part: str) -> BadImageError:
    return BadImageError.corrupt(f"The Netpbm file's {part} is damaged or cut short.")
