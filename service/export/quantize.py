"""A float model to int8: static quantisation after training, with NNCF.

Some options differ from NNCF's defaults because they measured better. The figures are in
`docs/evidence/performance.md`.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from service.errors import BadImageError, ModelError
from service.images.decode import decode
from service.images.letterbox import fit, input_shapes, shrink
from service.inference.openvino import pixels_for_anchors

METHOD = (
    "static, after training: weights symmetric by channel, activations asymmetric, their ranges "
    "from histograms; the first convolution and the decoding of boxes in float"
)
_MAX_PIXELS = 2**30
_CONVOLUTIONS = ("Convolution", "GroupConvolution")


def quantize(
    network: ov.Model, pictures: Sequence[Path], *, image_size: int, stride: int
) -> ov.Model:
    """Quantise a network that is exported with its end-to-end head and dynamic shapes.

    Args:
        network: float32 input, N x 3 x H x W, RGB in 0..1.
        pictures: files to take the ranges of activations from, all of them.
        image_size: longer side that the network sees, in pixels.
        stride: of the network, in pixels.

    Raises:
        ModelError: NNCF is not installed, or it fails on this network or a file.
    """
    nncf = _nncf()
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # OpenVINO's binding looks numpy up at its first use, and two threads that do so at once lock
    # each other for ever.
    _ = ov.Tensor(np.zeros(1, np.float32)).data
    read = _reader(network, image_size=image_size, stride=stride)
    try:
        return nncf.quantize(
            network,
            nncf.Dataset(pictures, read),
            subset_size=len(pictures),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=_kept_in_float(network), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM,
                disable_bias_correction=True,
                # All 8 bits of the weights. On a CPU without VNNI, sums of two products of 8 bits
                # can overflow; it is the first convolution where they do, and that stays in float.
                overflow_fix=OverflowFix.DISABLE,
            ),
        )
    except ModelError:
        raise
    except Exception as exc:  # noqa: BLE001 - NNCF and OpenVINO raise many kinds
        raise ModelError(f"NNCF cannot quantise the network: {exc}") from exc


def version() -> str:
    """NNCF's."""
    return str(_nncf().__version__)


def _nncf() -> Any:
    """Import NNCF, which otherwise reports its use to Google Analytics."""
    os.environ["NNCF_CI"] = "1"
    try:
        import nncf
    except ImportError as exc:
        raise ModelError(
            "int8 needs nncf, which is not installed: pip install 'yolo-batch[export]'"
        ) from exc
    nncf.set_log_level(40)  # errors; the rest is of its own working
    return nncf


def _reader(
    network: ov.Model, *, image_size: int, stride: int
) -> Callable[[Path], NDArray[np.float32]]:
    """Make what letterboxes a file as the detector does: float32 1 x 3 x H x W, RGB in 0..1."""
    sizes = input_shapes(
        image_size,
        stride=stride,
        min_pixels=pixels_for_anchors(network.output(0).partial_shape[1]),
    )

    def read(file: Path) -> NDArray[np.float32]:
        try:
            picture = decode(file.read_bytes(), max_pixels=_MAX_PIXELS, image_size=image_size)
        except BadImageError as exc:
            raise ModelError(f"{file}: {exc}") from exc
        pixels = shrink(picture.pixels, image_size=image_size)
        frame = fit(pixels.shape[1], pixels.shape[0], image_size=image_size, shapes=sizes)
        rgb = frame.apply(pixels)[None, :, :, ::-1].transpose(0, 3, 1, 2)
        return np.ascontiguousarray(rgb, np.float32) / np.float32(255)

    return read


def _kept_in_float(network: ov.Model) -> list[str]:
    """Names of the operations that are not quantised, found by their place in the network.

    The first convolution, and everything after the last ones: boxes are decoded there, and the
    best of them picked, in numbers that 8 bits cannot hold.
    """
    first = next(op for op in network.get_ordered_ops() if op.get_type_name() in _CONVOLUTIONS)
    names = {first.get_friendly_name()}
    pending = list(network.get_results())
    while pending:
        for source in (i.get_source_output().get_node() for i in pending.pop().inputs()):
            # Of what a ShapeOf looks at, only the shape goes on.
            if source.get_type_name() in (*_CONVOLUTIONS, "ShapeOf", "Constant"):
                continue
            if source.get_friendly_name() not in names:
                names.add(source.get_friendly_name())
                pending.append(source)
    return sorted(names)
