"""HEIC and other HEIF files with HEVC images. libheif and libde265 decode, through pi-heif.

A file may have several images: the primary one is decoded. libheif joins the tiles of a grid, turns
the image upright by the properties `irot` and `imir`, and crops it by `clap`. An orientation in
EXIF or XMP data only repeats these properties (ISO/IEC 23008-12), so it is not applied.

libheif paints tiles whose data are missing in one colour. So this module checks that a file has all
of the data that its item location box names (ISO/IEC 14496-12, 8.11.3).

A container can be built without the library, because HEVC is patented: a licence may be necessary
where you are.
"""

from typing import Any

import cv2
import numpy as np

from service.domain import ImageInfo
from service.errors import BadImageError
from service.images.exif import capture_of_bytes
from service.images.pixels import DecodedImage, Pixels, check_pixels

try:
    import pi_heif

    pi_heif.options.DECODE_THREADS = 0  # one decoder process per core decodes already
    # Read only what is used.
    pi_heif.options.THUMBNAILS = False
    pi_heif.options.DEPTH_IMAGES = False
    pi_heif.options.AUX_IMAGES = False
except ImportError:  # the container was built without it
    pi_heif = None

FORMAT = "HEIC"
IS_AVAILABLE = pi_heif is not None
# Decoding takes 6 to 10 bytes per pixel with 8 bits per channel, and up to 21 with 10 or 12 bits.
_WEIGHT_OVER_8_BITS = 2
_MAX_EXIF_BYTES = 2**20
_MAX_REASON_CHARACTERS = 120
_PREMULTIPLIED = "BGRa"
_TO_BGR = {"BGRA": cv2.COLOR_BGRA2BGR, "L": cv2.COLOR_GRAY2BGR, "I;16": cv2.COLOR_GRAY2BGR}


class Heic:
    """The primary image of one file."""

    def __init__(self, data: bytes) -> None:
        """Read all boxes, but decode no pixels.

        Raises:
            BadImageError: the file is damaged, lacks data, or is of an unsupported kind.
            MemoryError: there is not enough memory now.
        """
        try:
            images = pi_heif.open_heif(data, bgr_mode=True)
        except Exception as exc:
            raise _error(exc) from exc
        if _last_byte(data) > len(data):
            raise BadImageError.corrupt("The HEIC file lacks some of its data.")
        primary = next((image for image in images if image.info["primary"]), None)
        if primary is None:
            raise BadImageError.unsupported("HEIC without a readable primary image")
        self._image = primary
        width, height = primary.size
        self.info = ImageInfo(width, height, FORMAT)
        self.pixel_weight = _WEIGHT_OVER_8_BITS if primary.info["bit_depth"] > 8 else 1

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode in full to upright uint8 BGR pixels.

        Raises:
            BadImageError: the file is damaged, or its pixels are unsupported.
            MemoryError: there is not enough memory now.
        """
        del image_size
        try:
            decoded = np.asarray(self._image)
        except Exception as exc:
            raise _error(exc) from exc
        pixels = _to_bgr(decoded, self._image.mode)
        exif = (self._image.info["exif"] or b"")[:_MAX_EXIF_BYTES]
        info = ImageInfo(pixels.shape[1], pixels.shape[0], FORMAT)
        return DecodedImage(pixels, info, capture_of_bytes(exif))


def _last_byte(data: bytes) -> int:
    """Return the offset, in bytes, at which the last data of any item end.

    Raises:
        BadImageError: the item location box is damaged.
    """
    locations = _Reader(_box(_box(data, b"meta")[4:], b"iloc"))
    last = 0
    version = locations.number(4) >> 24
    sizes = locations.number(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    for _ in range(locations.number(4 if version == 2 else 2)):
        locations.number(4 if version == 2 else 2)  # the item's id
        is_in_file = not version or locations.number(2) & 15 == 0
        locations.number(2)  # the data reference
        base = locations.number(base_size)
        for _ in range(locations.number(2)):
            locations.number(index_size)
            start = base + locations.number(offset_size)
            length = locations.number(length_size)
            if is_in_file:
                last = max(last, start + length)
    return last


def _box(data: bytes, kind: bytes) -> bytes:
    """Return the content of the first box of a kind (ISO/IEC 14496-12, 4.2), or no bytes."""
    start = 0
    while start + 8 <= len(data):
        length, begin = int.from_bytes(data[start : start + 4]), start + 8
        if length == 1:  # a 64-bit length follows
            length, begin = int.from_bytes(data[begin : begin + 8]), begin + 8
        end = start + length if length else len(data)  # 0: to the end of the file
        if data[start + 4 : start + 8] == kind:
            return data[begin:end]
        if end < begin:
            break
        start = end
    return b""


class _Reader:
    """Reads the numbers of a box, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def number(self, size: int) -> int:
        """Return a big-endian number of this many bytes. 0 bytes are the number 0.

        Raises:
            BadImageError: there are fewer bytes.
        """
        self._position += size
        if self._position > len(self._data):
            raise BadImageError.corrupt("The HEIC file's item locations are damaged.")
        return int.from_bytes(self._data[self._position - size : self._position])


def _to_bgr(decoded: Any, mode: str) -> Pixels:
    """Return a copy as uint8 BGR pixels without alpha. `mode` is pi-heif's name for the layout.

    A copy, because the memory of `decoded` is freed with pi-heif's image.
    """
    if decoded.dtype == np.uint16:  # only grey. libheif has reduced colour to 8 bits.
        decoded = (decoded >> 8).astype(np.uint8)
    if mode == _PREMULTIPLIED:
        decoded, mode = cv2.cvtColor(decoded, cv2.COLOR_mRGBA2RGBA), "BGRA"
    return check_pixels(decoded.copy() if mode == "BGR" else cv2.cvtColor(decoded, _TO_BGR[mode]))


def _error(error: Exception) -> Exception:
    """Return the service's error for an error of pi-heif, by its type."""
    printable = "".join(letter for letter in str(error) if letter.isprintable())
    reason = printable[:_MAX_REASON_CHARACTERS].strip(" .")
    match error:
        case MemoryError() | OSError():  # OSError: also if a size exceeds libheif's own limits
            return MemoryError(reason)
        case SyntaxError():
            return BadImageError.unsupported(f"This kind of HEIC ({reason})")
        case _:
            return BadImageError.corrupt(f"The HEIC file is damaged or truncated: {reason}.")
