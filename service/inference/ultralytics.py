"""Run models that ultralytics can load (`.pt`, `.onnx`, `.engine`, ...), on a CPU or a GPU.

Ultralytics loads the model and runs its forward pass (`AutoBackend`, which `predict` also uses).
This module does the rest. Images are uploaded to the device as bytes. The results of all batches
are downloaded together.
"""

import hashlib
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.domain import ModelInfo, Prediction, Task
from service.errors import ModelError
from service.images.crop import center_crop
from service.images.letterbox import Letterbox, letterbox
from service.images.pixels import DecodedImage
from service.inference.heads import Head, KeypointLayout, task_of
from service.inference.labels import (
    ADVICE_FOR_OTHERS,
    advice_for_weights,
    class_labels,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_DEFAULT_IMAGE_SIZE = 640
_MIN_STRIDE = 32  # as in ultralytics
_MAX_BATCH = 32  # images in one forward pass
# The smallest input whose anchors (21 for every 32x32 pixels) fill the 300 output rows, a number
# that an export fixes. Weights (.pt) return fewer rows instead.
_MIN_INPUT_PIXELS = math.ceil(300 * 32 * 32 / 21)
_LIBRARIES = {".engine": "tensorrt", ".onnx": "onnxruntime"}  # ultralytics would install them
_COMMON_RATIOS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))


