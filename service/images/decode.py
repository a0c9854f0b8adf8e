"""Decode a file to an upright image within limits, in this process or in the sandbox."""

from service.domain import ImageInfo
from service.errors import BadImageError, DecoderBusyError
from service.images import sandbox
from service.images.formats import kind_of
from service.images.pixels import Picture
from service.images.read import WEIGHTS, inspect, read

# Small files of these formats can cost gigabytes or minutes: their pixel data may have another size
# than their header says. So can a BMP in run lengths, which Pillow expands in Python, and an
# animated WebP, which takes the memory of several frames.
_SANDBOXED = ("AVIF", "GIF", "JPEG2000", "TIFF")
# Offset 30 in a BMP is the compression; 1 and 2 are RLE8 and RLE4. Offset 20 in a WebP holds the
# flags of the VP8X chunk; 2 means animated.
_BMP_COMPRESSION, _RUN_LENGTHS = slice(30, 31), (b"\1", b"\2")
_WEBP_FLAGS, _ANIMATED = slice(20, 21), 2
# Memory that a decoder may take. The most seen is 12 bytes a pixel: a turned progressive JPEG.
_SANDBOX_BYTES, _SANDBOX_BYTES_PER_PIXEL = 256 * 2**20, 16
_NATIVE_HEADERS = ("AVIF", "WEBP")  # which Pillow has a native library read


def decode(
    data: bytes, *, max_pixels: int, image_size: int | None = None, apart: bool = False
) -> Picture:
    """Decode an image, turned upright by its EXIF orientation, 8 bits a channel, no alpha.

    Args:
        data: the file.
        max_pixels: images of more pixels are refused.
        image_size: longer side that the model sees, in pixels. A JPEG at least twice as large is
            decoded at a reduced scale, and never below this; None decodes in full.
            `Picture.info` has the full size either way.
        apart: let no native library see the file in this process, as it may crash there.

    Raises:
        BadImageError: not an image, a damaged one, one of a kind that is not supported, or of
            more than `max_pixels` pixels; the size is read from the header, before any memory for
            the pixels is taken.
        DecoderBusyError: no memory now.
    """
    try:
        if not (apart or is_sandboxed(data)):
            return read(data, max_pixels=max_pixels, image_size=image_size)
        stored = _stored(data, max_pixels=max_pixels, apart=apart)
        weight = WEIGHTS.get(stored.format, 1)
        per_pixel = _SANDBOX_BYTES_PER_PIXEL * weight
        max_bytes = _SANDBOX_BYTES + stored.width * stored.height * per_pixel
        picture = sandbox.read(
            data, max_pixels=max_pixels, image_size=image_size, max_bytes=max_bytes
        )
    except (MemoryError, OSError) as exc:
        raise DecoderBusyError("There is no memory to decode the image now.") from exc
    if picture is None:
        raise BadImageError.corrupt(
            f"The {stored.format} file crashed its decoder, or exceeded its memory or CPU time."
        )
    return picture


def is_sandboxed(data: bytes) -> bool:
    """Say whether `decode` has a process of its own decode such a file, one at a time."""
    match kind_of(data):
        case "BMP":
            return data[_BMP_COMPRESSION] in _RUN_LENGTHS
        case "WEBP":
            return data[12:16] == b"VP8X" and any(f & _ANIMATED for f in data[_WEBP_FLAGS])
        case kind:
            return kind in _SANDBOXED


def _stored(data: bytes, *, max_pixels: int, apart: bool) -> ImageInfo:
    """Read the header, or assume the largest size where that needs a native library."""
    kind = kind_of(data)
    if apart and kind in _NATIVE_HEADERS:
        return ImageInfo(max_pixels // WEIGHTS.get(kind, 1), 1, kind)
    return inspect(data, max_pixels=max_pixels)
