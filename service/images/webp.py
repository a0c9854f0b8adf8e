"""WebP: its header by Pillow, its pixels by OpenCV, which takes less than half of the memory."""

from service.domain import ImageInfo
from service.images.opencv import decode_upright
from service.images.pillow import PillowFile
from service.images.pixels import Picture


def header_size(data: bytes) -> tuple[int, int] | None:
    """Read (width, height) without the memory of the frames that Pillow's reader takes.

    Returns:
        None where the header is no sound one.

    Source: RFC 9649, 2.5 to 2.7; RFC 6386, 9.1 (VP8)
    """
    match data[12:16]:
        case b"VP8X" if len(data) >= 30:
            width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a" and len(data) >= 30:
            width, height = (
                int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28)
            )
        case b"VP8L" if data[20:21] == b"\x2f" and len(data) >= 25:
            bits = int.from_bytes(data[21:25], "little")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case _:
            return None
    return (width, height) if width and height else None


class Webp:
    """One WebP file, and the first frame of an animated one."""

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            BadImageError: it is damaged.
        """
        file = PillowFile(data, "WEBP")
        self.info: ImageInfo = file.info
        self._data = data
        self._orientation = file.orientation

    def decode(self, image_size: int | None) -> Picture:
        """Decode in full, turned upright.

        Raises:
            BadImageError: data are missing, or the file is damaged.
            MemoryError: there is no memory now.
        """
        del image_size
        return decode_upright(self._data, self.info, self._orientation)
