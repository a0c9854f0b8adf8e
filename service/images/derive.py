"""What a decoder process makes from an image that has its detections already."""

from dataclasses import dataclass
from typing import Self

import msgspec

from service.derived import DeriveOptions
from service.domain import ClassScore, Detection, ImageInfo, Task


@dataclass(frozen=True)
class DerivePlan:
    """Which images a decoder process makes from one image.

    `image` is what decoding the same bytes reported. `detections` are drawn, cropped and written
    to the label file. `faint` are all other detections that the model found in this image, whatever
    their labels and confidence: they are redacted too. All coordinates are in pixels of the full
    upright image.
    """

    options: DeriveOptions
    image: ImageInfo
    task: Task
    detections: tuple[Detection, ...] = ()
    faint: tuple[Detection, ...] = ()
    classes: tuple[ClassScore, ...] = ()

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """Decode what `to_bytes` encoded."""
        return msgspec.json.decode(message, type=cls)
