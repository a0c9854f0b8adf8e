"""Gives the weights of the exported detection model to a network that is about to be trained.

The export folds each batch normalisation into the convolution before it. Training needs both. So
this module writes the folded weights into the convolution, and measures on some drawn images which
statistics give the same outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_CONSTANT = re.compile(r"(?:__module|self)\.(model\.\d+\..+?)(\.weight|/aten::_convolution/.+)")


def warm_start(network: Any, exported: Path, images: npt.NDArray[np.float32]) -> int:
    """Copy the weights of an exported detection model into a network.

    Args:
        network: Ultralytics' network. Its layers up to the head have the names of the exported
            model's. It may have layers that the exported model lacks.
        exported: The model's OpenVINO file (``.xml``), with FP16 weights.
        images: Images for the statistics, RGB from 0 to 1, of shape (n, 3, height, width).

    Returns:
        Number of convolutions that got weights.

    Raises:
        ValueError: If the exported model has a convolution that the network lacks.
    """
    import torch

    modules = dict(network.named_modules())
    found: dict[str, dict[str, Any]] = {}
    for name, kind, constant in _constants(exported):
        if name not in modules:
            raise ValueError(f"the network has no convolution {name}")
        found.setdefault(name, {})[kind] = torch.from_numpy(constant)
    handles = []
    with torch.no_grad():
        for name, values in found.items():
            convolution = modules[name]
            convolution.weight.copy_(values["weight"].reshape(convolution.weight.shape))
            if convolution.bias is not None:
                convolution.bias.copy_(values["bias"].flatten())
                continue
            norm = modules[name.removesuffix("conv") + "bn"]
            norm.bias.copy_(values["bias"].flatten())
            handles.append(norm.register_forward_pre_hook(_measure))
        was_training = network.training
        network.eval()(torch.from_numpy(images))
        network.train(was_training)
        for handle in handles:
            handle.remove()
        _copy_heads(network.model[-1])
    return len(found)


def _constants(exported: Path) -> Iterator[tuple[str, str, npt.NDArray[np.float32]]]:
    """Yield the module, ``weight`` or ``bias``, and the values of each convolution."""
    import openvino

    for operation in openvino.Core().read_model(str(exported)).get_ops():
        match = _CONSTANT.match(operation.get_friendly_name())
        if operation.get_type_name() == "Constant" and match:
            values = np.asarray(operation.data, dtype=np.float32)
            # The weights of a depthwise convolution have five dimensions.
            kind = "weight" if match[2].startswith(".weight") or values.ndim == 5 else "bias"
            yield match[1], kind, values


def _measure(norm: Any, inputs: tuple[Any, ...]) -> None:
    """Set the statistics of a batch normalisation to those of its input, and keep its output.

    It normalises with the measured mean and variance. Its weight and bias undo that.
    """
    values = inputs[0]
    mean = values.mean(dim=(0, 2, 3))
    variance = values.var(dim=(0, 2, 3), unbiased=False)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.add_(mean)


def _copy_heads(head: Any) -> None:
    """Start the head that only training uses with the weights of the NMS-free head."""
    head.cv2.load_state_dict(head.one2one_cv2.state_dict())
    head.cv3.load_state_dict(head.one2one_cv3.state_dict())
