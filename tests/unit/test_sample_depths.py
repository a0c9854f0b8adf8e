"""Every format with every number of bits per sample: black becomes 0, white becomes 255."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from devtools.fuzz.corpus import GREY_TIFF, chunk
from devtools.fuzz.corpus import tiff as tiff_of_tags
from service.domain import ErrorCode
from service.errors import BadImageError
from service.images.decode import decode

SIDE = 16
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)  # grey, from black to white


def grey(top: int) -> NDArray[Any]:
    """The ramp as integers from 0 to `top`."""
    kind = np.uint8 if top < 256 else np.uint16
    return np.round(RAMP * top).astype(kind)


def colour(top: int) -> NDArray[Any]:
    """Three ramps: unchanged, reversed, and transposed."""
    return np.dstack([grey(top), grey(top)[::-1], grey(top).T])


def packed(rows: NDArray[Any], bits: int) -> bytes:
    """Pack samples of `bits` bits. Each row begins with a new byte."""
    as_bits = np.unpackbits(rows.astype(">u2").view(np.uint8), axis=1)
    rows = as_bits.reshape(len(rows), -1, 16)[:, :, 16 - bits :].reshape(len(rows), -1)
    return b"".join(np.packbits(row).tobytes() for row in rows)


def png(samples: NDArray[Any], bits: int, colour_type: int, *chunks: bytes) -> bytes:
    flat = samples.reshape(SIDE, -1)
    row = packed(flat, bits)
    width = len(row) // SIDE
    body = b"".join(b"\0" + row[at : at + width] for at in range(0, len(row), width))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b""))
    )


def palette(bits: int) -> bytes:
    """A palette of greys in increasing order."""
    return chunk(b"PLTE", b"".join(bytes([v] * 3) for v in levels(bits)))


def levels(bits: int) -> Sequence[int]:
    top = 2**bits - 1
    return [round(index * 255 / top) for index in range(top + 1)]


def with_alpha(samples: NDArray[Any]) -> NDArray[Any]:
    return np.dstack([samples, np.full((SIDE, SIDE), samples.max(), samples.dtype)])


def pnm(kind: int, top: int) -> bytes:
    samples = colour(top) if kind in (3, 6) else grey(top)
    header = f"P{kind}\n# of the ramp\n{SIDE} {SIDE}\n".encode()
    if kind in (1, 4):
        bits = 1 - samples  # 1 is black
        body = b" ".join(b"%d" % v for v in bits.ravel()) if kind == 1 else packed(bits, 1)
        return header + body
    header += b"%d\n" % top
    if kind in (2, 3):
        return header + b" ".join(b"%d" % v for v in samples.ravel())  # and no line's end
    return header + samples.astype(">u2" if top > 255 else "u1").tobytes()


def tiff(samples: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


def encoded(name: str, samples: NDArray[Any], **options: Any) -> bytes:
    return bytes(getattr(imagecodecs, f"{name}_encode")(samples, **options))


def bmp(bits: int) -> bytes:
    """A BMP of palette indices, or of five bits per channel."""
    ramp = grey(2**bits - 1 if bits <= 8 else 31)[::-1].astype(np.uint32)
    rows = ramp * 0b100001000010000 // 16 if bits == 16 else ramp
    body = rows.astype("<u2").tobytes() if bits == 16 else packed(rows, bits)
    width = len(body) // SIDE
    body = b"".join(body[at : at + width].ljust(4, b"\0") for at in range(0, len(body), width))
    colours = b"".join(bytes([v, v, v, 0]) for v in levels(bits)) if bits <= 8 else b""
    info = struct.pack(
        "<IiiHHIIiiII", 40, SIDE, SIDE, 1, bits, 0, len(body), 0, 0, len(colours) // 4, 0
    )
    offset = 54 + len(colours)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + colours + body


# The top of the samples, and a file of them.
GREY: dict[str, tuple[int, Callable[[], bytes]]] = {
    **{f"PNG, {b} bits": (2**b - 1, partial(png, grey(2**b - 1), b, 0)) for b in (1, 2, 4, 8, 16)},
    **{
        f"PNG, palette of {b} bits": (
            2**b - 1,
            partial(png, grey(2**b - 1), b, 3, palette(b)),
        )
        for b in (1, 2, 4, 8)
    },
    "PNG, 8 bits and alpha": (255, lambda: png(with_alpha(grey(255)), 8, 4)),
    "PNG, 16 bits and alpha": (65535, lambda: png(with_alpha(grey(65535)), 16, 4)),
    "plain PBM": (1, lambda: pnm(1, 1)),
    "PBM": (1, lambda: pnm(4, 1)),
    **{f"plain PGM of {m}": (m, partial(pnm, 2, m)) for m in (1, 7, 255, 1023, 65535)},
    **{f"PGM of {m}": (m, partial(pnm, 5, m)) for m in (1, 7, 100, 255, 256, 1023, 4095, 65535)},
    "TIFF, 1 bit": (1, lambda: tiff(grey(1).astype(bool), photometric="minisblack")),
    "TIFF, 8 bits": (255, lambda: tiff(grey(255))),
    "TIFF, 8 bits, white is 0": (255, lambda: tiff(255 - grey(255), photometric="miniswhite")),
    "TIFF, 16 bits": (65535, lambda: tiff(grey(65535))),
    "TIFF, 16 bits, big-endian": (65535, lambda: tiff(grey(65535), byteorder=">")),
    "TIFF, 16 bits, packed": (65535, lambda: tiff(grey(65535), compression="zlib")),
    "TIFF, 16 bits, white is 0": (
        65535,
        lambda: tiff(65535 - grey(65535), photometric="miniswhite"),
    ),
    **{
        f"JPEG 2000, {b} bits": (
            2**b - 1,
            partial(encoded, "jpeg2k", grey(2**b - 1), bitspersample=b, level=0),
        )
        for b in (1, 2, 4, 8, 9, 10, 12, 16)
    },
    **{
        f"JPEG 2000, {b} bits and alpha": (
            2**b - 1,
            partial(encoded, "jpeg2k", with_alpha(grey(2**b - 1)), bitspersample=b, level=0),
        )
        for b in (8, 9, 12)
    },
    "JPEG 2000, 12 bits, codestream": (
        4095,
        lambda: encoded("jpeg2k", grey(4095), bitspersample=12, level=0, codecformat="j2k"),
    ),
    "JPEG": (255, lambda: encoded("jpeg", grey(255), level=100)),
    **{f"BMP, {b} bits": (2**b - 1, partial(bmp, b)) for b in (1, 4, 8)},
    "BMP, 16 bits": (31, lambda: bmp(16)),
}
COLOUR: dict[str, tuple[int, Callable[[], bytes]]] = {
    "PNG, 8 bits": (255, lambda: png(colour(255), 8, 2)),
    "PNG, 16 bits": (65535, lambda: png(colour(65535), 16, 2)),
    "PNG, 16 bits and alpha": (65535, lambda: png(with_alpha(colour(65535)), 16, 6)),
    **{f"plain PPM of {m}": (m, partial(pnm, 3, m)) for m in (1, 7, 255, 1023, 65535)},
    **{f"PPM of {m}": (m, partial(pnm, 6, m)) for m in (1, 7, 100, 255, 256, 1023, 4095, 65535)},
    "TIFF, 8 bits": (255, lambda: tiff(colour(255), photometric="rgb")),
    "TIFF, 8 bits, big-endian": (255, lambda: tiff(colour(255), photometric="rgb", byteorder=">")),
    "TIFF, 16 bits": (65535, lambda: tiff(colour(65535), photometric="rgb")),
    "TIFF, 16 bits, big-endian": (
        65535,
        lambda: tiff(colour(65535), photometric="rgb", byteorder=">"),
    ),
    "TIFF, planes": (
        255,
        lambda: tiff(np.moveaxis(colour(255), 2, 0), photometric="rgb", planarconfig="separate"),
    ),
    "BigTIFF": (255, lambda: tiff(colour(255), photometric="rgb", bigtiff=True)),
    **{
        f"JPEG 2000, {b} bits": (
            2**b - 1,
            partial(encoded, "jpeg2k", colour(2**b - 1), bitspersample=b, level=0),
        )
        for b in (2, 4, 8, 9)
    },
    "JPEG 2000, 12 bits": (
        4095,
        lambda: encoded("jpeg2k", colour(4095), bitspersample=12, level=0),
    ),
    "JPEG 2000, 12 bits, codestream": (
        4095,
        lambda: encoded("jpeg2k", colour(4095), bitspersample=12, level=0, codecformat="j2k"),
    ),
    "JPEG 2000, 16 bits": (65535, lambda: encoded("jpeg2k", colour(65535), level=0)),
    **{
        f"AVIF, {b} bits": (
            2**b - 1,
            partial(encoded, "avif", colour(2**b - 1), bitspersample=b, level=100),
        )
        for b in (8, 10, 12)
    },
    "WebP": (255, lambda: encoded("webp", colour(255), lossless=True)),
}
TOLERANCES = {"JPEG": 3, "AVIF": 3, "BMP, 16": 1, "JPEG 2000": 2}


def assert_scaled(name: str, data: bytes, expected: NDArray[Any]) -> None:
    tolerance = next((t for start, t in TOLERANCES.items() if name.startswith(start)), 1)
    pixels = decode(data, max_pixels=10_000).pixels
    assert pixels.shape == (SIDE, SIDE, 3)
    assert np.abs(pixels.astype(float) - expected).max() <= tolerance


@pytest.mark.parametrize("name", GREY)
def test_grey_samples_are_scaled_by_their_depth(name: str) -> None:
    top, make = GREY[name]
    expected = grey(top).astype(float) * 255 / top
    assert_scaled(name, make(), np.dstack([expected] * 3))


@pytest.mark.parametrize("name", COLOUR)
def test_colour_samples_are_scaled_by_their_depth(name: str) -> None:
    top, make = COLOUR[name]
    assert_scaled(name, make(), colour(top)[:, :, ::-1].astype(float) * 255 / top)


def pfm(samples: NDArray[Any], order: str) -> bytes:
    kind = b"PF" if samples.ndim == 3 else b"Pf"
    scale = b"-1.0" if order == "<" else b"1.0"
    return (
        kind + b"\n%d %d\n" % (SIDE, SIDE) + scale + b"\n" + samples.astype(order + "f4").tobytes()
    )


def jp2_of_order(data: bytes, colours: tuple[int, int, int] = (3, 2, 1)) -> bytes:
    """A file that defines the colours of its channels (T.800, I.5.3.6): 1 is red, 3 is blue."""
    a, b, c = colours
    definition = struct.pack(">I4sH9H", 28, b"cdef", 3, 0, 0, a, 1, 0, b, 2, 0, c)
    header = data.index(b"jp2h") - 4
    length = int.from_bytes(data[header : header + 4])
    end = header + length
    return (
        data[:header] + struct.pack(">I", length + 28) + data[header + 4 : end]
        + definition + data[end:]
    )  # fmt: skip


def jpeg2000_of_samples(code: int) -> bytes:
    """A codestream of one channel. `code` describes its samples (T.800, A.5.1): sign, bits - 1."""
    data = bytearray(encoded("jpeg2k", grey(65535), level=0, codecformat="j2k"))
    data[42] = code
    return bytes(data)


UNKNOWN_RANGE: dict[str, Callable[[], bytes]] = {
    **{
        f"PFM, {kind}, {order}": partial(pfm, samples, order)
        for kind, samples in (("grey", RAMP), ("colour", np.dstack([RAMP] * 3)))
        for order in "<>"
    },
    **{
        f"TIFF, {name}": partial(tiff, (RAMP * 100).astype(name), photometric="minisblack")
        for name in ("float16", "float32", "float64", "int8", "int16", "int32", "uint32")
    },
    "TIFF, float colour": lambda: tiff(np.dstack([RAMP] * 3).astype("f4"), photometric="rgb"),
    "TIFF, 5 channels": lambda: tiff(
        np.dstack([grey(255)] * 5), photometric="minisblack", planarconfig="contig"
    ),
    "TIFF, 5 channels, colour": lambda: tiff(
        np.dstack([grey(255)] * 5), photometric="rgb", extrasamples=(0, 0)
    ),
    "TIFF, Lab": lambda: tiff(colour(255), photometric="cielab"),
    "TIFF, LERC": lambda: tiff(grey(255), compression="lerc"),
    "TIFF, JPEG XL": lambda: tiff(grey(255), compression="jpegxl"),
    "JPEG, 12 bits": lambda: encoded("jpeg", grey(4095), bitspersample=12),
    "JPEG, lossless": lambda: encoded("ljpeg", grey(255)),
    "JPEG-LS": lambda: encoded("jpegls", grey(255)),
    "JPEG XL": lambda: encoded("jpegxl", grey(255)),
    "JPEG XR": lambda: encoded("jpegxr", grey(255)),
    "JPEG 2000, channels in another order": lambda: jp2_of_order(encoded("jpeg2k", colour(255))),
    "TIFF, colour map of 8 bits": lambda: tiff(
        grey(255),
        photometric="palette",
        colormap=np.arange(256, dtype="u2").repeat(3).reshape(256, 3).T,
    ),
    "JPEG 2000, 17 bits": lambda: jpeg2000_of_samples(16),
    "JPEG 2000, 38 bits": lambda: jpeg2000_of_samples(37),
    "JPEG 2000, 16 bits and a sign": lambda: jpeg2000_of_samples(0x80 + 15),
    "JPEG 2000, 5 channels": lambda: encoded("jpeg2k", np.dstack([grey(255)] * 5), level=0),
    "EXR": lambda: cv2.imencode(".hdr", np.dstack([RAMP] * 3).astype("f4"))[1].tobytes(),
}


@pytest.mark.parametrize("name", UNKNOWN_RANGE)
def test_intact_file_of_a_rare_kind_is_unsupported(name: str) -> None:
    with pytest.raises(BadImageError) as raised:
        decode(UNKNOWN_RANGE[name](), max_pixels=10_000)
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA


def test_jpeg2000_that_defines_its_channels_as_they_are_is_read() -> None:
    data = jp2_of_order(encoded("jpeg2k", colour(255), level=0), (1, 2, 3))
    assert_scaled("JPEG 2000", data, colour(255)[:, :, ::-1])


@pytest.mark.parametrize("order", [(3, 2, 1), (1, 3, 2), (2, 1, 3)], ids=str)
def test_jpeg2000_of_channels_in_any_other_order_is_unsupported(
    order: tuple[int, int, int],
) -> None:
    with pytest.raises(BadImageError, match="in another order than RGB"):
        decode(jp2_of_order(encoded("jpeg2k", colour(255)), order), max_pixels=10_000)


def with_box_length(data: bytes, kind: bytes, length: int) -> bytes:
    """Write one box's length after its type (`length` 1), or leave it out (`length` 0)."""
    begin = data.index(kind) - 4
    whole = int.from_bytes(data[begin : begin + 4]) + 8
    behind = struct.pack(">Q", whole) if length == 1 else b""
    return data[:begin] + struct.pack(">I", length) + kind + behind + data[begin + 8 :]


