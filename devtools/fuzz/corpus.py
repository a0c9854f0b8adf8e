"""Unusual, damaged and hostile files, each with the result that the service must record.

This module draws the files. They are not stored. `python -m devtools.fuzz.corpus` reads each file
as the service would, in a process of its own. It limits and measures the memory and CPU time of the
process, and writes docs/evidence/malformed-files.md.
"""

import argparse
import io
import json
import os
import resource
import signal
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tabulate import tabulate

from service.deadline import NO_DEADLINE
from service.domain import ErrorCode
from service.errors import BadImageError
from service.images import jpeg
from service.images import png as png_module
from service.images.decoders import DecodeLimits, Decoders

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "malformed-files.md"
HEIC_FILES = Path(__file__).parents[2] / "tests" / "data" / "heic"
WIDTH, HEIGHT = 96, 64
MAX_PIXELS = 50_000_000  # the service's default
IMAGE_SIZE = 640
# Above the memory of a process that reads no file. An image of MAX_PIXELS uses half of it.
MAX_MB = 400
MAX_CPU_SECONDS = 30  # the slowest file takes a tenth of it on a machine of 2020
CASES_AT_ONCE = 40  # files that one process reads
HANG_CPU_SECONDS = 60  # a file that hangs is killed after this
MAX_ADDRESS_BYTES = 6 * 2**30  # more than any bound, so that the use beyond a bound is measured

DONE = f"done {WIDTH}x{HEIGHT}"
TURNED = f"done {HEIGHT}x{WIDTH}"
CORRUPT = ErrorCode.CORRUPT_IMAGE.value
TOO_LARGE = ErrorCode.IMAGE_TOO_LARGE.value
UNSUPPORTED = ErrorCode.UNSUPPORTED_MEDIA.value
EMPTY = ErrorCode.EMPTY_OBJECT.value
# A flipped bit may be visible or not, and it may turn one marker into another.
EITHER = (DONE, CORRUPT, UNSUPPORTED)

Make = Callable[[], bytes]


@dataclass(frozen=True)
class Case:
    """A file: its name, how to draw it, and how it may end.

    It ends as `done WIDTHxHEIGHT`, or with an error code.
    """

    name: str
    make: Make
    expected: tuple[str, ...]


@dataclass(frozen=True)
class CaseResult:
    """How a case ended, and its memory and CPU time beyond a process that reads nothing."""

    name: str
    expected: tuple[str, ...]
    actual: str
    peak_mb: float
    cpu_seconds: float

    @property
    def is_good(self) -> bool:
        """Whether the case ended as expected, within the bounds."""
        return (
            self.actual in self.expected
            and self.peak_mb < MAX_MB
            and self.cpu_seconds < MAX_CPU_SECONDS
        )


CASES: dict[str, Case] = {}


def add(name: str, make: Make | bytes, *expected: str) -> None:
    assert name not in CASES, name
    CASES[name] = Case(name, make if callable(make) else lambda: make, expected)


# --------------------------------------------------------------------------- ordinary images


def drawn(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Draw soft colours, with noise so that no format compresses the image to almost nothing."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(7).integers(0, 40, (height, width))
    planes = (columns * 200 // width, rows * 200 // height, (rows + columns) % 200)
    pixels = np.dstack([plane + noise for plane in planes]).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or drawn()).save(buffer, kind, **options)
    return buffer.getvalue()


def animated(kind: str, frames: int = 3, **options: Any) -> bytes:
    others = [drawn().rotate(90 * number) for number in range(1, frames)]
    return saved(kind, save_all=True, append_images=others, **options)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def flipped(data: bytes, share: float) -> bytes:
    changed = bytearray(data)
    changed[int(share * (len(data) - 1))] ^= 0x10
    return bytes(changed)


def cut(make: Make, share: float) -> bytes:
    data = make()
    return data[: int(len(data) * share)]


def flipped_at(make: Make, share: float) -> bytes:
    return flipped(make(), share)


def heic(name: str) -> bytes:
    """Return a stored file, because the packages of this project do not encode HEIC."""
    return (HEIC_FILES / f"{name}.heic").read_bytes()


def turned_jpeg(orientation: int) -> bytes:
    return saved("JPEG", exif=exif(orientation))


def saved_in_size(kind: str, size: tuple[int, int]) -> bytes:
    return saved(kind, drawn(size=size))


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


# ------------------------------------------------------------------------- parts of each format


def chunk(kind: bytes, body: bytes, *, length: int | None = None) -> bytes:
    """Return a chunk of a PNG."""
    size = len(body) if length is None else length
    return struct.pack(">I", size) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Return a zlib stream that unpacks to `count` zero bytes."""
    packer = zlib.compressobj(1)
    block = bytes(1 << 20)
    parts = [
        packer.compress(block[: min(len(block), count - offset)])
        for offset in range(0, count, 1 << 20)
    ]
    return b"".join(parts) + packer.flush()


def idat(data: bytes) -> bytes:
    return chunk(b"IDAT", data)


def rows(width: int, height: int, channels: int = 3) -> bytes:
    return idat(zeros((width * channels + 1) * height))


def after_header(data: bytes, extra: bytes) -> bytes:
    """Put chunks behind a PNG's IHDR."""
    return data[:33] + extra + data[33:]


def before_end(data: bytes, extra: bytes) -> bytes:
    """Put chunks before a PNG's IEND."""
    return data[:-12] + extra + data[-12:]


def animation(width: int, height: int, frames: int = 1) -> bytes:
    """Return the chunks that make a PNG animated, with frames that have no pixels."""
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 1, 0, 0))
    return chunk(b"acTL", struct.pack(">II", frames + 1, 0)) + frame * frames


