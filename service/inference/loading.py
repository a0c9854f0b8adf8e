"""Load the model that the settings name, and verify it before it serves."""

from pathlib import Path

from service.domain import ModelInfo
from service.errors import ModelError, YoloBatchError
from service.inference.canary import Checked, load_checked
from service.inference.detector import OPENVINO_METADATA, Detector
from service.settings import Settings
from service.stages import NO_CLOCK, StageClock


def load_model(settings: Settings, clock: StageClock = NO_CLOCK) -> Checked:
    """Load the model, and try it on its canary; run it once where it has none.

    Raises:
        ModelError: it cannot be loaded, or does not answer as where it was exported.
    """

    def load(path: Path) -> Detector:
        return load_detector(
            path,
            device=settings.device,
            image_size=settings.image_size,
            min_confidence=settings.min_confidence,
            lanes=settings.lanes,
            clock=clock,
        )

    checked = load_checked(settings.model_path, load=load, min_confidence=settings.min_confidence)
    if checked.canary is None:
        warm_up(checked.detector)
    return checked


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
        from service.inference.openvino import OpenVINODetector

        detector: Detector = OpenVINODetector(
            path, image_size=image_size, min_confidence=min_confidence, lanes=lanes, clock=clock
        )
    else:
        # Imported only here: ultralytics brings torch.
        from service.inference.ultralytics import UltralyticsDetector

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
