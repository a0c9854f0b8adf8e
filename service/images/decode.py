"""A file to its upright pixels, in this process: the decoders' own work."""

import logging

from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError
from service.images.formats import File, open_file
from service.images.letterbox import shrink
from service.images.pixels import DecodedImage, Pixels

logger = logging.getLogger(__name__)

_MAX_OWN_PIXELS = 2**26  # of a model's own images: MAX_IMAGE_PIXELS does not apply
# Decoders that take twice the memory for a pixel: they are allowed half as many.
WEIGHTS = {"AVIF": 2, "JPEG2000": 2}


def decode(data: bytes, *, max_pixels: int, image_size: int | None = None) -> DecodedImage:
    """Decode an image, turned upright by its EXIF orientation, 8 bits a channel, no alpha.

    Args:
        data: the file.
        max_pixels: images of more pixels are refused.
        image_size: longer side that the model sees, in pixels. A JPEG at least twice as large is
            decoded at a reduced scale, and never below this; None decodes in full.
            `DecodedImage.info` has the full size either way.

    Raises:
        BadImageError: not an image, a damaged one, one of a kind that is not supported, or of
            more than `max_pixels` pixels; the size is read from the header, before any memory for
            the pixels is taken.
        MemoryError: no memory now.
    """
    file = open_image(data, max_pixels=max_pixels)
    return decode_file(file, max_pixels=max_pixels, image_size=image_size)


def open_image(data: bytes, *, max_pixels: int) -> File:
    """Read a file's header, and check its size.

    Raises:
        BadImageError: not an image, or one of more than `max_pixels` pixels, or of half as many
            of a format whose decoder takes twice the memory.
        MemoryError: no memory now.
    """
    file = open_file(data)
    _check_size(file.info, max_pixels)
    return file


def decode_file(file: File, *, max_pixels: int, image_size: int | None) -> DecodedImage:
    """Decode what `open_image` opened; see `decode`."""
    try:
        picture = file.decode(image_size)
    except (BadImageError, MemoryError):
        raise
    except Exception as exc:  # `DecodedImage`'s refusal, or a kind of damage that nobody foresaw
        logger.exception("A decoder failed in a way that it should not")
        raise BadImageError.corrupt(f"The {file.info.format} file cannot be decoded.") from exc
    _check_size(picture.info, max_pixels)  # its header may have said less
    return picture


def _check_size(info: ImageInfo, max_pixels: int) -> None:
    weight = WEIGHTS.get(info.format, 1)
    if info.width * info.height * weight > max_pixels:
        limit = f"MAX_IMAGE_PIXELS={max_pixels}"
        if weight > 1:
            limit += f" divided by {weight} (the limit for {info.format})"
        raise BadImageError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"The image has {info.width}x{info.height} pixels, more than {limit}.",
        )


def decode_in_process(data: bytes, image_size: int) -> Pixels:
    """Decode a file of ours in this process.

    Raises:
        BadImageError: it is no image.
    """
    picture = decode(data, max_pixels=_MAX_OWN_PIXELS, image_size=image_size)
    return shrink(picture.pixels, image_size=image_size)
