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
        # A last number that nothing follows is a number too.
        file = io.BytesIO(data + b"\n" if data[1:2] in b"123" else data)
        try:
            self._file = NetpbmFile(file)
        except ValueError as exc:
            raise _corrupt("header") from exc
        if not (self._file.width > 0 < self._file.height and 0 < self._file.maxval < 65536):
            raise _corrupt("header")
        self._file.frames = 1
        self._channels = 3 if data[1:2] in b"36" else 1
        self.info = ImageInfo(self._file.width, self._file.height, "PPM")

    def decode(self, image_size: int | None) -> Picture:
        """Decode in full. The maximum that the header names becomes 255.

        Raises:
            BadImageError: pixels are missing.
        """
        del image_size
        try:
            samples = self._file.asarray(copy=False)
            samples = samples.reshape(self.info.height, self.info.width, self._channels)
        except ValueError as exc:
            raise _corrupt("data") from exc
        top = self._file.maxval
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
    return BadImageError(ErrorCode.CORRUPT_IMAGE, f"The file's {part} is damaged or cut short.")
