"""The format `yolo`: a label file for each image, as ultralytics 8.4 reads it, and `data.yaml`.

https://docs.ultralytics.com/datasets/ describes the lines for each task. A line has the class, and
numbers as shares of the image's width and height: the box's centre and size (detect), these and all
keypoints (pose), the corners (obb), or the largest ring of the mask without its holes (segment).
Ultralytics refuses numbers outside of [0, 1], so boxes end at the image's edge.

An image's file belongs to `images/`. Ultralytics replaces the last folder `images` of its path with
`labels` to find the label file, and so does this format.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from service.domain import MIN_KEYPOINT_CONFIDENCE, Detection, ImageInfo, Keypoint, Task
from service.result_exports.records import ExportedImage, ExportOptions, Output, Stateless

FILE = "data.yaml"
IMAGES = "images"
LABELS = "labels"
_MAX_CLASS = 10_000  # a larger class id is replaced: the classes below it need names
_TASKS = "images by a model with another task than that of the first image"
_NO_BOX = "detections without a size within the image, or without what the task needs"
_CLASSES = "images with classes only"


class YoloWriter(Stateless):
    """Writes a label file for each done image: empty if nothing was found."""

    def __init__(self, options: ExportOptions) -> None:
        """Take the options."""
        super().__init__(options)
        self._classes: dict[str, int] = {}
        self._task: str | None = None
        self._keypoints: list[str] = []
        self._left_out: Counter[str] = Counter()

    def add(self, image: ExportedImage, output: Output) -> None:
        """Write the label file of one image. An image without a result has none."""
        result = image.result
        if result is None or result.image_info is None or result.model is None:
            return
        if result.classes:
            self._left_out[_CLASSES] += 1
            return
        if self._task is None:
            self._task = str(result.model.task)
        if result.detections and result.model.task != self._task:
            self._left_out[_TASKS] += 1
            return
        lines = [self._line(item, result.image_info) for item in result.detections]
        text = "".join(f"{line}\n" for line in lines if line)
        output.append(label_path(image.path), text.encode())

    def finish(self, output: Output) -> None:
        """Write `data.yaml`."""
        known = {number: label for label, number in self._classes.items()}
        # Ultralytics refuses a list with gaps.
        names = {number: known.get(number, f"unused {number}") for number in range(self._free())}
        # Without `path`, ultralytics takes the folder of this file. `path: .` would be relative to
        # the folder in which a command runs.
        data: dict[str, Any] = {"train": IMAGES, "val": IMAGES, "names": names}
        if self._keypoints:
            data["kpt_shape"] = [len(self._keypoints), 3]
        with output.create(FILE) as file:
            file.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())

    def state(self) -> dict[str, Any]:
        """Return the classes and the task."""
        return {
            "classes": self._classes,
            "task": self._task,
            "keypoints": self._keypoints,
            "left_out": self._left_out,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue behind an image."""
        self._classes, self._task = state["classes"], state["task"]
        self._keypoints, self._left_out = state["keypoints"], Counter(state["left_out"])

    def notes(self) -> Sequence[str]:
        """Return what was left out."""
        return [
            f"{count:,} {what}: left out of the labels." for what, count in self._left_out.items()
        ]

    def _line(self, item: Detection, info: ImageInfo) -> str | None:
        values = self._values(item, info)
        if values is None:
            self._left_out[_NO_BOX] += 1
            return None
        numbers = [str(self._class(item)), *values]
        if self.options.with_confidence:
            numbers.append(f"{item.confidence:.6f}")
        return " ".join(numbers)

    def _values(self, item: Detection, info: ImageInfo) -> list[str] | None:
        """Return the numbers of a line, or None for a detection that the task has no line for."""
        match self._task:
            case Task.SEGMENT:
                rings = [ring.points for ring in item.polygons if len(ring.points) >= 6]
                largest = max(rings, key=lambda points: abs(_area(points)), default=())
                return _shares(largest, info) if largest else None
            case Task.OBB:
                return _shares(item.rotated_box.corners, info) if item.rotated_box else None
            case Task.POSE:
                return self._pose(item, info)
        return _box(item, info)

    def _pose(self, item: Detection, info: ImageInfo) -> list[str] | None:
        box = _box(item, info)
        names = [point.name for point in item.keypoints]
        if not self._keypoints:
            self._keypoints = names
        if box is None or not names or len(names) != len(self._keypoints):
            return None
        return [*box, *(text for point in item.keypoints for text in _keypoint(point, info))]

    def _class(self, item: Detection) -> int:
        """Return the number of a label: the class id, or the next free one if it is taken."""
        if item.label not in self._classes:
            wanted, taken = item.class_id, self._classes.values()
            is_free = 0 <= wanted < _MAX_CLASS and wanted not in taken
            self._classes[item.label] = wanted if is_free else self._free()
        return self._classes[item.label]

    def _free(self) -> int:
        """Return the first number above all that labels have."""
        return max(self._classes.values(), default=-1) + 1


def label_path(path: str) -> str:
    """Return the path of the label file of an image in `images/`, as ultralytics looks for it."""
    before, _, after = f"/{IMAGES}/{path}".rpartition(f"/{IMAGES}/")
    return str(PurePosixPath(f"{before}/{LABELS}/{after}").with_suffix(".txt")).lstrip("/")


def _box(item: Detection, info: ImageInfo) -> list[str] | None:
    x1, x2 = (_share(x, info.width) for x in (item.box.x1, item.box.x2))
    y1, y2 = (_share(y, info.height) for y in (item.box.y1, item.box.y2))
    if x2 <= x1 or y2 <= y1:
        return None
    return [f"{value:.6f}" for value in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)]


def _keypoint(point: Keypoint, info: ImageInfo) -> Iterator[str]:
    """Yield a keypoint: x, y, and 2 for visible. One that is not sure is 0 0 0, as in COCO."""
    is_inside = 0 <= point.x <= info.width and 0 <= point.y <= info.height
    if point.confidence < MIN_KEYPOINT_CONFIDENCE or not is_inside:
        yield from ("0.000000", "0.000000", "0")
        return
    yield from (*_shares((point.x, point.y), info), "2")


def _shares(points: Sequence[float], info: ImageInfo) -> list[str]:
    sides = (info.width, info.height)
    return [f"{_share(value, sides[at % 2]):.6f}" for at, value in enumerate(points)]


def _share(pixels: float, side: int) -> float:
    return min(max(pixels / side, 0.0), 1.0)


def _area(points: Sequence[float]) -> float:
    """Return twice the signed area of a ring, in square pixels."""
    xs, ys = points[::2], points[1::2]
    following = zip((*xs[1:], xs[0]), (*ys[1:], ys[0]), strict=True)
    return sum(x1 * y2 - x2 * y1 for x1, y1, (x2, y2) in zip(xs, ys, following, strict=True))
