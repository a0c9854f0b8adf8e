"""JPEG 2000 (ITU-T T.800): plain images of up to 16 bits; everything rarer is refused.

Pillow decodes up to 8 bits. It shifts samples of fewer bits instead of scaling them, ignores the
order of channels that a file defines, and rounds samples of more bits up, so that white becomes
black: OpenCV decodes those.
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
_CHANNELS, _SAMPLES = slice(40, 42), 42  # places in a codestream (A.5.1)
_SIGNED, _BITS = 0x80, 0x7F
_MAX_CHANNELS, _MAX_BITS = 4, 16
_SRGB, _GREY = 16, 17  # enumerated colour spaces (I.5.3.3)


class Jpeg2000:
    """One JPEG 2000 file."""

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            BadImageError: it is damaged, or says something that is not supported.
        """
        # Without its end a codestream may still have all of its data.
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
        if not _is_in_order(header.get(b"cdef", b"")):
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
        """Decode in full.

        Raises:
            BadImageError: data are missing, the file is damaged, or its pixels not supported.
            MemoryError: there is no memory now.
        """
        if self._bits <= 8:
            picture = self._file.decode(image_size)
            if self._bits == 8:
                return picture
            shifted_white = (2**self._bits - 1) << (8 - self._bits)
            scaled = cv2.convertScaleAbs(picture.pixels, alpha=255 / shifted_white)
            return DecodedImage(check_pixels(scaled), picture.info)
        width, height = self.info.width, self.info.height
        data = self._data if self._data.startswith(_FILE) else self._wrapped()
        pixels = imdecode(data, width=width, height=height, bits=self._bits)
        if pixels is None:
            self._file.decode(image_size)  # says what is wrong with it, if anything
            raise BadImageError.unsupported(f"This kind of {self._bits}-bit JPEG 2000")
        return DecodedImage(pixels, self.info)

    def _wrapped(self) -> bytes:
        """Make a file of a bare codestream: OpenCV takes no grey one without a colour space."""
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
    at = 0
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        begin = at + 8
        if length == 1:  # a longer one, whose length follows
            length, begin = int.from_bytes(data[begin : begin + 8]), begin + 8
        end = at + length if length else len(data)  # 0: to the end of the file
        yield kind, data[begin:end]
        if kind == b"jp2c" or end < begin:
            return
        at = end


def _is_in_order(definition: bytes) -> bool:
    """Whether each colour channel of a channel definition (I.5.3.6) is where Pillow takes it."""
    entries = [definition[at : at + 6] for at in range(2, len(definition), 6)]
    return all(
        int.from_bytes(entry[4:6]) == int.from_bytes(entry[:2]) + 1
        for entry in entries
        if entry[2:4] == b"\0\0"  # colour, not opacity
    )


def _is_plain(colour: bytes) -> bool:
    """Whether a colour specification (I.5.3.3) is grey, sRGB, or a profile."""
    return colour[:1] != b"\1" or int.from_bytes(colour[3:7]) in (_SRGB, _GREY)
