"""JPEG: what its segments say, and its pixels by libjpeg-turbo.

A file is cut down to what decides its pixels before anything reads them. Any number of other
segments, fill bytes and stray bytes is legal. Here they cost next to nothing, and none of them
hides libjpeg's warning that data are missing: it reports the first warning alone.
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
from service.images.exif import orientation_of
from service.images.opencv import imdecode
from service.images.pixels import DecodedImage, Pixels, check_pixels
from service.images.transforms import TRANSPOSED, turn_upright

SIGNATURE = b"\xff\xd8"
_SOI, _EOI = SIGNATURE, b"\xff\xd9"
# A marker that has a length (ITU-T T.81, B.1.1.3): no fill byte, TEM, RST0 to RST7 or SOI.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
# Frames that libjpeg-turbo decodes (Huffman or arithmetic coding), and names for the others.
_PROGRESSIVE, _ARITHMETIC = (0xC2, 0xCA), (0xC9, 0xCA)
_FRAMES = (0xC0, 0xC1, 0xC2, *_ARITHMETIC)
_UNSUPPORTED = {
    **dict.fromkeys((0xC3, 0xCB), "lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG"),
    0xF7: "JPEG-LS",
}
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)  # DHT, DAC, DQT, DRI
_COLOUR_SPACE = (0xE0, 0xEE)  # JFIF's and Adobe's segments, from which libjpeg takes it
# Segments with the orientation, and with the number of images in the file.
_DESCRIPTIONS = (
    (0xE1, b"Exif\0\0"),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    (0xE2, b"MPF\0"),
)
_MAX_DESCRIPTIONS = 100
_LATE_HEIGHT = b"\xff\xdc\0\4"  # a DNL segment (T.81, B.2.5)
_MIN_SCAN_BYTES = 10  # of a scan's header for one component (T.81, B.2.3)
_UNKNOWN = 16  # more than any bit

# Limits on cost. A segment takes a microsecond to read, a scan some nanoseconds for each pixel of
# the image. mozjpeg writes 12 scans; 40 of the largest image are allowed.
_MAX_SEGMENTS = 100_000
_MAX_SCANS = 1000
_MAX_SCANNED_PIXELS = 2_000_000_000
_ARITHMETIC_COST = 8  # times that of a scan in Huffman codes

# libjpeg's words (jerror.h: JWRN_HIT_MARKER, JWRN_JPEG_EOF, JWRN_MUST_RESYNC).
_MISSING = re.compile(r"premature end|found marker 0x(?!d[0-7])", re.IGNORECASE)
_FOLLOWING = b"Z" * 64
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
_NOT_SUPPORTED = re.compile(
    r"unsupported (?!marker)|not (yet )?(implemented|supported)", re.IGNORECASE
)


class Jpeg:
    """One JPEG file, or the first image of an MPO."""

    def __init__(self, data: bytes) -> None:
        """Read what is not pixels.

        Raises:
            BadImageError: the file is damaged, or of a kind of JPEG that is not supported.
        """
        frame, header, self._stream = _essence(data)
        self._cost = frame.scans * (_ARITHMETIC_COST if frame.is_arithmetic else 1)
        try:
            with JpegImagePlugin.jpeg_factory(io.BytesIO(header)) as image:
                self._orientation = orientation_of(image)
                self.info = ImageInfo(frame.width, frame.height, str(image.format))
        except (SyntaxError, ValueError, OSError) as exc:
            raise BadImageError.corrupt("The JPEG's header is damaged.") from exc

    def decode(self, image_size: int | None) -> DecodedImage:
        """Decode, turned upright.

        Args:
            image_size: longer side that the model sees, in pixels. An image at least twice as
                large is decoded at a half, a quarter or an eighth, by libjpeg's scaled inverse
                DCT, and so never below this. None decodes in full.

        Raises:
            BadImageError: data are missing, the file is damaged, or not supported.
            MemoryError: there is no memory now.
        """
        width, height = self.info.width, self.info.height
        if self._cost * width * height > _MAX_SCANNED_PIXELS:
            raise _too_many_parts()
        factors = (n for n in (8, 4, 2) if image_size and max(width, height) >= n * image_size)
        factor = next(factors, 1)
        pixels = turn_upright(_decoded(self._stream, self.info, factor), self._orientation)
        if self._orientation in TRANSPOSED:
            width, height = height, width
        return DecodedImage(pixels, ImageInfo(width, height, self.info.format))


@dataclass
class _Frame:
    """An image's frame, and which of its data the scans so far have."""

    segment: bytes
    code: int
    scans: int = 0

    def __post_init__(self) -> None:
        """Read the header (T.81, B.2.2); zeros where it is cut short."""
        self.is_progressive = self.code in _PROGRESSIVE
        self.is_arithmetic = self.code in _ARITHMETIC
        header = self.segment.ljust(10, b"\0")
        self.precision, self.channels = header[4], header[9]
        self.height, self.width = int.from_bytes(header[5:7]), int.from_bytes(header[7:9])
        # For each component, the lowest bit that is known of each of its 64 coefficients.
        self._known = {c: [_UNKNOWN] * 64 for c in header[10 : 10 + 3 * header[9] : 3]}

    def note(self, scan: bytes) -> None:
        """Take a scan's header: its components, its range of coefficients, its bit (B.2.3)."""
        self.scans += 1
        first, last, bits = scan[-3:] if self.is_progressive else (0, 63, 0)
        for known in (self._known[c] for c in scan[5:-3:2] if c in self._known):
            known[first : last + 1] = [bits & 15] * len(known[first : last + 1])

    @property
    def is_begun(self) -> bool:
        """Whether there are data of every component."""
        return all(known[0] != _UNKNOWN for known in self._known.values())

    @property
    def is_complete(self) -> bool:
        """Whether there is every bit of every component."""
        return not any(bit for known in self._known.values() for bit in known)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield code, start and end of each segment, up to and including the end of the image."""
    end = 2
    while found := _MARKER.search(data, end):
        code, start, end = found[1][0], found.start(), found.end()
        if code != _END_OF_IMAGE:
            end += max(int.from_bytes(data[end : end + 2]), 2)
        yield code, start, end
        if code == _END_OF_IMAGE:
            return


def _essence(data: bytes) -> tuple[_Frame, bytes, bytes]:
    """Return the frame, a header for Pillow, and a whole file for libjpeg.

    The file gets an end: without one it may still have all of its pixels.
    """
    frame: _Frame | None = None
    described, decoded = [_SOI], [_SOI]
    first_scan = b""
    begin, end, has_end = len(data), len(data), False
    for count, (code, start, stop) in enumerate(_segments(data)):
        segment = data[start:stop]
        if count > _MAX_SEGMENTS:
            raise _too_many_parts()
        if code == _END_OF_IMAGE or (frame and frame.is_complete and not frame.is_progressive):
            end, has_end = start, True  # libjpeg reads nothing after all of a sequential image
            break
        if code == _START_OF_SCAN:
            if not frame or len(segment) < _MIN_SCAN_BYTES:
                break
            if not frame.scans:
                begin, first_scan = start, segment
            frame.note(segment)
            if frame.scans > _MAX_SCANS:
                raise _too_many_parts()
        elif first_scan:
            continue  # between scans: kept as it is
        elif code in _UNSUPPORTED:
            raise BadImageError.unsupported(_UNSUPPORTED[code])
        elif code in _FRAMES:
            frame = frame or _Frame(segment, code)
            decoded.append(segment)
        elif code in _TABLES or code in _COLOUR_SPACE:
            decoded.append(segment)
        elif any(code == c and segment[4:].startswith(name) for c, name in _DESCRIPTIONS):
            described.append(segment)
    if not frame or not first_scan:
        raise BadImageError.corrupt("The JPEG ends before its pixels.")
    if frame.precision != 8:
        raise BadImageError.unsupported(f"JPEG with {frame.precision} bits per channel")
    if frame.channels not in (1, 3, 4):
        raise BadImageError.unsupported(f"JPEG with {frame.channels} channels")
    if not frame.height and _LATE_HEIGHT in data:
        raise BadImageError.unsupported("JPEG with its height after its pixels (DNL segment)")
    if not frame.is_begun or (frame.is_progressive and not has_end and not frame.is_complete):
        raise BadImageError.corrupt("The JPEG lacks some of its scans.")
    header = b"".join((*described[: 1 + _MAX_DESCRIPTIONS], frame.segment, first_scan))
    return frame, header, b"".join((*decoded, data[begin:end], _EOI))


def _decoded(stream: bytes, info: ImageInfo, factor: int) -> Pixels:
    """Decode. Of libjpeg's warnings, only missing data are an error."""
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
    return _despite_warnings(stream, info, factor, reason)


