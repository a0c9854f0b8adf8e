"""The crop that a classification model takes: the middle square of an image."""

import numpy as np

from service.images.pixels import Pixels, check_pixels

# Longer side by shorter side. A thinner image is not resized in full: it could take gigabytes.
_MAX_RATIO = 8


def center_crop(pixels: Pixels, *, size: int) -> Pixels:
    """Resize the shorter side to `size`, and cut out the middle square.

    It does what `classify_transforms` in ultralytics 8.4 does (data/augment.py): torchvision's
    `Resize` and `CenterCrop` of a Pillow image. Other resizing changes confidences by up to 0.8.

    Args:
        pixels: uint8 HxWx3.
        size: side of the square in pixels.

    Returns:
        uint8 size x size x 3. Pixels of this size are returned unchanged.

    Raises:
        ValueError: the pixels are not contiguous uint8 HxWx3.
    """
    height, width = check_pixels(pixels).shape[:2]
    if (height, width) == (size, size):
        return pixels
    # Imported here, because decoder processes have cropped most images already.
    from PIL import Image

    longer = int(size * max(height, width) / min(height, width))
    resized = (size, longer) if width <= height else (longer, size)
    left, top = (round((side - size) / 2) for side in resized)
    square = (left, top, left + size, top + size)
    image = Image.fromarray(pixels)
    if longer <= _MAX_RATIO * size:
        return np.array(image.resize(resized, Image.Resampling.BILINEAR).crop(square))
    # Resize only the square. The result may differ by 1, because Pillow takes `box` as float32.
    scale = width / resized[0], height / resized[1]
    box = tuple(
        min(edge * scale[i % 2], float((width, height)[i % 2])) for i, edge in enumerate(square)
    )
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
