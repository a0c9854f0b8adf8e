"""Which images are made from an image, as a source's settings choose it."""

from dataclasses import dataclass
from enum import StrEnum

MAX_SIDE = 2560  # largest `DeriveOptions.max_side`, in pixels
MAX_NORMALIZED_PIXELS = 8_000_000  # largest `Normalized.max_pixels`
MAX_CROPS = 100  # largest `Crops.max_count`
MAX_MARGIN = 1.0  # largest margin of a crop or of a redacted region
_HEADER_BYTES = 4096  # of an encoded image, at most
# An encoded pixel takes at most as many bytes as its three samples, even in an image of noise.
_BYTES_PER_PIXEL = 3


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
    most confident detections come first. There are fewer crops if together they would take more
    bytes than one image of `DeriveOptions.max_side`.
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
        side_pixels = self.max_side**2
        pixels = [
            (self.thumbnail_side or 0) ** 2,
            side_pixels if self.annotated else 0,
            side_pixels if self.crops else 0,
            side_pixels if self.redaction else 0,
            self.normalized.max_pixels if self.normalized else 0,
        ]
        return sum(_BYTES_PER_PIXEL * count + _HEADER_BYTES for count in pixels if count)


# The most bytes that the derived images of one image can have, whatever its source asks for.
LARGEST_OUTPUT_BYTES = DeriveOptions(
    annotated=True,
    crops=Crops(),
    redaction=Redaction(),
    normalized=Normalized(MAX_NORMALIZED_PIXELS),
    max_side=MAX_SIDE,
).max_output_bytes