class UltralyticsDetector:
    """A YOLO26 model that ultralytics runs, in half precision on a GPU.

    Images are letterboxed as `predict` letterboxes single images. A classification model takes the
    middle square of each image. Images of the same input shape run as one batch. On a GPU, a
    TensorRT engine is used if it is beside the weights (`yolo26n.engine` beside `yolo26n.pt`).
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        image_size: int | None = None,
        min_confidence: float = 0.25,
        max_batch_pixels: int = 20_000_000,
    ) -> None:
        """Load the model.

        Args:
            path: `.pt`, `.onnx`, `.engine`, or another kind that ultralytics loads.
            device: `cpu`, or a GPU by its name in ultralytics, for example `0`.
            image_size: longer side of the model's input, in pixels. None: as trained or exported.
            min_confidence: detections below it are left out.
            max_batch_pixels: the most pixels in one batch, to bound the GPU's memory.

        Raises:
            ModelError: ultralytics is not installed, cannot load the file or run it on this device,
                its task is not supported, it has no end-to-end head, its labels cannot be stored,
                or `image_size` does not fit it.
        """
        loaded, self.backend = _load_fastest(path, device)
        self._device: torch.device = self.backend.device
        self._on_cuda = self._device.type == "cuda"
        self._max_batch = _MAX_BATCH
        if self.backend.format == "engine":  # the build of an engine fixes its largest batch
            self._max_batch = min(self.backend.batch, _MAX_BATCH)
        exported = getattr(self.backend, "imgsz", None)  # (height, width), None for a .pt
        # (height, width) of an export with a fixed input shape.
        self._fixed_shape = None if not exported or self.backend.dynamic else tuple(exported)
        own_size = max(exported) if exported else trained_image_size(self.backend)
        if self._fixed_shape and image_size not in (None, own_size):
            raise ModelError(
                f"{loaded} was exported for {own_size} pixels only, not IMAGE_SIZE={image_size}: "
                "unset IMAGE_SIZE, or export again"
            )
        if (image_size or own_size) % self.backend.stride:
            raise ModelError(
                f"IMAGE_SIZE={image_size or own_size} is not a multiple of {self.backend.stride}, "
                f"the stride of {loaded}"
            )
        self._labels = class_labels(
            _original_names(self.backend),
            model=loaded.name,
            count=count_classes(self.backend) or _count_classes_of_onnx(loaded),
            advice=advice_for_weights(path) if path.suffix == ".pt" else ADVICE_FOR_OTHERS,
        )
        task = _task(self.backend, loaded)
        keypoints = _keypoints(self.backend, loaded) if task is Task.POSE else None
        self._head = Head(task, self._labels, min_confidence, keypoints)
        self._max_batch_pixels = max_batch_pixels
        model_version = self.backend.metadata.get("model_version")
        self.runners = 1
        self._info = ModelInfo(
            name=loaded.name,
            sha256=sha256_of(path),  # of the weights file, even if its TensorRT engine runs
            image_size=image_size or own_size,
            precision=_precision(self.backend),
            runtime=f"ultralytics {version('ultralytics')}",
            task=task,
            version=None if model_version is None else str(model_version),
        )
        if self._on_cuda:
            try:
                self.warm_up()
            except Exception as exc:  # GPU libraries raise many kinds
                raise ModelError(f"{loaded} cannot run on DEVICE={device}: {exc}") from exc

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
        fitted = self._letterbox(width, height)
        return fitted.input_height, fitted.input_width

    def detect(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        """Run the model. See `Detector.detect`. Here, the images may have several input shapes.

        The images are split into batches by input shape and by `max_batch_pixels`. While a GPU runs
        one batch, the CPU letterboxes the next. Only the final downloads wait for the GPU.
        """
        import torch

        all_pixels = [image.pixels for image in images]
        if self._info.task is Task.CLASSIFY:
            all_pixels = [center_crop(p, size=self._info.image_size) for p in all_pixels]
        letterboxes = [self._letterbox(p.shape[1], p.shape[0]) for p in all_pixels]
        batches = list(self._batches(letterboxes))
        predictions = [Prediction() for _ in images]
        if not batches:
            return predictions
        # CUDA's current device is a setting of each thread, and TensorRT needs it. -1 does nothing.
        with torch.inference_mode(), torch.cuda.device(self._device if self._on_cuda else -1):
            outputs = []
            for indices in batches:
                batch = self._host_memory(letterboxes[indices[0]], len(indices))
                for model_input, index in zip(batch.numpy(), indices, strict=True):
                    letterboxes[index].apply(all_pixels[index], model_input)
                outputs.append(self.infer(batch))
            rows = torch.cat([output.flatten(0, 1) for output, *_ in outputs]).cpu().numpy()
            # The prototypes of masks stay on the device until their image is converted.
            prototypes = [image for _, *others in outputs for batch in others for image in batch]
        end = 0
        rows_per_image = (output.shape[1] for output, *_ in outputs for _ in range(len(output)))
        for number, (index, count) in enumerate(zip(chain(*batches), rows_per_image, strict=True)):
            start, end = end, end + count
            predictions[index] = self._head.prediction(
                rows[start:end],
                letterboxes[index],
                images[index].info,
                prototypes[number].float().cpu().numpy() if prototypes else None,
            )
        return predictions

    def _batches(self, letterboxes: Sequence[Letterbox]) -> Iterator[list[int]]:
        """Yield batches, as indices of images of the same input shape that fit on the device."""
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, fitted in enumerate(letterboxes):
            by_shape[fitted.input_height, fitted.input_width].append(index)
        for (height, width), indices in by_shape.items():
            size = min(self._max_batch, max(1, self._max_batch_pixels // (height * width)))
            yield from (indices[start : start + size] for start in range(0, len(indices), size))

    def infer(self, batch: "torch.Tensor") -> "list[torch.Tensor]":
        """Run the model on a batch. On a GPU, return without waiting for the result.

        Args:
            batch: uint8 images x height x width x 3, BGR, on the host.

        Returns:
            Tensors on the device. The first is float32 images x rows x columns, with boxes in
            pixels of the input. For the task classify, each image has one row: a score for each
            class. A segmentation model has a second one: images x prototypes x height x width.
        """
        import torch

        # Upload bytes. The device then converts them to RGB, NCHW and floats.
        inputs = batch.to(self._device, non_blocking=True).permute(0, 3, 1, 2).contiguous().flip(1)
        output = self.backend((inputs.half() if self.backend.fp16 else inputs.float()).div_(255))
        if self.backend.format == "pt":  # the others are outputs for training
            output = output[0]
        rows, *others = output if isinstance(output, list | tuple) else [output]
        if self._info.task is Task.CLASSIFY:
            rows = rows[:, None]
        # Always copied, because a TensorRT engine overwrites this output with its next output.
        copies = [rows.to(torch.float32, copy=True)]
        return copies + [others[0].clone()] if self._info.task is Task.SEGMENT else copies

    def warm_up(self) -> None:
        """Run the input shapes of common images once: a GPU loads kernels at their first use.

        cuDNN's search for the fastest kernels (`cudnn.benchmark`) stays off. It would run again for
        each input shape and each batch size.
        """
        import torch

        size = self._info.image_size
        sizes = ((size * w // max(w, h), size * h // max(w, h)) for w, h in _COMMON_RATIOS)
        self.detect(
            [
                DecodedImage.of(torch.zeros(height, width, 3, dtype=torch.uint8).numpy())
                for width, height in sizes
            ]
        )

    def _letterbox(self, width: int, height: int) -> Letterbox:
        if self._info.task is Task.CLASSIFY:
            size = self._info.image_size
            return _fit(size, size, size, size)
        if self._fixed_shape:
            return _fit(width, height, *self._fixed_shape)
        return letterbox(
            width,
            height,
            image_size=self._info.image_size,
            stride=self.backend.stride,
            min_pixels=0 if self.backend.format == "pt" else _MIN_INPUT_PIXELS,
        )

    def _host_memory(self, letterbox: Letterbox, count: int) -> "torch.Tensor":
        """Allocate a batch of `count` inputs on the host, in pinned memory for a GPU.

        PyTorch reuses pinned memory, but only after the upload from it has finished (see its
        CachingHostAllocator). So a batch is never overwritten while it is uploaded.
        """
        import torch

        shape = (count, letterbox.input_height, letterbox.input_width, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._on_cuda)


def _fit(width: int, height: int, input_height: int, input_width: int) -> Letterbox:
    """Letterbox into the fixed input shape of an export, as ultralytics does."""
    scale = min(input_height / height, input_width / width)
    resized_width, resized_height = max(round(width * scale), 1), max(round(height * scale), 1)
    return Letterbox(
        resized_width,
        resized_height,
        left=round((input_width - resized_width) / 2 - 0.1),
        top=round((input_height - resized_height) / 2 - 0.1),
        input_width=input_width,
        input_height=input_height,
        width=width,
        height=height,
    )


def _load_fastest(path: Path, device: str) -> tuple[Path, Any]:
    """Load the TensorRT engine beside the weights if it can run here, otherwise the file itself.

    Returns:
        The path that was loaded, and its `AutoBackend`.

    Raises:
        ModelError: see `_load_backend`.
    """
    engine = path.with_suffix(".engine")
    if path.suffix == ".pt" and device != "cpu" and engine.is_file():
        try:
            return engine, _load_backend(engine, device)
        except ModelError as exc:
            logger.warning(
                "The TensorRT engine beside the weights cannot be loaded: the weights run instead",
                extra={"engine": str(engine), "reason": str(exc)},
            )
    return path, _load_backend(path, device)


def _load_backend(path: Path, device: str) -> Any:
    """Load a model with its end-to-end head as an `ultralytics.nn.autobackend.AutoBackend`.

    Raises:
        ModelError: a library is missing, the model cannot be loaded on this device, it has no
            end-to-end head, its task is not supported, or its labels cannot be stored.
    """
    library = _LIBRARIES.get(path.suffix)
    if library and not find_spec(library):
        raise ModelError(f"{path} needs {library}, which is not installed")
    if path.suffix == ".engine" and device == "cpu":
        raise ModelError(f"{path} is a TensorRT engine, which runs on a GPU: set DEVICE=0")
    model = load_yolo(path)
    if not isinstance(model.model, str | Path):  # weights. An export is not loaded yet.
        class_labels(
            getattr(model.model, "names", None),
            model=path.name,
            count=count_classes(model),
            advice=advice_for_weights(path),
        )
    try:
        from ultralytics.nn.autobackend import AutoBackend
        from ultralytics.utils.torch_utils import select_device

        selected = select_device(device, verbose=False)
        backend = AutoBackend(
            model.model,
            device=selected,
            fp16=selected.type != "cpu",
            # `predict(nms=False)` sets this in ultralytics 8.4. Otherwise the model uses its other
            # head, and ultralytics runs NMS.
            end2end=True,
            verbose=False,
        ).eval()
    except Exception as exc:  # noqa: BLE001 - ultralytics raises whatever its loaders raise
        reason = str(exc).strip()
        raise ModelError(f"{path} cannot be loaded on DEVICE={device}: {reason}") from exc
    if backend.device.type != selected.type:
        raise ModelError(
            f"{path} would run on the {backend.device.type}, not on DEVICE={device}: its library "
            f"({library}) does not support that device here"
        )
    if _task(backend, path) is not Task.CLASSIFY and not backend.end2end:
        raise ModelError(
            f"{path} has no end-to-end head, which YOLO26 models have: export it with nms=False"
        )
    if backend.format == "pt" and backend.fp16:
        decode_boxes_in_float32(backend.model.model[-1])
    return backend


def decode_boxes_in_float32(head: Any) -> None:
    """Make a half-precision head of ultralytics compute its results in float32.

    A corner is a distance in cells times the stride. Beyond 512 pixels, a half-precision corner is
    off by up to a quarter of a pixel, which is too much for small boxes. The same applies to the
    points of a pose. Half-precision confidences of classes may be equal, so that their order is
    lost. The convolutions stay in half precision: their error is small in relation to the size of
    the box.
    """
    for name in ("dfl", "linear"):  # before the corners, and before the softmax of classes
        if layer := getattr(head, name, None):
            layer.register_forward_hook(lambda module, inputs, output: output.float())
    if decode := getattr(head, "kpts_decode", None):
        head.kpts_decode = lambda points: decode(points.float())


def load_yolo(path: Path) -> Any:
    """Load a model as an `ultralytics.YOLO`.

    Raises:
        ModelError: ultralytics is not installed or cannot load the file, or the task of the weights
            is not supported.
    """
    os.environ.setdefault("YOLO_AUTOINSTALL", "False")  # ultralytics reads it at its import
    try:
        from ultralytics import YOLO
        from ultralytics.utils.events import events
    except ImportError as exc:
        raise ModelError(
            f"{path} needs ultralytics, which is not installed: pip install 'yolo-batch[export]'"
        ) from exc
    events.enabled = False  # no telemetry
    try:
        model = YOLO(path, verbose=False)
        task = model.task
    except Exception as exc:  # noqa: BLE001 - ultralytics raises whatever its loaders raise
        hint = "" if path.exists() else ". The file does not exist and cannot be downloaded"
        raise ModelError(f"ultralytics cannot load {path}: {exc}{hint}") from exc
    if not isinstance(model.model, str | Path):  # weights. Of an export, the task is a guess.
        task_of(task, model=path)
    return model


def _task(backend: Any, path: Path) -> Task:
    """Return the task of a loaded model.

    Raises:
        ModelError: it is not supported.
    """
    source = backend.model.task if backend.format == "pt" else backend.metadata.get("task")
    return task_of(source or Task.DETECT, model=path)


def _keypoints(backend: Any, path: Path) -> KeypointLayout:
    """Return the layout of the points that a pose model finds.

    Raises:
        ModelError: the model's metadata are malformed.
    """
    if backend.format == "pt":
        shape, names = backend.model.kpt_shape, getattr(backend.model, "kpt_names", None)
    else:
        shape, names = (backend.metadata.get(key) for key in ("kpt_shape", "kpt_names"))
    return KeypointLayout.of(shape, names, model=path)


def _original_names(backend: Any) -> Any:
    """Return the class names of the file, which ultralytics may have converted to text."""
    if backend.format == "pt":
        return backend.model.names
    return backend.metadata.get("names") or backend.names


def count_classes(model: Any) -> int | None:
    """Return the number of classes of weights, read from their head. None for an export.

    Args:
        model: an `ultralytics.YOLO` or an `AutoBackend`.
    """
    layers = getattr(getattr(model, "model", None), "model", None)
    if layers is None:
        return None
    linear = getattr(layers[-1], "linear", None)  # of a classification model
    count = linear.out_features if linear else getattr(layers[-1], "nc", None)
    return int(count) if count else None


def _count_classes_of_onnx(path: Path) -> int | None:
    """Return the number of classes of an ONNX file, which OpenVINO reads. None for other files.

    Also None without OpenVINO, which is not in the container image for GPUs.
    """
    if path.suffix != ".onnx" or not find_spec("openvino"):
        return None
    from service.inference.openvino import count_classes_of_file

    return count_classes_of_file(path)


def trained_image_size(model: Any) -> int:
    """Return the image size that weights were trained with: the longer side, in pixels.

    It is rounded up to a multiple of the stride, as in ultralytics.

    Args:
        model: an `ultralytics.YOLO` or an `AutoBackend`, loaded from weights.
    """
    arguments = getattr(model.model, "args", None)
    size = arguments.get("imgsz") if isinstance(arguments, dict) else None
    if isinstance(size, list | tuple):
        size = max(size, default=None)
    stride = stride_of(model)
    return math.ceil(int(size or _DEFAULT_IMAGE_SIZE) / stride) * stride


def stride_of(model: Any) -> int:
    """Return the stride of weights, in pixels. Sides of an input shape are multiples of it."""
    strides = getattr(model.model, "stride", None)
    return max(int(max(strides)), _MIN_STRIDE) if strides is not None else _MIN_STRIDE


def _precision(backend: Any) -> str:
    """Return `int8`, `fp16` or `fp32`: as exported, or as the device runs weights."""
    device_precision = "fp16" if backend.fp16 else "fp32"
    exported_bits = backend.metadata.get("args", {}).get("quantize")
    return {8: "int8", 16: "fp16"}.get(exported_bits, device_precision)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of a directory's files in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()
