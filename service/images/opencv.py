"""OpenCV's decoder."""

import cv2
import numpy as np

from service.domain import ImageInfo
from service.errors import BadImageError
from service.images.pixels import DecodedImage, Pixels, check_pixels
from service.images.transforms import turn_upright

cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # what it says of a damaged file goes into the file's record
_NO_MEMORY = -4  # cv2.Error.StsNoMem


def imdecode(
    data: bytes, *, width: int, height: int, factor: int = 1, bits: int = 8
) -> Pixels | None:
    """Decode to BGR of 8 bits, not turned; None for a damaged file.

    Args:
        data: the file.
        width: of the image, in pixels.
        height: of the image, in pixels.
        factor: 1, 2, 4 or 8: how many times smaller it is decoded, if it is a JPEG.
        bits: bits per sample. OpenCV returns samples of more than 8 bits unscaled.

    Raises:
        MemoryError: there is no memory now.
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
        np.empty(
            2 * width * height * 3, np.uint8
        )  # MemoryError if there is none: then the file may be sound
        return None
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / (2**bits - 1))
    return check_pixels(pixels)


def decode_upright(data: bytes, info: ImageInfo, orientation: int) -> DecodedImage:
    """Decode a whole file in full, and turn it upright.

    Raises:
        BadImageError: data are missing, or the file is damaged.
        MemoryError: there is no memory now.
    """
    pixels = imdecode(data, width=info.width, height=info.height)
    if pixels is None:
        raise BadImageError.corrupt(f"The {info.format} file is damaged or lacks some of its data.")
    pixels = turn_upright(pixels, orientation)
    return DecodedImage(pixels, ImageInfo(pixels.shape[1], pixels.shape[0], info.format))
