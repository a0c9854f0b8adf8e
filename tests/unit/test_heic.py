"""HEIC: colours, orientation, the primary image, missing data, and a container without its decoder.

`tests/data/heic/make.py` draws the files: red and green above blue and white.
"""

import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from service.deadline import NO_DEADLINE
from service.domain import Camera, Capture, ErrorCode, ImageInfo
from service.errors import BadImageError
from service.images import formats
from service.images.decode import decode
from service.images.decoders import Decoders
from service.images.formats import format_of
from service.images.pixels import Pixels

FILES = {
    path.stem: path.read_bytes()
    for path in (Path(__file__).parents[1] / "data" / "heic").glob("*.heic")
}
SIZES = {"grid": (120, 90)}
SIZE = (96, 64)
BGR = [(0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255)]  # red, green, blue, white
GREY = [(76,) * 3, (150,) * 3, (29,) * 3, (255,) * 3]
MAX_PIXELS = 1_000_000
TOLERANCE = 3


def assert_quarters(pixels: Pixels, expected: Sequence[tuple[int, ...]]) -> None:
    height, width = pixels.shape[:2]
    for colour, (row, column) in zip(
        expected, ((y, x) for y in (0, 1) for x in (0, 1)), strict=True
    ):
        inner = pixels[
            row * height // 2 + 4 : (row + 1) * height // 2 - 4,
            column * width // 2 + 4 : (column + 1) * width // 2 - 4,
        ]
        assert np.abs(inner.astype(int) - colour).max() <= TOLERANCE


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    pool = Decoders(1, max_pixels=MAX_PIXELS, max_decompressed_bytes=10**6)
    yield pool
    pool.close()


@pytest.mark.parametrize("name", FILES)
def test_heic_is_decoded_upright_in_its_colours(name: str, decoders: Decoders) -> None:
    image = decoders.decode(FILES[name], image_size=640, deadline=NO_DEADLINE)
    assert image.info == ImageInfo(*SIZES.get(name, SIZE), "HEIC")
    assert_quarters(image.pixels, GREY if "grey" in name else BGR)


def test_there_is_a_file_of_each_kind() -> None:
    assert set(FILES) == {
        "plain", "rotated", "transverse", "alpha", "grey", "ten-bit", "ten-bit-grey",
        "bt709-limited", "several", "grid",
    }  # fmt: skip


def test_exif_of_a_heic_gives_its_capture() -> None:
    assert decode(FILES["rotated"], max_pixels=MAX_PIXELS).capture == Capture(
        local_time=datetime(2026, 7, 1, 14, 30, 5),
        utc_offset=timedelta(hours=2),
        camera=Camera(make="Apple"),
    )


def test_pixels_stay_when_the_file_is_freed() -> None:
    """pi-heif's own array shows memory that is freed with its image."""
    images = [decode(FILES["plain"], max_pixels=MAX_PIXELS).pixels for _ in range(20)]
    for pixels in images:
        assert pixels.base is None
        assert_quarters(pixels, BGR)


@pytest.mark.parametrize("name", FILES)
def test_heic_that_lost_its_end_is_corrupt(name: str) -> None:
    """At every length. libheif itself would decode a grid without its last tiles."""
    for length in range(12, len(FILES[name])):
        with pytest.raises(BadImageError) as raised:
            decode(FILES[name][:length], max_pixels=MAX_PIXELS)
        assert raised.value.code is ErrorCode.CORRUPT_IMAGE, length


@pytest.mark.parametrize("name", FILES)
def test_damaged_heic_gets_a_record(name: str, decoders: Decoders) -> None:
    """Each 23rd byte in turn: no damage takes the decoders' time, or another image's result."""
    data = FILES[name]
    for position in range(8, len(data), 23):
        damaged = data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
        try:
            decoders.decode(damaged, image_size=640, deadline=NO_DEADLINE)
        except BadImageError as exc:
            assert exc.code in (
                ErrorCode.CORRUPT_IMAGE,
                ErrorCode.UNSUPPORTED_MEDIA,
                ErrorCode.IMAGE_TOO_LARGE,
            )
    intact = decoders.decode(FILES["plain"], image_size=640, deadline=NO_DEADLINE)
    assert_quarters(intact.pixels, BGR)


