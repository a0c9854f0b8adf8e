"""How well a demo model finds the drawn shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from devtools.demo_model import shapes
from devtools.demo_model.card import Measurement, Tally
from devtools.demo_model.recipe import BATCH, CONFIDENCE, HELD_OUT_COUNT, INPUT_SIZE, image_size
from service.domain import Box
from service.inference.similarity import iou

_Found = TypeVar("_Found")  # a box or a mask


def measure(model: Path, data: Path, task: str) -> dict[str, Measurement]:
    """Measure the average precision of a model on the held-out images.

    Args:
        model: Weights, or folder of an exported model.
        data: Description of the data set.
        task: ``detect`` or ``segment``.

    Returns:
        The average precision, over all classes and by class: of ``boxes``, and for ``segment`` of
        ``masks``.
    """
    from ultralytics import YOLO

    metrics: Any = YOLO(str(model), task=task).val(
        data=str(data),
        split="test",
        imgsz=INPUT_SIZE,
        batch=BATCH,
        nms=False,
        device="cpu",
        plots=False,
        verbose=False,
        workers=0,
        project=str(data.parent),
        name="val",
    )
    measured = {"boxes": metrics.box}
    if task == "segment":
        measured["masks"] = metrics.seg
    return {name: _measurement(metric) for name, metric in measured.items()}


def _measurement(metric: Any) -> Measurement:
    """Read Ultralytics' metric of boxes or masks."""
    rows = {int(c): i for i, c in enumerate(metric.ap_class_index)}
    per_class = {
        name: (float(metric.ap[rows[i]]), float(metric.ap50[rows[i]]))
        for i, name in enumerate(shapes.CLASS_NAMES)
    }
    return Measurement(float(metric.map), float(metric.map50), per_class)


def box_overlap(box: shapes.Box, item: shapes.SceneObject) -> float:
    """Return the intersection over union of a box and the box of a drawn shape."""
    return iou(Box(*box), Box(*item.box))


def mask_overlap(mask: npt.NDArray[np.bool_], item: shapes.SceneObject) -> float:
    """Return the intersection over union of a mask and what is visible of a drawn shape.

    Args:
        mask: Mask of the size of the image, of shape (height, width).
        item: The drawn shape. A pixel belongs to it if it covers at least a half.

    Returns:
        Share from 0 to 1.
    """
    visible = item.visible.coverage >= 0.5
    common = np.count_nonzero(mask[item.visible.window] & visible)
    return common / (np.count_nonzero(mask) + np.count_nonzero(visible) - common)


def tally(
    objects: Sequence[shapes.SceneObject],
    detections: Sequence[tuple[int, _Found]],
    overlap_with: Callable[[_Found, shapes.SceneObject], float],
) -> Tally:
    """Compare the detections on one image with its drawn shapes.

    Args:
        objects: The drawn shapes.
        detections: Class and box or mask of each detection, the most confident first.
        overlap_with: Returns the intersection over union with a drawn shape.

    Returns:
        The counts of this image.
    """
    missing = set(range(len(objects)))
    found = repeated = 0
    for class_id, place in detections:
        overlaps = [
            (overlap_with(place, item), index)
            for index, item in enumerate(objects)
            if item.class_id == class_id
        ]
        fitting = [(share, index) for share, index in overlaps if share >= 0.5]
        candidates = [(share, index) for share, index in fitting if index in missing]
        if candidates:
            missing.remove(max(candidates)[1])
            found += 1
        elif fitting:
            repeated += 1
    return Tally(len(objects), found, repeated, len(detections) - found - repeated)


def tally_held_out(exported: Path, task: str) -> Tally:
    """Run the exported model on the held-out images, and compare with the drawn shapes.

    Args:
        exported: Folder of an exported model.
        task: ``detect`` compares boxes, and ``segment`` compares masks.

    Returns:
        The counts over all held-out images.
    """
    from ultralytics import YOLO

    model: Any = YOLO(str(exported), task=task)
    total = Tally()
    for index in range(HELD_OUT_COUNT):
        rng = shapes.scene_generator(shapes.HELD_OUT_SEED, index)
        scene = shapes.draw_scene(rng, *image_size(rng))
        result = model.predict(
            scene.image,
            imgsz=INPUT_SIZE,
            conf=CONFIDENCE,
            nms=False,
            retina_masks=True,
            device="cpu",
            verbose=False,
        )[0]
        rows = result.boxes.data.tolist()
        best_first = sorted(range(len(rows)), key=lambda row: -rows[row][4])
        if task == "segment":
            masks = [result.masks.data[row].numpy().astype(bool) for row in best_first]
            found = [(int(rows[row][5]), mask) for row, mask in zip(best_first, masks, strict=True)]
            total += tally(scene.objects, found, mask_overlap)
        else:
            boxes = [(int(rows[row][5]), tuple(rows[row][:4])) for row in best_first]
            total += tally(scene.objects, boxes, box_overlap)
    return total


def arithmetic(exported: Path) -> str:
    """Return the number type that OpenVINO computes with on this processor.

    On processors with instructions for bfloat16, OpenVINO uses it by default. The same exported
    model therefore has slightly different figures on other machines.

    Args:
        exported: Folder of an exported model.

    Returns:
        Name of the type, for example ``f32`` or ``bf16``.
    """
    import openvino

    (file,) = exported.glob("*.xml")
    compiled = openvino.Core().compile_model(str(file), "CPU")
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
