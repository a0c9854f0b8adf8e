"""What the documents of each task have, for the guide to the tasks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from devtools.docs.document import DONE
from devtools.docs.markdown import fence
from service.document import to_document
from service.domain import (
    Box,
    ClassScore,
    Detection,
    ImageResult,
    Keypoint,
    Polygon,
    RotatedBox,
    Task,
)

_BOX = Box(212.0, 120.0, 300.0, 196.0)
_CLASSES = (ClassScore("tabby", 281, 0.83), ClassScore("tiger cat", 282, 0.11))
FOUND: Mapping[Task, Mapping[str, Any]] = {
    Task.DETECT: {"detections": (Detection("cat", 15, 0.91, _BOX),)},
    Task.SEGMENT: {
        "detections": (
            Detection(
                "cat",
                15,
                0.91,
                _BOX,
                polygons=(
                    Polygon((212.0, 120.0, 300.0, 120.0, 300.0, 196.0, 212.0, 196.0)),
                    Polygon((240.0, 140.0, 260.0, 140.0, 260.0, 160.0, 240.0, 160.0)),
                ),
                area=6288.0,
            ),
        )
    },
    Task.POSE: {
        "detections": (
            Detection(
                "person",
                0,
                0.88,
                _BOX,
                keypoints=(
                    Keypoint("nose", 251.5, 131.0, 0.97),
                    Keypoint("left_eye", 255.0, 128.5, 0.94),
                ),
            ),
        )
    },
    Task.OBB: {
        "detections": (
            Detection(
                "ship",
                1,
                0.86,
                Box(203.7, 117.4, 308.3, 198.6),
                rotated_box=RotatedBox(256.0, 158.0, 100.0, 36.0, 30.0),
            ),
        )
    },
    Task.CLASSIFY: {"detections": (), "classes": _CLASSES, "kept_classes": _CLASSES[:1]},
}
_WEIGHTS = {
    Task.DETECT: "yolo26n.pt",
    Task.SEGMENT: "yolo26n-seg.pt",
    Task.POSE: "yolo26n-pose.pt",
    Task.OBB: "yolo26n-obb.pt",
    Task.CLASSIFY: "yolo26n-cls.pt",
}
_WIDTH = 100
_SHOWN = ("task", "detections", "classes", "labels", "counts", "best", "top_label")


def result(task: Task) -> ImageResult:
    """Return the example of a task's result."""
    assert DONE.model is not None
    model = replace(DONE.model, name=_WEIGHTS[task], task=task)
    return replace(DONE, model=model, **FOUND[task])


def examples() -> str:
    """Return the fields of each task's document that depend on the task, as JSON."""
    parts = []
    for task in Task:
        document = to_document(result(task))
        shown = {name: document[name] for name in _SHOWN}
        parts.append(f"### {task}\n\n{fence('json', _folded(shown))}")
    return "\n\n".join(parts)


def _folded(value: Any, indent: str = "") -> str:
    """Return JSON with each map and array on one line, if the line is short enough.

    Fractions have two digits.
    """
    if isinstance(value, float):
        value = round(value, 2)
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        value = [round(item, 2) for item in value]
    line = json.dumps(value)
    if len(indent) + len(line) <= _WIDTH or not isinstance(value, dict | list):
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_folded(item, inner)}" for key, item in value.items()]
    else:
        items = [_folded(item, inner) for item in value]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{end}"
