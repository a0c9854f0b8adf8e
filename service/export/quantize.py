"""Quantise a float model to int8 with NNCF: static quantisation after training.

Some options differ from NNCF's defaults, because they gave better results. The measurements are in
docs/evidence/performance.md.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from service.domain import Task
from service.errors import BadImageError, ModelError
from service.images.crop import center_crop
from service.images.decode import decode
from service.images.letterbox import fit, input_shapes, shrink
from service.images.pixels import Pixels
from service.inference.openvino import pixels_for_anchors

METHOD = (
    "static, after training: weights symmetric by channel, activations asymmetric, their ranges "
    "from histograms; in float: the first convolution, the layers for mask coefficients, keypoints "
    "and angles, and the decoding of boxes"
)
_MAX_PIXELS = 2**30
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
# The part of the end-to-end head that returns what a task adds to a box, as ultralytics names it:
# coefficients of masks, keypoints or angles.
_TASK_BRANCH = ".one2one_cv4"


def quantize(
    model: ov.Model, images: Sequence[Path], *, task: Task, image_size: int, stride: int
) -> ov.Model:
    """Quantise a model that was exported with dynamic shapes, and with its end-to-end head.

    Args:
        model: takes float32 N x 3 x H x W, RGB in 0..1.
        images: calibration images. All are used to determine the ranges of activations.
        task: the model's task.
        image_size: longer side of the model's input, in pixels.
        stride: the model's stride in pixels.

    Returns:
        The int8 model, with the same inputs and outputs.

    Raises:
        ModelError: NNCF is not installed, it fails on this model, or a file is not an image.
    """
    nncf = _import_nncf()
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # OpenVINO's Python binding looks up numpy at its first use. Two threads that do this at once
    # deadlock, so do it here.
    _ = ov.Tensor(np.zeros(1, np.float32)).data
    read = _reader(model, task=task, image_size=image_size, stride=stride)
    try:
        return nncf.quantize(
            model,
            nncf.Dataset(images, read),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=_float_operations(model), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM,
                disable_bias_correction=True,
                # Use all 8 bits of the weights. On CPUs without VNNI, sums of two 8-bit products
                # can overflow. They do so in the first convolution, which stays in float.
                overflow_fix=OverflowFix.DISABLE,
            ),
        )
    except ModelError:
        raise
    except Exception as exc:  # noqa: BLE001 - NNCF and OpenVINO raise many kinds
        raise ModelError(f"NNCF cannot quantise the model: {exc}") from exc


def nncf_version() -> str:
    """Return the installed version of NNCF, for an export's metadata.

    Raises:
        ModelError: NNCF is not installed.
    """
    return str(_import_nncf().__version__)


def _import_nncf() -> Any:
    """Import NNCF with its telemetry off. Otherwise it reports its use to Google Analytics.

    Raises:
        ModelError: NNCF is not installed.
    """
    os.environ["NNCF_CI"] = "1"
    try:
        import nncf
    except ImportError as exc:
        raise ModelError(
            "int8 needs nncf, which is not installed: pip install 'yolo-batch[export]'"
        ) from exc
    nncf.set_log_level(40)  # errors only
    return nncf


def _reader(
    model: ov.Model, *, task: Task, image_size: int, stride: int
) -> Callable[[Path], NDArray[np.float32]]:
    """Return a function that reads a file as the OpenVINO detector does.

    The function returns float32 1 x 3 x H x W, RGB in 0..1, letterboxed or, for the task classify,
    cropped. It raises ModelError if the file is not an image.
    """
    shapes: Sequence[tuple[int, int]]
    if task is Task.CLASSIFY:
        shapes = [(image_size, image_size)]
    else:
        shapes = input_shapes(
            image_size,
            stride=stride,
            min_pixels=pixels_for_anchors(model.output(0).partial_shape[1]),
        )

    def read(file: Path) -> NDArray[np.float32]:
        try:
            pixels = _decode(file.read_bytes(), task, image_size)
        except BadImageError as exc:
            raise ModelError(f"{file}: {exc}") from exc
        letterbox = fit(pixels.shape[1], pixels.shape[0], image_size=image_size, shapes=shapes)
        rgb = letterbox.apply(pixels)[None, :, :, ::-1].transpose(0, 3, 1, 2)
        return np.ascontiguousarray(rgb, np.float32) / np.float32(255)

    return read


def _decode(data: bytes, task: Task, image_size: int) -> Pixels:
    """Decode a file to the pixels that the letterbox takes."""
    if task is Task.CLASSIFY:
        decoded = decode(data, max_pixels=_MAX_PIXELS)
        return center_crop(decoded.pixels, size=image_size)
    decoded = decode(data, max_pixels=_MAX_PIXELS, image_size=image_size)
    return shrink(decoded.pixels, image_size=image_size)


def _float_operations(model: ov.Model) -> list[str]:
    """Return the names of the operations that stay in float.

    They are the first convolution, the convolutions of `_TASK_BRANCH` and everything after the last
    convolutions. The operations after the last convolutions decode and select boxes, with values
    that 8 bits cannot represent. Keypoints and angles are not bounded either, and their branch is
    small.
    """
    first = next(op for op in model.get_ordered_ops() if op.get_type_name() in _CONVOLUTIONS)
    names = {first.get_friendly_name()}
    names |= {
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() in _CONVOLUTIONS and _TASK_BRANCH in op.get_friendly_name()
    }
    pending = list(model.get_results())
    while pending:
        for source in (i.get_source_output().get_node() for i in pending.pop().inputs()):
            # Stop at ShapeOf too: its result depends on a shape, not on values before it.
            if source.get_type_name() in (*_CONVOLUTIONS, "ShapeOf", "Constant"):
                continue
            if source.get_friendly_name() not in names:
                names.add(source.get_friendly_name())
                pending.append(source)
    return sorted(names)
