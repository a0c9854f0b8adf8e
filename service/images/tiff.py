"""TIFF: which of its images is the main one, and whether all of it is there and supported.

A file holds a chain of directories, each of one image with its tags, and an image may have further
ones below it (TIFF 6.0; Adobe's supplements 1 and 2). Pillow parses them.
"""

import io
import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

from PIL import Image, TiffImagePlugin

from service.errors import BadImageError
from service.images.pillow import translate_errors

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BIG_ENDIAN_BIGTIFF = b"MM\0+"  # whose directories Pillow misreads
_BIGTIFF = b"II+\0"
_CANON_RAW = b"CR"  # behind the header
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_CHANNELS, _COLOUR_MAP, _SAMPLE_FORMAT = 277, 320, 339
_FULL = 65535  # of a colour map
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _SUB_DIRECTORIES = 254, 255, 330
_OFFSETS, _BYTE_COUNTS = (273, 324), (279, 325)  # of strips, and of tiles
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_OLD_REDUCED = 2  # a value of SubfileType
_UNCOMPRESSED = 1
# CCITT fax, LZW, JPEG of both kinds, deflate of both, PackBits; and LZMA, ZSTD, WebP.
_ALWAYS_BUILT = (_UNCOMPRESSED, 2, 3, 4, 5, 6, 7, 8, 32946, 32773)
_NOT_ALWAYS_BUILT = (34925, 50000, 50001)
_UNSIGNED, _UNDEFINED = 1, 4  # values of SampleFormat
_MAX_CHANNELS = 4  # grey or colours, and alpha
_MAX_BITS = 16
_MAX_DIRECTORIES = 100


def main_image(data: bytes) -> bytes:
    """Return the file with its header pointing to the main image.

    That is the first one that is neither a preview of another one nor a mask.

    Raises:
        BadImageError: there is none, as in a camera's raw file; it is of a kind that is not
            supported; or data are missing.
    """
    if data.startswith(_BIG_ENDIAN_BIGTIFF):
        raise BadImageError.unsupported("BigTIFF in big-endian order")
    with translate_errors("TIFF"):
        tags = next((one for one in _directories(data) if _is_main(one)), None)
        if tags is None or data[8:10] == _CANON_RAW or _has_larger_below(tags, data):
            raise BadImageError.unsupported(
                "TIFF without a readable full image, for example a camera raw file,"
            )
        _check(tags, data)
        if data.startswith(_BIGTIFF):
            return data[:8] + struct.pack("<Q", tags.offset) + data[16:]
        order = "<" if data.startswith(b"II") else ">"
        return data[:4] + struct.pack(order + "I", tags.offset) + data[8:]


def _directories(data: bytes) -> Iterator[Any]:
    offset = _empty(data).next
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < _MAX_DIRECTORIES:
        seen.add(offset)
        tags = _directory(data, offset)
        yield tags
        offset = tags.next


def _empty(data: bytes) -> Any:
    return TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data.startswith(_BIGTIFF) else 8])


def _directory(data: bytes, offset: int) -> Any:
    tags = _empty(data)
    file = io.BytesIO(data)
    file.seek(offset)
    tags.load(file)
    return tags


def _is_main(tags: Any) -> bool:
    is_other = tags.get(_NEW_SUBFILE_TYPE, 0) & (_REDUCED | _MASK)
    return not is_other and tags.get(_SUBFILE_TYPE) != _OLD_REDUCED


def _has_larger_below(tags: Any, data: bytes) -> bool:
    offsets = tags.get(_SUB_DIRECTORIES, ())
    offsets = (offsets,) if isinstance(offsets, int) else offsets[:_MAX_DIRECTORIES]
    below = (_directory(data, offset) for offset in offsets)
    return any(_is_main(one) and _area(one) > _area(tags) for one in below)


def _area(tags: Any) -> int:
    return int(tags.get(_WIDTH, 0) * tags.get(_HEIGHT, 0))


def _check(tags: Any, data: bytes) -> None:
    """Refuse files that Pillow would decode to wrong pixels, or reject with an unclear error."""
    if not (_WIDTH in tags and _HEIGHT in tags and any(tag in tags for tag in _OFFSETS)):
        raise BadImageError.corrupt("The TIFF's directory is damaged.")
    channels, compression = tags.get(_CHANNELS, 1), tags.get(_COMPRESSION, _UNCOMPRESSED)
    if _PHOTOMETRIC not in tags:  # required: Pillow would take 0 for white, libtiff for black
        raise BadImageError.unsupported("TIFF without the PhotometricInterpretation tag")
    if channels > _MAX_CHANNELS:
        raise BadImageError.unsupported(f"TIFF with {channels} channels")
    if max(tags.get(_BITS, (1,))) > _MAX_BITS:
        raise BadImageError.unsupported(f"TIFF with {max(tags[_BITS])} bits per channel")
    if not set(tags.get(_SAMPLE_FORMAT, ())) <= {_UNSIGNED, _UNDEFINED}:
        raise BadImageError.unsupported("TIFF with signed or floating-point samples")
    if max(tags.get(_COLOUR_MAP, (_FULL,))) < _FULL // 256 + 1:  # Pillow would make it black
        raise BadImageError.unsupported("TIFF with an 8-bit colour map")
    if not _is_readable(compression):
        raise BadImageError.unsupported(f"TIFF with compression {compression}")
    offsets, counts = (
        next((tags[tag] for tag in place if tag in tags), ()) for place in (_OFFSETS, _BYTE_COUNTS)
    )
    # Without compression the image's size tells what is needed: writers get the counts wrong.
    if compression != _UNCOMPRESSED and any(
        offset + count > len(data) for offset, count in zip(offsets, counts, strict=False)
    ):
        raise BadImageError.corrupt("The TIFF lacks some of its data.")


@cache
def _is_readable(compression: int) -> bool:
    """Say whether Pillow's libtiff decodes a compression."""
    if compression not in _NOT_ALWAYS_BUILT:
        return compression in _ALWAYS_BUILT
    try:  # it says so only by what it writes
        name = TiffImagePlugin.COMPRESSION_INFO[compression]
        Image.new("RGB", (8, 8)).save(io.BytesIO(), "TIFF", compression=name)
    except Exception:  # noqa: BLE001 - whatever is raised, it was not written
        return False
    return True
