"""JPEG 2000 (ITU-T T.800): plain images of up to 16 bits per sample. Rarer kinds are unsupported.

Pillow decodes samples of up to 8 bits. It shifts samples of fewer bits instead of scaling them,
which this module corrects. It ignores the order of channels that a file defines, so other orders
are unsupported. When it reduces samples of more than 8 bits, it rounds up, which turns white into
black. So OpenCV decodes those.
"""

import struct
from collections.abc import Iterator

import cv2

from service.domain import ImageInfo
from service.errors import BadImageError
from service.images.opencv import imdecode
from service.images.pillow import PillowFile
from service.images.pixels import DecodedImage, check_pixels

_CODESTREAM, _END = b"\xff\x4f\xff\x51", b"\xff\xd9"
_FILE = b"\0\0\0\x0cjP  \r\n\x87\n"
SIGNATURES = (_CODESTREAM, _FILE)
_CHANNELS, _SAMPLES = slice(40, 42), 42  # offsets in a codestream (A.5.1)
_SIGNED, _BITS = 0x80, 0x7F  # parts of a sample's description: a flag, and bits - 1
_MAX_CHANNELS, _MAX_BITS = 4, 16
_SRGB, _GREY = 16, 17  # enumerated colour spaces (I.5.3.3)


class Jpeg2000:
    """One JPEG 2000 file."""

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            BadImageError: the header is damaged or describes an unsupported kind of image.
        """
        # A codestream without its end marker may still contain all of its data.
        self._data = data if data.endswith(_END) else data.removesuffix(_END[:1]) + _END
        boxes = dict(_boxes(self._data)) if data.startswith(_FILE) else {b"jp2c": self._data}
        header = dict(_boxes(boxes.get(b"jp2h", b"")))
        codestream = boxes.get(b"jp2c", b"")
        channels = int.from_bytes(codestream[_CHANNELS])
        samples = codestream[_SAMPLES : _SAMPLES + 3 * channels : 3]
        if channels > _MAX_CHANNELS:
            raise BadImageError.unsupported(f"JPEG 2000 with {channels} channels")
        if not channels or len(samples) < channels:
            raise BadImageError.corrupt("The JPEG 2000 file's header is damaged.")
        self._channels = channels
        self._bits = max(sample & _BITS for sample in samples) + 1
        if self._bits > _MAX_BITS or any(sample & _SIGNED for sample in samples):
            raise BadImageError.unsupported("JPEG 2000 with signed or over 16-bit samples")
        if not _is_in_rgb_order(header.get(b"cdef", b"")):
            raise BadImageError.unsupported("JPEG 2000 with channels in another order than RGB")
        if self._bits != 8 and (
            len(set(samples)) > 1 or b"pclr" in header or not _is_plain(header.get(b"colr", b""))
        ):
            raise BadImageError.unsupported(
                f"JPEG 2000 with {self._bits} bits per channel that is not plain grey or RGB"
            )
        self._file = PillowFile(self._data, "JPEG2000")
        self.info: ImageInfo = self._file.info

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode in full to uint8 BGR pixels.

        Raises:
            BadImageError: data are missing, the file is damaged, or its pixels are unsupported.
            MemoryError: there is not enough memory now.
        """
        if self._bits <= 8:
            decoded = self._file.decode(image_size)
            if self._bits == 8:
                return decoded
            shifted_white = (2**self._bits - 1) << (8 - self._bits)
            scaled = cv2.convertScaleAbs(decoded.pixels, alpha=255 / shifted_white)
            return DecodedImage(check_pixels(scaled), decoded.info)
        width, height = self.info.width, self.info.height
        data = self._data if self._data.startswith(_FILE) else self._wrap_codestream()
        pixels = imdecode(data, width=width, height=height, bits=self._bits)
        if pixels is None:
            self._file.decode(image_size)  # if the file is damaged, Pillow's error says how
            raise BadImageError.unsupported(f"This kind of {self._bits}-bit JPEG 2000")
        return DecodedImage(pixels, self.info)

    def _wrap_codestream(self) -> bytes:
        """Put a bare codestream into a file. OpenCV rejects grey without a stated colour space."""
        size = struct.pack(">II", self.info.height, self.info.width)
        header = size + struct.pack(">HBBBB", self._channels, self._bits - 1, 7, 0, 0)
        colour = struct.pack(">BBBI", 1, 0, 0, _SRGB if self._channels > 2 else _GREY)
        return b"".join(
            (
                _FILE,
                _box(b"ftyp", b"jp2 \0\0\0\0jp2 "),
                _box(b"jp2h", _box(b"ihdr", header) + _box(b"colr", colour)),
                _box(b"jp2c", self._data),
            )
        )


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of each box (I.4), up to and including the codestream."""
    start = 0
    while start + 8 <= len(data):
        length, kind = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        begin = start + 8
        if length == 1:  # a 64-bit length follows
            length, begin = int.from_bytes(data[begin : begin + 8]), begin + 8
        end = start + length if length else len(data)  # 0: to the end of the file
        yield kind, data[begin:end]
        if kind == b"jp2c" or end < begin:
            return
        start = end


def _is_in_rgb_order(definition: bytes) -> bool:
    """Whether a channel definition box (I.5.3.6) has the colours in the order of the channels."""
    entries = [definition[offset : offset + 6] for offset in range(2, len(definition), 6)]
    return all(
        int.from_bytes(entry[4:6]) == int.from_bytes(entry[:2]) + 1
        for entry in entries
        if entry[2:4] == b"\0\0"  # colour, not opacity
    )


def _is_plain(colour: bytes) -> bool:
    """Whether a colour specification box (I.5.3.3) is grey, sRGB, or an ICC profile."""
    return colour[:1] != b"\1" or int.from_bytes(colour[3:7]) in (_SRGB, _GREY)
