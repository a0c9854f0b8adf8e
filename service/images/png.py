"""PNG: the chunks that decide its pixels."""

import zlib

from service.domain import ErrorCode
from service.errors import BadImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DATA, _END = b"IDAT", b"IEND"
_USED = (b"IHDR", b"PLTE", b"tRNS", _DATA, b"eXIf")
_IS_ANCILLARY = 0x20  # bit 5 of the first letter (PNG specification, 5.4)
_COLOUR_TYPE, _PALETTE = 17, b"\3"  # its place in the header's chunk, and a value of it
# A PNG of 50 MB in rows of 512 bytes has that many.
_MAX_CHUNKS = 100_000


def essence(data: bytes) -> bytes:
    """Return the same image without what does not decide its pixels or its orientation.

    Left out: texts and profiles, which unpack to many times their size, and an animation, whose
    still image is taken. A last chunk of pixels that is cut short stays as far as it goes: whether
    pixels are missing is left to the decoder.

    Raises:
        BadImageError: a checksum is wrong, there are too many chunks, or one is not known.
    """
    kept = [SIGNATURE]
    at = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if len(kind) < 4 or kind == _END:
            _check_palette(kept)
            return b"".join((*kept, _chunk(_END, b"")))
        is_critical = not kind[0] & _IS_ANCILLARY
        if kind in _USED or is_critical:
            is_whole = end <= len(data)
            is_sound = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
            if is_whole and is_sound and kind in _USED:
                kept.append(data[at:end])
            elif is_whole and is_sound:
                raise BadImageError(
                    ErrorCode.UNSUPPORTED_MEDIA, f"PNG with a chunk {kind!r} is not supported."
                )
            elif is_whole and is_critical:
                raise _corrupt("A checksum of the PNG is wrong: it is damaged.")
            elif kind == _DATA:
                kept.append(_chunk(kind, data[at + 8 : at + 8 + length]))
        at = end
    raise _corrupt("The PNG has more parts than any encoder writes.")


def _check_palette(chunks: list[bytes]) -> None:
    """Refuse an image of palette indices without a palette: Pillow would show them as grey."""
    kinds = [chunk[4:8] for chunk in chunks]
    if b"IHDR" in kinds and b"PLTE" not in kinds:
        colour_type = chunks[kinds.index(b"IHDR")][_COLOUR_TYPE : _COLOUR_TYPE + 1]
        if colour_type == _PALETTE:
            raise _corrupt("The PNG has no palette.")


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return len(body).to_bytes(4) + kind + body + checksum.to_bytes(4)


def _corrupt(message: str) -> BadImageError:
    return BadImageError(ErrorCode.CORRUPT_IMAGE, message)
