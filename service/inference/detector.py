"""What the service needs of a model."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from service.domain import Detection, ModelInfo
from service.images.pixels import Pixels

OPENVINO_METADATA = "metadata.yaml"  # ultralytics writes it beside the network it exports


class Detector(Protocol):
    """A model that detects objects."""

    @property
    def info(self) -> ModelInfo:
        """Which model this is, for the records."""

    @property
    def runners(self) -> int:
        """How many threads may call `detect` at once: one a core on a CPU, one on a GPU."""

    def input_shape(self, width: int, height: int) -> tuple[int, int]:
        """Return the (height, width) in pixels that an image of this size is letterboxed to.

        Images of equal shapes may share a batch. Its product is what an image costs.
        """

    def detect(self, images: Sequence[Pixels]) -> Iterable[list[Detection]]:
        """Detect objects.

        Args:
            images: uint8 HxWx3 BGR images, all of one input shape.

        Returns:
            One list for each image, in the same order, most confident first; boxes are in the
            image's own pixels. A list after one true batch, or an iterator that infers one image
            for each step.
        """
