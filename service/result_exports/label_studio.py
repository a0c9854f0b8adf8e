"""Label Studio: tasks with predictions, and the labelling configuration that they need.

https://labelstud.io/guide/predictions and https://labelstud.io/guide/task_format
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from service.domain import (
    MIN_KEYPOINT_CONFIDENCE,
    Detection,
    ImageInfo,
    ImageResult,
    Keypoint,
    Polygon,
    RotatedBox,
    Task,
)
from service.result_exports.exported import outer_rings, plain_label, shown_uri, usable_result
from service.result_exports.records import ExportedImage, ExportOptions, Output

TASKS_FILE = "tasks.json"
CONFIG_FILE = "config.xml"
CLOUD_PREFIX = "gs://"  # the prefix that means: each image's own address in Cloud Storage
# Control of the configuration: its tag, and the tag of its labels.
_CONTROLS = {
    "box": ("RectangleLabels", "Label"),
    "mask": ("PolygonLabels", "Label"),
    "point": ("KeyPointLabels", "Label"),
    "class": ("Choices", "Choice"),
}
_IMAGE = "image"
_DECIMALS = 6  # of a percentage: less than 0.001 pixels in an image of 65,500 pixels
_POINT_SIZE = 0.5  # percent of the image's width
_MIN_POINTS = 3  # of a polygon
_QUARTER = 90.0


@dataclass
class Vocabulary:
    """The labels that occurred, by control. They are the labels of the configuration."""

    labels: dict[str, dict[str, None]] = field(default_factory=dict)  # in order of occurrence

    def add(self, task: dict[str, Any], result: ImageResult) -> None:
        """Add the labels of a task's predictions, and the names of all keypoints, hidden too."""
        for item in result.detections:
            self._add("point", [plain_label(point.name) for point in item.keypoints])
        for prediction in task["predictions"]:
            for region in prediction["result"]:
                self._add(region["from_name"], region["value"][region["type"]])

    def _add(self, control: str, labels: Sequence[str]) -> None:
        if labels:
            self.labels.setdefault(control, {}).update(dict.fromkeys(labels))


def task_of(image: ExportedImage, url_prefix: str) -> dict[str, Any] | None:
    """Return the task of a done image, or None if there is no image that a person may see.

    Args:
        image: of the export.
        url_prefix: put before the image's path. `gs://`: the address of the image, or of its
            redacted copy, in Cloud Storage.
    """
    result = usable_result(image)
    uri = shown_uri(image.document)
    if not result or not result.image_info or not uri:
        return None
    url = uri if url_prefix == CLOUD_PREFIX else url_prefix + quote(image.path, safe="/")
    regions = list(_regions(result, result.image_info))
    scores = [region["score"] for region in regions]
    prediction: dict[str, Any] = {
        "model_version": result.model.name if result.model else "unknown",
        "result": regions,
    }
    if scores:
        prediction["score"] = max(scores)
    data = {
        _IMAGE: url,
        "document_id": image.document_id,
        "uri": result.ref.uri,
        "generation": str(result.ref.generation),  # JavaScript would round the integer
    }
    return {"data": data, "predictions": [prediction]}


def config_of(vocabulary: Vocabulary) -> str:
    """Return the labelling configuration, as XML. It has at least a control for boxes."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=_IMAGE, value=f"${_IMAGE}")
    used = {name: vocabulary.labels[name] for name in _CONTROLS if name in vocabulary.labels}
    for name, labels in (used or {"box": {"object": None}}).items():
        tag, label_tag = _CONTROLS[name]
        control = ElementTree.SubElement(view, tag, name=name, toName=_IMAGE)
        if label_tag == "Choice":
            control.set("choice", "multiple")
        if name == "point":  # Label Studio's exports need the order of the model's keypoints
            for number, label in enumerate(labels):
                ElementTree.SubElement(control, label_tag, value=label, model_index=str(number))
        else:
            for label in sorted(labels):
                ElementTree.SubElement(control, label_tag, value=label)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


class LabelStudioWriter:
    """Writes `tasks.json` and `config.xml`."""

    def __init__(self, options: ExportOptions) -> None:
        """Take the options."""
        self._url_prefix = options.image_url_prefix
        self._vocabulary = Vocabulary()
        self._written = 0
        self._left_out = 0

    def begin(self, output: Output) -> None:
        """Begin the list of tasks."""
        output.append(TASKS_FILE, b"[")

    def add(self, image: ExportedImage, output: Output) -> None:
        """Write the task of an image."""
        task = task_of(image, self._url_prefix)
        if task is None or image.result is None:
            self._left_out += 1
            return
        self._vocabulary.add(task, image.result)
        text = json.dumps(task, ensure_ascii=False, allow_nan=False)
        output.append(TASKS_FILE, (",\n" if self._written else "\n").encode() + text.encode())
        self._written += 1

    def finish(self, output: Output) -> None:
        """End the list of tasks, and write the configuration."""
        output.append(TASKS_FILE, b"\n]\n")
        with output.create(CONFIG_FILE) as file:
            file.write(config_of(self._vocabulary).encode())

    def state(self) -> dict[str, Any]:
        """Return the labels and the counters."""
        labels = {control: list(found) for control, found in self._vocabulary.labels.items()}
        return {"labels": labels, "written": self._written, "left_out": self._left_out}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue behind an image."""
        labels = {control: dict.fromkeys(found) for control, found in state["labels"].items()}
        self._vocabulary = Vocabulary(labels)
        self._written, self._left_out = state["written"], state["left_out"]

    def notes(self) -> Sequence[str]:
        """Return what was left out."""
        if not self._left_out:
            return ()
        what = "without a result, or without an image that may be shown"
        return (f"{self._left_out:,} images {what}: {TASKS_FILE} has no task for them.",)


