"""Decode every supported format, reject the others, and the geometry of the letterbox."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from service.domain import Box, ErrorCode, ImageInfo
from service.errors import BadImageError
from service.images.decode import decode
from service.images.formats import format_of
from service.images.letterbox import Letterbox, fit, input_shapes, letterbox, shrink
from service.images.pillow import PillowFile, translate_errors
from service.images.pixels import DecodedImage, Pixels
from service.images.png import Png

WIDTH, HEIGHT = 60, 40
RED, GREEN, BLUE, YELLOW = (0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255)  # BGR
CORNERS = (RED, GREEN, BLUE, YELLOW)  # top left, top right, bottom left, bottom right
GREYS = ((76,) * 3, (150,) * 3, (29,) * 3, (226,) * 3)  # the same four without colour


def quarters() -> Image.Image:
    """Four quarters of four colours, so that a rotation or reflection is visible."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    middle_y, middle_x = HEIGHT // 2, WIDTH // 2
    pixels[:middle_y, :middle_x], pixels[:middle_y, middle_x:] = RED, GREEN
    pixels[middle_y:, :middle_x], pixels[middle_y:, middle_x:] = BLUE, YELLOW
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes) -> DecodedImage:
    return decode(data, max_pixels=1_000_000)


def assert_corners(pixels: Pixels, expected: Any, *, tolerance: int = 4) -> None:
    height, width = pixels.shape[:2]
    rows, columns = (height // 4, height * 3 // 4), (width // 4, width * 3 // 4)
    found = [pixels[row, column].tolist() for row in rows for column in columns]
    assert np.abs(np.array(found) - np.array(expected)).max() <= tolerance, found


def palette_with_transparency() -> bytes:
    return saved(quarters().quantize(8), "PNG", transparency=0)


def half_transparent() -> bytes:
    image = quarters().convert("RGBA")
    image.putalpha(128)
    return saved(image, "PNG")


def png_of_16_bits() -> bytes:
    pixels = np.asarray(quarters())[:, :, ::-1].astype(np.uint16) * 257
    return cv2.imencode(".png", pixels)[1].tobytes()


def with_second_frame(kind: str, **options: Any) -> bytes:
    second = Image.new("RGB", (WIDTH, HEIGHT), "white")
    return saved(quarters(), kind, save_all=True, append_images=[second], **options)


FULL = {"quality": 95, "subsampling": 0}
IN_COLOUR: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg": ("JPEG", lambda: saved(quarters(), "JPEG", **FULL)),
    "jpeg-progressive": ("JPEG", lambda: saved(quarters(), "JPEG", progressive=True, **FULL)),
    "jpeg-cmyk": ("JPEG", lambda: saved(quarters().convert("CMYK"), "JPEG", **FULL)),
    "jpeg-of-two": ("MPO", lambda: with_second_frame("MPO", **FULL)),
    "png": ("PNG", lambda: saved(quarters(), "PNG")),
    "png-palette-transparent": ("PNG", palette_with_transparency),
    "png-rgba": ("PNG", half_transparent),
    "png-16-bit": ("PNG", png_of_16_bits),
    "webp": ("WEBP", lambda: saved(quarters(), "WEBP", lossless=True)),
    "webp-lossy": ("WEBP", lambda: saved(quarters(), "WEBP", quality=95)),
    "webp-animated": ("WEBP", lambda: with_second_frame("WEBP", lossless=True)),
    "gif": ("GIF", lambda: saved(quarters(), "GIF")),
    "gif-animated": ("GIF", lambda: with_second_frame("GIF")),
    "bmp": ("BMP", lambda: saved(quarters(), "BMP")),
    "tiff": ("TIFF", lambda: saved(quarters(), "TIFF")),
    "tiff-lzw": ("TIFF", lambda: saved(quarters(), "TIFF", compression="tiff_lzw")),
    "tiff-of-two": ("TIFF", lambda: with_second_frame("TIFF")),
    "avif": ("AVIF", lambda: saved(quarters(), "AVIF", quality=95, subsampling="4:4:4")),
    "jpeg2000": ("JPEG2000", lambda: saved(quarters(), "JPEG2000")),
    "ppm": ("PPM", lambda: saved(quarters(), "PPM")),
}
IN_GREY: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg": ("JPEG", lambda: saved(quarters().convert("L"), "JPEG", quality=95)),
    "png": ("PNG", lambda: saved(quarters().convert("L"), "PNG")),
    "png-with-alpha": ("PNG", lambda: saved(quarters().convert("LA"), "PNG")),
    "pgm": ("PPM", lambda: saved(quarters().convert("L"), "PPM")),
}