@pytest.mark.parametrize(("kind", "length"), [(b"jp2h", 1), (b"jp2c", 1), (b"jp2c", 0)])
def test_box_of_jpeg2000_may_say_its_length_in_any_way(kind: bytes, length: int) -> None:
    data = encoded("jpeg2k", grey(4095), bitspersample=12, level=0)
    expected = decode(data, max_pixels=10_000).pixels
    found = decode(with_box_length(data, kind, length), max_pixels=10_000).pixels
    assert np.array_equal(found, expected)


def tiff_with_below(below: NDArray[Any], kind: int) -> bytes:
    """A TIFF of 16x16 with a subimage. NewSubfileType 1 marks a reduced image."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(colour(255), photometric="rgb", subifds=1)
        writer.write(below, photometric="rgb", subfiletype=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("scale", "kind"), [(0.5, 0), (0.5, 1), (1, 0), (2, 1)])
def test_tiff_above_smaller_or_reduced_images_is_the_full_one(scale: float, kind: int) -> None:
    side = int(SIDE * scale)
    data = tiff_with_below(np.zeros((side, side, 3), np.uint8), kind)
    assert np.array_equal(decode(data, max_pixels=10_000).pixels, colour(255)[:, :, ::-1])


def test_tiff_above_a_larger_full_image_is_unsupported() -> None:
    data = tiff_with_below(np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8), 0)
    with pytest.raises(BadImageError) as raised:
        decode(data, max_pixels=10_000)
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA


def canon_raw() -> bytes:
    """A TIFF with Canon's signature after its header, as in a camera's raw file."""
    plain = tiff_of_tags(GREY_TIFF, bytes(64))
    body = 8 + 2 + 12 * len(GREY_TIFF) + 4
    shifted = tiff_of_tags(GREY_TIFF | {273: body + 8}, bytes(64))
    assert len(shifted) == len(plain)
    return b"II*\0\x10\0\0\0CR\x02\0\0\0\0\0" + shifted[8:]


NO_FULL_IMAGE: dict[str, Callable[[], bytes]] = {
    "a preview alone": lambda: tiff_of_tags(GREY_TIFF | {254: 1}, bytes(64)),
    "a mask alone": lambda: tiff_of_tags(GREY_TIFF | {254: 4}, bytes(64)),
    "a preview alone, in old words": lambda: tiff_of_tags(GREY_TIFF | {255: 2}, bytes(64)),
}


@pytest.mark.parametrize("make", NO_FULL_IMAGE.values(), ids=NO_FULL_IMAGE)
def test_tiff_without_a_full_image_is_unsupported(make: Callable[[], bytes]) -> None:
    with pytest.raises(BadImageError, match="without a readable full image") as raised:
        decode(make(), max_pixels=10_000)
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA


def preview_of(maker: str) -> bytes:
    """A TIFF with a reduced image alone, which names the maker of a camera."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "TIFF", tiffinfo={254: 1, 271: maker})
    return buffer.getvalue()


