"""Pixels as everything after the decoder expects them."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from service.domain import ImageInfo

cv2.setNumThreads(1)  # images are worked on side by side already

Pixels = NDArray[np.uint8]  # HxWx3, BGR
TRANSPOSED = (5, 6, 7, 8)  # orientations that exchange width and height


@dataclass(frozen=True)
class Picture:
    """A decoded image: uint8 HxWx3 BGR pixels, upright, and what its file said.

    `info` has the full size, also where the pixels were decoded at a reduced scale.
    """

    pixels: Pixels
    info: ImageInfo

    def __post_init__(self) -> None:
        """Let no other pixels into the product, whatever a decoder returned.

        Raises:
            ValueError: they are not uint8 HxWx3, contiguous, or larger than `info` says.
        """
        height, width = checked(self.pixels).shape[:2]
        if width > self.info.width or height > self.info.height:
            raise ValueError(f"{width}x{height} pixels of an image of {self.info}")


def checked(pixels: Any) -> Pixels:
    """Return pixels that are uint8 HxWx3, contiguous, and not empty.

    OpenCV writes an array of another kind to other memory than it was asked to write to, and a
    reused buffer then keeps the image before it.

    Raises:
        ValueError: they are not.
    """
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.ndim == 3
        and pixels.shape[2] == 3
        and pixels.size
        and pixels.flags.c_contiguous
    ):
        found = (
            f"{pixels.dtype} {pixels.shape}"
            if isinstance(pixels, np.ndarray)
            else type(pixels).__name__
        )
        raise ValueError(f"Pixels must be contiguous uint8 HxWx3, not {found}")
    return pixels


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror stored pixels by their EXIF orientation (TIFF 6.0, tag 274), 1 to 8.

    Raises:
        MemoryError: no memory now.
    """
    try:
        return _turned(pixels, orientation)
    except cv2.error as exc:
        if exc.code == cv2.Error.StsNoMem:
            raise MemoryError from exc
        raise


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    match orientation:
        case 2:
            turned = cv2.flip(pixels, 1)
        case 3:
            turned = cv2.rotate(pixels, cv2.ROTATE_180)
        case 4:
            turned = cv2.flip(pixels, 0)
        case 5:
            turned = cv2.transpose(pixels)
        case 6:
            turned = cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            turned = cv2.flip(cv2.transpose(pixels), -1)
        case 8:
            turned = cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)
        case _:
            return pixels
    return checked(turned)
