"""PNG: the chunks that decide its pixels, and these by OpenCV.

OpenCV uses libpng, which checks all data. If the pixel data end early in an otherwise whole file,
Pillow fills the missing rows with black.
"""

import zlib
from itertools import chain

from PIL import Image

from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError
from service.images.exif import orientation_of
from service.images.opencv import decode_upright
from service.images.pixels import DecodedImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER, _PALETTE, _DATA, _END = b"IHDR", b"PLTE", b"IDAT", b"IEND"
_EXIF, _TEXT = b"eXIf", b"iTXt"
_USED = (_HEADER, _PALETTE, b"tRNS", _DATA, _EXIF, _TEXT)
_XMP = b"XML:com.adobe.xmp\0\0"  # the begin of a text that is not packed
_HEADER_BYTES = 13
_COLOUR_TYPE, _INDEXED = 9, 3  # its place in the header, and a value of it
_IS_ANCILLARY = 0x20  # bit 5 of the first letter (PNG specification, 5.4)
# A PNG of 50 MB in rows of 512 bytes has that many.
_MAX_CHUNKS = 100_000
_MAX_SIDE = 1_000_000  # libpng's own limit


class Png:
    """One PNG file, and the still image of an animated one."""

    def __init__(self, data: bytes) -> None:
        """Read all chunks, but no pixels.

        Raises:
            BadImageError: a checksum is wrong, there are too many chunks, or one is not known.
        """
        chunks = _chunks(data)
        header = chunks.get(_HEADER, [b""])[0][8:-4]
        if len(header) != _HEADER_BYTES:
            raise BadImageError.corrupt("The PNG's header is damaged.")
        if header[_COLOUR_TYPE] == _INDEXED and _PALETTE not in chunks:
            raise BadImageError.corrupt("The PNG has no palette.")
        width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
        if max(width, height) > _MAX_SIDE:
            raise BadImageError(
                ErrorCode.IMAGE_TOO_LARGE,
                f"The PNG has {width}x{height} pixels, more than {_MAX_SIDE:,} on one side.",
            )
        self.info = ImageInfo(width, height, "PNG")
        exif, xmp = (chunks.pop(kind, [b""])[0][8:-4] for kind in (_EXIF, _TEXT))
        self._orientation = _orientation(exif, xmp)
        self._stream = b"".join((SIGNATURE, *chain(*chunks.values()), _chunk(_END, b"")))

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode in full, turned upright.

        Raises:
            BadImageError: data are missing, or the file is damaged.
            MemoryError: there is no memory now.
        """
        del image_size
        return decode_upright(self._stream, self.info, self._orientation)


def _chunks(data: bytes) -> dict[bytes, list[bytes]]:
    """Return the chunks that decide pixels and orientation, by kind, in the file's order.

    Left out: texts and profiles, which unpack to many times their size, and an animation. A last
    chunk of pixels that is cut short stays as far as it goes: whether pixels are missing is left
    to the decoder.
    """
    kept: dict[bytes, list[bytes]] = {}
    at = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if len(kind) < 4 or kind == _END:
            return kept
        is_critical = not kind[0] & _IS_ANCILLARY
        if kind == _TEXT and not data.startswith(_XMP, at + 8):
            pass
        elif kind in _USED or is_critical:
            is_whole = end <= len(data)
            is_sound = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
            if is_whole and is_sound and kind in _USED:
                kept.setdefault(kind, []).append(data[at:end])
            elif is_whole and is_sound:
                raise BadImageError.unsupported(
                    f"PNG with the unknown critical chunk {kind.decode('latin-1')!r}"
                )
            elif is_whole and is_critical:
                raise BadImageError.corrupt("A checksum of the PNG is wrong: it is damaged.")
            elif kind == _DATA:
                kept.setdefault(kind, []).append(_chunk(kind, data[at + 8 : at + 8 + length]))
        at = end
    raise BadImageError.corrupt(f"The PNG has more than {_MAX_CHUNKS} chunks.")


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return len(body).to_bytes(4) + kind + body + checksum.to_bytes(4)


def _orientation(exif: bytes, xmp: bytes) -> int:
    """Take Pillow's view of both, without its reader of the file."""
    image = Image.new("1", (1, 1))
    image.info = {"exif": exif, "xmp": xmp}
    return orientation_of(image)
