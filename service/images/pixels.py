"""Pixels as everything after the decoder expects them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain import ImageInfo

Pixels = NDArray[np.uint8]  # HxWx3, BGR


@dataclass(frozen=True)
class DecodedImage:
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
        height, width = check_pixels(self.pixels).shape[:2]
        if width > self.info.width or height > self.info.height:
            raise ValueError(f"{width}x{height} pixels of an image of {self.info}")


def check_pixels(pixels: Any) -> Pixels:
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
