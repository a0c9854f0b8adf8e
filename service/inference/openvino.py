"""The default on a CPU: an exported network on OpenVINO. Imports neither torch nor ultralytics."""

import hashlib
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import yaml
from numpy.typing import NDArray
from openvino import Layout, Type
from openvino.preprocess import ColorFormat, PrePostProcessor

from service.domain import Detection, ModelInfo
from service.errors import ModelError
from service.images.letterbox import Letterbox, fit, input_shapes
from service.images.pixels import Pixels
from service.inference.detector import OPENVINO_METADATA
from service.inference.labels import advice_for_export, class_labels, label_of
from service.machine import cores, cpu_flags

# Read when a model is compiled. With AMX kernels, int8 takes 1.4 times the CPU time, 1.7 times the
# memory and 1.4 times as long to compile (docs/evidence/performance.md). Float is not affected.
if "amx_int8" in cpu_flags():
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")

_COLUMNS = 6  # of the end-to-end head's output: x1, y1, x2, y2, confidence, class id
_SIDES = 4  # of a box


class OpenVINODetector:
    """A YOLO26 network exported with its end-to-end (NMS-free) head and dynamic shapes.

    Each image is letterboxed to one of a few input shapes (`letterbox.input_shapes`). The network
    is compiled for a shape when the first image needs it: static shapes are faster than dynamic
    ones, and a bounded number of them is compiled. Each thread that calls `detect` infers its
    images one by one on one core: on few cores that costs less than one request of many images
    (docs/evidence/performance.md has the figures).
    """

    def __init__(
        self,
        directory: Path,
        *,
        image_size: int | None = None,
        min_confidence: float = 0.25,
        streams: int | None = None,
    ) -> None:
        """Load the network.

        Args:
            directory: what `yolo-batch export` wrote.
            image_size: longer side that the network sees, in pixels; None: as exported.
            min_confidence: detections below are left out.
            streams: images inferred at once; None: one a core.

        Raises:
            ModelError: the directory does not hold such a network.
        """
        metadata = _read_metadata(directory)
        files = sorted(directory.glob("*.xml"))
        if len(files) != 1:
            raise ModelError(f"{directory} must hold one .xml file; it holds {len(files)}")
        self._min_confidence = min_confidence
        self._info = ModelInfo(
            name=str(metadata.get("source") or files[0].stem),
            sha256=str(metadata.get("sha256") or _sha256(files[0].with_suffix(".bin"))),
            image_size=image_size or max(metadata["imgsz"]),
            precision=str(metadata.get("precision") or "unknown"),
            runtime=f"openvino {ov.__version__.partition('-')[0]}",
        )
        self.runners = streams or cores()
        try:
            network = ov.Core().read_model(files[0])
            _check_shapes(network, directory)
            self._labels = class_labels(
                metadata["names"],
                model=directory.name,
                count=count_classes(network),
                advice=advice_for_export(directory, metadata.get("precision")),
            )
            self._networks = _CompiledModels(with_preprocessing(network), streams=self.runners)
        except RuntimeError as exc:
            raise ModelError(f"OpenVINO cannot load {files[0]}: {exc}") from exc
        self._input_shapes = input_shapes(
            self._info.image_size,
            stride=metadata["stride"],
            min_pixels=pixels_for_anchors(network.output(0).partial_shape[1]),
        )

    @property
    def info(self) -> ModelInfo:
        """Which network this is."""
        return self._info

    @property
    def labels(self) -> Mapping[int, str]:
        """Labels of the classes, by their ids."""
        return self._labels

    def input_shape(self, width: int, height: int) -> tuple[int, int]:
        """Return the (height, width) that an image is letterboxed to; see `Detector`."""
        fitted = self._letterbox(width, height)
        return fitted.input_height, fitted.input_width

    def detect(self, images: Sequence[Pixels]) -> Iterator[list[Detection]]:
        """Detect objects, one image for each step; see `Detector.detect`."""
        for image in images:
            letterbox = self._letterbox(image.shape[1], image.shape[0])
            request = self._networks.request(letterbox.input_height, letterbox.input_width)
            # Written where the network reads it: no copy, no memory taken.
            letterbox.apply(image, out=request.get_input_tensor().data[0])
            request.infer()
            yield self._detections(request.get_output_tensor().data[0], letterbox)

    def _letterbox(self, width: int, height: int) -> Letterbox:
        return fit(width, height, image_size=self._info.image_size, shapes=self._input_shapes)

    def _detections(self, rows: NDArray[np.float32], letterbox: Letterbox) -> list[Detection]:
        """Read the float32 Rx6 rows of one picture."""
        confident = rows[rows[:, 4] >= self._min_confidence]
        ordered = confident[np.argsort(-confident[:, 4], kind="stable")]
        return [
            Detection(
                label_of(self._labels, int(row[5])), int(row[5]), row[4], letterbox.box(*row[:4])
            )
            for row in ordered.tolist()
        ]


