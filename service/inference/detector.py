"""The network: a picture's pixels in, its detections out."""

import sys
from collections.abc import Hashable, Sequence
from typing import Protocol

from service.domain import Detection, ModelInfo
from service.images.pixels import Pixels

# `import openvino` would fork a process that reports its use to Google Analytics.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # not importable

OPENVINO_METADATA = "metadata.yaml"  # ultralytics writes it beside the network it exports


class Detector(Protocol):
    """What the pipeline needs of a network. Used from one thread at a time."""

    @property
    def info(self) -> ModelInfo:
        """Which network this is, for the records."""

    def batch_key(self, width: int, height: int) -> Hashable:
        """Tell which pictures may share a batch: those of equal keys.

        Args:
            width: of the picture as it is queued, in pixels.
            height: likewise.
        """

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        """Detect objects.

        Args:
            images: uint8 HxWx3 BGR pictures of any sizes.

        Returns:
            One list for each picture, in the same order, most confident first; boxes are in the
            picture's own pixels.
        """
