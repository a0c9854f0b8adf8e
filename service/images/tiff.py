"""TIFF: find the main image, and check that it is complete and supported.

A file contains a chain of directories. Each directory has the tags of one image, and may point to
subdirectories with further images (TIFF 6.0, and Adobe's technical notes 1 and 2). Pillow parses
the directories.
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
_BIG_ENDIAN_BIGTIFF = b"MM\0+"  # Pillow misreads its directories
_BIGTIFF = b"II+\0"
_CANON_RAW = b"CR"  # after the header
_MAKE, _DNG_VERSION = 271, 50706
_RAW_OF_MAKERS = {"NIKON": "NEF", "SONY": "ARW", "PENTAX": "PEF", "SAMSUNG": "SRW"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_CHANNELS, _COLOUR_MAP, _SAMPLE_FORMAT = 277, 320, 339
_WHITE = 65535  # in a colour map
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _SUB_DIRECTORIES = 254, 255, 330
_OFFSETS, _BYTE_COUNTS = (273, 324), (279, 325)  # tags for strips, and for tiles
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_OLD_REDUCED = 2  # a value of SubfileType
_UNCOMPRESSED = 1
# Compressions that every libtiff decodes: CCITT fax, LZW, both kinds of JPEG, both kinds of
# deflate, PackBits. Then those that a build of libtiff may lack.
_ALWAYS_BUILT = (_UNCOMPRESSED, 2, 3, 4, 5, 6, 7, 8, 32946, 32773)
_NOT_ALWAYS_BUILT = (34925, 50000, 50001)  # LZMA, ZSTD, WebP
_UNSIGNED, _UNDEFINED = 1, 4  # values of SampleFormat
_MAX_CHANNELS = 4  # RGB and alpha, or CMYK
_MAX_BITS = 16
_MAX_DIRECTORIES = 100


def main_image(data: bytes) -> bytes:
    """Return the file with its header pointing to the main image.

    The main image is the first in the chain that is neither a reduced version of another image
    nor a mask.

    Raises:
        BadImageError: there is no main image (for example in a camera's raw file), it is of an
            unsupported kind, or data are missing.
    """
    if data.startswith(_BIG_ENDIAN_BIGTIFF):
        raise BadImageError.unsupported("BigTIFF in big-endian order")
    with translate_errors("TIFF"):
        directories = []
        for directory in _directories(data):
            directories.append(directory)
            if _is_main(directory):
                break
        tags = directories[-1] if directories and _is_main(directories[-1]) else None
        if any(_DNG_VERSION in directory for directory in directories):
            raise BadImageError.unsupported("DNG, a camera's raw file,")
        if tags is None or data[8:10] == _CANON_RAW or _has_larger_subimage(tags, data):
            raise BadImageError.unsupported(_raw_name(data, directories))
        _check(tags, data)
        if data.startswith(_BIGTIFF):
            return data[:8] + struct.pack("<Q", tags.offset) + data[16:]
        order = "<" if data.startswith(b"II") else ">"
        return data[:4] + struct.pack(order + "I", tags.offset) + data[8:]


def _directories(data: bytes) -> Iterator[Any]:
    """Yield the tags of each directory in the chain, which may be endless in a malformed file."""
    offset = _read_header(data).next
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < _MAX_DIRECTORIES:
        seen.add(offset)
        tags = _read_directory(data, offset)
        yield tags
        offset = tags.next


def _read_header(data: bytes) -> Any:
    """Return a Pillow directory without tags, whose `next` is the first directory's offset."""
    return TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data.startswith(_BIGTIFF) else 8])


def _read_directory(data: bytes, offset: int) -> Any:
    tags = _read_header(data)
    file = io.BytesIO(data)
    file.seek(offset)
    tags.load(file)
    return tags


def _is_main(tags: Any) -> bool:
    is_reduced_or_mask = tags.get(_NEW_SUBFILE_TYPE, 0) & (_REDUCED | _MASK)
    return not is_reduced_or_mask and tags.get(_SUBFILE_TYPE) != _OLD_REDUCED


def _raw_name(data: bytes, directories: list[Any]) -> str:
    """Return what to call a file without a readable full image."""
    if data[8:10] == _CANON_RAW:
        return "CR2, a camera's raw file,"
    makes = (str(directory.get(_MAKE, "")).upper() for directory in directories)
    make = next(filter(None, makes), "")
    name = next((name for maker, name in _RAW_OF_MAKERS.items() if make.startswith(maker)), None)
    if name:
        return f"{name}, a camera's raw file,"
    return "TIFF without a readable full image, for example a camera raw file,"


def _has_larger_subimage(tags: Any, data: bytes) -> bool:
    offsets = tags.get(_SUB_DIRECTORIES, ())
    offsets = (offsets,) if isinstance(offsets, int) else offsets[:_MAX_DIRECTORIES]
    subimages = (_read_directory(data, offset) for offset in offsets)
    return any(_is_main(subimage) and _area(subimage) > _area(tags) for subimage in subimages)


def _area(tags: Any) -> int:
    return int(tags.get(_WIDTH, 0) * tags.get(_HEIGHT, 0))


def _check(tags: Any, data: bytes) -> None:
    """Reject images that Pillow would decode to wrong pixels, or reject with an unclear error.

    Raises:
        BadImageError: the image is damaged, incomplete, or of an unsupported kind.
    """
    if not (_WIDTH in tags and _HEIGHT in tags and any(tag in tags for tag in _OFFSETS)):
        raise BadImageError.corrupt("The TIFF's directory is damaged.")
    channels, compression = tags.get(_CHANNELS, 1), tags.get(_COMPRESSION, _UNCOMPRESSED)
    # This tag is required. Without it, 0 is white for Pillow, and black for libtiff.
    if _PHOTOMETRIC not in tags:
        raise BadImageError.unsupported("TIFF without the PhotometricInterpretation tag")
    if channels > _MAX_CHANNELS:
        raise BadImageError.unsupported(f"TIFF with {channels} channels")
    if max(tags.get(_BITS, (1,))) > _MAX_BITS:
        raise BadImageError.unsupported(f"TIFF with {max(tags[_BITS])} bits per channel")
    if not set(tags.get(_SAMPLE_FORMAT, ())) <= {_UNSIGNED, _UNDEFINED}:
        raise BadImageError.unsupported("TIFF with signed or floating-point samples")
    if max(tags.get(_COLOUR_MAP, (_WHITE,))) < _WHITE // 256 + 1:  # Pillow would return black
        raise BadImageError.unsupported("TIFF with an 8-bit colour map")
    if not _is_readable(compression):
        raise BadImageError.unsupported(f"TIFF with compression {compression}")
    offsets, counts = (
        next((tags[tag] for tag in choice if tag in tags), ())
        for choice in (_OFFSETS, _BYTE_COUNTS)
    )
    # Byte counts of uncompressed files are often wrong, and Pillow does not need them.
    if compression != _UNCOMPRESSED and any(
        offset + count > len(data) for offset, count in zip(offsets, counts, strict=False)
    ):
        raise BadImageError.corrupt("The TIFF lacks some of its data.")


@cache
def _is_readable(compression: int) -> bool:
    """Return whether the libtiff that Pillow was built with decodes this compression."""
    if compression not in _NOT_ALWAYS_BUILT:
        return compression in _ALWAYS_BUILT
    try:  # Pillow has no query for it, so try to write a file
        name = TiffImagePlugin.COMPRESSION_INFO[compression]
        Image.new("RGB", (8, 8)).save(io.BytesIO(), "TIFF", compression=name)
    except Exception:  # noqa: BLE001 - any error means that libtiff lacks it
        return False
    return True
