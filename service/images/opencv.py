"""Decode with OpenCV."""

import cv2
import numpy as np

from service.domain import Capture, ImageInfo
from service.errors import BadImageError
from service.images.pixels import DecodedImage, Pixels, check_pixels
from service.images.transforms import turn_upright

# Damage is recorded in the image's document. OpenCV must not also log it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
_NO_MEMORY = -4  # cv2.Error.StsNoMem


def imdecode(
    data: bytes, *, width: int, height: int, factor: int = 1, bits: int = 8
) -> Pixels | None:
    """Decode to uint8 HxWx3 BGR pixels as stored, without applying the orientation.

    Args:
        data: the file.
        width: the image's width in pixels.
        height: the image's height in pixels.
        factor: decode a JPEG at 1/`factor` of its size: 1, 2, 4 or 8.
        bits: bits per sample. OpenCV does not scale samples of 9 to 16 bits, so this function does.

    Returns:
        The pixels, or None if the file is damaged.

    Raises:
        MemoryError: there is not enough memory now.
    """
    flags = cv2.IMREAD_ANYDEPTH if bits > 8 else 0
    flags |= {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[factor]
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as exc:
        if exc.code == _NO_MEMORY:
            raise MemoryError from exc
        return None
    if pixels is None:
        # OpenCV also returns None if memory is short. In that case, this line raises MemoryError.
        np.empty(2 * width * height * 3, np.uint8)
        return None
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / (2**bits - 1))
    return check_pixels(pixels)


def decode_upright(
    data: bytes, info: ImageInfo, orientation: int, capture: Capture
) -> DecodedImage:
    """Decode in full to uint8 BGR pixels, and turn them upright.

    Args:
        data: the file.
        info: format and stored size.
        orientation: EXIF orientation, 1 to 8.
        capture: what the file's EXIF data state about the capture.

    Raises:
        BadImageError: data are missing, or the file is damaged.
        MemoryError: there is not enough memory now.
    """
    pixels = imdecode(data, width=info.width, height=info.height)
    if pixels is None:
        raise BadImageError.corrupt(f"The {info.format} file is damaged or lacks some of its data.")
    pixels = turn_upright(pixels, orientation)
    info = ImageInfo(pixels.shape[1], pixels.shape[0], info.format)
    return DecodedImage(pixels, info, capture)
