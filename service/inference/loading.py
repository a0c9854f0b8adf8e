"""Load the model that the settings name, and verify it."""

from pathlib import Path

from service.domain import ModelInfo
from service.errors import ModelError, YoloBatchError
from service.inference.canary import Decode, VerifiedModel, load_verified
from service.inference.detector import OPENVINO_METADATA, Detector
from service.settings import Settings


def load_model(settings: Settings, decode: Decode | None = None) -> VerifiedModel:
    """Load the model and run its canary. If the model has no canary, run the model once.

    Args:
        settings: model, device, image size and limits.
        decode: decodes as the service decodes uploads. None: decode in this process.

    Raises:
        ModelError: the model cannot be loaded, or it and its float model failed their canaries.
    """

    def load(path: Path) -> Detector:
        return load_detector(
            path,
            device=settings.device,
            image_size=settings.image_size,
            min_confidence=settings.store_confidence,
            streams=settings.inference_streams,
            max_batch_pixels=settings.max_batch_pixels,
        )

    verified = load_verified(
        settings.model_path,
        load=load,
        decode=decode,
        min_confidence=settings.store_confidence,
    )
    if verified.canary is None:
        warm_up(verified.detector)
    return verified


def load_detector(
    path: Path,
    *,
    device: str = "cpu",
    image_size: int | None = None,
    min_confidence: float = 0.25,
    streams: int | None = None,
    max_batch_pixels: int = 20_000_000,
) -> Detector:
    """Load a model with the runtime that its path needs.

    OpenVINO runs a directory that `yolo-batch export` wrote, without torch. Ultralytics runs every
    other model that it can load, on a CPU or a GPU.

    Args:
        path: the model.
        device: `cpu`, or a GPU by its name in ultralytics, for example `0`.
        image_size: longer side of the model's input, in pixels. None: the model's own size.
        min_confidence: detections below it are left out.
        streams: images that OpenVINO infers at once. None: one for each core.
        max_batch_pixels: the most pixels in one batch of ultralytics.

    Raises:
        ModelError: the model does not exist, cannot be loaded, or has an unsupported task.
    """
    if not path.exists():
        raise ModelError(
            f"There is no model at {path}: name another model (MODEL_PATH or --model), or export "
            "this model first"
        )
    if path.is_dir():
        if not (path / OPENVINO_METADATA).is_file():
            raise ModelError(f"{path} is not an exported model: it has no {OPENVINO_METADATA}")
        if device != "cpu":
            raise ModelError(
                f"{path} is an OpenVINO model, which runs on DEVICE=cpu, not {device!r}: "
                "for a GPU set MODEL_PATH to the .pt or .engine file"
            )
        from service.inference.openvino import OpenVINODetector

        detector: Detector = OpenVINODetector(
            path, image_size=image_size, min_confidence=min_confidence, streams=streams
        )
    else:
        # Imported only here: ultralytics brings torch.
        from service.inference.ultralytics import UltralyticsDetector

        detector = UltralyticsDetector(
            path,
            device=device,
            image_size=image_size,
            min_confidence=min_confidence,
            max_batch_pixels=max_batch_pixels,
        )
    _check_name(detector.info)
    return detector


def _check_name(info: ModelInfo) -> None:
    """Check that the name is valid UTF-8, because every document stores it."""
    try:
        info.name.encode()
    except UnicodeEncodeError as exc:
        raise ModelError(
            f"The name of the model, {info.name!r}, is not valid UTF-8: rename the file"
        ) from exc


def warm_up(detector: Detector) -> None:
    """Run the model once, because the first run is slower than others.

    Raises:
        ModelError: the model does not run. Some runtimes compile it only now.
    """
    import numpy as np

    from service.images.pixels import DecodedImage

    size = detector.info.image_size
    image = np.full((size * 3 // 4, size, 3), 114, np.uint8)  # 4:3, the most common ratio
    try:
        list(detector.detect([DecodedImage.of(image)]))
    except YoloBatchError:
        raise
    except Exception as exc:
        raise ModelError(f"{detector.info.name} cannot run on this machine: {exc}") from exc
