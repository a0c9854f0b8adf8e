"""Run an exported model with OpenVINO, the default on a CPU, without torch and ultralytics."""

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
from openvino import Layout, Type
from openvino.preprocess import ColorFormat, PrePostProcessor

from service.domain import ModelInfo, Prediction, Task
from service.errors import ModelError
from service.images.crop import center_crop
from service.images.letterbox import Letterbox, fit, input_shapes
from service.images.pixels import DecodedImage
from service.inference.detector import OPENVINO_METADATA
from service.inference.heads import BOX_COLUMNS, Head, KeypointLayout, columns_of, task_of
from service.inference.labels import advice_for_export, class_labels
from service.machine import cores, cpu_flags

# Turn AMX off. With AMX kernels, int8 takes 1.4 times the CPU time, 1.7 times the memory and 1.4
# times as long to compile (docs/evidence/performance.md). Float is not affected. OpenVINO reads
# this variable when it compiles a model.
if "amx_int8" in cpu_flags():
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")

_SIDES = 4  # sides of a box


class OpenVINODetector:
    """A YOLO26 model that was exported with its end-to-end (NMS-free) head and dynamic shapes.

    A classification model takes the middle square of each image. For the other tasks, each image
    is letterboxed to one of a few input shapes (`letterbox.input_shapes`). The model is compiled
    for an input shape when the first image needs it. Static shapes are faster than dynamic shapes,
    and the few shapes limit the number of compiled models. Each thread that calls `detect`
    infers one image at a time on one core. On few cores this costs less than inferring many images
    in one request (docs/evidence/performance.md).
    """

    def __init__(
        self,
        directory: Path,
        *,
        image_size: int | None = None,
        min_confidence: float = 0.25,
        streams: int | None = None,
    ) -> None:
        """Load the model, but do not compile it yet.

        Args:
            directory: written by `yolo-batch export`.
            image_size: longer side of the model's input, in pixels. None: as exported.
            min_confidence: detections below it are left out.
            streams: images that are inferred at once. None: one for each core.

        Raises:
            ModelError: the directory does not contain such a model.
        """
        metadata = _read_metadata(directory)
        files = sorted(directory.glob("*.xml"))
        if len(files) != 1:
            raise ModelError(f"{directory} must contain one .xml file, but contains {len(files)}")
        task = task_of(metadata["task"], model=directory)
        version = metadata.get("model_version")
        self._info = ModelInfo(
            name=str(metadata.get("source") or files[0].stem),
            sha256=str(metadata.get("sha256") or _sha256(files[0].with_suffix(".bin"))),
            image_size=image_size or max(metadata["imgsz"]),
            precision=str(metadata.get("precision") or "unknown"),
            runtime=f"openvino {ov.__version__.partition('-')[0]}",
            task=task,
            version=None if version is None else str(version),
        )
        keypoints = None
        if task is Task.POSE:
            keypoints = KeypointLayout.of(
                metadata.get("kpt_shape"), metadata.get("kpt_names"), model=directory
            )
        self.runners = streams or cores()
        try:
            model = ov.Core().read_model(files[0])
            _check_shapes(model, directory, task, keypoints)
            self._labels = class_labels(
                metadata["names"],
                model=directory.name,
                count=count_classes(model),
                advice=advice_for_export(directory, metadata.get("precision")),
            )
            self._compiled = _CompiledModels(with_preprocessing(model), streams=self.runners)
        except RuntimeError as exc:
            raise ModelError(f"OpenVINO cannot load {files[0]}: {exc}") from exc
        self._head = Head(task, self._labels, min_confidence, keypoints)
        self._input_shapes = (
            ((self._info.image_size, self._info.image_size),)
            if task is Task.CLASSIFY
            else input_shapes(
                self._info.image_size,
                stride=metadata["stride"],
                min_pixels=pixels_for_anchors(model.output(0).partial_shape[1]),
            )
        )

    @property
    def info(self) -> ModelInfo:
        """See `Detector.info`."""
        return self._info

    @property
    def labels(self) -> Mapping[int, str]:
        """The labels by class id."""
        return self._labels

    def input_shape(self, width: int, height: int) -> tuple[int, int]:
        """See `Detector.input_shape`."""
        letterbox = self._letterbox(width, height)
        return letterbox.input_height, letterbox.input_width

    def detect(self, images: Sequence[DecodedImage]) -> Iterator[Prediction]:
        """Run the model on one image at each step. See `Detector.detect`."""
        for image in images:
            pixels = image.pixels
            if self._info.task is Task.CLASSIFY:
                pixels = center_crop(pixels, size=self._info.image_size)
            letterbox = self._letterbox(pixels.shape[1], pixels.shape[0])
            request = self._compiled.request(letterbox.input_height, letterbox.input_width)
            # Written directly into the model's input, without a copy.
            letterbox.apply(pixels, out=request.get_input_tensor().data[0])
            request.infer()
            # The second output of a segmentation model has the prototypes of the masks.
            output, *prototypes = (tensor.data[0] for tensor in request.output_tensors)
            yield self._head.prediction(output, letterbox, image.info, *prototypes)

    def _letterbox(self, width: int, height: int) -> Letterbox:
        return fit(width, height, image_size=self._info.image_size, shapes=self._input_shapes)


