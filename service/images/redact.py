"""Makes regions of an image unrecognisable."""

from collections.abc import Iterable

import cv2
import numpy as np

from service.derived import RedactionMode
from service.images.derive import Region
from service.images.pixels import Pixels

# Mean colours along the longer side of a region. At most CELLS x CELLS colours are left of a
# region, whatever its size. Software that was trained on 40 known people recognised them in mosaics
# of 6 x 7 cells (McPherson, Shokri and Shmatikov 2016, https://arxiv.org/abs/1609.00408).
CELLS = 4


def redact(pixels: Pixels, regions: Iterable[Region], mode: RedactionMode) -> None:
    """Replace the pixels of each region, in place, by few mean colours.

    A mosaic shows them as blocks. A blur passes smoothly from one to the next. Neither has anything
    else of the original pixels, so nothing can restore them.

    Args:
        pixels: uint8 HxWx3. They are changed.
        regions: within the image.
        mode: what the regions look like.
    """
    upscale = cv2.INTER_NEAREST if mode is RedactionMode.MOSAIC else cv2.INTER_LINEAR
    for left, top, right, bottom in regions:
        width, height = right - left, bottom - top
        longer = max(width, height)
        columns, rows = (max(1, round(CELLS * side / longer)) for side in (width, height))
        region = np.ascontiguousarray(pixels[top:bottom, left:right])
        means = cv2.resize(region, (columns, rows), interpolation=cv2.INTER_AREA)
        pixels[top:bottom, left:right] = cv2.resize(means, (width, height), interpolation=upscale)
