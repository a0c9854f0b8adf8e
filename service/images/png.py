"""PNG: this module reads the chunks, OpenCV decodes the pixels.

OpenCV uses libpng, which detects missing pixel data. Pillow fills missing rows with black.
"""

import zlib
from itertools import chain

from PIL import Image

from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError
from service.images.exif import capture_of, orientation_of
from service.images.opencv import decode_upright
from service.images.pixels import DecodedImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER, _PALETTE, _DATA, _END = b"IHDR", b"PLTE", b"IDAT", b"IEND"
_EXIF, _TEXT = b"eXIf", b"iTXt"
_USED = (_HEADER, _PALETTE, b"tRNS", _DATA, _EXIF, _TEXT)
_XMP = b"XML:com.adobe.xmp\0\0"  # start of an uncompressed iTXt chunk with XMP
_HEADER_BYTES = 13
_COLOUR_TYPE, _INDEXED = 9, 3  # an offset in the header, and the value for a palette
_IS_ANCILLARY = 0x20  # bit 5 of the type's first letter (PNG specification, 5.4)
_MAX_CHUNKS = 100_000  # enough for a PNG of 50 MB in chunks of 512 bytes
_MAX_SIDE = 1_000_000  # libpng's own limit


class Png:
    """One PNG file. An animated PNG is decoded to its still image."""

    def __init__(self, data: bytes) -> None:
        """Read all chunks, but decode no pixels.

        Raises:
            BadImageError: the header or a critical chunk is damaged, a critical chunk is unknown,
                or the image has too many chunks or pixels.
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
        metadata = _metadata(exif, xmp)
        self._orientation, self._capture = orientation_of(metadata), capture_of(metadata)
        self._stream = b"".join((SIGNATURE, *chain(*chunks.values()), _chunk(_END, b"")))

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode in full to upright uint8 BGR pixels.

        Raises:
            BadImageError: data are missing, or the file is damaged.
            MemoryError: there is not enough memory now.
        """
        del image_size
        return decode_upright(self._stream, self.info, self._orientation, self._capture)


def _chunks(data: bytes) -> dict[bytes, list[bytes]]:
    """Return the chunks that determine pixels and orientation, by type, in the file's order.

    Texts and profiles are left out, because they may decompress to many times their size. Frames
    of an animation are left out too. A truncated last data chunk is kept, because the decoder
    detects missing pixels.

    Raises:
        BadImageError: a critical chunk is damaged or unknown, or there are too many chunks.
    """
    kept: dict[bytes, list[bytes]] = {}
    start = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        length, kind = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        end = start + 12 + length
        if len(kind) < 4 or kind == _END:
            return kept
        is_critical = not kind[0] & _IS_ANCILLARY
        if kind == _TEXT and not data.startswith(_XMP, start + 8):
            pass
        elif kind in _USED or is_critical:
            is_complete = end <= len(data)
            checksum = int.from_bytes(data[end - 4 : end])
            is_intact = is_complete and zlib.crc32(data[start + 4 : end - 4]) == checksum
            if is_intact and kind in _USED:
                kept.setdefault(kind, []).append(data[start:end])
            elif is_intact:
                raise BadImageError.unsupported(
                    f"PNG with the unknown critical chunk {kind.decode('latin-1')!r}"
                )
            elif is_complete and is_critical:
                raise BadImageError.corrupt("A checksum of the PNG is wrong: it is damaged.")
            elif kind == _DATA:
                kept.setdefault(kind, []).append(_chunk(kind, data[start + 8 : start + 8 + length]))
        start = end
    raise BadImageError.corrupt(f"The PNG has more than {_MAX_CHUNKS} chunks.")


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return len(body).to_bytes(4) + kind + body + checksum.to_bytes(4)


def _metadata(exif: bytes, xmp: bytes) -> Image.Image:
    """Return an image with EXIF and XMP data, without Pillow reading the PNG."""
    image = Image.new("1", (1, 1))
    image.info = {"exif": exif, "xmp": xmp}
    return image
