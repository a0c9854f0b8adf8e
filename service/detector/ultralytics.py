"""Everything else that ultralytics loads (`.pt`, `.onnx`, `.engine`, ...), on a CPU or a GPU."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.domain import Box, Detection, ModelInfo
from service.errors import ModelError
from service.images import Pixels

_DEFAULT_IMAGE_SIZE = 640
_HALF = 16  # bits of a float, as ultralytics' `quantize` takes it
_SINGLE = 32


class UltralyticsDetector:
    """A network run by ultralytics, in half precision on a GPU."""

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        image_size: int | None = None,
        min_confidence: float = 0.25,
    ) -> None:
        """Load the network.

        Raises:
            ModelError: ultralytics is not installed, or cannot load the file.
        """
        model = load_yolo(path)
        is_cpu = device == "cpu"
        size = image_size or _trained_image_size(model)
        self._model = model
        self._arguments = {
            "device": device,
            "imgsz": size,
            "conf": min_confidence,
            # ultralytics 8.4 takes the end-to-end head only when NMS is refused by name; with its
            # default (None) it decodes the other head and runs NMS.
            "nms": False,
            "quantize": _SINGLE if is_cpu else _HALF,
            "verbose": False,
        }
        self._info = ModelInfo(
            name=path.name,
            sha256=sha256_of(path),
            image_size=size,
            precision="fp32" if is_cpu else "fp16",
            runtime=f"ultralytics {_ultralytics_version()}",
        )

    @property
    def info(self) -> ModelInfo:
        """Which network this is."""
        return self._info

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        """Detect objects; see `Detector.detect`.

        Pictures of one size run as one batch: given mixed sizes, ultralytics would pad them all
        to full squares, slower and with other results than one by one.
        """
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            groups[image.shape].append(index)
        found: list[list[Detection]] = [[] for _ in images]
        for indices in groups.values():
            batch = [images[i] for i in indices]
            results = self._model.predict(batch, batch=len(batch), **self._arguments)
            for index, result in zip(indices, results, strict=True):
                found[index] = _detections(result)
        return found


def _detections(result: Any) -> list[Detection]:
    boxes = result.boxes.cpu().numpy()
    detections = [
        Detection(
            result.names[int(class_id)], int(class_id), float(confidence), Box(*map(float, box))
        )
        for class_id, confidence, box in zip(boxes.cls, boxes.conf, boxes.xyxy, strict=True)
    ]
    return sorted(detections, key=lambda found: -found.confidence)


def load_yolo(path: Path) -> Any:
    """Load an `ultralytics.YOLO` that is a detection model.

    Raises:
        ModelError: ultralytics is not installed, or the file is not such a model.
    """
    try:
        from ultralytics import YOLO
    except ImportError as exc:
        raise ModelError(
            f"{path} needs ultralytics, which is not installed: pip install 'yolo-batch[export]'"
        ) from exc
    try:
        model = YOLO(path, verbose=False)
        task = model.task
    except Exception as exc:  # noqa: BLE001 - ultralytics raises whatever its loaders raise
        hint = "" if path.exists() else ". There is no such file here, and it cannot be downloaded"
        raise ModelError(f"ultralytics cannot load {path}: {exc}{hint}") from exc
    if task != "detect":
        raise ModelError(f"{path} is a model for {task!r}, not for detection")
    return model


def _trained_image_size(model: Any) -> int:
    """Return the longer side that the weights were trained or exported with, in pixels."""
    arguments = getattr(model.model, "args", None)  # of a .pt; an exported file has none here
    size = arguments.get("imgsz") if isinstance(arguments, dict) else None
    if isinstance(size, list | tuple):
        size = max(size)
    return int(size or _DEFAULT_IMAGE_SIZE)


def sha256_of(path: Path) -> str:
    """Hash a model's file, or the files of a directory in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _ultralytics_version() -> str:
    from importlib.metadata import version

    return version("ultralytics")