def with_size(data: bytes, width: int, height: int) -> bytes:
    """Return the file with another size in its first `ispe` property (ISO/IEC 23008-12, 6.5.3)."""
    start = data.index(b"ispe") + 8
    return data[:start] + struct.pack(">II", width, height) + data[start + 8 :]


def test_size_is_checked_before_pixels_are_decoded() -> None:
    file = formats.open_file(with_size(FILES["plain"], 40_000, 40_000))
    assert (file.info.width, file.info.height) == (40_000, 40_000)
    with pytest.raises(BadImageError, match="40000x40000 pixels") as raised:
        decode(with_size(FILES["plain"], 40_000, 40_000), max_pixels=MAX_PIXELS)
    assert raised.value.code is ErrorCode.IMAGE_TOO_LARGE


def test_image_larger_than_its_stated_size_is_corrupt() -> None:
    with pytest.raises(BadImageError) as raised:
        decode(with_size(FILES["plain"], 8, 8), max_pixels=MAX_PIXELS)
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE


@pytest.mark.parametrize(("name", "weight"), [("plain", 1), ("ten-bit", 2)])
def test_heic_of_more_than_8_bits_may_have_half_the_pixels(name: str, weight: int) -> None:
    pixels = SIZE[0] * SIZE[1]
    assert decode(FILES[name], max_pixels=pixels * weight).info.width == SIZE[0]
    with pytest.raises(BadImageError) as raised:
        decode(FILES[name], max_pixels=pixels * weight - 1)
    assert raised.value.code is ErrorCode.IMAGE_TOO_LARGE


def ftyp(major: bytes, *others: bytes) -> bytes:
    return struct.pack(">I4s4s4x", 16 + 4 * len(others), b"ftyp", major) + b"".join(others)


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        ((b"heic", b"mif1"), "HEIC"),
        ((b"mif1", b"heic"), "HEIC"),
        ((b"mif1", b"miaf"), "HEIC"),
        ((b"msf1", b"hevc"), "HEIC"),
        ((b"heix",), "HEIC"),
        ((b"avif", b"mif1"), "AVIF"),
        ((b"mif1", b"avif"), "AVIF"),
        ((b"isom", b"mp42"), None),
        ((b"isom", b"mif1"), None),
        ((b"crx ", b"isom"), None),
    ],
)
def test_brands_name_the_format(brands: tuple[bytes, ...], kind: str | None) -> None:
    assert format_of(ftyp(*brands)) == kind


def test_heif_of_another_codec_is_unsupported() -> None:
    other = FILES["plain"].replace(b"hvc1", b"vvc1")
    with pytest.raises(BadImageError) as raised:
        decode(other, max_pixels=MAX_PIXELS)
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA


WITHOUT = """
import sys
sys.modules["pi_heif"] = None  # as if it were not installed
from service.errors import BadImageError
from service.images.decode import decode
from service.images.formats import FORMATS

assert "HEIC" not in FORMATS
try:
    decode(sys.stdin.buffer.read(), max_pixels=1_000_000)
except BadImageError as exc:
    print(exc.code, exc.message)
"""


def test_container_without_the_decoder_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], input=FILES["plain"], capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == (
        "unsupported_media HEIC (this container was built without its decoder) is not supported."
    )


@pytest.mark.parametrize(("signature", "name"), [
    (b"IIRO\x08\0\0\0", "ORF"), (b"FUJIFILMCCD-RAW 0201", "RAF"), (b"IIU\0\x18\0\0\0", "RW2"),
    (ftyp(b"crx ", b"isom"), "CR3"),
])  # fmt: skip
def test_raw_file_of_a_camera_is_named(signature: bytes, name: str) -> None:
    with pytest.raises(BadImageError, match=f"{name}, a camera's raw file") as raised:
        decode(signature + bytes(64), max_pixels=MAX_PIXELS)
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA
