"""JPEG: unusual but valid files are read, and files with missing data are rejected."""

from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from devtools.fuzz.corpus import HEIGHT, WIDTH, after_start, drawn, saved, segment
from service.domain import ErrorCode
from service.errors import BadImageError
from service.images.decode import decode
from service.images.pixels import DecodedImage

SOS, EOI = b"\xff\xda", b"\xff\xd9"
KINDS: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: saved("JPEG"),
    "progressive": lambda: saved("JPEG", progressive=True),
    "grey": lambda: saved("JPEG", drawn("L")),
    "restart markers": lambda: saved("JPEG", restart_marker_blocks=2),
    "CMYK": lambda: saved("JPEG", drawn("CMYK")),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def read(data: bytes) -> DecodedImage:
    return decode(data, max_pixels=100_000)


def code_of(data: bytes) -> ErrorCode:
    with pytest.raises(BadImageError) as raised:
        read(data)
    return raised.value.code


def is_same(data: bytes, as_data: bytes) -> bool:
    return np.array_equal(read(data).pixels, read(as_data).pixels)


@kinds
@pytest.mark.parametrize("missing", [1, 2])
def test_jpeg_without_its_end_has_all_pixels(kind: str, missing: int) -> None:
    whole = KINDS[kind]()
    assert is_same(whole[:-missing], whole)


@kinds
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("end", [b"", EOI], ids=["cut", "ended"])
def test_jpeg_without_some_data_is_corrupt(kind: str, share: float, end: bytes) -> None:
    whole = KINDS[kind]()
    scans = whole.index(SOS) + 14
    kept = scans + int(share * (len(whole) - scans))
    assert code_of(whole[:kept] + end) is ErrorCode.CORRUPT_IMAGE


def test_half_a_jpeg_with_another_fault_before_it_is_corrupt() -> None:
    """libjpeg reports only the first fault."""
    whole = after_start(saved("JPEG"), b"stray bytes")
    whole = whole.replace(b"JFIF\0\1\1", b"JFIF\0\7\7")  # of a version that it does not know
    assert code_of(whole[: len(whole) // 2] + EOI) is ErrorCode.CORRUPT_IMAGE


def scans_of(data: bytes) -> list[bytes]:
    """Split into the part before the first scan, and each scan with the tables that follow it."""
    starts = [data.index(SOS)]
    while (start := data.find(SOS, starts[-1] + 2)) >= 0:
        starts.append(start)
    scans = (data[a:b] for a, b in zip(starts, [*starts[1:], -2], strict=True))
    return [data[: starts[0]], *scans]


def test_progressive_jpeg_cut_between_its_scans_is_corrupt() -> None:
    header, *scans = scans_of(KINDS["progressive"]())
    for kept in range(len(scans)):
        assert code_of(header + b"".join(scans[:kept])) is ErrorCode.CORRUPT_IMAGE


def test_progressive_jpeg_with_fewer_scans_is_read() -> None:
    """A progressive file looks like this while it loads, and some encoders write such files."""
    header, *scans = scans_of(KINDS["progressive"]())
    assert read(header + b"".join(scans[:-1]) + EOI).info.width == WIDTH


def test_jpeg_without_the_scan_of_a_colour_is_corrupt() -> None:
    """After the first scan, each scan of a progressive JPEG has one component."""
    header, *scans = scans_of(KINDS["progressive"]())
    of_one = [scan for scan in scans if scan[4] == 1]
    assert code_of(header + b"".join(of_one) + EOI) is ErrorCode.CORRUPT_IMAGE


BETWEEN: dict[str, bytes] = {
    "2,048 fill bytes": b"\xff" * 2048,
    "a million fill bytes": b"\xff" * 10**6,
    "stray bytes": b"\x00\x01stray",
    "a million stray bytes": b"x" * 10**6,
    "5,000 comments": segment(0xFE, b"hello") * 5000,
    "5,000 EXIF segments": segment(0xE1, b"Exif\0\0") * 5000,
    "255 profiles of 64 kB": segment(0xE2, bytes(65_000)) * 255,
    "markers without a length": b"\xff\x01\xff\xd0",
    "a reserved segment": segment(0xF0, b"?"),
}


@kinds
@pytest.mark.parametrize("extra", BETWEEN.values(), ids=BETWEEN)
def test_bytes_between_segments_do_not_matter(kind: str, extra: bytes) -> None:
    whole = KINDS[kind]()
    for place in (2 + 18, whole.index(b"\xff\xdb"), whole.index(SOS)):  # behind a JFIF segment
        if whole[place : place + 1] == b"\xff":
            assert is_same(whole[:place] + extra + whole[place:], whole)


@kinds
def test_bytes_after_the_end_do_not_matter(kind: str) -> None:
    whole = KINDS[kind]()
    assert is_same(whole + b"\0\0\0\x18ftypmp42" + whole, whole)


def flat(factors: tuple[int, int, int], *, size: tuple[int, int] = (96, 64)) -> bytes:
    """A grey JPEG of sampling factors that no common encoder writes; each byte as in SOF.

    All of its blocks are alike: no difference, and the end of a block, in 6 bits.
    """
    data = bytearray(saved("JPEG", Image.new("RGB", size, (128, 128, 128)), optimize=False))
    frame, scan = data.index(b"\xff\xc0"), data.index(SOS)
    for index, factor in enumerate(factors):
        data[frame + 11 + 3 * index] = factor
        data[scan + 6 + 2 * index] = 0  # all by the first tables
    wide, high = (max(f >> 4 for f in factors), max(f & 15 for f in factors))
    units = -(-size[0] // (8 * wide)) * -(-size[1] // (8 * high))
    blocks = units * sum((f >> 4) * (f & 15) for f in factors)
    bits = np.tile(np.array([0, 0, 1, 0, 1, 0], np.uint8), blocks)
    padded = np.append(bits, np.ones(-len(bits) % 8, np.uint8))
    return bytes(data[: scan + 14]) + np.packbits(padded).tobytes() + EOI


ODD = [(0x31, 0x11, 0x11), (0x11, 0x22, 0x22), (0x22, 0x12, 0x21), (0x11, 0x12, 0x21)]
odd = pytest.mark.parametrize("factors", ODD, ids=[bytes(f).hex() for f in ODD])


@odd
def test_jpeg_of_rare_sampling_factors_is_read(factors: tuple[int, int, int]) -> None:
    decoded = read(flat(factors))
    assert decoded.pixels.shape == (HEIGHT, WIDTH, 3)
    assert (decoded.pixels == 128).all()


@odd
def test_half_a_jpeg_of_rare_sampling_factors_is_corrupt(factors: tuple[int, int, int]) -> None:
    whole = flat(factors)
    scan = whole.index(SOS) + 14
    half = whole[: (scan + len(whole)) // 2] + EOI
    assert code_of(half) is ErrorCode.CORRUPT_IMAGE


@odd
def test_large_jpeg_of_rare_sampling_factors_is_reduced(factors: tuple[int, int, int]) -> None:
    decoded = decode(flat(factors, size=(1300, 900)), max_pixels=10**7, image_size=640)
    assert (decoded.info.width, decoded.info.height) == (1300, 900)
    assert decoded.pixels.shape == (450, 650, 3)


def after_scan(number: int, extra: bytes) -> bytes:
    """A progressive JPEG with additional bytes after one of its scans."""
    header, *scans = scans_of(KINDS["progressive"]())
    scans[number] += extra
    return header + b"".join(scans) + EOI


# libjpeg gives up at these, after a warning, and leaves the rest of its output unwritten.
GIVES_UP = {
    "an unknown marker": after_scan(0, b"stray bytes" + segment(0xBF, b"?")),
    "a second frame": after_scan(2, b"stray bytes" + segment(0xC2, bytes(15))),
    "an impossible scan": after_scan(1, b"stray bytes" + segment(0xDA, b"\1\1\0\x46\x47\0")),
}


def decoded_over(data: bytes, value: int) -> DecodedImage | None:
    """Decode into memory that held other pixels just before. None if the file is rejected."""
    before = [np.full((HEIGHT, WIDTH, 3), value, np.uint8) for _ in range(8)]
    del before
    try:
        return read(data)
    except BadImageError:
        return None


def assert_shows_no_memory(data: bytes) -> None:
    first, second = decoded_over(data, 0), decoded_over(data, 255)
    assert (first is None) == (second is None)
    assert not first or not second or np.array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("data", GIVES_UP.values(), ids=GIVES_UP)
def test_jpeg_that_libjpeg_abandons_shows_no_memory(data: bytes) -> None:
    assert_shows_no_memory(data)


def test_pixels_come_only_from_decodes_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a warning, libjpeg-turbo's own interface does not say that it gave up."""
    asked: list[bool] = []
    decode_jpeg = simplejpeg.decode_jpeg

    def noted(*args: object, strict: bool, **options: object) -> object:
        asked.append(strict)
        return decode_jpeg(*args, strict=strict, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    for data in GIVES_UP.values():
        decoded_over(data, 0)
    assert asked == [True] * len(GIVES_UP)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's of damaged EXIF
@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32), st.integers(1, 4))
def test_damaged_jpeg_shows_no_memory(kind: str, seed: int, count: int) -> None:
    data = bytearray(KINDS[kind]())
    for place in np.random.default_rng(seed).integers(0, len(data), count):
        data[place] ^= 1 << (seed % 8)
    assert_shows_no_memory(bytes(data))


STRAY = b"stray bytes"
HIDES: dict[str, Callable[[], bytes]] = {  # a fault that libjpeg warns of before the missing data
    "before a restart": lambda: (
        (d := KINDS["restart markers"]()).replace(b"\xff\xd0", STRAY + b"\xff\xd0", 1)[
            : len(d) * 3 // 4
        ]
        + EOI
    ),
    "between scans": lambda: after_scan(0, STRAY)[: len(KINDS["progressive"]()) * 3 // 4] + EOI,
}


@pytest.mark.parametrize("make", HIDES.values(), ids=HIDES)
def test_missing_data_after_another_fault_is_detected(make: Callable[[], bytes]) -> None:
    assert code_of(make()) is ErrorCode.CORRUPT_IMAGE


@kinds
def test_complete_jpeg_with_a_harmless_fault_is_read(kind: str) -> None:
    whole = KINDS[kind]()
    unknown_version = whole.replace(b"JFIF\0\1", b"JFIF\0\2")
    assert is_same(unknown_version, whole)
    assert is_same(whole[:-2] + STRAY + EOI, whole)


def test_extended_jpeg_of_8_bits_is_read() -> None:
    """Some scanners write SOF1, which is like baseline, but allows more tables."""
    whole = saved("JPEG")
    assert is_same(whole.replace(b"\xff\xc0", b"\xff\xc1", 1), whole)


def in_arithmetic_codes(data: bytes) -> bytes:
    """A file whose header claims arithmetic coding. Its cost is checked before decoding."""
    return data.replace(b"\xff\xc0", b"\xff\xc9", 1).replace(b"\xff\xc2", b"\xff\xca", 1)


def is_over_the_limit(data: bytes) -> bool:
    try:
        read(data)
    except BadImageError as exc:
        return "more segments or scans than the limit" in exc.message
    return False


COSTS: dict[str, tuple[Callable[[], bytes], int]] = {
    "baseline": (KINDS["baseline"], 1),
    "progressive": (KINDS["progressive"], 10),  # as many scans
    "arithmetic": (lambda: in_arithmetic_codes(KINDS["baseline"]()), 8),
    "progressive arithmetic": (lambda: in_arithmetic_codes(KINDS["progressive"]()), 80),
}


@pytest.mark.parametrize(("make", "cost"), COSTS.values(), ids=COSTS)
def test_cost_of_a_jpeg_is_scans_times_pixels(
    make: Callable[[], bytes], cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = "service.images.jpeg._MAX_SCANNED_PIXELS"
    monkeypatch.setattr(limit, cost * WIDTH * HEIGHT - 1)
    assert is_over_the_limit(make())
    monkeypatch.setattr(limit, cost * WIDTH * HEIGHT)
    assert not is_over_the_limit(make())


def late_height() -> bytes:
    """A JPEG whose height follows its scan (DNL)."""
    data = bytearray(saved("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 7] = b"\0\0"
    return bytes(data[:-2]) + segment(0xDC, HEIGHT.to_bytes(2)) + EOI


def two_channels() -> bytes:
    """A JPEG without its third component."""
    data = saved("JPEG")
    frame, scan = data.index(b"\xff\xc0"), data.index(SOS)
    return (
        data[:frame] + segment(0xC0, data[frame + 4 : frame + 9] + b"\2" + data[frame + 10 :][:6])
        + data[frame + 19 : scan] + segment(0xDA, b"\2" + data[scan + 5 :][:4] + b"\0\x3f\0")
        + data[scan + 14 :]
    )  # fmt: skip


@pytest.mark.parametrize("make", [late_height, two_channels], ids=["late height", "two channels"])
def test_intact_jpeg_of_a_rare_kind_is_unsupported(make: Callable[[], bytes]) -> None:
    assert code_of(make()) is ErrorCode.UNSUPPORTED_MEDIA
