"""Files with several images: only the main image is read."""

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
from PIL import Image

from devtools.fuzz.corpus import (
    HEIGHT,
    WIDTH,
    animation,
    chunk,
    drawn,
    gif,
    png,
    replaced,
    saved,
    tiff_of,
)
from service.domain import ErrorCode
from service.errors import BadImageError
from service.images.decode import decode

MAIN = np.asarray(drawn())
SMALL = np.asarray(drawn(size=(24, 16)))
MASK = np.zeros((HEIGHT, WIDTH), bool)
REDUCED, MASK_PAGE = 1, 4


def tiff(
    *pages: tuple[Any, int], sub: Any = None, bigtiff: bool = False, order: Literal["<", ">"] = "<"
) -> bytes:
    """A TIFF of pages (samples, NewSubfileType). `sub` is a subimage of the first page."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=bigtiff, byteorder=order) as writer:
        for number, (samples, kind) in enumerate(pages):
            photometric = "rgb" if samples.ndim == 3 else "minisblack"
            subifds = 1 if sub is not None and not number else 0
            writer.write(samples, subfiletype=kind, photometric=photometric, subifds=subifds)
            if subifds:
                writer.write(sub[0], subfiletype=sub[1], photometric="rgb")
    return buffer.getvalue()


def is_main(data: bytes) -> bool:
    return np.array_equal(decode(data, max_pixels=100_000).pixels, MAIN[:, :, ::-1])


MAIN_IS_READ = {
    "alone": tiff((MAIN, 0)),
    "before its preview": tiff((MAIN, 0), (SMALL, REDUCED)),
    "behind its preview": tiff((SMALL, REDUCED), (MAIN, 0)),
    "behind its preview, BigTIFF": tiff((SMALL, REDUCED), (MAIN, 0), bigtiff=True),
    "behind its preview, big-endian": tiff((SMALL, REDUCED), (MAIN, 0), order=">"),
    "behind a mask": tiff((MASK, MASK_PAGE), (MAIN, 0)),
    "behind a mask and a preview": tiff((MASK, MASK_PAGE), (SMALL, REDUCED), (MAIN, 0)),
    "before other pages": tiff((MAIN, 0), (SMALL, 0)),
    "with smaller ones below it": tiff((MAIN, 0), sub=(SMALL, REDUCED)),
}


@pytest.mark.parametrize("data", MAIN_IS_READ.values(), ids=MAIN_IS_READ)
def test_main_image_of_a_tiff_is_read(data: bytes) -> None:
    assert is_main(data)


def canon_raw() -> bytes:
    """A TIFF with Canon's signature after its header, and its directory at its end."""
    data = tiff_of()
    directory = data[8 : 8 + 2 + 9 * 12 + 4]
    return data[:4] + struct.pack("<I", len(data)) + b"CR\2\0" + data[12:] + directory


NO_MAIN = {
    "a preview alone": tiff((SMALL, REDUCED)),
    "a mask alone": tiff((MASK, MASK_PAGE)),
    "a preview above the image": tiff((SMALL, REDUCED), sub=(MAIN, 0)),
    "an image above a larger one": tiff((SMALL, 0), sub=(MAIN, 0)),
    "Canon's raw file": canon_raw(),
    "no photometric": replaced(tiff_of(), b"\x06\x01\x04\0\1\0\0\0\1", b"\x07\x01\x04\0\1\0\0\0\1"),
    "film of JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypmjp2" + bytes(99),
    "text that begins as a bitmap does": b"BMW and other cars\n",
    "text that begins as a Netpbm file does": b"P5-1 is a part number\n",
}


@pytest.mark.parametrize("data", NO_MAIN.values(), ids=NO_MAIN)
def test_file_without_a_main_image_is_unsupported(data: bytes) -> None:
    with pytest.raises(BadImageError) as raised:
        decode(data, max_pixels=100_000)
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA


def test_first_of_several_netpbm_images_is_read() -> None:
    other = Image.new("RGB", (WIDTH, HEIGHT), "white")
    assert is_main(saved("PPM") + saved("PPM", other))
    assert is_main(saved("PPM") + b"bytes behind it")


def test_still_image_of_an_animated_png_is_read() -> None:
    still = saved("PNG")
    assert is_main(still[:33] + animation(WIDTH, HEIGHT, 3) + still[33:])


def test_png_whose_data_end_early_is_corrupt() -> None:
    """Every chunk is intact, and so is the zlib stream. It contains half of the rows."""
    rows = zlib.compress((b"\0" + bytes(WIDTH * 3)) * (HEIGHT // 2))
    with pytest.raises(BadImageError) as raised:
        decode(png(WIDTH, HEIGHT, chunk(b"IDAT", rows)), max_pixels=100_000)
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE


@pytest.mark.parametrize("missing", [1, 4, 12])
def test_png_without_its_end_is_read(missing: int) -> None:
    assert is_main(saved("PNG")[:-missing])


def test_gif_without_its_trailer_is_read() -> None:
    whole = saved("GIF")
    expected = decode(whole, max_pixels=100_000).pixels
    assert np.array_equal(decode(whole[:-1], max_pixels=100_000).pixels, expected)


def test_gif_frame_smaller_than_its_screen_leaves_the_rest() -> None:
    pixels = decode(gif((8, 8), (2, 2, 2, 2)), max_pixels=100).pixels
    assert pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits"])
def test_tiff_whose_strips_end_behind_the_file_is_corrupt(compression: str) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, MAIN, photometric="rgb", compression=compression)
    data = buffer.getvalue()
    with pytest.raises(BadImageError) as raised:
        decode(data[: len(data) * 3 // 4], max_pixels=100_000)
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE
