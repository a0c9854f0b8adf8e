"""Any YOLO26 detection model to the OpenVINO directory that the service runs. Needs ultralytics."""

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import yaml

from service.detector import OPENVINO_METADATA
from service.detector.ultralytics import load_yolo, sha256_of
from service.errors import ModelError

PRECISIONS = {"fp32": 32, "fp16": 16}  # bits of a stored weight; arithmetic is float32 with both
_SUFFIX = "_openvino_model"
_STRIDE = 32  # of the network: ultralytics would round other sizes up


def export_openvino(
    weights: Path,
    destination: Path | None = None,
    *,
    image_size: int = 640,
    precision: str = "fp32",
) -> Path:
    """Export weights with the end-to-end head and dynamic shapes.

    Args:
        weights: a `.pt` file; an official name that is no file (`yolo26n.pt`) is downloaded by
            ultralytics.
        destination: directory to write; by default `<stem>_openvino_model` beside the weights.
        image_size: longer side that the network will see, in pixels.
        precision: one of `PRECISIONS`.

    Returns:
        The directory written.

    Raises:
        ModelError: the weights cannot be loaded, downloaded or exported.
    """
    if image_size % _STRIDE:
        raise ModelError(f"The image size {image_size} is not a multiple of {_STRIDE}")
    model = load_yolo(weights)
    source = Path(getattr(model, "ckpt_path", None) or weights)
    target = destination or source.with_name(source.stem + _SUFFIX)
    if target.exists() and not (target / OPENVINO_METADATA).is_file():
        raise ModelError(f"{target} exists and is not an exported model: name another --output")
    with tempfile.TemporaryDirectory() as scratch:
        # ultralytics writes beside the weights: work on a copy, so that nothing is left behind.
        copy = Path(scratch) / source.name
        shutil.copyfile(source, copy)
        try:
            written = _export(load_yolo(copy), image_size, PRECISIONS[precision])
        except Exception as exc:  # noqa: BLE001 - ultralytics raises whatever its exporters raise
            raise ModelError(f"ultralytics cannot export {weights}: {exc}") from exc
        _record(written, source=source, sha256=sha256_of(source), precision=precision)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(written, target)
    return target


def _export(model: Any, image_size: int, bits: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's to ultralytics: nothing a user can act on
        written = model.export(
            format="openvino",
            imgsz=image_size,
            dynamic=True,
            nms=False,  # the end-to-end head: see UltralyticsDetector
            quantize=bits,
            device="cpu",
            verbose=False,
        )
    return Path(written)


def _record(directory: Path, *, source: Path, sha256: str, precision: str) -> None:
    """Add to the metadata what identifies the model, and drop what names this machine."""
    path = directory / OPENVINO_METADATA
    metadata = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not metadata.get("end2end"):
        raise ModelError(f"{source.name} has no end-to-end head: only YOLO26 models have one")
    metadata["description"] = f"Exported from {source.name}"
    metadata |= {"source": source.name, "sha256": sha256, "precision": precision}
    path.write_text(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True), encoding="utf-8")