RAW_FILES: dict[str, Callable[[], bytes]] = {
    "CR2": canon_raw,
    "DNG": lambda: tiff_of_tags(GREY_TIFF | {50706: 0x00000401}, bytes(64)),
    "NEF": lambda: preview_of("NIKON CORPORATION"),
    "ARW": lambda: preview_of("SONY"),
}


@pytest.mark.parametrize("name", RAW_FILES)
def test_raw_file_in_a_tiff_is_named(name: str) -> None:
    with pytest.raises(BadImageError, match=f"{name}, a camera's raw file, is not sup") as raised:
        decode(RAW_FILES[name](), max_pixels=10_000)
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA


TIFF_TAGS = {"width": 256, "height": 257, "offsets": 273}


@pytest.mark.parametrize("tag", TIFF_TAGS.values(), ids=TIFF_TAGS)
def test_tiff_without_a_tag_of_its_pixels_is_corrupt(tag: int) -> None:
    tags = {number: value for number, value in GREY_TIFF.items() if number != tag}
    with pytest.raises(BadImageError, match="directory is damaged") as raised:
        decode(tiff_of_tags(tags, bytes(64)), max_pixels=10_000)
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE


@pytest.mark.parametrize("top", [0, 65536])
def test_pgm_of_an_impossible_maximum_is_corrupt(top: int) -> None:
    with pytest.raises(BadImageError) as raised:
        decode(b"P5 8 8 %d\n" % top + bytes(128), max_pixels=10_000)
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE


@pytest.mark.parametrize("name", ["zstd", "lzma", "webp", "packbits", "lzw", "zlib", "jpeg"])
def test_compressed_tiff_is_read_or_unsupported(name: str) -> None:
    data = tiff(colour(255), photometric="rgb", compression=name)
    try:
        pixels = decode(data, max_pixels=10_000).pixels
    except BadImageError as exc:
        assert exc.code is ErrorCode.UNSUPPORTED_MEDIA
        assert name in ("zstd", "lzma", "webp")
    else:
        tolerance = 30 if name == "jpeg" else 0
        assert np.abs(pixels.astype(int) - colour(255)[:, :, ::-1]).max() <= tolerance
