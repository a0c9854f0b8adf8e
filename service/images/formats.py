"""Identify a file's format by its first bytes, and open it with its decoder."""

import re
from typing import Protocol

from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError
from service.images import jpeg, jpeg2000, netpbm, pillow, png, tiff, webp
from service.images.pixels import DecodedImage

FORMATS = tuple(sorted(("JPEG", "MPO", "PNG", "PPM", *pillow.FORMATS)))
_SIGNATURES = {
    jpeg.SIGNATURE: "JPEG",
    png.SIGNATURE: "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    **dict.fromkeys(tiff.SIGNATURES, "TIFF"),
    **dict.fromkeys(jpeg2000.SIGNATURES, "JPEG2000"),
}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes: text may begin with BM too
_NETPBM = re.compile(rb"P[1-6fF][\s#]")
# Of the ISO base media file format (ISO/IEC 14496-12): what its brands say that a file holds.
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_OTHERS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop's format",
    b"%PDF": "PDF",
    b"v/1\x01": "OpenEXR",
    b"P7\n": "PAM",
}


class File(Protocol):
    """One file whose header was read."""

    info: ImageInfo  # of a size before or after its orientation

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode, turned upright.

        Args:
            image_size: longer side that the model sees, in pixels; the result may be of a reduced
                scale, but not below it. None: in full.

        Raises:
            BadImageError: it is damaged, cut short, or not supported.
            MemoryError: no memory now.
        """


def format_of(data: bytes) -> str | None:
    """Return the format by the first bytes, or None if it is not supported; JPEG for an MPO."""
    if data[20:24] == b"mjp2":  # a video with the signature of JPEG 2000
        return None
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if _NETPBM.match(data):
        return "PPM"
    if any(brand in _AVIF_BRANDS for brand in _brands(data)):
        return "AVIF"
    return None


def open_file(data: bytes) -> File:
    """Read a file's header.

    Raises:
        BadImageError: no bytes, no format of ours, damaged, or not supported.
    """
    if not data:
        raise BadImageError(ErrorCode.EMPTY_OBJECT, "The object has no bytes.")
    match format_of(data):
        case None:
            raise _unsupported(data)
        case "JPEG":
            return jpeg.Jpeg(data)
        case "JPEG2000":
            return jpeg2000.Jpeg2000(data)
        case "PNG":
            return png.Png(data)
        case "PPM":
            return netpbm.Netpbm(data)
        case "TIFF":
            return pillow.PillowFile(tiff.main_image(data), "TIFF")
        case "WEBP":
            return webp.Webp(data)
        case kind:
            return pillow.PillowFile(data, kind)


def _brands(data: bytes) -> list[bytes]:
    """Read the brands of a file-type box, the first thing in such a file."""
    if data[4:8] != b"ftyp":
        return []
    box = data[8 : min(int.from_bytes(data[:4]), 4096)]
    return [box[at : at + 4] for at in range(0, len(box), 4) if at != 4]  # a version is there


def _unsupported(data: bytes) -> BadImageError:
    name = next((name for start, name in _OTHERS.items() if data.startswith(start)), None)
    if any(brand in _HEIF_BRANDS for brand in _brands(data)):
        name = "HEIC"
    begin = f"The object is {name}, not" if name else "The object is not"
    return BadImageError(
        ErrorCode.UNSUPPORTED_MEDIA,
        f"{begin} an image of a supported format: {', '.join(FORMATS)}.",
    )
