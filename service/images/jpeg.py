"""JPEG: this module reads the segments, libjpeg-turbo decodes the pixels.

Each file is first reduced to the segments that determine its pixels. A JPEG may have any number of
other segments, fill bytes and stray bytes. Without them, a file costs no more than its pixels do,
and nothing hides missing data: libjpeg-turbo reports only its first warning.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import simplejpeg
from PIL import JpegImagePlugin

from service.domain import ImageInfo
from service.errors import BadImageError
from service.images.exif import capture_of, orientation_of
from service.images.opencv import imdecode
from service.images.pixels import DecodedImage, Pixels, check_pixels
from service.images.transforms import TRANSPOSED, turn_upright

SIGNATURE = b"\xff\xd8"
_SOI, _EOI = SIGNATURE, b"\xff\xd9"
# A marker that begins a segment, or EOI (ITU-T T.81, B.1.1.3). Not a fill byte, TEM, RST or SOI.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
# Frame types (SOF): those that libjpeg-turbo decodes, then those that it does not decode.
_PROGRESSIVE, _ARITHMETIC = (0xC2, 0xCA), (0xC9, 0xCA)
_FRAMES = (0xC0, 0xC1, 0xC2, *_ARITHMETIC)
_UNSUPPORTED = {
    **dict.fromkeys((0xC3, 0xCB), "lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG"),
    0xF7: "JPEG-LS",
}
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)  # DHT, DAC, DQT, DRI
_COLOUR_SPACE = (0xE0, 0xEE)  # JFIF and Adobe segments: libjpeg takes the colour space from them
# Segments with the orientation (EXIF, XMP) and with the number of images in the file (MPF).
_DESCRIPTIONS = (
    (0xE1, b"Exif\0\0"),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    (0xE2, b"MPF\0"),
)
_MAX_DESCRIPTIONS = 100
_LATE_HEIGHT = b"\xff\xdc\0\4"  # start of a DNL segment (T.81, B.2.5)
_MIN_SCAN_BYTES = 10  # a scan's header for one component (T.81, B.2.3)
_UNKNOWN = 16  # no bit received yet. Coefficients have no bit with this number.

# Limits on cost. Reading a segment takes a microsecond, and decoding a scan takes some nanoseconds
# per pixel of the image. mozjpeg writes 12 scans. With 50 megapixels, an image may have 40.
_MAX_SEGMENTS = 100_000
_MAX_SCANS = 1000
_MAX_SCANNED_PIXELS = 2_000_000_000
_ARITHMETIC_COST = 8  # a scan in arithmetic coding takes this many times as long

# Messages of libjpeg (jerror.h: JWRN_HIT_MARKER, JWRN_JPEG_EOF, JWRN_MUST_RESYNC).
_MISSING = re.compile(r"premature end|found marker 0x(?!d[0-7])", re.IGNORECASE)
_PADDING = b"Z" * 64
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
_NOT_SUPPORTED = re.compile(
    r"unsupported (?!marker)|not (yet )?(implemented|supported)", re.IGNORECASE
)


class Jpeg:
    """One JPEG file, or the first image of an MPO."""

    def __init__(self, data: bytes) -> None:
        """Read all segments, but decode no pixels.

        Raises:
            BadImageError: the file is damaged or of an unsupported kind of JPEG.
        """
        frame, header, self._stream = _reduce(data)
        self._cost = frame.scans * (_ARITHMETIC_COST if frame.is_arithmetic else 1)
        try:
            with JpegImagePlugin.jpeg_factory(io.BytesIO(header)) as image:
                self._orientation = orientation_of(image)
                self._capture = capture_of(image)
                self.info = ImageInfo(frame.width, frame.height, str(image.format))
        except (SyntaxError, ValueError, OSError) as exc:
            raise BadImageError.corrupt("The JPEG's header is damaged.") from exc

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode to upright uint8 BGR pixels.

        Args:
            image_size: longer side of the image as the model gets it, in pixels. libjpeg's scaled
                inverse DCT decodes an image at least twice as large at 1/2, 1/4 or 1/8, but never
                below this size. None: decode in full.

        Raises:
            BadImageError: data are missing, or the file is damaged or unsupported.
            MemoryError: there is not enough memory now.
        """
        width, height = self.info.width, self.info.height
        if self._cost * width * height > _MAX_SCANNED_PIXELS:
            raise _too_many_parts()
        factors = (n for n in (8, 4, 2) if image_size and max(width, height) >= n * image_size)
        factor = next(factors, 1)
        pixels = turn_upright(_decode_pixels(self._stream, self.info, factor), self._orientation)
        if self._orientation in TRANSPOSED:
            width, height = height, width
        return DecodedImage(pixels, ImageInfo(width, height, self.info.format), self._capture)


@dataclass
class _Frame:
    """The frame of an image (T.81, B.2.2), and which coefficients its scans contain so far."""

    segment: bytes
    code: int
    scans: int = 0

    def __post_init__(self) -> None:
        """Parse the frame header. Missing bytes of a truncated header count as zeros."""
        self.is_progressive = self.code in _PROGRESSIVE
        self.is_arithmetic = self.code in _ARITHMETIC
        header = self.segment.ljust(10, b"\0")
        self.precision, self.channels = header[4], header[9]
        self.height, self.width = int.from_bytes(header[5:7]), int.from_bytes(header[7:9])
        # For each component id, the lowest bit received so far of each of its 64 coefficients.
        self._lowest_bits = {c: [_UNKNOWN] * 64 for c in header[10 : 10 + 3 * header[9] : 3]}

    def add_scan(self, scan: bytes) -> None:
        """Record which bit of which coefficients and components a scan contains (T.81, B.2.3)."""
        self.scans += 1
        first, last, bit = scan[-3:] if self.is_progressive else (0, 63, 0)
        for bits in (self._lowest_bits[c] for c in scan[5:-3:2] if c in self._lowest_bits):
            bits[first : last + 1] = [bit & 15] * len(bits[first : last + 1])

    @property
    def has_all_components(self) -> bool:
        """Whether the scans contain some data of every component."""
        return all(bits[0] != _UNKNOWN for bits in self._lowest_bits.values())

    @property
    def is_complete(self) -> bool:
        """Whether the scans contain every bit of every component."""
        return not any(bit for bits in self._lowest_bits.values() for bit in bits)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker code, start and end of each segment, up to and including the EOI marker."""
    end = 2
    while marker := _MARKER.search(data, end):
        code, start, end = marker[1][0], marker.start(), marker.end()
        if code != _END_OF_IMAGE:
            end += max(int.from_bytes(data[end : end + 2]), 2)
        yield code, start, end
        if code == _END_OF_IMAGE:
            return


def _reduce(data: bytes) -> tuple[_Frame, bytes, bytes]:
    """Return the frame, a header for Pillow, and a file for libjpeg that has only the pixels.

    The file for libjpeg always ends with EOI, because a JPEG that lacks EOI may still contain all
    of its pixels.

    Raises:
        BadImageError: the file is damaged or of an unsupported kind of JPEG.
    """
    frame: _Frame | None = None
    descriptions, pixel_segments = [_SOI], [_SOI]
    first_scan = b""
    begin, end, has_end = len(data), len(data), False
    for count, (code, start, stop) in enumerate(_segments(data)):
        segment = data[start:stop]
        if count > _MAX_SEGMENTS:
            raise _too_many_parts()
        if code == _END_OF_IMAGE or (frame and frame.is_complete and not frame.is_progressive):
            end, has_end = start, True  # libjpeg reads nothing after a complete sequential image
            break
        if code == _START_OF_SCAN:
            if not frame or len(segment) < _MIN_SCAN_BYTES:
                break
            if not frame.scans:
                begin, first_scan = start, segment
            frame.add_scan(segment)
            if frame.scans > _MAX_SCANS:
                raise _too_many_parts()
        elif first_scan:
            continue  # everything between scans is kept
        elif code in _UNSUPPORTED:
            raise BadImageError.unsupported(_UNSUPPORTED[code])
        elif code in _FRAMES:
            frame = frame or _Frame(segment, code)
            pixel_segments.append(segment)
        elif code in _TABLES or code in _COLOUR_SPACE:
            pixel_segments.append(segment)
        elif any(code == c and segment[4:].startswith(name) for c, name in _DESCRIPTIONS):
            descriptions.append(segment)
    if not frame or not first_scan:
        raise BadImageError.corrupt("The JPEG ends before its pixels.")
    if frame.precision != 8:
        raise BadImageError.unsupported(f"JPEG with {frame.precision} bits per channel")
    if frame.channels not in (1, 3, 4):
        raise BadImageError.unsupported(f"JPEG with {frame.channels} channels")
    if not frame.height and _LATE_HEIGHT in data:
        raise BadImageError.unsupported("JPEG with its height after its pixels (DNL segment)")
    is_truncated = frame.is_progressive and not has_end and not frame.is_complete
    if not frame.has_all_components or is_truncated:
        raise BadImageError.corrupt("The JPEG lacks some of its scans.")
    header = b"".join((*descriptions[: 1 + _MAX_DESCRIPTIONS], frame.segment, first_scan))
    return frame, header, b"".join((*pixel_segments, data[begin:end], _EOI))


def _decode_pixels(stream: bytes, info: ImageInfo, factor: int) -> Pixels:
    """Decode at 1/`factor`. libjpeg's warnings are errors only if data are missing."""
    scale = {
        "min_width": -(-info.width // factor),  # rounded up, as libjpeg does (jdmaster.c)
        "min_height": -(-info.height // factor),
        "min_factor": factor,
    }
    try:
        return check_pixels(simplejpeg.decode_jpeg(stream, "BGR", strict=True, **scale))
    except ValueError as exc:
        reason = str(exc)
    if reason.startswith("Insufficient memory"):
        raise MemoryError
    if _MISSING.search(reason):
        raise BadImageError.corrupt("The JPEG lacks some of its data.")
    if _NOT_SUPPORTED.search(reason):
        raise BadImageError.unsupported(f"This kind of JPEG ({reason})")
    return _decode_despite_warning(stream, info, factor, reason)


def _decode_despite_warning(stream: bytes, info: ImageInfo, factor: int, reason: str) -> Pixels:
    """Decode with OpenCV after a warning, or with sampling factors that libjpeg-turbo rejects.

    After its first warning, libjpeg-turbo's own interface reports nothing more, not even that it
    gave up and left memory unwritten. OpenCV uses libjpeg's older interface, which returns only
    complete images, but hides warnings. To detect missing data, decode a second time with padding
    after the data of each scan and restart interval. If data are missing, the decoder reads the
    padding instead, and the pixels differ.

    Raises:
        BadImageError: the file is damaged, or data are missing. `reason` is libjpeg's warning.
        MemoryError: there is not enough memory now.
    """
    size = {"width": info.width, "height": info.height, "factor": factor}
    pixels = imdecode(stream, **size)
    if pixels is None:
        raise BadImageError.corrupt(f"The JPEG is damaged: {reason}.")
    pixels_with_padding = imdecode(_pad_scans(stream), **size)
    if pixels_with_padding is None or not np.array_equal(pixels, pixels_with_padding):
        raise BadImageError.corrupt("The JPEG lacks some of its data.")
    return pixels


def _pad_scans(stream: bytes) -> bytes:
    """Insert padding after the data of each scan and of each restart interval."""
    parts, copied = [], 0
    for (code, _, begin), (_, end, _) in pairwise(_segments(stream)):
        if code == _START_OF_SCAN:
            data = stream[begin:end].rstrip(b"\xff")  # fill bytes
            parts += [stream[copied:begin], _RESTART.sub(rb"%b\g<0>" % _PADDING, data), _PADDING]
            copied = end
    return b"".join((*parts, stream[copied:]))


def _too_many_parts() -> BadImageError:
    return BadImageError.corrupt("The JPEG has more segments or scans than the limit allows.")
