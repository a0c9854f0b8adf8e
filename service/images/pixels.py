"""The type of pixels that decoders return and models take."""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.domain import Capture, ImageInfo

Pixels = NDArray[np.uint8]  # HxWx3, BGR


@dataclass(frozen=True)
class DecodedImage:
    """A decoded, upright image: contiguous uint8 HxWx3 BGR pixels.

    `info` has the full size of the upright image, even if the pixels are at a reduced scale, or
    only its middle square.
    """

    pixels: Pixels
    info: ImageInfo
    capture: Capture = field(default_factory=Capture)  # from the file's EXIF data

    @classmethod
    def of(cls, pixels: Pixels) -> Self:
        """Return the image whose pixels are at full scale.

        Raises:
            ValueError: the pixels are not contiguous uint8 HxWx3.
        """
        height, width = check_pixels(pixels).shape[:2]
        return cls(pixels, ImageInfo(width, height, ""))

    def __post_init__(self) -> None:
        """Check the pixels, because decoders may return other arrays for unusual files.

        Raises:
            ValueError: the pixels are not contiguous uint8 HxWx3.
        """
        check_pixels(self.pixels)


def check_pixels(pixels: Any) -> Pixels:
    """Return the argument unchanged, if it is contiguous, non-empty uint8 HxWx3.

    Other arrays are dangerous: OpenCV silently writes its result to new memory instead of the
    given buffer, and a reused buffer then still shows the previous image.

    Raises:
        ValueError: the argument is any other object.
    """
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.ndim == 3
        and pixels.shape[2] == 3
        and pixels.size
        and pixels.flags.c_contiguous
    ):
        actual = (
            f"{pixels.dtype} {pixels.shape}"
            if isinstance(pixels, np.ndarray)
            else type(pixels).__name__
        )
        raise ValueError(f"Pixels must be contiguous uint8 HxWx3, not {actual}")
    return pixels
