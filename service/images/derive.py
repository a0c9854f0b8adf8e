"""What is made from an image after its inference, and in which sizes. It needs no pixels."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import msgspec

from service.derived import (
    LARGEST_OPTIONS,
    MAX_NORMALIZED_PIXELS,
    MAX_SIDE,
    DeriveOptions,
    NormalizedFormat,
)
from service.domain import (
    MIN_KEYPOINT_CONFIDENCE,
    UNKNOWN_CLASS,
    Box,
    ClassScore,
    DerivedImage,
    DerivedKind,
    Detection,
    ImageInfo,
    Task,
)

_MAX_JPEG_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
# Rendering needs, for each pixel of the annotated image, at most: the image, the canvas, a filled
# and a blended copy, and the encoded image.
_RENDER_BYTES_PER_PIXEL = 16
_NORMALIZED_BYTES_PER_PIXEL = 8  # the pixels, and the encoded image
_FAR = 1e9  # pixels. No coordinate is beyond it.


class Region(NamedTuple):
    """Whole pixels: left and top are inside, right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Output:
    """One image that a decoder process makes. `crop` is a region of the image of `max_side`."""

    kind: DerivedKind
    width: int
    height: int
    is_png: bool = False
    class_id: int | None = None
    crop: Region | None = None

    @property
    def content_type(self) -> str:
        """The media type."""
        return "image/png" if self.is_png else "image/jpeg"

    @property
    def signature(self) -> bytes:
        """The first bytes of the encoded image."""
        return b"\x89PNG\r\n\x1a\n" if self.is_png else b"\xff\xd8\xff"

    def with_data(self, data: bytes) -> DerivedImage:
        """Return the derived image that has these bytes."""
        return DerivedImage(
            self.kind, data, self.content_type, self.width, self.height, self.class_id
        )


