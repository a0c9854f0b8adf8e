"""Decode a file to upright pixels in the calling process. Decoder processes call this."""

import logging

from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError
from service.images.crop import center_crop
from service.images.formats import File, open_file
from service.images.heic import Heic
from service.images.letterbox import shrink
from service.images.pixels import DecodedImage, Pixels

logger = logging.getLogger(__name__)

_MAX_CANARY_PIXELS = 2**26  # instead of MAX_IMAGE_PIXELS, which limits only uploads
# These decoders take twice the memory per pixel, so their pixels count twice.
PIXEL_WEIGHTS = {"AVIF": 2, "JPEG2000": 2}


def decode(data: bytes, *, max_pixels: int, image_size: int | None = None) -> DecodedImage:
    """Decode an image to uint8 BGR pixels, upright by its EXIF orientation, without alpha.

    Args:
        data: the file.
        max_pixels: the most pixels that an image may have.
        image_size: longer side of the image as the model gets it, in pixels. A JPEG at least twice
            as large is decoded at a reduced scale, but never below this size. None: decode every
            image in full. `DecodedImage.info` has the full size in both cases.

    Raises:
        BadImageError: the file is not an image, is damaged, is of an unsupported kind, or has more
            than `max_pixels` pixels. The size is checked before memory for pixels is allocated.
        MemoryError: there is not enough memory now.
    """
    file = open_image(data, max_pixels=max_pixels)
    return decode_file(file, max_pixels=max_pixels, image_size=image_size)


def open_image(data: bytes, *, max_pixels: int) -> File:
    """Read a file's header and check the size that it states.

    Raises:
        BadImageError: the file is not a supported image, its header is damaged, or it has more
            than `max_pixels` pixels. Pixels of some formats count twice (`weight_of`).
        MemoryError: there is not enough memory now.
    """
    file = open_file(data)
    _check_size(file.info, weight_of(file), max_pixels)
    return file


def weight_of(file: File) -> int:
    """Return how many times the pixels of a file count, because decoding takes more memory."""
    if isinstance(file, Heic):
        return file.pixel_weight
    return PIXEL_WEIGHTS.get(file.info.format, 1)


def decode_file(file: File, *, max_pixels: int, image_size: int | None) -> DecodedImage:
    """Decode a file that `open_image` opened. See `decode` for arguments and errors."""
    try:
        decoded = file.decode(image_size)
    except (BadImageError, MemoryError):
        raise
    except Exception as exc:  # invalid pixels, or damage that the decoder reports by another error
        logger.exception("A decoder raised an unexpected error")
        raise BadImageError.corrupt(f"The {file.info.format} file cannot be decoded.") from exc
    # The header may have stated a smaller size.
    _check_size(decoded.info, weight_of(file), max_pixels)
    return decoded


def _check_size(info: ImageInfo, weight: int, max_pixels: int) -> None:
    if info.width * info.height * weight > max_pixels:
        limit = f"MAX_IMAGE_PIXELS={max_pixels}"
        if weight > 1:
            limit += f" divided by {weight} (the limit for {info.format})"
        raise BadImageError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"The image has {info.width}x{info.height} pixels, more than {limit}.",
        )


def decode_in_process(data: bytes, image_size: int, crop: bool = False) -> Pixels:
    """Decode and shrink a trusted file, for example an image of a model's canary.

    Args:
        data: the file.
        image_size: longer side of the image as the model gets it, in pixels.
        crop: whether the model takes the middle square (see `service.images.crop`).

    Returns:
        uint8 HxWx3 BGR pixels, whose longer side is at most `image_size`.

    Raises:
        BadImageError: the file is not a supported image.
        MemoryError: there is not enough memory now.
    """
    if crop:
        return center_crop(decode(data, max_pixels=_MAX_CANARY_PIXELS).pixels, size=image_size)
    decoded = decode(data, max_pixels=_MAX_CANARY_PIXELS, image_size=image_size)
    return shrink(decoded.pixels, image_size=image_size)
