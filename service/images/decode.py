"""A file to its upright pixels, in this process: the decoders' own work."""

import logging

from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError, DecoderBusyError
from service.images.formats import kind_of, open_file
from service.images.pixels import Picture
from service.images.webp import header_size

logger = logging.getLogger(__name__)

# Decoders that take twice the memory for a pixel: they are allowed half as many.
WEIGHTS = {"AVIF": 2, "JPEG2000": 2}


def inspect(data: bytes, *, max_pixels: int) -> ImageInfo:
    """Read format and size, before any orientation, from the header; no pixels.

    Raises:
        BadImageError: not an image, or one of more than `max_pixels` pixels, or of half as many
            of a format whose decoder takes twice the memory.
        DecoderBusyError: no memory now.
    """
    kind = kind_of(data)
    if kind == "GIF":
        width, height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
        if width and height:  # Pillow would read all that comes before the first frame
            return _allowed(ImageInfo(width, height, kind), max_pixels)
    if kind == "WEBP" and (size := header_size(data)):
        return _allowed(ImageInfo(*size, kind), max_pixels)
    try:
        return _allowed(open_file(data).info, max_pixels)
    except MemoryError as exc:
        raise DecoderBusyError("There is no memory to read the image now.") from exc


def decode(data: bytes, *, max_pixels: int, image_size: int | None = None) -> Picture:
    """Decode an image, turned upright by its EXIF orientation, 8 bits a channel, no alpha.

    Args:
        data: the file.
        max_pixels: images of more pixels are refused.
        image_size: longer side that the model sees, in pixels. A JPEG at least twice as large is
            decoded at a reduced scale, and never below this; None decodes in full.
            `Picture.info` has the full size either way.

    Raises:
        BadImageError: not an image, a damaged one, one of a kind that is not supported, or of
            more than `max_pixels` pixels; the size is read from the header, before any memory for
            the pixels is taken.
        DecoderBusyError: no memory now.
        MemoryError: no memory now.
    """
    file = open_file(data)
    _allowed(file.info, max_pixels)
    try:
        picture = file.decode(image_size)
    except (BadImageError, DecoderBusyError, MemoryError):
        raise
    except Exception as exc:  # `Picture`'s refusal, or a kind of damage that nobody foresaw
        logger.exception("A decoder failed in a way that it should not")
        raise BadImageError.corrupt(f"The {file.info.format} file cannot be decoded.") from exc
    _allowed(picture.info, max_pixels)  # its header may have said less
    return picture


def _allowed(info: ImageInfo, max_pixels: int) -> ImageInfo:
    weight = WEIGHTS.get(info.format, 1)
    if info.width * info.height * weight > max_pixels:
        limit = f"MAX_IMAGE_PIXELS={max_pixels}"
        if weight > 1:
            limit += f" divided by {weight} (the limit for {info.format})"
        raise BadImageError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"The image has {info.width}x{info.height} pixels, more than {limit}.",
        )
    return info