@dataclass(frozen=True)
class DerivePlan:
    """Which images a decoder process makes from one image.

    `image` is what decoding the same bytes reported. `detections` are drawn, cropped and written
    to the label file. `faint` is everything else that the model found in this image, whatever its
    label and confidence, and also without a mask: it is redacted too. All coordinates are in pixels
    of the full upright image.
    """

    options: DeriveOptions
    image: ImageInfo
    task: Task
    detections: tuple[Detection, ...] = ()
    faint: tuple[Detection, ...] = ()
    classes: tuple[ClassScore, ...] = ()

    @property
    def view(self) -> tuple[int, int]:
        """Width and height of the annotated and redacted image. Crops are cut out of this size."""
        return _fit(self.image, self.options.max_side / max(self.image.width, self.image.height))

    @property
    def working_size(self) -> tuple[int, int]:
        """Width and height of the largest image that is made. Redaction takes place in it."""
        sizes = [(output.width, output.height) for output in self.outputs() if not output.crop]
        options = self.options
        if options.redaction or options.annotated or options.crops or not sizes:
            sizes.append(self.view)
        return max(sizes, key=max)

    @property
    def render_bytes(self) -> int:
        """The memory in bytes that rendering needs at most, besides the decoded image."""
        normalized = self.options.normalized.max_pixels if self.options.normalized else 0
        normalized = min(normalized, self.image.width * self.image.height)
        return _render_bytes(self.view[0] * self.view[1], normalized, self.options)

    def outputs(self) -> tuple[Output, ...]:
        """Return the images that are made, in a fixed order. Crops are the last."""
        options, image = self.options, self.image
        outputs = []
        if options.thumbnail_side:
            scale = options.thumbnail_side / max(image.width, image.height)
            outputs.append(Output(DerivedKind.THUMBNAIL, *_fit(image, scale)))
        if options.annotated:
            outputs.append(Output(DerivedKind.ANNOTATED, *self.view))
        if options.redaction:
            outputs.append(Output(DerivedKind.REDACTED, *self.view))
        if options.normalized:
            is_png = options.normalized.format is NormalizedFormat.PNG
            size = _fit_pixels(image, options.normalized.max_pixels)
            outputs.append(Output(DerivedKind.NORMALIZED, *size, is_png=is_png))
        return (*outputs, *self._crops())

    def redacted_regions(self, width: int, height: int) -> list[Region]:
        """Return what is redacted in an image of this size, in pixels. The largest is the first.

        A box with a coordinate that is no number stands for the whole image. An object of an
        unknown class is redacted whatever the labels are.
        """
        redaction = self.options.redaction
        if not redaction:
            return []
        regions = []
        for detection in (*self.detections, *self.faint):
            is_known = detection.class_id != UNKNOWN_CLASS  # otherwise, it may have any label
            if is_known and not _is_chosen(detection, redaction.labels):
                continue
            if all(map(math.isfinite, _corners(detection.box))):
                # One pixel more, because resizing has mixed neighbouring pixels.
                region = _region(self, detection.box, redaction.margin, width, height, extra=1)
            else:
                region = Region(0, 0, width, height)
            if region:
                regions.append(region)
        return sorted(regions, key=lambda r: (r.left - r.right) * (r.bottom - r.top))

    def label_file(self) -> DerivedImage | None:
        """Return the label file of the normalized image, or None without one.

        The format is that of ultralytics 8.4 for the task: https://docs.ultralytics.com/datasets/
        A line has the class, and coordinates as shares of the image's width and height. They are
        the box's centre and size (detect), these and all keypoints (pose), the corners (obb), or
        the largest ring of the mask without its holes (segment). Images of the task classify have
        no label file, because there the name of a folder is the label.
        """
        if not self.options.normalized or self.task is Task.CLASSIFY:
            return None
        lines = (
            " ".join([str(item.class_id), *(f"{value:.6f}" for value in values)])
            for item in self.detections
            if (values := self._label_values(item))
        )
        text = "".join(f"{line}\n" for line in lines)
        return DerivedImage(DerivedKind.LABELS, text.encode("ascii"), "text/plain")

    def to_bytes(self) -> bytes:
        """Encode as MessagePack, which has every float, also those that are no numbers."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """Decode what `to_bytes` encoded.

        Raises:
            msgspec.MsgspecError: the message is anything else.
        """
        return msgspec.msgpack.decode(message, type=cls)

    def _crops(self) -> Iterator[Output]:
        crops = self.options.crops
        if not crops:
            return
        chosen = [item for item in self.detections if _is_chosen(item, crops.labels)]
        regions = (
            (item.class_id, _region(self, item.box, crops.margin, *self.view))
            for item in chosen
            if all(map(math.isfinite, _corners(item.box)))
        )
        found = [(class_id, region) for class_id, region in regions if region]
        for class_id, region in found[: crops.max_count]:
            width, height = region.right - region.left, region.bottom - region.top
            yield Output(DerivedKind.CROP, width, height, class_id=class_id, crop=region)

    def _label_values(self, item: Detection) -> list[float]:
        """Return the numbers of a line, or none if a coordinate is no number."""
        width, height = self.image.width, self.image.height
        box = item.box
        points: tuple[float, ...] = ()
        if self.task is Task.SEGMENT and item.polygons:
            points = max((ring.points for ring in item.polygons), key=_doubled_area)
        elif self.task is Task.OBB and item.rotated_box:
            points = item.rotated_box.corners
        elif self.task in (Task.SEGMENT, Task.OBB):
            points = (box.x1, box.y1, box.x2, box.y1, box.x2, box.y2, box.x1, box.y2)
        shares = [_share(value, (width, height)[i % 2]) for i, value in enumerate(points)]
        if not points:
            x1, x2 = sorted((_share(box.x1, width), _share(box.x2, width)))
            y1, y2 = sorted((_share(box.y1, height), _share(box.y2, height)))
            shares = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        for point in item.keypoints if self.task is Task.POSE else ():
            if point.confidence >= MIN_KEYPOINT_CONFIDENCE:
                shares += [_share(point.x, width), _share(point.y, height), 2.0]
            else:
                shares += [0.0, 0.0, 0.0]
        return shares if all(map(math.isfinite, shares)) else []


def _render_bytes(view: int, normalized: int, options: DeriveOptions) -> int:
    """Return the memory in bytes for the pixels of a view and of a normalized image."""
    pixels_bytes = _RENDER_BYTES_PER_PIXEL * view + _NORMALIZED_BYTES_PER_PIXEL * normalized
    return pixels_bytes + options.max_output_bytes


# What rendering needs at most, besides the decoded image.
LARGEST_PLAN_BYTES = _render_bytes(MAX_SIDE**2, MAX_NORMALIZED_PIXELS, LARGEST_OPTIONS)


def _fit(image: ImageInfo, scale: float) -> tuple[int, int]:
    """Return width and height of an image that is made smaller by this factor, never larger."""
    scale = min(1.0, scale)
    return max(round(image.width * scale), 1), max(round(image.height * scale), 1)


def _fit_pixels(image: ImageInfo, max_pixels: int) -> tuple[int, int]:
    scale = min(
        1.0,
        math.sqrt(max_pixels / (image.width * image.height)),
        _MAX_JPEG_SIDE / max(image.width, image.height),
    )
    width, height = (max(int(side * scale), 1) for side in (image.width, image.height))
    return min(width, max_pixels // height or 1), min(height, max_pixels // width or 1)


def _is_chosen(item: Detection, labels: Collection[str] | None) -> bool:
    return labels is None or item.label in labels


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.x1, box.y1, box.x2, box.y2


def _region(
    plan: DerivePlan, box: Box, margin: float, width: int, height: int, *, extra: int = 0
) -> Region | None:
    """Return a box with its margin, in pixels of an image of this size, clipped to that image."""
    left, right = _span(box.x1, box.x2, margin, width / plan.image.width, width, extra)
    top, bottom = _span(box.y1, box.y2, margin, height / plan.image.height, height, extra)
    return Region(left, top, right, bottom) if left < right and top < bottom else None


def _span(
    low: float, high: float, margin: float, scale: float, limit: int, extra: int
) -> tuple[int, int]:
    low, high = sorted(min(max(value, -_FAR), _FAR) for value in (low, high))
    added = margin * (high - low)
    first, last = (low - added) * scale - extra, (high + added) * scale + extra
    return math.floor(min(max(first, 0), limit)), math.ceil(min(max(last, 0), limit))


def _share(value: float, side: int) -> float:
    return min(max(value / side, 0.0), 1.0)


def _doubled_area(points: tuple[float, ...]) -> float:
    """Return twice the area of a ring x1, y1, x2, y2, ... by the shoelace formula."""
    xs, ys = points[::2], points[1::2]
    pairs = zip(xs, ys, (*xs[1:], xs[0]), (*ys[1:], ys[0]), strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for x1, y1, x2, y2 in pairs))
