"""The interface that every model implements."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from service.domain import ModelInfo, Prediction
from service.images.pixels import DecodedImage

OPENVINO_METADATA = "metadata.yaml"  # ultralytics writes it into each export


class Detector(Protocol):
    """A model that finds objects in images, or classifies images."""

    @property
    def info(self) -> ModelInfo:
        """The model's name, task, image size and more, for documents and logs."""

    @property
    def labels(self) -> Mapping[int, str]:
        """The labels of all classes, by class id."""

    @property
    def runners(self) -> int:
        """How many threads may call `detect` at once: one for each CPU core, or one for a GPU."""

    def input_shape(self, width: int, height: int) -> tuple[int, int]:
        """Return the (height, width) to which an image is letterboxed, all in pixels.

        Images of the same input shape may share a batch. Height times width measures the cost.
        """

    def detect(self, images: Sequence[DecodedImage]) -> Iterable[Prediction]:
        """Run the model on images.

        Args:
            images: images whose pixels are all of one input shape.

        Returns:
            For each image, in the same order, what the model finds in it. Coordinates are in pixels
            of the full image. A model that runs the images as one batch returns a list. A model
            that runs one image at a time returns an iterator.
        """
