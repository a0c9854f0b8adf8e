"""JPEG 2000: by Pillow, but colours of more than 8 bits by OpenCV.

Pillow rounds such samples up, so that white becomes black.
"""

from service.domain import ImageInfo
from service.errors import BadImageError
from service.images.opencv import imdecode
from service.images.pillow import PillowFile
from service.images.pixels import Picture

SIGNATURES = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")  # a codestream, a file
_CODESTREAM, _END = SIGNATURES[0], b"\xff\xd9"
_CHANNELS, _SAMPLES = 40, 42  # places behind the codestream's start (ITU-T T.800, A.5.1)
_BYTES_A_CHANNEL = 3
_SIGNED, _BITS = 0x80, 0x7F
_MAX_CHANNELS = 4


class Jpeg2000:
    """One JPEG 2000 file."""

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            BadImageError: it is damaged, or says something that is not supported.
        """
        # Without its end a codestream may still have all of its data.
        self._data = data if data.endswith(_END) else data.removesuffix(_END[:1]) + _END
        start = data.find(_CODESTREAM)
        channels = int.from_bytes(data[start + _CHANNELS : start + _SAMPLES]) if start >= 0 else 0
        if channels > _MAX_CHANNELS:
            raise BadImageError.unsupported(f"JPEG 2000 with {channels} channels")
        first = start + _SAMPLES
        samples = data[first : first + _BYTES_A_CHANNEL * channels : _BYTES_A_CHANNEL]
        self._bits = max(((sample & _BITS) + 1 for sample in samples), default=8)
        self._is_colour = channels > 2
        if self._bits > 8 and len(set(samples)) > 1:
            raise BadImageError.unsupported("JPEG 2000 with different bit depths per channel")
        if self._bits > 16 or any(sample & _SIGNED for sample in samples):
            raise BadImageError.unsupported("JPEG 2000 with signed or over 16-bit samples")
        self._file = PillowFile(self._data, "JPEG2000")
        self.info: ImageInfo = self._file.info

    def decode(self, image_size: int | None) -> Picture:
        """Decode in full.

        Raises:
            BadImageError: data are missing, the file is damaged, or its pixels not supported.
            MemoryError: there is no memory now.
        """
        if self._bits <= 8 or not self._is_colour:
            return self._file.decode(image_size)
        width, height = self.info.width, self.info.height
        pixels = imdecode(self._data, width=width, height=height, bits=self._bits)
        if pixels is None:
            raise BadImageError.corrupt("The JPEG 2000 file is damaged or cut short.")
        return Picture(pixels, self.info)
