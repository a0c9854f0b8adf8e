"""The crop for classification models."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.images.crop import center_crop
from service.images.pixels import Pixels


def noise(width: int, height: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([32, 64, 224]))
@settings(deadline=None, max_examples=60)
def test_crop_has_the_size_of_the_input(width: int, height: int, size: int) -> None:
    cropped = center_crop(noise(width, height), size=size)
    assert cropped.shape == (size, size, 3)
    assert cropped.flags.c_contiguous
    assert center_crop(cropped, size=size) is cropped


def test_crop_is_the_middle_of_the_longer_side() -> None:
    pixels = noise(101, 64)
    assert (center_crop(pixels, size=64) == pixels[:, 18:82]).all()  # round(18.5) is 18
    assert (
        center_crop(np.ascontiguousarray(pixels.transpose(1, 0, 2)), size=64)
        == pixels.transpose(1, 0, 2)[18:82]
    ).all()


def test_crop_is_resized_with_antialiasing() -> None:
    """Without it, every second column of these stripes would vanish."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = center_crop(stripes, size=64)[2:-2, 2:-2]
    assert inner.min() > 120
    assert inner.max() < 136


def test_very_thin_image_is_cropped_with_little_memory() -> None:
    """Resized in full, it would have 224 x 44,800,000 pixels."""
    pixels = noise(200_000, 1)
    cropped = center_crop(pixels, size=224)
    middle = pixels[0, 99_999:100_001].astype(int)
    assert abs(cropped[0, 0].astype(int) - middle[0]).max() <= 130
    assert (cropped == cropped[:1]).all()


def test_thin_image_is_cropped_nearly_as_in_full() -> None:
    pixels = noise(700, 70)
    full = Image.fromarray(pixels).resize((640, 64), Image.Resampling.BILINEAR)
    expected = np.array(full.crop((288, 0, 352, 64)))
    assert abs(center_crop(pixels, size=64).astype(int) - expected).max() <= 1


def test_crop_needs_pixels() -> None:
    with pytest.raises(ValueError, match="Pixels must be"):
        center_crop(np.zeros((4, 4), np.uint8), size=2)
