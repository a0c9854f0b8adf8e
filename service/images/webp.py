"""WebP: Pillow reads the EXIF data. OpenCV decodes, with less than half of Pillow's memory."""

from service.domain import ImageInfo
from service.errors import BadImageError
from service.images.opencv import decode_upright
from service.images.pillow import PillowFile
from service.images.pixels import DecodedImage


class Webp:
    """One WebP file. An animated WebP is decoded to its first frame."""

    def __init__(self, data: bytes) -> None:
        """Read the size from the first chunk. Pillow would allocate two frames to open the file.

        Raises:
            BadImageError: the header is damaged.
        """
        self.info = ImageInfo(*_size(data), "WEBP")
        self._data = data

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode in full to upright uint8 BGR pixels.

        Raises:
            BadImageError: data are missing, or the file is damaged.
            MemoryError: there is not enough memory now.
        """
        del image_size
        metadata = PillowFile(self._data, "WEBP")
        return decode_upright(self._data, self.info, metadata.orientation, metadata.capture)


def _size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels (RFC 9649, 2.5 to 2.7, and RFC 6386, 9.1)."""
    match data[12:16]:
        case b"VP8X" if len(data) >= 30:  # the canvas, with 24 bits for each side
            width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
            return width, height
        case b"VP8L" if len(data) >= 25:
            sides = int.from_bytes(data[21:25], "little")
            return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
        case b"VP8 " if len(data) >= 30:
            width, height = (int.from_bytes(data[i : i + 2], "little") for i in (26, 28))
            return width & 0x3FFF, height & 0x3FFF
    raise BadImageError.corrupt("The WEBP file is damaged or truncated.")