@pytest.mark.parametrize(("kind", "make"), IN_COLOUR.values(), ids=IN_COLOUR)
def test_decode_of_colour_format_gives_its_pixels(kind: str, make: Callable[[], bytes]) -> None:
    decoded = read(make())
    assert decoded.info == ImageInfo(WIDTH, HEIGHT, kind)
    assert decoded.pixels.shape == (HEIGHT, WIDTH, 3)
    assert decoded.pixels.dtype == np.uint8
    # 4:2:0 of a lossy WebP takes some colour away
    assert_corners(decoded.pixels, CORNERS, tolerance=12 if kind == "WEBP" else 4)


@pytest.mark.parametrize(("kind", "make"), IN_GREY.values(), ids=IN_GREY)
def test_decode_of_grey_format_gives_three_channels(kind: str, make: Callable[[], bytes]) -> None:
    decoded = read(make())
    assert decoded.info == ImageInfo(WIDTH, HEIGHT, kind)
    assert_corners(decoded.pixels, GREYS)


@pytest.mark.parametrize("make", [make for _, make in IN_COLOUR.values()], ids=list(IN_COLOUR))
def test_decode_gives_the_pixels_that_opencv_reads(make: Callable[[], bytes]) -> None:
    data = make()
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert expected is not None
    assert np.array_equal(read(data).pixels, expected)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


