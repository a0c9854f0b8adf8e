"""WebP: its header by Pillow, its pixels by OpenCV, which takes less than half of the memory."""

from service.domain import ImageInfo
from service.images.opencv import decode_upright
from service.images.pillow import PillowFile
from service.images.pixels import Picture


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