class _CompiledModels:
    """One network, compiled for each input shape on demand; a request for each shape and thread."""

    def __init__(self, network: ov.Model, *, streams: int) -> None:
        self._network = network
        self._options = {
            # float32 even where the CPU offers bfloat16: results must not depend on the machine
            "INFERENCE_PRECISION_HINT": Type.f32,
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
        }
        self._core = ov.Core()
        self._lock = threading.Lock()
        self._compiled: dict[tuple[int, int], ov.CompiledModel] = {}
        self._of_thread = threading.local()
        # OpenVINO's binding looks numpy up at its first use, and two threads that do so at once
        # lock each other for ever, one holding the interpreter, the other the lookup's guard.
        _ = ov.Tensor(np.zeros(1, np.uint8)).data

    def request(self, height: int, width: int) -> ov.InferRequest:
        """This thread's own request: uint8 1 x height x width x 3 BGR in, float32 1xRx6 rows out.

        Raises:
            RuntimeError: OpenVINO cannot compile the network for this shape.
        """
        size = height, width
        if not hasattr(self._of_thread, "requests"):
            self._of_thread.requests = {}
        requests: dict[tuple[int, int], ov.InferRequest] = self._of_thread.requests
        if size not in requests:
            requests[size] = self._compile(size).create_infer_request()
        return requests[size]

    def _compile(self, size: tuple[int, int]) -> ov.CompiledModel:
        with self._lock:
            if size not in self._compiled:
                network = self._network.clone()
                network.reshape([1, *size, 3])
                self._compiled[size] = self._core.compile_model(network, "CPU", self._options)
            return self._compiled[size]


def _read_metadata(directory: Path) -> dict[str, Any]:
    path = directory / OPENVINO_METADATA
    try:
        metadata = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        if "names" not in metadata:
            raise KeyError("names")
        metadata["imgsz"] = [int(side) for side in metadata["imgsz"]]
        metadata["stride"] = int(metadata["stride"])
    except (
        OSError,
        yaml.YAMLError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as exc:
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


def count_classes(network: ov.Model) -> int | None:
    """Count the classes of an end-to-end head; None where it is not built as ultralytics does.

    The head splits each anchor's row into 4 sides of a box and a score for each class.
    """
    splits = (op for op in network.get_ordered_ops() if op.get_type_name() == "VariadicSplit")
    counts = set()
    for split in splits:
        row, lengths = split.input(0).get_partial_shape(), split.input_value(2).get_node()
        if lengths.get_type_name() != "Constant" or row.rank.get_length() != 3:
            continue
        sides, *scores = lengths.data.tolist()
        if sides == _SIDES and len(scores) == 1 and row[2].is_static:
            counts.add(row[2].get_length() - sides)
    return counts.pop() if len(counts) == 1 else None


def count_classes_of_file(path: Path) -> int | None:
    """Count the classes of an exported file; None where OpenVINO cannot read it, too."""
    try:
        return count_classes(ov.Core().read_model(path))
    except RuntimeError:
        return None


def pixels_for_anchors(rows: ov.Dimension) -> int:
    """Pixels of the smallest input whose anchors fill the head's top-k, which is fixed at export.

    YOLO26 has an anchor for each cell of 8, 16 and 32 pixels: 21 for every 32x32.
    """
    return math.ceil(rows.get_length() * 32 * 32 / 21) if rows.is_static else 0


def with_preprocessing(network: ov.Model) -> ov.Model:
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
