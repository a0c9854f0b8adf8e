"""Which images are made from an image, as a source's settings choose it."""

from dataclasses import dataclass
from enum import StrEnum

MAX_SIDE = 2048  # largest `DeriveOptions.max_side`, in pixels
MAX_NORMALIZED_PIXELS = 4_000_000  # largest `Normalized.max_pixels`
MAX_CROPS = 100  # largest `Crops.max_count`
MAX_MARGIN = 1.0  # largest margin of a crop or of a redacted region
# The most that an encoded image takes, even if it is noise: 1 byte per pixel was measured for JPEG
# of quality 85, and for PNG the three samples, and one byte per row.
_HEADER_BYTES = 4096
_JPEG_BYTES_PER_PIXEL = 1.25
_NORMALIZED_BYTES_PER_PIXEL = 4  # also of a JPEG that is one pixel wide, with blocks of 16 pixels


class RedactionMode(StrEnum):
    """How a region is made unrecognisable."""

    BLUR = "blur"
    MOSAIC = "mosaic"


class NormalizedFormat(StrEnum):
    """The file format of a normalized image."""

    JPEG = "jpeg"
    PNG = "png"


@dataclass(frozen=True)
class Crops:
    """One crop for each detection.

    `labels` are those of the detections. None: every label. `margin` is added on each side of the
    box, as a share of the box's width and height. `max_count` is the most crops of one image. The
    most confident detections come first. There are fewer crops if all images of
    `DeriveOptions` together would have more than `max_output_bytes` bytes.
    """

    labels: tuple[str, ...] | None = None
    margin: float = 0.1
    max_count: int = 20


@dataclass(frozen=True)
class Redaction:
    """The box of each detection with one of these labels is made unrecognisable.

    `labels` of None stands for every label. `margin` is added on each side of the box, as a share
    of the box's width and height.
    """

    labels: tuple[str, ...] | None = None
    mode: RedactionMode = RedactionMode.BLUR
    margin: float = 0.1


@dataclass(frozen=True)
class Normalized:
    """An upright RGB image of at most `max_pixels` pixels, and its YOLO label file."""

    max_pixels: int = 1_000_000
    format: NormalizedFormat = NormalizedFormat.JPEG


@dataclass(frozen=True)
class DeriveOptions:
    """Which images are made from an image. None and False: not this kind.

    No image is enlarged. The longer side of the annotated and the redacted image is at most
    `max_side` pixels, and crops are cut out of an image of this size. With `redaction`, there is a
    redacted image, and every other derived image is made from redacted pixels.
    """

    thumbnail_side: int | None = 320  # longer side in pixels
    annotated: bool = False
    crops: Crops | None = None
    redaction: Redaction | None = None
    normalized: Normalized | None = None
    max_side: int = 1280

    def __post_init__(self) -> None:
        """Check the limits, because the memory plan depends on them.

        Raises:
            ValueError: a value is out of range.
        """
        crops, redaction, normalized = self.crops, self.redaction, self.normalized
        margins = [part.margin for part in (crops, redaction) if part]
        if not (
            1 <= self.max_side <= MAX_SIDE
            and (self.thumbnail_side is None or 1 <= self.thumbnail_side <= self.max_side)
            and (crops is None or 1 <= crops.max_count <= MAX_CROPS)
            and (normalized is None or 1 <= normalized.max_pixels <= MAX_NORMALIZED_PIXELS)
            and all(0 <= margin <= MAX_MARGIN for margin in margins)
        ):
            raise ValueError(f"A value is out of range: {self}")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is made."""
        return not (
            self.thumbnail_side or self.annotated or self.crops or self.redaction or self.normalized
        )

    @property
    def max_output_bytes(self) -> int:
        """The most bytes that all images made from one image can have together."""
        sides = [self.max_side] * sum(
            bool(part) for part in (self.annotated, self.crops, self.redaction)
        )
        if self.thumbnail_side:
            sides.append(self.thumbnail_side)
        sizes = [_HEADER_BYTES + int(_JPEG_BYTES_PER_PIXEL * side**2) for side in sides]
        if self.normalized:
            pixels = self.normalized.max_pixels
            sizes.append(_HEADER_BYTES + _NORMALIZED_BYTES_PER_PIXEL * pixels)
        return sum(sizes)


NOTHING = DeriveOptions(thumbnail_side=None)
LARGEST_OPTIONS = DeriveOptions(
    thumbnail_side=MAX_SIDE,
    annotated=True,
    crops=Crops(max_count=MAX_CROPS),
    redaction=Redaction(),
    normalized=Normalized(MAX_NORMALIZED_PIXELS),
    max_side=MAX_SIDE,
)
