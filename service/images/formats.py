"""Identify a file's format by its first bytes, and open it with the decoder for that format."""

import re
from typing import Protocol

from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError
from service.images import heic, jpeg, jpeg2000, netpbm, pillow, png, tiff, webp
from service.images.pixels import DecodedImage

_OPTIONAL = (heic.FORMAT,) if heic.IS_AVAILABLE else ()
FORMATS = tuple(sorted(("JPEG", "MPO", "PNG", "PPM", *pillow.FORMATS, *_OPTIONAL)))
_SIGNATURES = {
    jpeg.SIGNATURE: "JPEG",
    png.SIGNATURE: "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    **dict.fromkeys(tiff.SIGNATURES, "TIFF"),
    **dict.fromkeys(jpeg2000.SIGNATURES, "JPEG2000"),
}
# Valid sizes of a BMP's second header, in bytes. They distinguish a BMP from text that begins with
# "BM".
_BMP_HEADER_BYTES = (12, 16, 40, 52, 56, 64, 108, 124)
_NETPBM = re.compile(rb"P[1-6fF][\s#]")
# Brands name the content of a file in the ISO base media file format (ISO/IEC 14496-12).
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis"), heic.FORMAT),
    **dict.fromkeys((b"hevc", b"hevx", b"hevm", b"hevs"), heic.FORMAT),
}
_CANON_RAW = b"crx "
# Brands of HEIF files, which do not name the codec. In a video, they are not the first brand.
_ANY_CODEC = (b"mif1", b"msf1")
_UNSUPPORTED = {  # signatures of formats that an error message names
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop's format",
    b"%PDF": "PDF",
    b"v/1\x01": "OpenEXR",
    b"P7\n": "PAM",
    **dict.fromkeys((b"IIRO", b"IIRS", b"MMOR"), "ORF, a camera's raw file"),
    b"IIU\0": "RW2, a camera's raw file",
    b"FUJIFILMCCD-RAW": "RAF, a camera's raw file",
}


class File(Protocol):
    """One file whose header has been read."""

    info: ImageInfo  # Some decoders have already applied the orientation to its size.

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode to upright uint8 BGR pixels.

        Args:
            image_size: longer side of the image as the model gets it, in pixels. A decoder may
                return the image at a reduced scale, but not below this size. None: in full.

        Raises:
            BadImageError: the file is damaged, truncated, or of an unsupported kind.
            MemoryError: there is not enough memory now.
        """


def format_of(data: bytes) -> str | None:
    """Return the format, judged by the first bytes, or None if it is unsupported.

    An MPO begins like a JPEG, so it is returned as JPEG.
    """
    if data[20:24] == b"mjp2":  # Motion JPEG 2000, a video with the signature of JPEG 2000
        return None
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES:
        return "BMP"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if _NETPBM.match(data):
        return "PPM"
    brands = _brands(data)
    of_codecs = (_BRANDS[brand] for brand in brands if brand in _BRANDS)
    return next(of_codecs, heic.FORMAT if brands and brands[0] in _ANY_CODEC else None)


def open_file(data: bytes) -> File:
    """Read a file's header with the decoder for its format.

    Raises:
        BadImageError: the file is empty, damaged, or of an unsupported format or kind.
        MemoryError: there is not enough memory now.
    """
    if not data:
        raise BadImageError(ErrorCode.EMPTY_OBJECT, "The object has no bytes.")
    match format_of(data):
        case heic.FORMAT if heic.IS_AVAILABLE:
            return heic.Heic(data)
        case None | heic.FORMAT:
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
    """Return the brands in the file-type box, which is the first box of an AVIF or HEIF file."""
    if data[4:8] != b"ftyp":
        return []
    box = data[8 : min(int.from_bytes(data[:4]), 4096)]
    # Offset 4 holds a version, not a brand.
    return [box[offset : offset + 4] for offset in range(0, len(box), 4) if offset != 4]


def _unsupported(data: bytes) -> BadImageError:
    names = (name for signature, name in _UNSUPPORTED.items() if data.startswith(signature))
    name = "CR3, a camera's raw file" if _CANON_RAW in _brands(data) else next(names, None)
    if format_of(data) == heic.FORMAT:
        return BadImageError.unsupported("HEIC (this container was built without its decoder)")
    subject = f"The object is {name}, not" if name else "The object is not"
    return BadImageError(
        ErrorCode.UNSUPPORTED_MEDIA,
        f"{subject} an image of a supported format: {', '.join(FORMATS)}.",
    )
