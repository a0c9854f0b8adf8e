"""Bytes to an upright picture within limits, and the geometry of the letterbox."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from service import sandbox
from service.domain import Box, ErrorCode, ImageInfo
from service.errors import BadImageError, DecoderBusyError

# Pillow reads the header (format, size, no pixels); OpenCV decodes, as ultralytics does, so that
# both see the same pixels. These are the formats that both know.
_PLUGINS = (
    AvifImagePlugin.AvifImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    Jpeg2KImagePlugin.Jpeg2KImageFile,
    JpegImagePlugin.JpegImageFile,  # and MPO: several pictures, of which the first counts
    PngImagePlugin.PngImageFile,
    PpmImagePlugin.PpmImageFile,
    TiffImagePlugin.TiffImageFile,
    WebPImagePlugin.WebPImageFile,
)
FORMATS = tuple(str(plugin.format) for plugin in _PLUGINS)
_REDUCIBLE = ("JPEG", "MPO")
_NO_MEMORY = -4  # cv2.Error.StsNoMem
_READ_AT = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_PREFIX_BYTES = 16  # what Pillow hands to a format's signature test

# Formats whose few bytes can cost OpenCV gigabytes or minutes: what their pixels say of the size
# need not be what their header says, and a GIF can clear its table with every code.
_SANDBOXED = ("AVIF", "GIF", "JPEG2000", "TIFF")
# OpenCV's most is 12 a pixel: a GIF's, or a progressive JPEG's that is turned.
_SANDBOX_BYTES, _SANDBOX_BYTES_PER_PIXEL = 256 * 2**20, 16
_WEIGHTS = {"AVIF": 2, "JPEG2000": 2}  # decoders that take twice that
_NATIVE_HEADERS = ("AVIF", "WEBP")  # which Pillow has a native library read

# More parts than encoders write, which cost some reader time or memory for each: mozjpeg writes 12
# scans; a 360-degree JPEG carries its depth in some hundred segments; a PNG of 50 MB in rows of
# 512 bytes has 100,000 chunks.
_MAX_SCANS = 100
_MAX_SEGMENTS = 1000
_MAX_CHUNKS = 100_000
_MAX_PACKED_CHUNKS = 4  # a PNG's that unpack, to 8 MB each at most (libpng's limit)
_SOS, _EOI = b"\xff\xda", b"\xff\xd9"
_SEQUENTIAL = (b"\xff\xc0", b"\xff\xc1")
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # with a length; a scan's data has none
_PNG_SIGNATURE, _IEND = b"\x89PNG\r\n\x1a\n", b"IEND"
_MAX_PPM_HEADER_BYTES = 4096  # which Pillow reads byte by byte

# Pictures are worked on side by side already; OpenCV's own threads would only cost.
cv2.setNumThreads(1)
Image.MAX_IMAGE_PIXELS = None  # our own limit takes its place: it refuses, rather than warns

Pixels = NDArray[np.uint8]  # HxWx3, BGR


@dataclass(frozen=True)
class Picture:
    """A decoded picture: uint8 HxWx3 BGR pixels, upright, and what its file said."""

    pixels: Pixels
    info: ImageInfo


def decode(
    data: bytes, *, max_pixels: int, image_size: int | None = None, apart: bool = False
) -> Picture:
    """Decode a picture, turned upright by its EXIF orientation, 8 bits a channel, no alpha.

    Args:
        data: the file.
        max_pixels: pictures of more pixels are refused.
        image_size: longer side that the network sees, in pixels. A JPEG at least twice as large
            is decoded at a half, a quarter or an eighth, by libjpeg's scaled inverse DCT, and so
            never below this; None decodes in full. `Picture.info` has the full size either way.
        apart: let no native library see the file in this process, as it may crash there.

    Raises:
        BadImageError: not a picture, a damaged one, or one of more than `max_pixels` pixels; the
            size is read from the header, before any memory for the pixels is taken.
        DecoderBusyError: no memory now.
    """
    stored = _stored(data, max_pixels=max_pixels, apart=apart)
    image_format, width, height = stored.format, stored.width, stored.height
    reduction = 1
    if image_size and image_format in _REDUCIBLE:
        reduction = _reduction(width, height, image_size)
    pixels = _pixels(data, stored, _READ_AT[reduction], apart=apart)
    if pixels is None or pixels.size == 0:
        raise BadImageError(
            ErrorCode.CORRUPT_IMAGE,
            f"The {image_format} file is damaged, cut short, or takes too much to decode.",
        )
    upright = np.asarray(pixels, np.uint8)
    if upright.shape[0] * upright.shape[1] > max_pixels:  # its header said less
        raise _too_large(upright.shape[1], upright.shape[0], f"MAX_IMAGE_PIXELS={max_pixels}")
    if reduction == 1:
        height, width = upright.shape[:2]
    elif upright.shape[:2] != _reduced(height, width, reduction):  # turned by its orientation
        width, height = height, width
    return Picture(upright, ImageInfo(width, height, image_format))


def is_sandboxed(data: bytes) -> bool:
    """Say whether `decode` has a process of its own decode such a file, one at a time."""
    kind = _kind(data)
    return kind in _SANDBOXED or (kind == "PNG" and _is_odd_png(data))


def _stored(data: bytes, *, max_pixels: int, apart: bool) -> ImageInfo:
    """Read the header; of what may not be read here, say that it is as large as allowed."""
    kind = _kind(data)
    if apart and kind in _NATIVE_HEADERS:
        return ImageInfo(max_pixels // _WEIGHTS.get(kind, 1), 1, kind)
    return inspect(data, max_pixels=max_pixels)


def _pixels(data: bytes, stored: ImageInfo, flags: int, *, apart: bool) -> Any:
    """Let OpenCV decode, in the sandbox what may need it; None for what it cannot read."""
    pixels = stored.width * stored.height
    try:
        if apart or is_sandboxed(data):
            per_pixel = _SANDBOX_BYTES_PER_PIXEL * _WEIGHTS.get(stored.format, 1)
            max_bytes = _SANDBOX_BYTES + pixels * per_pixel
            return sandbox.imdecode(data, flags=flags, max_bytes=max_bytes)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if decoded is None:  # what codecs say of a damaged file and of no memory alike: which?
            np.empty(2 * pixels * 3, np.uint8)
        return decoded
    except cv2.error as exc:
        if exc.code == _NO_MEMORY:
            raise DecoderBusyError("There is no memory to decode the picture now.") from exc
        return None
    except (MemoryError, OSError) as exc:
        raise DecoderBusyError("There is no memory to decode the picture now.") from exc


def inspect(data: bytes, *, max_pixels: int) -> ImageInfo:
    """Read format and size, as stored (before EXIF), from the header; no pixels.

    Raises:
        BadImageError: not a picture, or one of more than `max_pixels` pixels, or of half as many
            of a format whose decoder takes twice the memory.
    """
    if not data:
        raise BadImageError(ErrorCode.EMPTY_OBJECT, "The object has no bytes.")
    _check_parts(data)
    image_format, width, height = _header(data)
    weight = _WEIGHTS.get(image_format, 1)
    if width * height * weight > max_pixels:
        limit = f"MAX_IMAGE_PIXELS={max_pixels}"
        if weight > 1:
            limit += f" divided by {weight}, as for every {image_format}"
        raise _too_large(width, height, limit)
    return ImageInfo(width, height, image_format)


def _too_large(width: int, height: int, limit: str) -> BadImageError:
    return BadImageError(
        ErrorCode.IMAGE_TOO_LARGE, f"The picture has {width}x{height} pixels, more than {limit}."
    )


def _reduction(width: int, height: int, image_size: int) -> int:
    """How many times smaller a JPEG of this size is decoded: 1, 2, 4 or 8."""
    for reduction in (8, 4, 2):
        small = _reduced(height, width, reduction)
        # Of a picture that is square when reduced, and not before, nobody could tell whether its
        # orientation has turned it.
        if max(width, height) >= reduction * image_size and (
            small[0] != small[1] or width == height
        ):
            return reduction
    return 1


def _reduced(height: int, width: int, reduction: int) -> tuple[int, int]:
    """Size of a picture that libjpeg reduces (jdmaster.c: rounded up), height first."""
    return -(-height // reduction), -(-width // reduction)


def _header(data: bytes) -> tuple[str, int, int]:
    """Read format, width and height (as stored, before EXIF) without decoding."""
    if data.startswith((b"GIF87a", b"GIF89a")):
        width, height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
        if width and height:  # Pillow would gather a million comments
            return "GIF", width, height
    if data.startswith(b"P"):  # of a PPM
        data = data[:_MAX_PPM_HEADER_BYTES]
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return str(image.format), image.width, image.height
    except MemoryError as exc:
        raise DecoderBusyError("There is no memory to read the picture now.") from exc
    except Exception as exc:  # noqa: BLE001 - Pillow's parsers raise many kinds on damaged headers
        if _kind(data):
            raise BadImageError(
                ErrorCode.CORRUPT_IMAGE, "The picture's header is damaged or cut short."
            ) from exc
        raise BadImageError(
            ErrorCode.UNSUPPORTED_MEDIA,
            "The object is not a picture of a supported format: " + ", ".join(sorted(FORMATS)),
        ) from exc


def _check_parts(data: bytes) -> None:
    """Refuse a JPEG or PNG of more parts than any encoder writes.

    Raises:
        BadImageError: it has more.
    """
    is_sane = True
    if data.startswith(b"\xff\xd8"):
        is_sane = _is_sane_jpeg(data)
    elif data.startswith(_PNG_SIGNATURE):
        is_sane = len(_png_chunks(data)[0]) <= _MAX_CHUNKS
    if not is_sane:
        raise BadImageError(
            ErrorCode.CORRUPT_IMAGE, "The file has more parts than any encoder writes."
        )


def _is_sane_jpeg(data: bytes) -> bool:
    """Count segments up to the first scan, and scans; bytes between segments count as such."""
    at = 2
    components = b""  # of a frame that may have a single scan
    for _ in range(_MAX_SEGMENTS):
        marker = data[at : at + 2]
        if marker in _SEQUENTIAL:
            components = data[at + 9 : at + 10]
        if marker == _SOS:
            if data[at + 4 : at + 5] == components:
                return True  # all in one scan: libjpeg takes no second one
            return data.count(_SOS, at) <= _MAX_SCANS or _is_sane_in_scans(data, at)
        if len(marker) < 2:
            return True  # it ends before its pixels; the decoder will say so
        at += 2 + int.from_bytes(data[at + 2 : at + 4]) if _MARKER.match(marker) else 1
    return False


def _is_sane_in_scans(data: bytes, at: int) -> bool:
    """Count scans up to the picture's end: what follows it may hold anything, as a film."""
    scans = 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if not found or found[0] == _EOI:
            return True
        scans += found[0] == _SOS
        if scans > _MAX_SCANS:
            return False
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return False


