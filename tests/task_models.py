"""Models of every task as exported directories, whose rows are given by the test.

The prototypes of a segmentation model are the red, green and blue of the image, at a quarter of
its size. So its masks are drawn by the image itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import yaml
from openvino import opset13 as ops

IMAGE_SIZE = 160


def write_model(
    directory: Path,
    task: str | None,
    rows: Sequence[Sequence[float]] | Sequence[float],
    *,
    image_size: int = IMAGE_SIZE,
    shape: Sequence[int] = (-1, 3, -1, -1),
    **metadata: Any,
) -> Path:
    """Write a model that returns the same rows for every image.

    Args:
        directory: to write.
        task: of the metadata.
        rows: rows x columns, in pixels of the input. For classify, a score for each class.
        image_size: longer side of the input.
        shape: of the input.
        metadata: further metadata. None removes a key.
    """
    images = ops.parameter(ov.PartialShape(list(shape)), ov.Type.f32, name="images")
    mean = ops.reduce_mean(images, np.array([1, 2, 3]), keep_dims=True)
    nothing = ops.multiply(mean, np.float32(0))
    table = np.array(rows, np.float32)
    axes = np.array([1, 2]) if task == "classify" else np.array([1])
    outputs = [ops.add(ops.squeeze(nothing, axes), table[None])]
    if task == "segment":
        outputs.append(
            ops.avg_pool(images, [4, 4], [0, 0], [0, 0], [4, 4], False)  # strides first
        )
    directory.mkdir(parents=True, exist_ok=True)
    model = ov.Model(outputs, [images])
    ov.save_model(model, directory / "model.xml", compress_to_fp16=False)
    content = {
        "names": {0: "cat", 1: "dog", 2: "owl"},
        "imgsz": [image_size, image_size],
        "stride": 1 if task == "classify" else 32,
        "task": task,
        "batch": 1,
        "end2end": task != "classify",
        "args": {"dynamic": True, "nms": False},
        **metadata,
    }
    text = yaml.safe_dump({key: value for key, value in content.items() if value is not None})
    (directory / "metadata.yaml").write_text(text, encoding="utf-8")
    return directory
