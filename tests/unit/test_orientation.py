"""The orientation of an image in every format, and in every encoding of EXIF."""

import io
import struct
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from devtools.fuzz.corpus import (
    after_header,
    after_start,
    chunk,
    drawn,
    riff,
    riff_chunk,
    saved,
    segment,
)
from service.images.decode import decode
from service.images.transforms import TRANSPOSED, turn_upright

ORIENTATIONS = range(1, 9)
Order = Literal["<", ">"]
LITTLE: Order = "<"
BIG: Order = ">"
SHORT, LONG = 3, 4
WAYS: dict[str, tuple[Order, int]] = {
    "little-endian short": (LITTLE, SHORT),
    "big-endian short": (BIG, SHORT),
    "little-endian long": (LITTLE, LONG),
    "big-endian long": (BIG, LONG),
}


def exif(orientation: int, order: str = LITTLE, kind: int = SHORT) -> bytes:
    """A TIFF with one directory that has one tag."""
    value = struct.pack(order + ("HH" if kind == SHORT else "I"), orientation, *(0,) * (4 - kind))
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    magic = b"II*\0" if order == LITTLE else b"MM\0*"
    return magic + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def jpeg(*app1: bytes, **options: Any) -> bytes:
    data = saved("JPEG", quality=95, subsampling=0, **options)
    return after_start(data, b"".join(segment(0xE1, body) for body in app1))


def webp(tags: bytes) -> bytes:
    image = saved("WEBP", lossless=True)
    return riff(canvas_with_exif(), image[12:], riff_chunk(b"EXIF", tags))


def canvas_with_exif() -> bytes:
    width, height = drawn().size
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return riff_chunk(b"VP8X", struct.pack("<I", 8) + sides)


def tiff(orientation: int, order: Order, kind: int) -> bytes:
    buffer = io.BytesIO()
    tag = (274, "H" if kind == SHORT else "I", 1, orientation, True)
    tifffile.imwrite(
        buffer, np.asarray(drawn()), byteorder=order, photometric="rgb", extratags=[tag]
    )
    return buffer.getvalue()


EXIF_IN: dict[str, Callable[[int, Order, int], bytes]] = {
    "JPEG": lambda *way: jpeg(b"Exif\0\0" + exif(*way)),
    "progressive JPEG": lambda *way: jpeg(b"Exif\0\0" + exif(*way), progressive=True),
    "PNG": lambda *way: after_header(saved("PNG"), chunk(b"eXIf", exif(*way))),
    "WebP": lambda *way: webp(exif(*way)),
    "TIFF": tiff,
}


def shown_by_pillow(data: bytes) -> Any:
    """BGR pixels, turned upright by Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[:, :, ::-1]


def assert_upright(data: bytes, orientation: int) -> None:
    decoded = decode(data, max_pixels=100_000)
    width, height = drawn().size
    size = (height, width) if orientation in TRANSPOSED else (width, height)
    assert (decoded.info.width, decoded.info.height) == size
    assert np.array_equal(decoded.pixels, shown_by_pillow(data))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", EXIF_IN.values(), ids=EXIF_IN)
def test_image_is_turned_as_its_exif_says(
    make: Callable[[int, Order, int], bytes], way: tuple[Order, int], orientation: int
) -> None:
    assert_upright(make(orientation, *way), orientation)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_avif_is_turned_as_its_properties_say(orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = saved("AVIF", quality=90, exif=tags.tobytes())  # as irot and imir
    assert (b"irot" in data or b"imir" in data) == (orientation > 1)
    assert_upright(data, orientation)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_avif_exif_that_says_otherwise_does_not_count(orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    data = saved("AVIF", quality=90, exif=tags.tobytes())
    changed = data.replace(tags.tobytes()[6:], exif(orientation).ljust(len(tags.tobytes()) - 6))
    assert_upright(changed, 6)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("data", "orientation"),
    [
        (jpeg(b"http://ns.adobe.com/xap/1.0/\0" + XMP), 6),
        (after_header(saved("PNG"), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)), 6),
        (jpeg(b"http://other\0", b"Exif\0\0" + exif(8)), 8),
        (saved("PNG")[:-12] + chunk(b"eXIf", exif(8)) + chunk(b"IEND", b""), 8),
        (jpeg(b"Exif\0\0" + exif(9)), 1),
        (jpeg(b"Exif\0\0" + b"no tags at all"), 1),
        (jpeg(b"Exif\0\0"), 1),
        (after_header(saved("PNG"), chunk(b"eXIf", b"no tags at all")), 1),
    ],
    ids=[
        "XMP of a JPEG", "XMP of a PNG", "second segment", "PNG's last chunk", "no orientation",
        "damaged EXIF", "empty EXIF", "damaged EXIF of a PNG",
    ],
)  # fmt: skip
def test_orientation_is_found_where_it_stands(data: bytes, orientation: int) -> None:
    decoded = decode(data, max_pixels=100_000)
    stored = np.asarray(drawn())[:, :, ::-1]
    assert np.abs(decoded.pixels.astype(int) - turn_upright(stored, orientation)).mean() < 3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_large_jpeg_at_a_reduced_scale_is_turned_too(orientation: int) -> None:
    stored = drawn(size=(1301, 900))
    data = after_start(
        saved("JPEG", stored, quality=95), segment(0xE1, b"Exif\0\0" + exif(orientation, BIG, LONG))
    )
    decoded = decode(data, max_pixels=50_000_000, image_size=640)
    full = shown_by_pillow(data)
    assert (decoded.info.height, decoded.info.width) == full.shape[:2]
    assert decoded.pixels.shape[:2] == tuple(-(-side // 2) for side in full.shape[:2])
    expected = np.asarray(
        Image.fromarray(full).resize(decoded.pixels.shape[1::-1], Image.Resampling.BOX)
    )
    assert np.abs(decoded.pixels.astype(int) - expected).mean() < 3
