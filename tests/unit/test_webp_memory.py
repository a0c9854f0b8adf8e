"""A large WebP is decoded, although Pillow would need half a gigabyte to open it."""

import io

import pytest
from PIL import Image

from service.deadline import NO_DEADLINE
from service.domain import ImageInfo
from service.errors import BadImageError
from service.images.decoders import Decoders
from service.images.webp import Webp

SIDE = 5600  # two frames of Pillow's take more than a decoder's small limit


@pytest.mark.parametrize("lossless", [False, True], ids=["VP8", "VP8L"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
def test_size_is_read_from_each_kind_of_header(
    lossless: bool, mode: str, size: tuple[int, int]
) -> None:
    buffer = io.BytesIO()
    Image.new(mode, size, "red").save(buffer, "WEBP", lossless=lossless)
    assert Webp(buffer.getvalue()).info == ImageInfo(*size, "WEBP")


@pytest.mark.parametrize("length", [0, 16, 24])
def test_truncated_header_is_corrupt(length: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP")
    with pytest.raises(BadImageError):
        Webp(buffer.getvalue()[:length])


def test_webp_larger_than_the_small_limit_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(buffer, "WEBP", quality=1, method=0)
    decoders = Decoders(1, max_pixels=50_000_000, max_decompressed_bytes=2**25)
    try:
        decoded = decoders.decode(buffer.getvalue(), image_size=64, deadline=NO_DEADLINE)
    finally:
        decoders.close()
    assert (decoded.info.width, decoded.info.height) == (SIDE, SIDE)