def _is_odd_png(data: bytes) -> bool:
    """Whether it is animated, or unpacks more than pixels and a profile, or ends early or late.

    For a chunk that says it is longer than the file, OpenCV takes as much memory as it says; and
    it may read on behind an end.
    """
    chunks, end = _png_chunks(data)
    if end != len(data) or chunks[-1:] != [_IEND]:
        return True
    packed = sum(chunks.count(kind) for kind in (b"zTXt", b"iTXt", b"iCCP"))
    return b"acTL" in chunks or b"fcTL" in chunks or packed > _MAX_PACKED_CHUNKS


def _png_chunks(data: bytes) -> tuple[list[bytes], int]:
    """Kinds of a PNG's chunks up to its end, as many as one more than allowed, and where it is."""
    kinds: list[bytes] = []
    at = len(_PNG_SIGNATURE)
    while len(kinds) <= _MAX_CHUNKS and at + 8 <= len(data) and kinds[-1:] != [_IEND]:
        kinds.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4])
    return kinds, at


def _kind(data: bytes) -> str | None:
    """Tell the format by the signature alone; an MPO is a JPEG, to that."""
    accepts = ((name, Image.OPEN[name][1]) for name in FORMATS if name in Image.OPEN)
    prefix = data[:_PREFIX_BYTES]
    return next((name for name, accept in accepts if accept and accept(prefix) is True), None)


@dataclass(frozen=True)
class Letterbox:
    """A picture resized into a frame whose sides are multiples of the stride, centred on grey.

    The formula is ultralytics' `LetterBox(auto=True)` with its `scale_boxes`, rounding included
    (ultralytics 8.4, data/augment.py and utils/ops.py).
    """

    resized_width: int
    resized_height: int
    left: int
    top: int
    frame_width: int
    frame_height: int
    width: int  # of the picture, in pixels
    height: int

    def apply(self, pixels: Pixels, out: Pixels | None = None) -> Pixels:
        """Return the frame: uint8, frame_height x frame_width x 3.

        Args:
            pixels: the picture.
            out: contiguous memory of the frame's shape to write into; None makes some.
        """
        resized = _resize(pixels, self.resized_width, self.resized_height)
        bottom = self.frame_height - self.resized_height - self.top
        right = self.frame_width - self.resized_width - self.left
        framed = cv2.copyMakeBorder(
            resized, self.top, bottom, self.left, right, cv2.BORDER_CONSTANT, out, value=_GREY
        )
        return np.asarray(framed, np.uint8)

    def box(self, x1: float, y1: float, x2: float, y2: float) -> Box:
        """Take a box from the frame's pixels back to the picture's, clipped to it."""
        gain_x = self.resized_width / self.width
        gain_y = self.resized_height / self.height
        return Box(
            _clip((x1 - self.left) / gain_x, self.width),
            _clip((y1 - self.top) / gain_y, self.height),
            _clip((x2 - self.left) / gain_x, self.width),
            _clip((y2 - self.top) / gain_y, self.height),
        )


_GREY = (114, 114, 114)  # the padding that YOLO is trained with


def letterbox(
    width: int, height: int, *, image_size: int, stride: int, min_frame_pixels: int = 0
) -> Letterbox:
    """Smallest frame of whole strides that holds the picture with its longer side at `image_size`.

    `image_size` is a multiple of `stride`. A frame of fewer than `min_frame_pixels` (as a very thin
    picture's would be) gets more padding at its shorter side.
    """
    resized_width, resized_height = _resized(width, height, image_size)
    frame_width = resized_width + (image_size - resized_width) % stride
    frame_height = resized_height + (image_size - resized_height) % stride
    while frame_width * frame_height < min_frame_pixels:
        if frame_width < frame_height:
            frame_width += stride
        else:
            frame_height += stride
    return _centred(width, height, image_size, (frame_height, frame_width))


# Shorter side to longer side of the pictures that cameras take: 16:9, 3:2, 4:3, and square.
_RATIOS = (9 / 16, 2 / 3, 3 / 4, 1.0)


def frame_sizes(
    image_size: int, *, stride: int, min_frame_pixels: int = 0
) -> tuple[tuple[int, int], ...]:
    """The few frames, as (height, width), that every picture is put into, smallest first.

    Few, because a network is compiled for each of them. They hold the ratios of cameras, upright
    and lying, without more padding than `letterbox` gives those; other pictures get more.
    """
    sizes = set()
    for ratio in _RATIOS:
        framed = letterbox(
            image_size, round(image_size * ratio), image_size=image_size, stride=stride,
            min_frame_pixels=min_frame_pixels,
        )  # fmt: skip
        size = framed.frame_height, framed.frame_width
        sizes |= {size, size[::-1]}
    return tuple(sorted(sizes, key=lambda size: (size[0] * size[1], size)))


def fit(width: int, height: int, *, image_size: int, sizes: Sequence[tuple[int, int]]) -> Letterbox:
    """Letterbox into the smallest of the `frame_sizes` that holds the picture.

    So the same picture always gets the same frame, whatever came before it.
    """
    resized_width, resized_height = _resized(width, height, image_size)
    size = next(s for s in sizes if s[0] >= resized_height and s[1] >= resized_width)
    return _centred(width, height, image_size, size)


def _resized(width: int, height: int, image_size: int) -> tuple[int, int]:
    scale = min(image_size / height, image_size / width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _centred(width: int, height: int, image_size: int, size: tuple[int, int]) -> Letterbox:
    resized_width, resized_height = _resized(width, height, image_size)
    frame_height, frame_width = size
    return Letterbox(
        resized_width,
        resized_height,
        left=round((frame_width - resized_width) / 2 - 0.1),
        top=round((frame_height - resized_height) / 2 - 0.1),
        frame_width=frame_width,
        frame_height=frame_height,
        width=width,
        height=height,
    )


def shrink(pixels: Pixels, *, image_size: int) -> Pixels:
    """Resize a picture down to the size that the letterbox would give it; never up.

    So a queued picture takes at most `image_size` squared pixels, and the letterbox that follows
    only pads: the network sees the same pixels as from the full picture.
    """
    height, width = pixels.shape[:2]
    if max(height, width) <= image_size:
        return pixels
    return _resize(pixels, *_resized(width, height, image_size))


def enlarge_box(box: Box, *, small: tuple[int, int], full: tuple[int, int]) -> Box:
    """Take a box from a shrunk picture to the full one; sizes are (width, height) in pixels."""
    x, y = full[0] / small[0], full[1] / small[1]
    return Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y)


def _resize(pixels: Pixels, width: int, height: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _clip(value: float, limit: int) -> float:
    return min(max(value, 0.0), float(limit))