STORED_AS = {  # how a camera stores the upright image under each EXIF orientation
    1: lambda upright: upright,
    2: lambda upright: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda upright: upright.transpose(Image.Transpose.ROTATE_180),
    4: lambda upright: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda upright: upright.transpose(Image.Transpose.TRANSPOSE),
    6: lambda upright: upright.transpose(Image.Transpose.ROTATE_90),
    7: lambda upright: upright.transpose(Image.Transpose.TRANSVERSE),
    8: lambda upright: upright.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("orientation", STORED_AS)
def test_decode_of_turned_jpeg_gives_it_upright(orientation: int) -> None:
    stored = STORED_AS[orientation](quarters())
    decoded = read(saved(stored, "JPEG", exif=exif(orientation), **FULL))
    assert (decoded.info.width, decoded.info.height) == (WIDTH, HEIGHT)
    assert_corners(decoded.pixels, CORNERS)


def test_decode_of_unknown_orientation_leaves_the_image() -> None:
    decoded = read(saved(quarters(), "JPEG", exif=exif(9), **FULL))
    assert_corners(decoded.pixels, CORNERS)


@pytest.mark.parametrize(
    "data",
    [
        b"just a note\n",
        b"<!doctype html><html><body><img src=cat.jpg></body></html>",
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
        b"PK\x03\x04" + bytes(60),
        b"\x00\x00\x00\x18ftypmp42" + bytes(40),
        bytes(1000),
        b"\xff",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        saved(quarters(), "TGA"),
        saved(quarters(), "ICO"),
    ],
    ids=["text", "html", "pdf", "svg", "zip", "mp4", "zeros", "byte", "eps", "tga", "ico"],
)
def test_decode_of_no_image_is_unsupported_media(data: bytes) -> None:
    with pytest.raises(BadImageError) as raised:
        read(data)
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA
    assert "JPEG" in raised.value.message


def bmp_of_header(size: int, *, signature: bytes = b"BM") -> bytes:
    return signature + bytes(12) + size.to_bytes(4, "little") + bytes(200)


@pytest.mark.parametrize("size", [12, 16, 40, 52, 56, 64, 108, 124])
def test_bmp_is_distinguished_from_text(size: int) -> None:
    assert format_of(bmp_of_header(size)) == "BMP"
    assert format_of(bmp_of_header(size, signature=b"AM")) is None
    assert format_of(bmp_of_header(size, signature=b"BN")) is None


@pytest.mark.parametrize("size", [0, 11, 17, 39, 41, 125])
def test_text_that_begins_with_bm_is_not_a_bmp(size: int) -> None:
    assert format_of(bmp_of_header(size)) is None


@pytest.mark.parametrize("lacks", [4, 12, 14, 16], ids=lambda n: f"{n} bytes")
def test_png_that_ends_after_its_pixels_is_read(lacks: int) -> None:
    """The last chunk has 12 bytes, and the checksum of the chunk before it has 4."""
    whole = saved(quarters(), "PNG")
    assert np.array_equal(read(whole[:-lacks]).pixels, read(whole).pixels)


def png_with(kind: bytes, *, is_damaged: bool = False) -> bytes:
    """A PNG with an additional chunk after its header."""
    extra = bytearray(chunk(kind, b"what?"))
    extra[-1] ^= is_damaged
    whole = saved(quarters(), "PNG")
    return whole[:33] + bytes(extra) + whole[33:]


def test_png_with_an_unknown_critical_chunk_is_unsupported() -> None:
    with pytest.raises(BadImageError, match="unknown critical chunk 'WHAT'") as raised:
        read(png_with(b"WHAT"))
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA


@pytest.mark.parametrize("kind", [b"WHAT", b"PLTE"])
def test_png_with_a_damaged_critical_chunk_is_corrupt(kind: bytes) -> None:
    with pytest.raises(BadImageError, match="A checksum of the PNG is wrong") as raised:
        read(png_with(kind, is_damaged=True))
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE


@pytest.mark.parametrize("kind", [b"wHAT", b"tRNS", b"eXIf", b"iTXt"])
def test_png_with_a_damaged_chunk_that_may_be_left_out_is_read(kind: bytes) -> None:
    damaged = read(png_with(kind, is_damaged=True)).pixels
    assert np.array_equal(damaged, read(saved(quarters(), "PNG")).pixels)


def test_decode_of_no_bytes_is_empty_object() -> None:
    with pytest.raises(BadImageError) as raised:
        read(b"")
    assert raised.value.code is ErrorCode.EMPTY_OBJECT


@pytest.mark.parametrize("make", [make for _, make in IN_COLOUR.values()], ids=list(IN_COLOUR))
def test_decode_of_a_signature_alone_is_corrupt_image(make: Callable[[], bytes]) -> None:
    with pytest.raises(BadImageError) as raised:
        read(make()[:24])
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE


def assert_read_or_corrupt(data: bytes) -> None:
    try:
        decoded = decode(data, max_pixels=100_000)
    except BadImageError:
        return
    assert decoded.pixels.ndim == 3
    assert decoded.pixels.shape == (decoded.info.height, decoded.info.width, 3)


damaged = pytest.mark.parametrize(
    "make", [make for _, make in IN_COLOUR.values()], ids=list(IN_COLOUR)
)
# Pillow warns of damaged headers; the service only logs that.
pillow_warns = pytest.mark.filterwarnings("ignore::UserWarning")


@pillow_warns
@damaged
def test_truncated_file_is_read_or_rejected(make: Callable[[], bytes]) -> None:
    data = make()
    for length in range(1, len(data), max(len(data) // 60, 1)):
        assert_read_or_corrupt(data[:length])


@pillow_warns
@damaged
def test_file_with_flipped_bits_is_read_or_rejected(make: Callable[[], bytes]) -> None:
    data = make()
    for offset in {*range(0, min(len(data), 64)), *range(64, len(data), len(data) // 40 + 1)}:
        flipped = bytearray(data)
        flipped[offset] ^= 1 << (offset % 8)
        assert_read_or_corrupt(bytes(flipped))


@pytest.mark.parametrize("name", ["jpeg", "jpeg-progressive", "png", "webp", "jpeg2000"])
def test_decode_of_half_a_file_is_corrupt_image(name: str) -> None:
    """Half an image must not pass for one that shows nothing in its lower half."""
    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8)
    kind = IN_COLOUR[name][0]
    data = saved(Image.fromarray(noise), kind, **({"progressive": True} if "-" in name else {}))
    with pytest.raises(BadImageError) as raised:
        read(data[: len(data) // 2])
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG with this size in its header, but hardly any pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_decompression_bomb_is_rejected_before_it_allocates() -> None:
    data = png_header(30_000, 30_000)
    tracemalloc.start()
    try:
        with pytest.raises(BadImageError) as raised:
            decode(data, max_pixels=50_000_000)
        _, peak = tracemalloc.get_traced_memory()  # numpy's arrays count
    finally:
        tracemalloc.stop()
    assert raised.value.code is ErrorCode.IMAGE_TOO_LARGE
    assert "30000x30000" in raised.value.message
    assert peak < 2**20


def test_decompression_bomb_under_the_limit_is_corrupt() -> None:
    with pytest.raises(BadImageError) as raised:
        read(png_header(900, 900))
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE


@pytest.mark.parametrize(
    ("max_pixels", "is_allowed"), [(2400, True), (2399, False)], ids=["just", "over"]
)
def test_decode_counts_pixels_against_the_limit(max_pixels: int, is_allowed: bool) -> None:
    data = saved(quarters(), "PNG")
    if is_allowed:
        assert decode(data, max_pixels=max_pixels).info.width == WIDTH
    else:
        with pytest.raises(BadImageError, match="60x40 pixels, more than MAX_IMAGE_PIXELS=2399"):
            decode(data, max_pixels=max_pixels)


def test_decode_of_more_pixels_than_in_the_header_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grown = DecodedImage(np.zeros((300, 400, 3), np.uint8), ImageInfo(400, 300, "PNG"))
    monkeypatch.setattr(Png, "decode", lambda *_: grown)
    with pytest.raises(BadImageError, match="400x300 pixels") as raised:
        decode(saved(quarters(), "PNG"), max_pixels=20_000)
    assert raised.value.code is ErrorCode.IMAGE_TOO_LARGE


REASONS = {
    OSError("unsupported compression"): ErrorCode.UNSUPPORTED_MEDIA,
    OSError("not yet supported"): ErrorCode.UNSUPPORTED_MEDIA,
    SyntaxError("unsupported BMP palette"): ErrorCode.CORRUPT_IMAGE,
    OSError("image file is truncated"): ErrorCode.CORRUPT_IMAGE,
    IndexError("index out of range"): ErrorCode.CORRUPT_IMAGE,
}


@pytest.mark.parametrize(("error", "code"), REASONS.items(), ids=str)
def test_pillow_errors_are_unsupported_or_corrupt(error: Exception, code: ErrorCode) -> None:
    with pytest.raises(BadImageError) as raised, translate_errors("BMP"):
        raise error
    assert raised.value.code is code


def test_value_that_pillow_does_not_know_is_unsupported() -> None:
    with pytest.raises(BadImageError) as raised, translate_errors("TIFF"):
        raise SyntaxError("odd") from KeyError(4711)
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA


@pytest.mark.parametrize("error", [ZeroDivisionError("odd"), ValueError("Pixels must be")])
def test_unexpected_decoder_error_is_corrupt_image(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Png, "decode", fail)
    with pytest.raises(BadImageError, match="The PNG file cannot be decoded") as raised:
        read(saved(quarters(), "PNG"))
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE


@pytest.mark.parametrize(("kind", "weight"), [("AVIF", 2), ("JPEG2000", 2), ("GIF", 1)])
def test_format_that_takes_more_memory_may_have_fewer_pixels(kind: str, weight: int) -> None:
    data = saved(quarters(), kind)
    assert decode(data, max_pixels=2400 * weight).info.width == WIDTH
    with pytest.raises(BadImageError, match="60x40 pixels, more than"):
        decode(data, max_pixels=2400 * weight - 1)


def no_memory(*_: object, **__: object) -> None:
    raise MemoryError


def no_memory_of_opencv(*_: object, **__: object) -> None:
    error = cv2.error("Insufficient memory")
    error.code = -4  # cv2.Error.StsNoMem
    raise error


def no_memory_of_libjpeg(*_: object, **__: object) -> None:
    raise ValueError("Insufficient memory (case 4)")


@pytest.mark.parametrize(
    ("where", "name", "fails", "kind"),
    [
        (simplejpeg, "decode_jpeg", no_memory, "JPEG"),
        (simplejpeg, "decode_jpeg", no_memory_of_libjpeg, "JPEG"),
        (JpegImagePlugin, "jpeg_factory", no_memory, "JPEG"),
        (PillowFile, "__init__", no_memory, "WEBP"),
        (PillowFile, "decode", no_memory, "BMP"),
        (cv2, "imdecode", no_memory, "PNG"),
        (cv2, "imdecode", no_memory_of_opencv, "PNG"),
        (cv2, "cvtColor", no_memory, "PPM"),
    ],
)
def test_decode_without_memory_does_not_blame_the_file(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, fails: object, kind: str
) -> None:
    data = saved(quarters(), kind)
    monkeypatch.setattr(where, name, fails)
    with pytest.raises(MemoryError):
        read(data)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)], ids=str)
def test_decode_and_letterbox_of_extreme_sides(size: tuple[int, int]) -> None:
    decoded = read(saved(Image.new("RGB", size, "red"), "PNG"))
    assert (decoded.info.width, decoded.info.height) == size
    assert decoded.pixels[0, 0].tolist() == list(RED)
    small = shrink(decoded.pixels, image_size=640)
    fitted = letterbox(small.shape[1], small.shape[0], image_size=640, stride=32)
    assert max(fitted.apply(small).shape[:2]) == 640


KNOWN = {
    (640, 480): Letterbox(640, 480, 0, 0, 640, 480, 640, 480),
    (1280, 720): Letterbox(640, 360, 0, 12, 640, 384, 1280, 720),
    (500, 375): Letterbox(640, 480, 0, 0, 640, 480, 500, 375),
    (375, 500): Letterbox(480, 640, 0, 0, 480, 640, 375, 500),
    (1, 3000): Letterbox(1, 640, 15, 0, 32, 640, 1, 3000),
    (640, 640): Letterbox(640, 640, 0, 0, 640, 640, 640, 640),
    (10, 10): Letterbox(640, 640, 0, 0, 640, 640, 10, 10),
    (1920, 1080): Letterbox(640, 360, 0, 12, 640, 384, 1920, 1080),
    (1000, 333): Letterbox(640, 213, 0, 5, 640, 224, 1000, 333),
    (4000, 3000): Letterbox(640, 480, 0, 0, 640, 480, 4000, 3000),
}


@pytest.mark.parametrize("size", KNOWN, ids=str)
def test_letterbox_of_known_size_gives_known_input(size: tuple[int, int]) -> None:
    assert letterbox(*size, image_size=640, stride=32) == KNOWN[size]


def test_letterbox_of_every_ratio_is_symmetric_and_aligned() -> None:
    for width, height in [(w, h) for w in range(1, 900, 37) for h in range(1, 900, 41)]:
        fitted = letterbox(width, height, image_size=320, stride=32)
        right = fitted.input_width - fitted.resized_width - fitted.left
        bottom = fitted.input_height - fitted.resized_height - fitted.top
        assert fitted.input_width % 32 == fitted.input_height % 32 == 0
        assert max(fitted.input_width, fitted.input_height) == 320
        assert 0 <= right - fitted.left <= 1 and 0 <= bottom - fitted.top <= 1


def test_letterbox_apply_centres_the_image_on_grey() -> None:
    model_input = letterbox(64, 20, image_size=64, stride=32).apply(
        np.full((20, 64, 3), 7, np.uint8)
    )
    assert model_input.shape == (32, 64, 3)
    assert (model_input[:6] == 114).all() and (model_input[26:] == 114).all()
    assert (model_input[6:26] == 7).all()


@pytest.mark.parametrize("size", [(59, 40), (61, 40), (60, 39), (60, 41)], ids=str)
def test_letterbox_rejects_images_of_another_size(size: tuple[int, int]) -> None:
    fitted = letterbox(WIDTH, HEIGHT, image_size=64, stride=32)
    with pytest.raises(ValueError, match="do not fit"):
        fitted.apply(np.zeros((size[1], size[0], 3), np.uint8))


def test_letterbox_apply_enlarges_a_small_image() -> None:
    model_input = letterbox(10, 5, image_size=64, stride=32).apply(np.full((5, 10, 3), 7, np.uint8))
    assert model_input.shape == (32, 64, 3)
    assert (model_input == 7).all()


@pytest.mark.parametrize(
    ("size", "in_frame", "in_image"),
    [
        ((1280, 720), (0, 12, 640, 372), Box(0, 0, 1280, 720)),
        ((1280, 720), (100, 112, 200, 212), Box(200, 200, 400, 400)),
        ((500, 375), (64, 64, 128, 96), Box(50, 50, 100, 75)),
        ((320, 320), (320, 0, 640, 320), Box(160, 0, 320, 160)),
    ],
    ids=["whole", "shrunk", "enlarged", "square"],
)
def test_letterbox_box_goes_back_to_the_image(
    size: tuple[int, int], in_frame: tuple[float, ...], in_image: Box
) -> None:
    x1, y1, x2, y2 = in_frame
    found = letterbox(*size, image_size=640, stride=32).box(x1, y1, x2, y2)
    assert close(found, in_image)


def close(found: Box, expected: Box) -> bool:
    return [found.x1, found.y1, found.x2, found.y2] == pytest.approx(
        [expected.x1, expected.y1, expected.x2, expected.y2], abs=1e-9
    )


def test_letterbox_box_is_clipped_to_the_image() -> None:
    fitted = letterbox(1280, 720, image_size=640, stride=32)
    assert fitted.box(-50.0, 0.0, 700.0, 384.0) == Box(0.0, 0.0, 1280.0, 720.0)


def test_letterbox_box_finds_what_apply_drew() -> None:
    pixels = np.zeros((600, 900, 3), np.uint8)
    pixels[150:450, 300:600] = 255
    fitted = letterbox(900, 600, image_size=640, stride=32)
    rows, columns = np.nonzero(fitted.apply(pixels)[:, :, 0] > 200)
    found = fitted.box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    corners = [found.x1, found.y1, found.x2, found.y2]
    assert corners == pytest.approx([300, 150, 600, 450], abs=1.5)


@pytest.mark.parametrize(
    "size", [(1280, 960), (1000, 333), (777, 1234), (641, 640), (30, 20), (1, 3000)], ids=str
)
def test_shrink_then_letterbox_gives_the_same_input(size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    small = shrink(pixels, image_size=320)
    direct = letterbox(width, height, image_size=320, stride=32)
    after = letterbox(small.shape[1], small.shape[0], image_size=320, stride=32)
    assert max(small.shape[:2]) <= 320
    assert np.array_equal(after.apply(small), direct.apply(pixels))


def test_shrink_of_small_image_leaves_it_alone() -> None:
    pixels = np.zeros((320, 200, 3), np.uint8)
    assert shrink(pixels, image_size=320) is pixels


def test_box_of_the_shrunk_image_is_that_of_the_full_one() -> None:
    full = letterbox(1000, 333, image_size=320, stride=32).box(10, 20, 110, 90)
    small = letterbox(320, 107, image_size=320, stride=32)
    assert close(small.onto(ImageInfo(1000, 333, "JPEG")).box(10, 20, 110, 90), full)


def test_box_onto_the_full_image_scales_each_side_by_itself() -> None:
    small = letterbox(10, 20, image_size=32, stride=32)
    assert (small.resized_width, small.left, small.top) == (16, 8, 0)
    box = small.onto(ImageInfo(100, 40, "JPEG")).box(8 + 1.6, 3.2, 8 + 4.8, 6.4)
    assert close(box, Box(10, 4, 30, 8))


SHAPES = input_shapes(640, stride=32)


def test_input_shapes_are_those_of_cameras_both_ways() -> None:
    wide = {(384, 640), (448, 640), (480, 640), (640, 640)}
    assert set(SHAPES) == wide | {size[::-1] for size in wide}
    assert [h * w for h, w in SHAPES] == sorted(h * w for h, w in SHAPES)


@pytest.mark.parametrize("image_size", [32, 64, 320, 1280])
def test_input_shapes_of_any_image_size_are_whole_strides(image_size: int) -> None:
    sizes = input_shapes(image_size, stride=32, min_pixels=14_629)
    assert (image_size, image_size) in sizes or image_size**2 < 14_629
    assert all(h % 32 == w % 32 == 0 and h * w >= 14_629 for h, w in sizes)
    assert len(sizes) <= 7


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1920, 1080), (6000, 4000), (640, 640)])
def test_fit_of_a_cameras_ratio_pads_no_more_than_letterbox(size: tuple[int, int]) -> None:
    assert fit(*size, image_size=640, shapes=SHAPES) == letterbox(*size, image_size=640, stride=32)


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_fit_of_any_size_is_the_smallest_input_that_holds_it(width: int, height: int) -> None:
    fitted = fit(width, height, image_size=640, shapes=SHAPES)
    assert 0 <= fitted.left <= fitted.input_width - fitted.resized_width
    assert 0 <= fitted.top <= fitted.input_height - fitted.resized_height
    smaller = [s for s in SHAPES if s[0] * s[1] < fitted.input_height * fitted.input_width]
    assert not any(h >= fitted.resized_height and w >= fitted.resized_width for h, w in smaller)


def test_apply_writes_into_the_memory_that_is_given() -> None:
    fitted = fit(60, 40, image_size=64, shapes=input_shapes(64, stride=32))
    out = np.zeros((fitted.input_height, fitted.input_width, 3), np.uint8)
    pixels = np.full((40, 60, 3), 200, np.uint8)
    fitted.apply(pixels, out=out)
    assert np.array_equal(out, fitted.apply(pixels))


def large(width: int, height: int, **options: Any) -> bytes:
    return saved(quarters().resize((width, height)), "JPEG", **FULL, **options)


@pytest.mark.parametrize(
    ("size", "reduction"),
    [
        ((1279, 900), 1),
        ((1280, 900), 2),
        ((2559, 1700), 2),
        ((2560, 1700), 4),
        ((5120, 20), 8),
        ((1281, 1282), 2),
        ((1281, 1281), 2),
    ],
)
def test_decode_of_large_jpeg_is_reduced_with_its_full_size(
    size: tuple[int, int], reduction: int
) -> None:
    decoded = decode(large(*size), max_pixels=50_000_000, image_size=640)
    assert (decoded.info.width, decoded.info.height) == size
    height, width = decoded.pixels.shape[:2]
    assert (width, height) == (-(-size[0] // reduction), -(-size[1] // reduction))
    assert max(width, height) >= min(640, max(size))
    assert_corners(decoded.pixels, CORNERS)


def test_decode_of_large_jpeg_without_image_size_is_in_full() -> None:
    assert decode(large(1300, 900), max_pixels=50_000_000).pixels.shape == (900, 1300, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_decode_of_turned_jpeg_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = large(1300, 900, exif=exif)
    reduced = decode(data, max_pixels=50_000_000, image_size=640)
    full = decode(data, max_pixels=50_000_000)
    assert reduced.info == full.info
    rows, columns = reduced.pixels.shape[:2]
    assert (rows * 2, columns * 2) == full.pixels.shape[:2]
    expected = cv2.resize(full.pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.pixels.astype(int) - expected).mean() < 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: saved(quarters().convert("CMYK").resize((1300, 900)), "JPEG", **FULL),
        lambda: saved(quarters().convert("L").resize((1300, 900)), "JPEG", **FULL),
        lambda: large(1300, 900, progressive=True),
    ],
    ids=["cmyk", "grey", "progressive"],
)
def test_reduced_decode_of_unusual_jpeg_is_like_the_full_one(make: Callable[[], bytes]) -> None:
    reduced = decode(make(), max_pixels=50_000_000, image_size=640).pixels
    full = cv2.resize(decode(make(), max_pixels=50_000_000).pixels, (650, 450))
    assert reduced.shape == full.shape
    assert np.abs(reduced.astype(int) - full).mean() < 1


def test_reduced_decode_of_a_truncated_jpeg_is_corrupt() -> None:
    data = large(1300, 900)
    with pytest.raises(BadImageError) as refusal:
        decode(data[: len(data) // 2], max_pixels=50_000_000, image_size=640)
    assert refusal.value.code is ErrorCode.CORRUPT_IMAGE


def test_decode_of_other_formats_is_never_reduced() -> None:
    data = saved(quarters().resize((1300, 900)), "PNG")
    assert decode(data, max_pixels=50_000_000, image_size=640).pixels.shape == (900, 1300, 3)


def test_png_with_a_side_that_libpng_does_not_read_is_too_large() -> None:
    data = bytearray(saved(Image.new("L", (8, 1)), "PNG"))
    data[16:20] = (1_000_001).to_bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    with pytest.raises(BadImageError, match="more than 1,000,000 on one side") as raised:
        decode(bytes(data), max_pixels=10**8)
    assert raised.value.code is ErrorCode.IMAGE_TOO_LARGE