def _despite_warnings(stream: bytes, info: ImageInfo, factor: int, reason: str) -> Pixels:
    """Decode after a warning, or with rare sampling factors, which libjpeg-turbo rejects.

    After a first warning libjpeg-turbo's own interface reports nothing more, not even that it gave
    up and left memory unwritten. OpenCV uses libjpeg's older interface. It returns only whole
    images, but hides warnings. To detect missing data, decode twice, with different bytes after the
    data of each scan and restart interval: if data are missing, the pixels differ.
    """
    size = {"width": info.width, "height": info.height, "factor": factor}
    pixels = imdecode(stream, **size)
    if pixels is None:
        raise BadImageError.corrupt(f"The JPEG is damaged: {reason}.")
    followed = imdecode(_followed(stream), **size)
    if followed is None or not np.array_equal(pixels, followed):
        raise BadImageError.corrupt("The JPEG lacks some of its data.")
    return pixels


def _followed(stream: bytes) -> bytes:
    """Put meaningless bytes behind the data of each scan and of each restart interval."""
    segments = list(_segments(stream))
    parts, at = [], 0
    for (code, _, begin), (_, end, _) in pairwise(segments):
        if code == _START_OF_SCAN:
            data = stream[begin:end].rstrip(b"\xff")  # fill bytes
            parts += [stream[at:begin], _RESTART.sub(rb"%b\g<0>" % _FOLLOWING, data), _FOLLOWING]
            at = end
    return b"".join((*parts, stream[at:]))


def _too_many_parts() -> BadImageError:
    return BadImageError.corrupt("The JPEG has more segments or scans than the limit allows.")
