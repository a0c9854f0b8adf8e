"""The default on a CPU: an exported network on OpenVINO. Imports neither torch nor ultralytics."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import yaml
from numpy.typing import NDArray
from openvino import Layout, Type
from openvino.preprocess import ColorFormat, PrePostProcessor

from service.detector import OPENVINO_METADATA
from service.domain import Detection, ModelInfo
from service.errors import ModelError
from service.images import Letterbox, Pixels, letterbox

_COLUMNS = 6  # of the end-to-end head's output: x1, y1, x2, y2, confidence, class id


class OpenVINODetector:
    """A YOLO26 network exported with its end-to-end (NMS-free) head and dynamic shapes.

    Pictures are letterboxed to the smallest frame that holds them, as ultralytics does for single
    pictures, and those of equal frames run as one batch.
    """

    def __init__(
        self, directory: Path, *, image_size: int | None = None, min_confidence: float = 0.25
    ) -> None:
        """Load and compile the network.

        Raises:
            ModelError: the directory does not hold such a network.
        """
        metadata = _read_metadata(directory)
        files = sorted(directory.glob("*.xml"))
        if len(files) != 1:
            raise ModelError(f"{directory} must hold one .xml file; it holds {len(files)}")
        try:
            network = ov.Core().read_model(files[0])
            _check_shapes(network, directory)
            self._compiled = ov.Core().compile_model(
                _with_preprocessing(network),
                "CPU",
                # float32 even where the CPU offers bfloat16: results must not depend on the machine
                {"INFERENCE_PRECISION_HINT": Type.f32, "PERFORMANCE_HINT": "LATENCY"},
            )
        except RuntimeError as exc:
            raise ModelError(f"OpenVINO cannot load {files[0]}: {exc}") from exc
        self._request = self._compiled.create_infer_request()
        self._min_frame_pixels = _pixels_for_anchors(network.output(0).partial_shape[1])
        self._names: dict[int, str] = metadata["names"]
        self._stride: int = metadata["stride"]
        self._min_confidence = min_confidence
        self._info = ModelInfo(
            name=str(metadata.get("source") or files[0].stem),
            sha256=str(metadata.get("sha256") or _sha256(files[0].with_suffix(".bin"))),
            image_size=image_size or max(metadata["imgsz"]),
            precision=str(metadata.get("precision") or "unknown"),
            runtime=f"openvino {ov.__version__.partition('-')[0]}",
        )

    @property
    def info(self) -> ModelInfo:
        """Which network this is."""
        return self._info

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        """Detect objects; see `Detector.detect`."""
        frames = [
            letterbox(
                image.shape[1],
                image.shape[0],
                image_size=self._info.image_size,
                stride=self._stride,
                min_frame_pixels=self._min_frame_pixels,
            )
            for image in images
        ]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, frame in enumerate(frames):
            groups[frame.frame_height, frame.frame_width].append(index)
        found: list[list[Detection]] = [[] for _ in images]
        for indices in groups.values():
            rows = self._infer(np.stack([frames[i].apply(images[i]) for i in indices]))
            for index, picture_rows in zip(indices, rows, strict=True):
                found[index] = self._detections(picture_rows, frames[index])
        return found

    def _infer(self, batch: Pixels) -> NDArray[np.float32]:
        """Run uint8 NxHxWx3 BGR frames; return float32 NxRx6 rows."""
        output = self._request.infer([batch], share_inputs=True)[0]
        return np.asarray(output, np.float32)

    def _detections(self, rows: NDArray[np.float32], frame: Letterbox) -> list[Detection]:
        confident = rows[rows[:, 4] >= self._min_confidence]
        ordered = confident[np.argsort(-confident[:, 4], kind="stable")]
        return [
            Detection(self._names[int(row[5])], int(row[5]), row[4], frame.box(*row[:4]))
            for row in ordered.tolist()
        ]


def _read_metadata(directory: Path) -> dict[str, Any]:
    path = directory / OPENVINO_METADATA
    try:
        metadata = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        metadata["names"] = {int(key): str(name) for key, name in metadata["names"].items()}
        metadata["imgsz"] = [int(side) for side in metadata["imgsz"]]
        metadata["stride"] = int(metadata["stride"])
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ModelError(f"{path} is not the metadata that ultralytics writes: {exc}") from exc
    if metadata.get("task") != "detect":
        raise ModelError(f"{directory} is a model for {metadata.get('task')!r}, not for detection")
    if not metadata.get("end2end"):
        raise ModelError(
            f"{directory} was exported without YOLO26's end-to-end head: "
            "export it again with `yolo-batch export`"
        )
    return metadata


def _check_shapes(network: ov.Model, directory: Path) -> None:
    shape, output = network.input(0).partial_shape, network.output(0).partial_shape
    if not (shape[0].is_dynamic and shape[2].is_dynamic and shape[3].is_dynamic):
        raise ModelError(
            f"{directory} was exported for the one shape {shape}: "
            "export it again with `yolo-batch export`, which keeps shapes dynamic"
        )
    if output.rank.get_length() != 3 or output[2] != _COLUMNS:
        raise ModelError(f"{directory} has the output {output}, not [batch, boxes, {_COLUMNS}]")


def _pixels_for_anchors(rows: ov.Dimension) -> int:
    """Pixels of the smallest frame whose anchors fill the head's top-k, which is fixed at export.

    YOLO26 has an anchor for each cell of 8, 16 and 32 pixels: 21 for every 32x32.
    """
    return math.ceil(rows.get_length() * 32 * 32 / 21) if rows.is_static else 0


def _with_preprocessing(network: ov.Model) -> ov.Model:
    """Let the network take uint8 NHWC BGR: no float copies in Python."""
    steps = PrePostProcessor(network)
    tensor = steps.input().tensor()
    tensor.set_element_type(Type.u8)
    tensor.set_layout(Layout("NHWC"))
    tensor.set_color_format(ColorFormat.BGR)
    steps.input().preprocess().convert_element_type(Type.f32).convert_color(ColorFormat.RGB).scale(
        255.0
    )
    steps.input().model().set_layout(Layout("NCHW"))
    return steps.build()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