def _regions(result: ImageResult, info: ImageInfo) -> Iterator[dict[str, Any]]:
    if classes := result.classes:
        choices = list(dict.fromkeys(plain_label(item.label) for item in classes))
        yield _region("class", "class", {"choices": choices}, info) | {
            "score": classes[0].confidence
        }
    task = result.model.task if result.model else Task.DETECT
    for number, detection in enumerate(result.detections):
        yield from _of_detection(f"d{number}", detection, info, task)


def _of_detection(
    region_id: str, detection: Detection, info: ImageInfo, task: Task
) -> Iterator[dict[str, Any]]:
    """Yield the regions of a detection: one, or several for masks and poses."""
    labels = [plain_label(detection.label)]
    score = {"score": detection.confidence}
    rings = [
        ring for ring in outer_rings(detection.polygons) if len(ring.points) >= _MIN_POINTS * 2
    ]
    if task is Task.SEGMENT and rings:
        for number, ring in enumerate(rings):
            value = {"points": _percent_points(ring, info), "closed": True, "polygonlabels": labels}
            yield _region("mask", f"{region_id}m{number}", value, info) | score
        return
    rotated = detection.rotated_box
    value = (_rotated(rotated, info) if rotated else None) or _upright(detection, info)
    yield _region("box", region_id, value | {"rectanglelabels": labels}, info) | score
    for number, point in enumerate(detection.keypoints):
        if _is_visible(point, info):
            value = {
                "x": _percent(point.x, info.width),
                "y": _percent(point.y, info.height),
                "width": _POINT_SIZE,
                "keypointlabels": [plain_label(point.name)],
            }
            region = _region("point", f"{region_id}k{number}", value, info)
            yield region | {"score": point.confidence, "parentID": region_id}


def _region(control: str, region_id: str, value: dict[str, Any], info: ImageInfo) -> dict[str, Any]:
    return {
        "id": region_id,
        "from_name": control,
        "to_name": _IMAGE,
        "type": _CONTROLS[control][0].lower(),
        "original_width": info.width,
        "original_height": info.height,
        "image_rotation": 0,
        "value": value,
    }


def _upright(detection: Detection, info: ImageInfo) -> dict[str, Any]:
    box = detection.box
    x1, x2 = (_percent(x, info.width) for x in (box.x1, box.x2))
    y1, y2 = (_percent(y, info.height) for y in (box.y1, box.y2))
    return {
        "x": x1,
        "y": y1,
        "width": round(x2 - x1, _DECIMALS),
        "height": round(y2 - y1, _DECIMALS),
        "rotation": 0,
    }


def _rotated(box: RotatedBox, info: ImageInfo) -> dict[str, Any] | None:
    """Return a rectangle with a rotation, or None if Label Studio cannot have it.

    Label Studio turns a rectangle around its first corner. That corner must be in the image,
    and neither side may be longer than the image's. Each corner can be the first one, so one that
    fits is taken.
    """
    corners = box.corners  # right bottom, right top, left top, left bottom, at angle 0
    points = list(zip(corners[::2], corners[1::2], strict=True))
    turns = ((2, 0), (1, 1), (0, 2), (3, 3))  # the corner, and how often it is turned by 90 degrees
    for corner, quarters in turns:
        x, y = points[corner]
        sides = (box.width, box.height) if quarters % 2 == 0 else (box.height, box.width)
        width, height = sides[0] / info.width * 100, sides[1] / info.height * 100
        is_inside = 0 <= x <= info.width and 0 <= y <= info.height
        if is_inside and width <= 100 and height <= 100:
            return {
                "x": _percent(x, info.width),
                "y": _percent(y, info.height),
                "width": round(width, _DECIMALS),
                "height": round(height, _DECIMALS),
                "rotation": round(box.angle_degrees + _QUARTER * quarters, 4),
            }
    return None


def _percent_points(ring: Polygon, info: ImageInfo) -> list[list[float]]:
    pairs = zip(ring.points[::2], ring.points[1::2], strict=False)
    return [[_percent(x, info.width), _percent(y, info.height)] for x, y in pairs]


def _is_visible(point: Keypoint, info: ImageInfo) -> bool:
    is_inside = 0 <= point.x <= info.width and 0 <= point.y <= info.height
    return is_inside and point.confidence >= MIN_KEYPOINT_CONFIDENCE


def _percent(pixels: float, side: int) -> float:
    """Return a position in percent of a side of the image, within the image."""
    return round(min(max(pixels / side * 100, 0.0), 100.0), _DECIMALS)
