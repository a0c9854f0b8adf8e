"""Turn and resize pixels with OpenCV. The service's own process seldom imports this module."""

import cv2
import numpy as np

from service.images.pixels import Pixels, check_pixels

cv2.setNumThreads(1)  # every core already has an image to work on

TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resize uint8 HxWx3 pixels to a width and height in pixels, with bilinear interpolation."""
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Rotate and mirror stored uint8 HxWx3 pixels, so that the image is upright.

    Args:
        pixels: the pixels as stored in the file.
        orientation: EXIF orientation, 1 to 8 (TIFF 6.0, tag 274).

    Raises:
        MemoryError: there is not enough memory now.
    """
    try:
        return _transform(pixels, orientation)
    except cv2.error as exc:
        if exc.code == cv2.Error.StsNoMem:
            raise MemoryError from exc
        raise


def _transform(pixels: Pixels, orientation: int) -> Pixels:
    match orientation:
        case 2:
            transformed = cv2.flip(pixels, 1)
        case 3:
            transformed = cv2.rotate(pixels, cv2.ROTATE_180)
        case 4:
            transformed = cv2.flip(pixels, 0)
        case 5:
            transformed = cv2.transpose(pixels)
        case 6:
            transformed = cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            transformed = cv2.flip(cv2.transpose(pixels), -1)
        case 8:
            transformed = cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)
        case _:
            return pixels
    return check_pixels(transformed)