def segment(marker: int, body: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def after_start(data: bytes, extra: bytes) -> bytes:
    """Put segments behind a JPEG's SOI."""
    return data[:2] + extra + data[2:]


def many_scans(count: int, size: tuple[int, int] = (4000, 3000)) -> bytes:
    """Return a progressive JPEG whose last scan is repeated `count` times."""
    data = saved("JPEG", Image.new("RGB", size), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def hidden_scans(count: int) -> bytes:
    """Put scans after a TEM marker, which has no length. A reader that expects it skips 64 kB."""
    data = many_scans(count)
    second = data.index(b"\xff\xda") + 2
    return data[:second] + data[second:].replace(b"\xff\xda", b"\xff\x01\xff\xff\xff\xda")


def scan_again(count: int) -> bytes:
    """Return a sequential JPEG whose only scan is repeated."""
    data = saved("JPEG")
    scan = data[data.index(b"\xff\xda") : -2]
    return data[:-2] + scan * count + data[-2:]


def before_last_scan(extra: bytes) -> bytes:
    data = saved("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + extra + data[last:]


def jpeg_sized(width: int, height: int) -> bytes:
    """Return a JPEG whose header claims another size."""
    data = bytearray(saved("JPEG"))
    offset = data.index(b"\xff\xc0") + 5
    data[offset : offset + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_frame(marker: int, *, precision: int = 8) -> bytes:
    data = bytearray(saved("JPEG"))
    offset = data.index(b"\xff\xc0")
    data[offset + 1], data[offset + 4] = marker, precision
    return bytes(data)


def ycck() -> bytes:
    """Return a CMYK JPEG whose Adobe segment claims that it is YCCK."""
    data = bytearray(saved("JPEG", drawn("CMYK")))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


GIF_PALETTE = bytes(range(12))


def gif(
    screen: tuple[int, int],
    frame: tuple[int, int, int, int],
    codes: bytes = b"\x02\x03\x04\x00\x05\x00",  # 2x2 pixels of the first colour
    *,
    before: bytes = b"",
    times: int = 1,
) -> bytes:
    """Return a GIF with a screen size and frames (left, top, width, height)."""
    header = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x81, 0, 0) + GIF_PALETTE
    image = b"\x2c" + struct.pack("<HHHHB", *frame, 0) + codes
    return header + before + image * times + b"\x3b"


def bmp(
    width: int,
    height: int,
    *,
    bits: int = 24,
    compression: int = 0,
    body: bytes = b"",
    offset: int = 54,
    colours: int = 0,
) -> bytes:
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, colours, 0
    )
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, offset) + info + body


def tiff(tags: dict[int, int], body: bytes = b"", *, next_ifd: int = 0) -> bytes:
    """Return a TIFF with 32-bit numbers. `StripOffsets` or `TileOffsets` 0 means the body."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, start if tag in (273, 324) and not value else value)
        for tag, value in sorted(tags.items())
    )
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(tags))
        + entries
        + (struct.pack("<I", next_ifd) + body)
    )


# 8 bits per sample (the default of TIFF is 1), no compression, zero is black, one channel
GREY_TIFF = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 8, 279: 64}


def tiff_of(body: bytes = bytes(64), **changes: int) -> bytes:
    names = {
        "width": 256,
        "height": 257,
        "bits": 258,
        "compression": 259,
        "channels": 277,
        "rows": 278,
        "count": 279,
        "offset": 273,
    }
    return tiff(GREY_TIFF | {names[name]: value for name, value in changes.items()}, body)


def tiled(side: int, body: bytes = bytes(64), compression: int = 1) -> bytes:
    tags = {256: 8, 257: 8, 258: 8, 259: compression, 262: 1, 277: 1}
    return tiff(tags | {322: side, 323: side, 324: 0, 325: len(body)}, body)


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def canvas(width: int, height: int, flags: int = 0) -> bytes:
    """Return the VP8X chunk of a WebP, which has the size of its canvas."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return riff_chunk(b"VP8X", struct.pack("<I", flags) + sides)


def webp_frame(data: bytes, width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return riff_chunk(b"ANMF", bytes(6) + sides + bytes(4) + data[12:])


def ispe(data: bytes, width: int, height: int) -> bytes:
    """Return an AVIF whose box claims another size than its codestream."""
    old = b"ispe" + bytes(4) + struct.pack(">II", WIDTH, HEIGHT)
    return replaced(data, old, b"ispe" + bytes(4) + struct.pack(">II", width, height))


def avif_grown(width: int, height: int) -> bytes:
    """Return an AVIF whose box claims 96x64, with a codestream of another size."""
    data = saved("AVIF", Image.new("L", (width, height)), speed=10, max_threads=1)
    old = b"ispe" + bytes(4) + struct.pack(">II", width, height)
    return replaced(data, old, b"ispe" + bytes(4) + struct.pack(">II", WIDTH, HEIGHT))


def siz(data: bytes, width: int, height: int, components: int | None = None) -> bytes:
    """Return a JPEG 2000 whose codestream claims another size than its box."""
    changed = bytearray(data)
    offset = changed.index(b"\xff\x4f\xff\x51") + 8
    changed[offset : offset + 8] = struct.pack(">II", width, height)
    changed[offset + 16 : offset + 24] = struct.pack(">II", width, height)
    if components:
        changed[offset + 32 : offset + 34] = struct.pack(">H", components)
    return bytes(changed)


def siz_tiles(data: bytes, side: int) -> bytes:
    changed = bytearray(data)
    offset = changed.index(b"\xff\x4f\xff\x51") + 24
    changed[offset : offset + 8] = struct.pack(">II", side, side)
    return bytes(changed)


def ftyp(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand + bytes(64)


# ----------------------------------------------------------------------------------- the corpus

PLAIN: dict[str, Make] = {
    "JPEG": lambda: saved("JPEG"),
    "progressive JPEG": lambda: saved("JPEG", progressive=True),
    "PNG": lambda: saved("PNG"),
    "WebP": lambda: saved("WEBP", lossless=True),
    "lossy WebP": lambda: saved("WEBP"),
    "GIF": lambda: saved("GIF"),
    "BMP": lambda: saved("BMP"),
    "TIFF": lambda: saved("TIFF"),
    "LZW TIFF": lambda: saved("TIFF", compression="tiff_lzw"),
    "AVIF": lambda: saved("AVIF"),
    "JPEG 2000": lambda: saved("JPEG2000"),
    "PPM": lambda: saved("PPM"),
    "HEIC": lambda: heic("plain"),
}
for _name, _make in PLAIN.items():
    add(_name, _make, DONE)
    for _share in (0.02, 0.3, 0.6, 0.9):
        add(
            f"{_name}, cut at {_share:.0%}",
            partial(cut, _make, _share),
            CORRUPT,
        )
    for _share in (0.01, 0.1, 0.5, 0.9):
        add(
            f"{_name}, a bit flipped at {_share:.0%}",
            partial(flipped_at, _make, _share),
            *EITHER,
        )

# Unusual, but valid.
for _orientation in range(1, 9):
    add(
        f"JPEG, EXIF orientation {_orientation}",
        partial(turned_jpeg, _orientation),
        DONE if _orientation < 5 else TURNED,
    )
UNUSUAL: dict[str, Make] = {
    "JPEG, EXIF orientation 9": lambda: saved("JPEG", exif=exif(9)),
    "JPEG, broken EXIF": lambda: after_start(
        saved("JPEG"), segment(0xE1, b"Exif\0\0II*\0" + b"\xff" * 40)
    ),
    "JPEG, EXIF that points after its end": lambda: after_start(
        saved("JPEG"), segment(0xE1, b"Exif\0\0MM\0*\x7f\xff\xff\xff\xff\xff")
    ),
    "JPEG, EXIF cut short": lambda: after_start(saved("JPEG"), segment(0xE1, b"Exif\0\0MM")),
    "JPEG, invalid ICC profile": lambda: saved("JPEG", icc_profile=bytes(range(256)) * 8),
    "JPEG, ICC profile of 2 MB": lambda: saved("JPEG", icc_profile=bytes(2_000_000)),
    "JPEG, grey": lambda: saved("JPEG", drawn("L")),
    "JPEG, CMYK": lambda: saved("JPEG", drawn("CMYK")),
    "JPEG, YCCK": ycck,
    "JPEG, 4:4:4": lambda: saved("JPEG", subsampling=0),
    "JPEG, restart markers": lambda: saved("JPEG", restart_marker_blocks=2),
    "JPEG in 60 scans": lambda: many_scans(50, (WIDTH, HEIGHT)),
    "JPEG, a video after its end": lambda: saved("JPEG", progressive=True) + b"film\xff\xda" * 1000,
    "JPEG, bytes after its end": lambda: saved("JPEG") + b"<?php ?>" * 1000,
    "JPEG named .txt": lambda: saved("JPEG"),
    "JPEG with several images (MPO)": lambda: animated("MPO"),
    "PNG, grey": lambda: saved("PNG", drawn("L")),
    "PNG, grey and alpha": lambda: saved("PNG", drawn("LA")),
    "PNG, alpha": lambda: saved("PNG", drawn("RGBA")),
    "PNG, palette with transparency": lambda: saved("PNG", drawn().quantize(16), transparency=3),
    "PNG, 1 bit": lambda: saved("PNG", drawn("1")),
    "PNG, 16-bit grey": lambda: saved("PNG", drawn("L").convert("I;16")),
    "PNG, 16-bit colour": lambda: cv2.imencode(".png", np.asarray(drawn()).astype(np.uint16) * 257)[
        1
    ].tobytes(),
    "PNG, animated": lambda: animated("PNG"),
    "PNG, EXIF orientation 1": lambda: saved("PNG", exif=exif(1)),
    "PNG, invalid ICC profile": lambda: after_header(
        saved("PNG"), chunk(b"iCCP", b"x\0\0" + zeros(9))
    ),
    "PNG, bytes after its end": lambda: saved("PNG") + bytes(1000),
    "WebP, alpha": lambda: saved("WEBP", drawn("RGBA"), lossless=True),
    "WebP, animated": lambda: animated("WEBP"),
    "WebP, invalid ICC profile": lambda: saved("WEBP", icc_profile=b"junk" * 99),
    "GIF, animated": lambda: animated("GIF"),
    "GIF, transparent": lambda: saved("GIF", drawn().quantize(16), transparency=2),
    "GIF, comments": lambda: replaced(
        saved("GIF"), b"\x2c\0\0\0\0", b"\x21\xfe\x03abc\0" * 5 + b"\x2c\0\0\0\0"
    ),
    "BMP, palette": lambda: saved("BMP", drawn("P")),
    "BMP, grey": lambda: saved("BMP", drawn("L")),
    "BMP, 1 bit": lambda: saved("BMP", drawn("1")),
    "BMP, alpha": lambda: saved("BMP", drawn("RGBA")),
    "BMP, rows from the top": lambda: bmp(WIDTH, -HEIGHT, body=bytes(WIDTH * HEIGHT * 3)),
    "TIFF, grey": lambda: saved("TIFF", drawn("L")),
    "TIFF, 16 bits": lambda: saved("TIFF", drawn("L").convert("I;16")),
    "TIFF, deflate": lambda: saved("TIFF", compression="tiff_adobe_deflate"),
    "TIFF, JPEG inside": lambda: saved("TIFF", compression="jpeg"),
    "TIFF, fax": lambda: saved("TIFF", drawn("1"), compression="group4"),
    "TIFF, alpha": lambda: saved("TIFF", drawn("RGBA")),
    "TIFF, CMYK": lambda: saved("TIFF", drawn("CMYK")),
    "TIFF, palette": lambda: saved("TIFF", drawn("P")),
    "TIFF with several images": lambda: animated("TIFF"),
    "BigTIFF": lambda: saved("TIFF", big_tiff=True),
    "AVIF, alpha": lambda: saved("AVIF", drawn("RGBA")),
    "AVIF, grey": lambda: saved("AVIF", drawn("L")),
    "AVIF, animated": lambda: animated("AVIF"),
    "HEIC, alpha": lambda: heic("alpha"),
    "HEIC, grey": lambda: heic("grey"),
    "HEIC, 10 bits": lambda: heic("ten-bit"),
    "HEIC, turned by irot": lambda: heic("rotated"),
    "HEIC with several images": lambda: heic("several"),
    "HEIC named .jpg": lambda: heic("plain"),
    "JPEG 2000, bare codestream": lambda: saved("JPEG2000", no_jp2=True),
    "JPEG 2000, grey": lambda: saved("JPEG2000", drawn("L")),
    "JPEG 2000, alpha": lambda: saved("JPEG2000", drawn("RGBA")),
    "PPM, grey": lambda: saved("PPM", drawn("L")),
    "PPM, plain text": lambda: b"P3 96 64 255\n" + b"12 " * (WIDTH * HEIGHT * 3),
    "PPM, 16 bits": lambda: b"P6 96 64 65535\n" + bytes(WIDTH * HEIGHT * 6),
}
for _name, _make in UNUSUAL.items():
    add(_name, _make, DONE)
for _kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF"):
    for _size in ((1, 1), (1, 20_000), (20_000, 1)):
        add(
            f"{_kind} of {_size[0]}x{_size[1]}",
            partial(saved_in_size, _kind, _size),
            f"done {_size[0]}x{_size[1]}",
        )
add("PNG of 7000x7000, just allowed", lambda: png(7000, 7000, rows(7000, 7000)), "done 7000x7000")
add(
    "JPEG of 7000x7000, just allowed",
    lambda: saved("JPEG", Image.new("RGB", (7000, 7000))),
    "done 7000x7000",
)
add("GIF of 4000x3000", lambda: saved("GIF", Image.new("P", (4000, 3000))), "done 4000x3000")
add(
    "AVIF of 4000x3000",
    lambda: saved("AVIF", Image.new("RGB", (4000, 3000)), speed=10),
    "done 4000x3000",
)
add(
    "JPEG 2000 of 4000x3000",
    lambda: saved("JPEG2000", Image.new("RGB", (4000, 3000))),
    "done 4000x3000",
)

# Not an image.
NOT_IMAGES: dict[str, Make | bytes] = {
    "text named .jpg": b"just a note\n",
    "HTML named .jpg": b"<!doctype html><html><body><img src=cat.jpg></body></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<</Type/Catalog>>\nendobj\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "ZIP": b"PK\x03\x04" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + bytes(60),
    "MP4": ftyp(b"mp42"),
    "JPEG XL": b"\xff\x0a" + bytes(60),
    "Photoshop": b"8BPS\0\1" + bytes(60),
    "OpenEXR": b"v/1\x01\x02\0\0\0" + bytes(60),
    "Radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 8\n" + bytes(256),
    "Sun raster": b"\x59\xa6\x6a\x95" + struct.pack(">7I", 8, 8, 24, 192, 1, 0, 0) + bytes(192),
    "icon": lambda: saved("ICO"),
    "TGA": lambda: saved("TGA"),
    "a thousand zero bytes": bytes(1000),
    "one byte of a JPEG": b"\xff",
    "noise": lambda: b"\0" + np.random.default_rng(1).bytes(5000),
    "space before a JPEG": lambda: b" " + saved("JPEG"),
}
# Complete, but of a kind that the service does not support.
UNSUPPORTED_KINDS: dict[str, Make | bytes] = {
    "JPEG, lossless": lambda: jpeg_frame(0xC3),
    "JPEG-LS": lambda: jpeg_frame(0xF7),
    "JPEG, hierarchical": lambda: jpeg_frame(0xC5),
    "JPEG, 12 bits": lambda: jpeg_frame(0xC1, precision=12),
    "TIFF with an unknown compression": tiff_of(compression=4711),
    "TIFF with 32 bits": tiff_of(bytes(256), bits=32, count=256),
    "TIFF, floating-point": lambda: saved("TIFF", drawn("F")),
    "TIFF with 5 channels": tiff_of(bytes(320), channels=5, count=320),
    "PFM": lambda: b"Pf\n8 8\n-1.0\n" + bytes(256),
    "PFM in colour": lambda: b"PF\n8 8\n-1.0\n" + bytes(768),
}
for _name, _drawn in (NOT_IMAGES | UNSUPPORTED_KINDS).items():
    add(_name, _drawn, UNSUPPORTED)
add("no bytes", b"", EMPTY)

# Larger than allowed, or larger than the header claims.
BOMBS: dict[str, Make | bytes] = {
    "PNG of 30000x30000": lambda: png(
        30_000, 30_000, idat(zeros(30_000 * 3751)), depth=1, colour=0
    ),
    "PNG of 30000x30000 without pixels": lambda: png(30_000, 30_000, idat(b"")),
    "PNG of 2147483647x2147483647": lambda: png(2**31 - 1, 2**31 - 1, idat(zeros(100))),
    "JPEG of 65500x65500 without pixels": lambda: jpeg_sized(65_500, 65_500),
    "JPEG of 30000x30000 without pixels": lambda: jpeg_sized(30_000, 30_000),
    "GIF of 65535x65535 without pixels": gif((65_535, 65_535), (0, 0, 65_535, 65_535)),
    "BMP of 100000x100000 without pixels": bmp(100_000, 100_000),
    "BMP with negative width": bmp(-8, 8, body=bytes(192)),
    "TIFF of 100000x100000 without pixels": tiff_of(width=100_000, height=100_000),
    "WebP of 16383x16383 without pixels": lambda: riff(canvas(16_383, 16_383), saved("WEBP")[12:]),
    "animated WebP of 16383x16383": lambda: riff(
        canvas(16_383, 16_383, 2),
        riff_chunk(b"ANIM", bytes(6)),
        webp_frame(saved("WEBP"), WIDTH, HEIGHT),
    ),
    "animated WebP of 65535x65535": lambda: riff(
        canvas(65_535, 65_535, 2),
        riff_chunk(b"ANIM", bytes(6)),
        webp_frame(saved("WEBP"), WIDTH, HEIGHT),
    ),
    "HEIC whose header says 65535x65535": lambda: ispe(heic("plain"), 65_535, 65_535),
    "AVIF whose header says 65535x65535": lambda: ispe(saved("AVIF"), 65_535, 65_535),
    "AVIF whose header says 96x64, its data 8000x6000": lambda: avif_grown(8_000, 6_000),
    "JPEG 2000 of 100000x100000 without pixels": lambda: siz(
        saved("JPEG2000", no_jp2=True), 100_000, 100_000
    ),
    "JPEG 2000 whose box says 96x64, its codestream 20000x20000": lambda: siz(
        saved("JPEG2000"), 20_000, 20_000
    ),
    "JPEG 2000 whose box says 96x64, its codestream 7000x7000": lambda: siz(
        saved("JPEG2000"), 7_000, 7_000
    ),
    "PPM of 100000x100000 without pixels": b"P6 100000 100000 255\n",
    "PPM of 7000x7000 without pixels": b"P6 7000 7000 255\n" + bytes(100),
    "BMP of 7000x7000 without pixels": bmp(7_000, 7_000),
    "PNG of 7000x7000 without pixels": lambda: png(7_000, 7_000, idat(zeros(100))),
    "JPEG 2000 of 7000x7000 without pixels": lambda: siz(
        saved("JPEG2000", no_jp2=True), 7_000, 7_000
    ),
    "GIF of 5000x5000 without pixels": gif((5_000, 5_000), (0, 0, 5_000, 5_000)),
    "TIFF of 7000x7000 without pixels": tiff_of(width=7_000, height=7_000),
    "GIF with a frame larger than its screen": gif((8, 8), (0, 0, 60_000, 60_000)),
    "GIF with a frame outside its screen": gif((8, 8), (60_000, 60_000, 8, 8)),
    "GIF whose second frame is larger than its screen": lambda: (
        gif((2, 2), (0, 0, 2, 2))[:-1] + gif((8, 8), (0, 0, 60_000, 60_000))[25:]
    ),
    "PNG whose pixels claim to be 3 GB": lambda: png(
        WIDTH, HEIGHT, chunk(b"IDAT", zeros(100), length=3 * 10**9)
    ),
    "PNG whose pixels, after an early end, claim to be 3 GB": lambda: after_header(
        png(WIDTH, HEIGHT, chunk(b"IDAT", zeros(100), length=3 * 10**9)), chunk(b"IEND", b"")
    ),
    "PNG with a chunk of 2 GB": lambda: after_header(
        saved("PNG"), chunk(b"tEXt", b"x", length=2**31 - 1)
    ),
    "PNG with a chunk of 4 GB": lambda: after_header(
        saved("PNG"), chunk(b"tEXt", b"x", length=2**32 - 1)
    ),
    "PNG with an animation's frame of 60000x60000": lambda: after_header(
        saved("PNG"), animation(60_000, 60_000)
    ),
    "PNG whose animation control is too short": lambda: after_header(
        saved("PNG"), chunk(b"acTL", b"") + chunk(b"fcTL", b"")
    ),
    "PNG of 96x64 that unpacks to 200 MB": lambda: png(WIDTH, HEIGHT, idat(zeros(2 * 10**8))),
    "TIFF with a tile of 65536x65536": tiled(65_536),
    "TIFF with a tile of 30000x30000": tiled(30_000),
    "TIFF with a packed tile of 30000x30000": lambda: tiled(30_000, zeros(10**8), 8),
    "TIFF with 65535 channels": tiff_of(channels=65_535),
    "TIFF with 4294967295 bytes in its strip": tiff_of(count=2**32 - 1),
    "TIFF with a strip of 100 MB that unpacks": lambda: (
        lambda body: tiff_of(body, compression=8, count=len(body))
    )(zeros(10**8)),
    "BMP with 2147483647 colours": bmp(8, 8, bits=8, body=bytes(64), colours=2**31 - 1),
    "JPEG 2000 with 16384 channels": lambda: siz(
        saved("JPEG2000", no_jp2=True), WIDTH, HEIGHT, 16_384
    ),
    "JPEG 2000 in tiles of one pixel": lambda: siz_tiles(saved("JPEG2000", no_jp2=True), 1),
    "PNG with text that unpacks to 100 MB": lambda: after_header(
        saved("PNG"), chunk(b"zTXt", b"x\0\0" + zeros(10**8))
    ),
    "PNG with a profile that unpacks to 100 MB": lambda: after_header(
        saved("PNG"), chunk(b"iCCP", b"x\0\0" + zeros(10**8))
    ),
    "PNG with 100 texts that unpack to 7 MB each": lambda: before_end(
        saved("PNG"), chunk(b"zTXt", b"x\0\0" + zeros(7 * 10**6)) * 100
    ),
    "PNG, animated, with a chunk of 4 GB": lambda: before_end(
        after_header(saved("PNG"), animation(WIDTH, HEIGHT)),
        chunk(b"tEXt", b"x", length=2**32 - 20),
    ),
}

# More parts than any encoder writes.
MANY_PARTS: dict[str, Make | bytes] = {
    "JPEG in 10,000 scans": lambda: many_scans(10_000),
    "JPEG in 200 scans": lambda: many_scans(200),
    "JPEG in 10,000 scans after a false end": lambda: replaced(
        many_scans(10_000), b"\xff\xda", segment(0xFE, b"\xff\xd9") + b"\xff\xda"
    ),
    "JPEG in 10,000 scans, each after a marker without a length": lambda: hidden_scans(10_000),
    "JPEG, not progressive, whose scan is repeated 10,000 times": lambda: scan_again(10_000),
    "JPEG with a million EXIF segments between scans": lambda: before_last_scan(
        segment(0xE1, b"Exif\0\0II") * 10**6
    ),
    "JPEG with ten million bytes between segments": lambda: after_start(
        saved("JPEG"), segment(0xFE, b"") + b"a" * 10**7
    ),
    "JPEG with a million segments": lambda: after_start(saved("JPEG"), segment(0xFE, b"") * 10**6),
    "JPEG with a million EXIF segments": lambda: after_start(
        saved("JPEG"), segment(0xE1, b"Exif\0\0II") * 10**6
    ),
    "JPEG with a million ICC segments": lambda: after_start(
        saved("JPEG"), segment(0xE2, b"ICC_PROFILE\0\1\1") * 10**6
    ),
    "JPEG with a million tables": lambda: after_start(
        saved("JPEG"), segment(0xDB, b"\0" + b"\1" * 64) * 10**6
    ),
    "JPEG with ten million fill bytes": lambda: after_start(saved("JPEG"), b"\xff" * 10**7),
    "PNG with two million chunks": lambda: after_header(
        saved("PNG"), chunk(b"teST", b"") * (2 * 10**6)
    ),
    "PNG with two million chunks after an early end": lambda: after_header(
        saved("PNG"), chunk(b"IEND", b"") + chunk(b"teST", b"") * (2 * 10**6)
    ),
    "PNG with a million texts": lambda: after_header(saved("PNG"), chunk(b"tEXt", b"a\0b") * 10**6),
    "PNG with a million animation frames": lambda: after_header(
        saved("PNG"), animation(WIDTH, HEIGHT, 10**6)
    ),
    "PNG with a million palettes": lambda: after_header(
        saved("PNG"), chunk(b"PLTE", bytes(6)) * 10**6
    ),
    "PNG with a million empty IDAT": lambda: before_end(saved("PNG"), idat(b"") * 10**6),
    "WebP with two million chunks": lambda: riff(
        canvas(WIDTH, HEIGHT), riff_chunk(b"XXXX", b"") * (2 * 10**6), saved("WEBP")[12:]
    ),
    "WebP with 100,000 frames": lambda: riff(
        canvas(WIDTH, HEIGHT, 2),
        riff_chunk(b"ANIM", bytes(6)),
        webp_frame(saved("WEBP", drawn(size=(1, 1))), 1, 1) * 10**5,
    ),
    "GIF with a million extensions": gif((2, 2), (0, 0, 2, 2), before=b"\x21\xfe\x01a\0" * 10**6),
    "GIF with 100,000 frames": gif((2, 2), (0, 0, 2, 2), times=10**5),
    "GIF with 200,000 clear codes": gif(
        (2, 2), (0, 0, 2, 2), b"\x02" + (b"\xff" + b"\x24\x49\x92" * 85) * 300 + b"\0"
    ),
    "TIFF whose directories form a loop": tiff(GREY_TIFF, bytes(64), next_ifd=8),
    "TIFF with 59,000 tags": lambda: tiff(
        GREY_TIFF | dict.fromkeys(range(1000, 60_000), 1), bytes(64)
    ),
    "JPEG 2000 with a million boxes": lambda: (
        lambda d: d[:32] + struct.pack(">I4s", 8, b"free") * 10**6 + d[32:]
    )(saved("JPEG2000")),
    "AVIF with a million boxes": lambda: saved("AVIF") + struct.pack(">I4s", 8, b"free") * 10**6,
    "PPM with a header of carriage returns": b"P6\n" + b"#\r" * 5000 + b"x",
    "PPM with a header of blanks": b"P6\n" + b" " * 5000 + b"x",
    "PPM with ten million bytes of comment": lambda: (
        b"P6 #" + b"x" * 10**7 + b"\n8 8 255\n" + bytes(192)
    ),
    "PPM with five million comments": lambda: (
        b"P6 " + b"#\n" * (5 * 10**6) + b"8 8 255\n" + bytes(192)
    ),
}

# All bombs and files with many parts end as corrupt, except these. An image that is done has its
# fault in a part that a decoder may skip.
ENDINGS = dict.fromkeys(
    (
        "PNG of 30000x30000",
        "PNG of 30000x30000 without pixels",
        "PNG of 2147483647x2147483647",
        "JPEG of 65500x65500 without pixels",
        "JPEG of 30000x30000 without pixels",
        "GIF of 65535x65535 without pixels",
        "BMP of 100000x100000 without pixels",
        "BMP with negative width",
        "TIFF of 100000x100000 without pixels",
        "WebP of 16383x16383 without pixels",
        "animated WebP of 16383x16383",
        "animated WebP of 65535x65535",
        "JPEG 2000 of 100000x100000 without pixels",
        "JPEG 2000 of 7000x7000 without pixels",
        "PPM of 100000x100000 without pixels",
    ),
    TOO_LARGE,
) | {
    "PNG of 96x64 that unpacks to 200 MB": DONE,
    "PNG with 100 texts that unpack to 7 MB each": DONE,
    "TIFF with 4294967295 bytes in its strip": "done 8x8",
    "TIFF with a strip of 100 MB that unpacks": "done 8x8",
    "TIFF whose directories form a loop": "done 8x8",
    "JPEG 2000 in tiles of one pixel": DONE,
    "JPEG 2000 with a million boxes": DONE,
    "JPEG with ten million bytes between segments": DONE,
    "JPEG with ten million fill bytes": DONE,
    "PNG with an animation's frame of 60000x60000": DONE,
    "PNG whose animation control is too short": DONE,
    "PNG with text that unpacks to 100 MB": DONE,
    "PNG with a profile that unpacks to 100 MB": DONE,
    "PNG, animated, with a chunk of 4 GB": DONE,
    "AVIF whose header says 96x64, its data 8000x6000": DONE,  # scaled, as browsers do
    "GIF with a frame larger than its screen": TOO_LARGE,
    "GIF with a frame outside its screen": TOO_LARGE,
    "HEIC whose header says 65535x65535": TOO_LARGE,
    "JPEG 2000 with 16384 channels": UNSUPPORTED,
    "TIFF with 65535 channels": UNSUPPORTED,
    "TIFF with 59,000 tags": UNSUPPORTED,
    "WebP with two million chunks": DONE,
    "WebP with 100,000 frames": DONE,
    "AVIF with a million boxes": DONE,
    "GIF whose second frame is larger than its screen": "done 2x2",
    "JPEG, not progressive, whose scan is repeated 10,000 times": DONE,
    "GIF with a million extensions": "done 2x2",
    "GIF with 100,000 frames": "done 2x2",
}
for _name, _drawn in (BOMBS | MANY_PARTS).items():
    add(_name, _drawn, ENDINGS.pop(_name, CORRUPT))
assert not ENDINGS, ENDINGS

# With a single fault.
WRONG: dict[str, Make | bytes] = {
    "JPEG with height 0": lambda: jpeg_sized(WIDTH, 0),
    "JPEG with width 0": lambda: jpeg_sized(0, HEIGHT),
    "JPEG without pixels": lambda: (d := saved("JPEG"))[: d.index(b"\xff\xda")] + b"\xff\xd9",
    "JPEG with HTML after its first bytes": lambda: b"\xff\xd8\xff\xe0<html></html>",
    "JPEG that ends after its first bytes": b"\xff\xd8\xff",
    "PNG without its first chunk": lambda: (d := saved("PNG"))[:8] + d[33:],
    "PNG without pixels": lambda: png(WIDTH, HEIGHT),
    "PNG with width 0": lambda: png(0, HEIGHT, rows(1, 1)),
    "PNG with a palette missing": lambda: png(WIDTH, HEIGHT, rows(WIDTH, HEIGHT, 1), colour=3),
    "PNG with bit depth 3": lambda: png(WIDTH, HEIGHT, rows(WIDTH, HEIGHT), depth=3),
    "PNG with a wrong checksum": lambda: flipped(saved("PNG"), 0.5),
    "GIF with width 0": gif((0, 8), (0, 0, 8, 8)),
    "GIF without frames": b"GIF89a"
    + struct.pack("<HHBBB", 8, 8, 0x81, 0, 0)
    + GIF_PALETTE
    + b"\x3b",
    "BMP with width 0": bmp(0, 8, body=bytes(64)),
    "BMP whose pixels begin after its end": bmp(8, 8, body=bytes(192), offset=10**6),
    "BMP in RLE without pixels": bmp(8, 8, bits=8, compression=1, body=bytes(1024), offset=1078),
    "TIFF with width 0": tiff_of(width=0),
    "TIFF whose strip begins after its end": tiff_of(offset=10**9),
    "TIFF without tags": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
    "WebP without pixels": riff(canvas(8, 8)),
    "AVIF that ends after its first box": ftyp(b"avif"),
    "HEIC that ends after its first box": ftyp(b"heic"),
    "HEIF sequence that ends after its first box": ftyp(b"hevc"),
    "JPEG 2000 that ends after its first box": b"\0\0\0\x0cjP  \r\n\x87\n",
    "PPM with width 0": b"P6 0 8 255\n",
    "PPM with negative width": b"P6 -8 8 255\n" + bytes(192),
    "PPM with maximum 0": b"P6 8 8 0\n" + bytes(192),
}
for _name, _drawn in WRONG.items():
    add(_name, _drawn, CORRUPT)


# Names of objects. Cloud Storage accepts up to 1024 bytes of UTF-8, except line breaks, `.` and
# `..`. Other senders are less strict.
NAMES = {
    "spaces": " a cat .jpg ",
    "hash": "cat#1.jpg",
    "hash and digits": "cat.jpg#17",
    "question mark": "cat.jpg?alt=media&generation=9",
    "escaped slash": "a%2Fb.jpg",
    "percent": "100%.jpg",
    "bad escape": "%zz%.jpg",
    "plus": "a+b.jpg",
    "emoji": "\N{CAT FACE}\N{ZERO WIDTH JOINER}\N{ROCKET}.jpg",
    "newline": "cat\n.jpg",
    "carriage return": "cat\r\nX-Injected: 1.jpg",
    "NUL": "cat\0.jpg",
    "1000 characters": "x" * 996 + ".jpg",
    "1024 bytes": "\N{CAT FACE}" * 256,
    "leading dot": ".cat.jpg",
    "leading dots": "../../etc/passwd",
    "dots alone": "...",
    "dots between": "a/../b.jpg",
    "dot between": "a/./b.jpg",
    "leading slash": "/cat.jpg",
    "slashes": "a//b///.jpg",
    "below a file": "cat#1.jpg/b.jpg",
    "backslash": "a\\b.jpg",
    "quotes": "\"cat'.jpg",
    "escape sequences": "\x1b]0;title\x07\x1b[2J.jpg",
    "markup": "<script>alert(1)</script>.jpg",
    "uri": "gs://other/cat.jpg",
    "right to left": "\N{RIGHT-TO-LEFT OVERRIDE}gpj.cat",
    "decomposed": "e\N{COMBINING ACUTE ACCENT}.jpg",
    "composed": "\N{LATIN SMALL LETTER E WITH ACUTE}.jpg",
}


# ---------------------------------------------------------------------------- reading the files


def record(data: bytes, decoders: Decoders) -> str:
    """Decode a file as the service does. Return `done WIDTHxHEIGHT` or the error code."""
    try:
        decoded = decoders.decode(data, image_size=IMAGE_SIZE, deadline=NO_DEADLINE)
    except BadImageError as exc:
        return exc.code.value
    return f"done {decoded.info.width}x{decoded.info.height}"


def examine(cases: Sequence[Case]) -> list[CaseResult]:
    """Draw files and read them, in forks of this process. The caller must have no threads.

    Memory and CPU time are measured for all files together.
    """
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory, str(number)) for number in range(len(cases))]
        records = Path(directory, "records")
        status, _ = in_child(lambda: draw(cases, files))
        assert status == 0, "a case cannot be drawn"
        _, base = in_child(lambda: read([], records))
        status, used = in_child(lambda: read(files, records), limited=True)
        lines = records.read_text().splitlines() if records.exists() else []
        largest = max(file.stat().st_size for file in files) / 2**20
        peak_mb = round((used.ru_maxrss - base.ru_maxrss) / 1024 - largest, 1)
    lines += [ended(status)] * (len(cases) - len(lines))
    cpu_seconds = round(used.ru_utime + used.ru_stime, 2)
    return [
        CaseResult(case.name, case.expected, actual, peak_mb, cpu_seconds)
        for case, actual in zip(cases, lines, strict=True)
    ]


def draw(cases: Sequence[Case], files: Sequence[Path]) -> None:
    for case, file in zip(cases, files, strict=True):
        file.write_bytes(case.make())


def read(files: Sequence[Path], records: Path) -> None:
    decoders = Decoders(1, max_pixels=MAX_PIXELS, max_decompressed_bytes=2**25)
    with closing(decoders), records.open("w", buffering=1) as out:
        record(b"BM", decoders)  # starts the decoder
        for file in files:
            out.write(record(file.read_bytes(), decoders) + "\n")


def in_child(
    work: Callable[[], object], *, limited: bool = False
) -> tuple[int, resource.struct_rusage]:
    """Run in a fork. Return its wait status, and the resources that it and its children used."""
    child = os.fork()
    if not child:
        code = 1
        try:
            if limited:
                limit()
            work()
            code = 0
        except BaseException as exc:  # noqa: BLE001 - a fork must end here
            print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    return status, used


def limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MAX_ADDRESS_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (HANG_CPU_SECONDS,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return "raised"


HEADING = """# Malformed files

This page lists malformed files, and what the service records for each: `done` with the image's
size, or a failure with its code. They include damaged files, files of unusual
kinds, and files made to use too much memory or time.

`devtools/fuzz/corpus.py` makes the files, and `tests/unit/test_corpus.py` reads all of them in
every test run. `python -m devtools.fuzz.corpus` writes this page. It reads each file in a decoder
process of its own. The column MB is the peak memory of that process, minus the peak memory of a
process that reads nothing. The column s is its CPU time, start included. The bounds are {mb} MB and
{cpu} s.

"""


NAMES_HEADING = """## Names

Objects with these names are found under exactly these names: in every form of an event, and from
the upload to the document and its row in `results` and `reconcile`
(`tests/system/test_odd_names.py`).

"""


FUZZING = """
## How the service limits a file

- **The header comes first.** Format and size are read from the header, and `MAX_IMAGE_PIXELS` is
  compared before any pixel is decoded. AVIF, JPEG 2000, and HEIC with more than 8 bits per
  channel may have half as many pixels, because their decoders use twice the memory.
- **Only the pixels cost time.** A decoder gets only the parts of a JPEG or PNG that determine its
  pixels. Fill bytes, stray bytes, texts, profiles and animations cost next to nothing.
- **The number of parts is limited**, because a file of 330 kB in 10,000 scans would be decoded
  for minutes. These files are `corrupt_image`: a JPEG with more than {segments:,} segments, with
  more than {scans:,} scans, or with more than {pixels:,} pixels in all scans together
  (arithmetic coding counts {arithmetic} times), and a PNG with more than {chunks:,} chunks.
- **Every file is decoded in a decoder process**, with limits on memory, {cpu} s of CPU time and
  {wall:g} s of wall time. A file that exceeds a limit or crashes its decoder is `corrupt_image`,
  and the decoder is replaced (`tests/unit/test_decoders.py`). If a decoder is killed from
  outside, for example because memory is short, the response is 503 and the message is
  redelivered.

## Fuzzing

`make fuzz` runs libFuzzer, guided by Python's coverage, on three parsers. It starts with the
files above, the events of `tests/data`, and every setting. `tests/fuzz` defines what must hold.
An input may take 30 s and, as in a decoder process, its memory is limited, here to 512 MB.

These lines are from runs of November 2026 on a busy machine. `make fuzz` prints its own.

    envelope: 1,034,220 executions, no promise broken, peak 109 MB
    image: 15,000 executions, no promise broken, peak 134 MB
    settings: 469,661 executions, no promise broken, peak 110 MB

| target | function | options |
|---|---|---|
| envelope | `service.events.parse_event` | `--runs 100000000 --seconds 230` |
| image | `service.images.decode.decode` | `--runs 15000` |
| settings | `Settings.from_env` | `--runs 100000000 --seconds 230` |

An earlier run found a PNG of 317 bytes whose pixels claimed to be 3 GB, and it used that much
memory (`tests/fuzz/found`). Without a memory limit, an animated PNG of 12 kB used 4 GB.
"""


def page(results: Sequence[CaseResult]) -> str:
    rows = [
        (
            g.name,
            " or ".join(g.expected),
            g.actual,
            f"{max(round(g.peak_mb), 0)}",
            f"{g.cpu_seconds:.2f}",
        )
        for g in results
    ]
    good = sum(result.is_good for result in results)
    table = tabulate(
        rows, ["input", "expected", "got", "MB", "s"], tablefmt="github", disable_numparse=True
    )
    heading = HEADING.format(mb=MAX_MB, cpu=MAX_CPU_SECONDS)
    return f"{heading}{good} of {len(results)} as expected.\n\n{table}\n\n{end_of_page()}"


def end_of_page() -> str:
    """Return the page after the table of files: names, limits and runs of the fuzzer."""
    return names_table() + FUZZING.format(
        segments=jpeg._MAX_SEGMENTS,
        scans=jpeg._MAX_SCANS,
        pixels=jpeg._MAX_SCANNED_PIXELS,
        arithmetic=jpeg._ARITHMETIC_COST,
        chunks=png_module._MAX_CHUNKS,
        cpu=DecodeLimits().cpu_seconds,
        wall=DecodeLimits().wall_seconds,
    )


def names_table() -> str:
    rows = [
        (kind, f"`{json.dumps(name[:24])}`", len(name.encode())) for kind, name in NAMES.items()
    ]
    return NAMES_HEADING + tabulate(rows, ["name", "begins", "bytes"], tablefmt="github") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="cases to read. By default, all are read and the page is written."
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="read all cases in few processes, and print JSON lines",
    )
    options = parser.parse_args()
    if options.together:
        cases = list(CASES.values())
        for first in range(0, len(cases), CASES_AT_ONCE):
            for result in examine(cases[first : first + CASES_AT_ONCE]):
                print(json.dumps(asdict(result)))
        return
    results = [examine([CASES[name]])[0] for name in options.names or CASES]
    if options.names:
        print(*results, sep="\n")
    else:
        PAGE.write_text(page(results), encoding="utf-8")
    sys.exit(not all(result.is_good for result in results))


if __name__ == "__main__":
    main()
