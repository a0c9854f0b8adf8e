"""Everything else that ultralytics loads (`.pt`, `.onnx`, `.engine`, ...), on a CPU or a GPU.

ultralytics loads the network and runs its forward pass (`AutoBackend`, as its own `predict` does);
what comes before and after is ours: pictures go to the device as bytes, and rows come back once.
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

from service.domain import Detection, ModelInfo
from service.errors import ModelError
from service.images.letterbox import Letterbox, letterbox
from service.images.pixels import Pixels
from service.inference.labels import (
    ADVICE_FOR_OTHERS,
    advice_for_weights,
    class_labels,
    label_of,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_DEFAULT_IMAGE_SIZE = 640
_MIN_STRIDE = 32  # ultralytics' own
_MAX_BATCH = 32  # frames in one forward pass at most
# Pixels of the smallest frame whose anchors (21 for every 32x32) fill the head's top 300, a number
# that is fixed at an export. Weights take as many rows as there are.
_MIN_FRAME_PIXELS = math.ceil(300 * 32 * 32 / 21)
_LIBRARIES = {".engine": "tensorrt", ".onnx": "onnxruntime"}  # what ultralytics would install
_COMMON_RATIOS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))


class UltralyticsDetector:
    """A YOLO26 network run by ultralytics, in half precision on a GPU.

    Pictures are letterboxed as ultralytics does it for single pictures, and those of equal frames
    run as one batch. A TensorRT engine beside the weights (`yolo26n.engine` by `yolo26n.pt`) takes
    their place on a GPU.
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
        """Load the network.

        Args:
            path: `.pt`, `.onnx`, `.engine`, or whatever else ultralytics loads.
            device: `cpu`, or a GPU as ultralytics names it.
            image_size: longer side that the network sees, in pixels; None: as trained or exported.
            min_confidence: detections below are left out.
            max_batch_pixels: pixels of one batch at most; bounds a GPU's memory.

        Raises:
            ModelError: ultralytics is not installed, or cannot load the file on this device, or the
                network has no end-to-end head.
        """
        loaded, self.backend = _load_fastest(path, device)
        self._device: torch.device = self.backend.device
        self._on_cuda = self._device.type == "cuda"
        self._max_batch = _MAX_BATCH
        if self.backend.format == "engine":  # its buffers, or its profile, end there
            self._max_batch = min(self.backend.batch, _MAX_BATCH)
        exported = getattr(self.backend, "imgsz", None)  # (height, width); a .pt has none
        # What was exported for one shape: every picture gets that frame.
        self._fixed_frame = None if not exported or self.backend.dynamic else tuple(exported)
        own_size = max(exported) if exported else trained_image_size(self.backend)
        if self._fixed_frame and image_size not in (None, own_size):
            raise ModelError(
                f"{loaded} was exported for {own_size} pixels alone, not IMAGE_SIZE={image_size}"
            )
        if (image_size or own_size) % self.backend.stride:
            raise ModelError(
                f"IMAGE_SIZE={image_size or own_size} is not a multiple of {self.backend.stride}, "
                f"the stride of {loaded}"
            )
        self._labels = class_labels(
            _names_as_written(self.backend),
            model=loaded.name,
            count=count_classes(self.backend) or _count_classes_of_onnx(loaded),
            advice=advice_for_weights(path) if path.suffix == ".pt" else ADVICE_FOR_OTHERS,
        )
        self._min_confidence = min_confidence
        self._max_batch_pixels = max_batch_pixels
        self.runners = 1
        self._info = ModelInfo(
            name=loaded.name,
            sha256=sha256_of(path),  # of the weights, where an engine made of them runs
            image_size=image_size or own_size,
            precision=_precision(self.backend),
            runtime=f"ultralytics {version('ultralytics')}",
        )
        if self._on_cuda:
            try:
                self.warm_up()
            except Exception as exc:  # a GPU's libraries raise many kinds
                raise ModelError(f"{loaded} cannot run on DEVICE={device}: {exc}") from exc

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

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        """Detect objects; see `Detector.detect`.

        Several batches are needed where the images have several input shapes, or more pixels than
        one batch may have. The device works on one while the next one is letterboxed here; only
        the rows of all of them are waited for.
        """
        import torch

        letterboxes = [self._letterbox(image.shape[1], image.shape[0]) for image in images]
        batches = list(self._batches(letterboxes))
        found: list[list[Detection]] = [[] for _ in images]
        if not batches:
            return found
        # The current device is the thread's own, and TensorRT runs on no other; -1 changes nothing.
        with torch.inference_mode(), torch.cuda.device(self._device if self._on_cuda else -1):
            rows = []
            for indices in batches:
                batch = self._host_memory(letterboxes[indices[0]], len(indices))
                for slot, index in zip(batch.numpy(), indices, strict=True):
                    letterboxes[index].apply(images[index], slot)
                rows.append(self.infer(batch))
            on_host = torch.cat([each.flatten(0, 1) for each in rows]).cpu()
        counts = [each.shape[1] for each in rows for _ in range(len(each))]
        split = torch.split(on_host, counts)
        for index, image_rows in zip(chain(*batches), split, strict=True):
            found[index] = self._detections(image_rows, letterboxes[index])
        return found

    def _batches(self, letterboxes: Sequence[Letterbox]) -> Iterator[list[int]]:
        """Divide images, by their numbers, into batches of one shape that the device can hold."""
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, fitted in enumerate(letterboxes):
            by_shape[fitted.input_height, fitted.input_width].append(index)
        for (height, width), indices in by_shape.items():
            size = min(self._max_batch, max(1, self._max_batch_pixels // (height * width)))
            yield from (indices[start : start + size] for start in range(0, len(indices), size))

    def infer(self, batch: "torch.Tensor") -> "torch.Tensor":
        """Run the network; on a GPU, only queue its work.

        Args:
            batch: uint8 frames x height x width x 3, BGR, on the host.

        Returns:
            float32 rows on the device, frames x boxes x 6, in the frames' pixels.
        """
        import torch

        # As bytes over the bus; RGB, NCHW and floats are made on the device.
        frames = batch.to(self._device, non_blocking=True).permute(0, 3, 1, 2).contiguous().flip(1)
        output = self.backend((frames.half() if self.backend.fp16 else frames.float()).div_(255))
        rows: torch.Tensor = output[0] if isinstance(output, list | tuple) else output
        # A copy always: a TensorRT engine writes its next output over this one.
        return rows.to(torch.float32, copy=True)

    def warm_up(self) -> None:
        """Run the frames of common pictures once: a GPU loads its kernels at their first use.

        cuDNN's own search (`cudnn.benchmark`) stays off: it begins anew with each of the many
        shapes, sizes of batches included.
        """
        import torch

        size = self._info.image_size
        sizes = ((size * w // max(w, h), size * h // max(w, h)) for w, h in _COMMON_RATIOS)
        self.detect(
            [torch.zeros(height, width, 3, dtype=torch.uint8).numpy() for width, height in sizes]
        )

    def _letterbox(self, width: int, height: int) -> Letterbox:
        if self._fixed_frame:
            return _fit(width, height, *self._fixed_frame)
        return letterbox(
            width,
            height,
            image_size=self._info.image_size,
            stride=self.backend.stride,
            min_pixels=0 if self.backend.format == "pt" else _MIN_FRAME_PIXELS,
        )

    def _host_memory(self, frame: Letterbox, count: int) -> "torch.Tensor":
        """Memory for a batch of frames, pinned for a GPU.

        PyTorch keeps pinned memory for reuse, and does not reuse it before the upload from it is
        over (its CachingHostAllocator); none of it is ever filled twice at once.
        """
        import torch

        shape = (count, frame.input_height, frame.input_width, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._on_cuda)

    def _detections(self, rows: "torch.Tensor", frame: Letterbox) -> list[Detection]:
        confident = rows[rows[:, 4] >= self._min_confidence].tolist()
        return [
            Detection(label_of(self._labels, int(row[5])), int(row[5]), row[4], frame.box(*row[:4]))
            for row in sorted(confident, key=lambda row: -row[4])
        ]


def _fit(width: int, height: int, input_height: int, input_width: int) -> Letterbox:
    """Letterbox into the one frame of a fixed-shape export, as ultralytics does it."""
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
    """Load the TensorRT engine beside the weights where one can run, else the file itself."""
    engine = path.with_suffix(".engine")
    if path.suffix == ".pt" and device != "cpu" and engine.is_file():
        try:
            return engine, _load_backend(engine, device)
        except ModelError as exc:
            logger.warning(
                "The TensorRT engine beside the weights cannot be used: the weights run instead",
                extra={"engine": str(engine), "reason": str(exc)},
            )
    return path, _load_backend(path, device)


def _load_backend(path: Path, device: str) -> Any:
    """Load an `ultralytics.nn.autobackend.AutoBackend` with its end-to-end head.

    Raises:
        ModelError: it cannot be loaded on this device, or is no such network.
    """
    library = _LIBRARIES.get(path.suffix)
    if library and not find_spec(library):
        raise ModelError(f"{path} needs {library}, which is not installed")
    if path.suffix == ".engine" and device == "cpu":
        raise ModelError(f"{path} is a TensorRT engine, which runs on a GPU: set DEVICE=0")
    model = load_yolo(path)
    if not isinstance(model.model, str | Path):  # weights; an export is not read yet
        class_labels(
            getattr(model.model, "names", None),
            model=path.name,
            count=count_classes(model),
            advice=advice_for_weights(path),
        )
    try:
        from ultralytics.nn.autobackend import AutoBackend
        from ultralytics.utils.torch_utils import select_device

        chosen = select_device(device, verbose=False)
        network = AutoBackend(
            model.model,
            device=chosen,
            fp16=chosen.type != "cpu",
            # What `predict` makes of `nms=False` in ultralytics 8.4; otherwise it takes the other
            # head and runs NMS.
            end2end=True,
            verbose=False,
        ).eval()
    except Exception as exc:  # noqa: BLE001 - ultralytics raises whatever its loaders raise
        reason = str(exc).strip()
        raise ModelError(f"{path} cannot be loaded on DEVICE={device}: {reason}") from exc
    if network.device.type != chosen.type:
        raise ModelError(
            f"{path} would run on the {network.device.type}, not on DEVICE={device}: its library "
            f"({library}) has no support for that device here"
        )
    if not network.end2end:
        raise ModelError(
            f"{path} has no end-to-end head, which YOLO26 models have: export it with nms=False"
        )
    if network.format == "pt" and network.fp16:
        decode_boxes_in_float32(network.model.model[-1])
    return network


def decode_boxes_in_float32(head: Any) -> None:
    """Let a half-precision `Detect` head compute the corners of its boxes in float32.

    They are differences of cells, times the stride: beyond 512 pixels a half float is off by up to
    a quarter of a pixel, which small boxes cannot bear. What the convolutions give stays as it is,
    exact in relation to the box's own size.
    """
    head.dfl.register_forward_hook(lambda module, inputs, output: output.float())


def load_yolo(path: Path) -> Any:
    """Load an `ultralytics.YOLO` that is a detection model.

    Raises:
        ModelError: ultralytics is not installed, or the file is not such a model.
    """
    os.environ.setdefault("YOLO_AUTOINSTALL", "False")  # read at the import; nothing is installed
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
        hint = "" if path.exists() else ". There is no such file here, and it cannot be downloaded"
        raise ModelError(f"ultralytics cannot load {path}: {exc}{hint}") from exc
    if task != "detect":
        raise ModelError(f"{path} is a model for {task!r}, not for detection")
    return model


def _names_as_written(network: Any) -> Any:
    """Return the classes' names before ultralytics made text of them."""
    if network.format == "pt":
        return network.model.names
    return network.metadata.get("names") or network.names


def count_classes(owner: Any) -> int | None:
    """Count the classes of weights by their head; None for an export."""
    layers = getattr(getattr(owner, "model", None), "model", None)
    count = getattr(layers[-1], "nc", None) if layers is not None else None
    return int(count) if count else None


def _count_classes_of_onnx(path: Path) -> int | None:
    """Count the classes of an ONNX file by its graph, which OpenVINO reads; None for others.

    None also without OpenVINO, which the GPU image does not have.
    """
    if path.suffix != ".onnx" or not find_spec("openvino"):
        return None
    from service.inference.openvino import count_classes_of_file

    return count_classes_of_file(path)


def trained_image_size(model: Any) -> int:
    """Return the longer side that weights were trained with, in pixels.

    Like ultralytics, round it up to the stride of the network.

    Args:
        model: what `load_yolo` returns for weights, or the `AutoBackend` that runs them.
    """
    arguments = getattr(model.model, "args", None)
    size = arguments.get("imgsz") if isinstance(arguments, dict) else None
    if isinstance(size, list | tuple):
        size = max(size, default=None)
    stride = stride_of(model)
    return math.ceil(int(size or _DEFAULT_IMAGE_SIZE) / stride) * stride


def stride_of(model: Any) -> int:
    """Return the stride of weights, in pixels: sides of frames are multiples of it."""
    strides = getattr(model.model, "stride", None)
    return max(int(max(strides)), _MIN_STRIDE) if strides is not None else _MIN_STRIDE


def _precision(network: Any) -> str:
    """Name the arithmetic: an export says it, weights run in that of their device."""
    own = "fp16" if network.fp16 else "fp32"
    return {8: "int8", 16: "fp16"}.get(network.metadata.get("args", {}).get("quantize"), own)


def sha256_of(path: Path) -> str:
    """Hash a model's file, or the files of a directory in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()
