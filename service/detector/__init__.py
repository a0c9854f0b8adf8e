"""The network: a picture's pixels in, its detections out."""

import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Protocol

from service.domain import Detection, ModelInfo
from service.errors import ModelError, YoloBatchError
from service.images.pixels import Pixels
from service.stages import NO_CLOCK, StageClock

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


def load_detector(
    path: Path,
    *,
    device: str = "cpu",
    image_size: int | None = None,
    min_confidence: float = 0.25,
    lanes: int | None = None,
    clock: StageClock = NO_CLOCK,
) -> Detector:
    """Load a network by what its path is.

    An exported `*_openvino_model` directory runs on OpenVINO, without torch; whatever else
    ultralytics loads runs on ultralytics, on a CPU or a GPU.

    Args:
        path: the model.
        device: `cpu`, or a GPU as ultralytics names it.
        image_size: longer side that the network sees, in pixels; None: the model's own.
        min_confidence: detections below are left out.
        lanes: pictures inferred at once on a CPU; None: one for each core.
        clock: counts CPU time by stage, as far as the detector can tell.

    Raises:
        ModelError: there is no such model, it cannot be loaded, or it is not a detection model.
    """
    if not path.exists():
        raise ModelError(f"There is no model at {path}: set MODEL_PATH, or export one first")
    if path.is_dir() and (path / OPENVINO_METADATA).is_file():
        if device != "cpu":
            raise ModelError(
                f"{path} is an OpenVINO model, which runs on DEVICE=cpu, not {device!r}: "
                "for a GPU set MODEL_PATH to the .pt or .engine file"
            )
        from service.detector.openvino import OpenVINODetector

        detector: Detector = OpenVINODetector(
            path, image_size=image_size, min_confidence=min_confidence, lanes=lanes, clock=clock
        )
    else:
        # Imported only here: ultralytics brings torch.
        from service.detector.ultralytics import UltralyticsDetector

        detector = UltralyticsDetector(
            path, device=device, image_size=image_size, min_confidence=min_confidence, clock=clock
        )
    _check_name(detector.info)
    return detector


def _check_name(info: ModelInfo) -> None:
    """Every document names the model, so the name must be text that Firestore takes."""
    try:
        info.name.encode()
    except UnicodeEncodeError as exc:
        raise ModelError(
            f"The name of the model, {info.name!r}, is not valid UTF-8: rename the file"
        ) from exc


def warm_up(detector: Detector) -> None:
    """Run a first inference, so that the first real picture does not pay for it.

    Raises:
        ModelError: the network does not run; some runtimes compile it only now.
    """
    import numpy as np

    size = detector.info.image_size
    picture = np.full((size * 3 // 4, size, 3), 114, np.uint8)  # 4:3, the most frequent
    try:
        detector.detect([picture])
    except YoloBatchError:
        raise
    except Exception as exc:
        raise ModelError(f"{detector.info.name} cannot run on this machine: {exc}") from exc
