"""The interface that every model implements."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from service.domain import Detection, ModelInfo
from service.images.pixels import Pixels

OPENVINO_METADATA = "metadata.yaml"  # ultralytics writes it into each export


class Detector(Protocol):
    """A model that detects objects."""

    @property
    def info(self) -> ModelInfo:
        """The model's name, sha256, image size, precision and runtime, for documents and logs."""

    @property
    def runners(self) -> int:
        """How many threads may call `detect` at once: one for each CPU core, or one for a GPU."""

    def input_shape(self, width: int, height: int) -> tuple[int, int]:
        """Return the (height, width) to which an image is letterboxed, all in pixels.

        Images of the same input shape may share a batch. Height times width measures the cost.
        """

    def detect(self, images: Sequence[Pixels]) -> Iterable[list[Detection]]:
        """Detect objects.

        Args:
            images: uint8 HxWx3 BGR, all of one input shape.

        Returns:
            For each image, in the same order, a list of its detections, the most confident first.
            Boxes are in pixels of the image. A model that runs the images as one batch returns a
            list. A model that runs one image at a time returns an iterator.
        """