class _CompiledModels:
    """A model, compiled for each input shape on demand, with one request per shape and thread."""

    def __init__(self, model: ov.Model, *, streams: int) -> None:
        self._model = model
        self._options = {
            # float32 even if the CPU supports bfloat16: results must not depend on the machine.
            "INFERENCE_PRECISION_HINT": Type.f32,
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
        }
        self._core = ov.Core()
        self._lock = threading.Lock()
        self._by_shape: dict[tuple[int, int], ov.CompiledModel] = {}
        self._thread_local = threading.local()
        # OpenVINO's Python binding looks up numpy at its first use. Two threads that do this at
        # once deadlock: one holds the GIL, and the other holds the lookup's lock. So do it here.
        _ = ov.Tensor(np.zeros(1, np.uint8)).data

    def request(self, height: int, width: int) -> ov.InferRequest:
        """Return this thread's request for an input shape.

        Its input is uint8 1 x height x width x 3 BGR. Its outputs are float32, and the first
        dimension of each is 1.

        Raises:
            RuntimeError: OpenVINO cannot compile the model for this shape.
        """
        shape = height, width
        if not hasattr(self._thread_local, "requests"):
            self._thread_local.requests = {}
        requests: dict[tuple[int, int], ov.InferRequest] = self._thread_local.requests
        if shape not in requests:
            requests[shape] = self._compile(shape).create_infer_request()
        return requests[shape]

    def _compile(self, shape: tuple[int, int]) -> ov.CompiledModel:
        with self._lock:
            if shape not in self._by_shape:
                model = self._model.clone()
                model.reshape([1, *shape, 3])
                self._by_shape[shape] = self._core.compile_model(model, "CPU", self._options)
            return self._by_shape[shape]


def _read_metadata(directory: Path) -> dict[str, Any]:
    """Read and check the metadata of an export.

    Raises:
        ModelError: it is malformed, or the export is not an end-to-end detection model.
    """
    path = directory / OPENVINO_METADATA
    try:
        metadata = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        if "names" not in metadata:
            raise KeyError("names")
        metadata["imgsz"] = [int(side) for side in metadata["imgsz"]]
        metadata["stride"] = int(metadata["stride"])
        if not metadata["imgsz"] or min(*metadata["imgsz"], metadata["stride"]) < 1:
            raise ValueError("`imgsz` and `stride` must be positive")
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
    task = task_of(metadata.get("task"), model=directory)
    if task is not Task.CLASSIFY and not metadata.get("end2end"):
        raise ModelError(
            f"{directory} was exported without YOLO26's end-to-end head: "
            "export it again with `yolo-batch export`"
        )
    return metadata


def _check_shapes(
    model: ov.Model, directory: Path, task: Task, keypoints: KeypointLayout | None
) -> None:
    """Check the shapes of the input and of the outputs.

    Raises:
        ModelError: the input shape is fixed, or an output is not that of the task.
    """
    shape = model.input(0).partial_shape
    if not (shape[0].is_dynamic and shape[2].is_dynamic and shape[3].is_dynamic):
        raise ModelError(
            f"{directory} was exported with the fixed input shape {shape}: "
            "export it again with `yolo-batch export`, which keeps shapes dynamic"
        )
    output, *others = (output.partial_shape for output in model.outputs)
    if task is Task.CLASSIFY:
        expected = "[batch, classes]"
        is_valid = output.rank.get_length() == 2 and output[1].is_static and not others
    else:
        prototypes = others[0][1].get_length() if task is Task.SEGMENT and others else None
        columns = columns_of(task, keypoints, prototypes)
        expected = f"[batch, boxes, {columns}]"
        is_valid = output.rank.get_length() == 3 and output[2] == columns
        if task is Task.SEGMENT:
            expected += " and [batch, prototypes, height, width]"
            is_valid = is_valid and len(others) == 1 and others[0].rank.get_length() == 4
    if not is_valid:
        shapes = " and ".join(str(shape) for shape in (output, *others))
        raise ModelError(f"{directory} has the output {shapes}, not {expected}")


def count_classes(model: ov.Model) -> int | None:
    """Return the number of classes, or None if the head differs from ultralytics' heads.

    A classification model has an output for each class. The end-to-end heads split each anchor's
    row into 4 sides of a box, a score for each class, and the columns of the task.
    """
    output = model.output(0).partial_shape
    if output.rank.get_length() == 2:
        return int(output[1].get_length()) if output[1].is_static else None
    extra = max(output[2].get_length() - BOX_COLUMNS, 0)
    counts = set()
    for split in model.get_ordered_ops():
        if split.get_type_name() != "VariadicSplit":
            continue
        row, axis = split.input(0).get_partial_shape(), split.input_value(1).get_node()
        if row.rank.get_length() != 3 or row[2].is_dynamic or axis.get_type_name() != "Constant":
            continue
        is_along_row = int(axis.data.item()) in (2, -1)
        if is_along_row and split.get_output_size() == (3 if extra else 2):
            counts.add(row[2].get_length() - _SIDES - extra)
    return counts.pop() if len(counts) == 1 else None


def count_classes_of_file(path: Path) -> int | None:
    """Return `count_classes` of an exported file, or None if OpenVINO cannot read the file."""
    try:
        return count_classes(ov.Core().read_model(path))
    except RuntimeError:
        return None


def pixels_for_anchors(rows: ov.Dimension) -> int:
    """Return the fewest pixels that an input must have to give an anchor to each output row.

    An export fixes the number of rows, the k of the head's top-k. YOLO26 has an anchor for each
    cell of 8x8, 16x16 and 32x32 pixels, so 21 anchors for every 32x32 pixels.

    Args:
        rows: the second dimension of the model's output.
    """
    return math.ceil(rows.get_length() * 32 * 32 / 21) if rows.is_static else 0


def with_preprocessing(model: ov.Model) -> ov.Model:
    """Return the model with a uint8 NHWC BGR input, instead of float32 NCHW RGB in 0..1.

    OpenVINO then converts the pixels, without float copies in Python.
    """
    steps = PrePostProcessor(model)
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
