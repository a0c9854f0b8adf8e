"""What a model's output means: converts the output for one image to a `Prediction`.

The formulas are those of the predictors in ultralytics 8.4 (models/yolo/*/predict.py) with
`nms=False`. Both runtimes use this module. They only run the network.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain import (
    UNKNOWN_CLASS,
    Box,
    ClassScore,
    Detection,
    ImageInfo,
    Keypoint,
    Prediction,
    RotatedBox,
    Task,
)
from service.errors import ModelError
from service.images.letterbox import Letterbox
from service.inference.labels import MAX_CLASSES, MAX_LABEL_BYTES, label_of

# A row begins with four columns of the box, the confidence and the class id. The task's columns
# follow.
BOX_COLUMNS = 6
_CONFIDENCE, _CLASS = 4, 5
MAX_CLASS_SCORES = 5  # `Prediction.classes`
_MAX_KEYPOINTS = 1000
_COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip


def task_of(task: object, *, model: object) -> Task:
    """Return the task that a model's metadata name.

    Args:
        task: the metadata's `task`.
        model: the model's name for the error message.

    Raises:
        ModelError: the service cannot run models for this task.
    """
    try:
        return Task(str(task))
    except ValueError:
        raise ModelError(
            f"{model} is a model for the task {str(task):.40}, which is not supported: the tasks "
            f"are {', '.join(Task)}"
        ) from None


@dataclass(frozen=True)
class KeypointLayout:
    """The points of a pose model.

    Attributes:
        count: points of each detection.
        has_confidence: whether a point has a third value, its confidence, after x and y.
        names: the names of the points by class id. Classes that are missing have `default_names`.
    """

    count: int
    has_confidence: bool
    names: Mapping[int, tuple[str, ...]]

    @property
    def columns(self) -> int:
        """The number of columns that the points take in a row."""
        return self.count * (3 if self.has_confidence else 2)

    @property
    def default_names(self) -> tuple[str, ...]:
        """COCO's names for 17 points, otherwise k0, k1, ..."""
        if self.count == len(_COCO_KEYPOINTS):
            return _COCO_KEYPOINTS
        return tuple(f"k{index}" for index in range(self.count))

    @classmethod
    def of(cls, shape: object, names: object, *, model: object) -> "KeypointLayout":
        """Read the layout from a model's metadata.

        Args:
            shape: `kpt_shape`: the number of points, and 2 or 3 values for each.
            names: `kpt_names`: a list of names for each class id. None: the model has none.
            model: the model's name for error messages.

        Raises:
            ModelError: the metadata are malformed, or a name cannot be stored.
        """
        match shape:
            case [int(count), (2 | 3) as values] if 0 < count <= _MAX_KEYPOINTS:
                pass
            case _:
                raise ModelError(
                    f"{model} has wrong metadata: `kpt_shape` must be [number of points, 2 or 3], "
                    f"but is {shape!r:.80}. Export the model again with ultralytics"
                )
        try:
            by_class = {
                int(class_id): tuple(map(str, points))
                for class_id, points in dict(names or {}).items()  # type: ignore[call-overload]
            }
            is_valid = all(
                len(points) == count and all(0 < len(n.encode()) <= MAX_LABEL_BYTES for n in points)
                for points in by_class.values()
            )
        except (TypeError, ValueError):
            is_valid = False
        if not is_valid:
            raise ModelError(
                f"{model} has wrong metadata: `kpt_names` must have {count} names for each class, "
                f"but is {names!r:.200}. Export the model again with ultralytics"
            )
        return cls(count, values == 3, by_class)


@dataclass(frozen=True)
class Head:
    """Converts the output of a model to predictions.

    Attributes:
        task: the model's task.
        labels: the labels by class id.
        min_confidence: detections below it are left out. It does not apply to the task classify.
        keypoints: for the task pose.
    """

    task: Task
    labels: Mapping[int, str]
    min_confidence: float
    keypoints: KeypointLayout | None = None

    def prediction(
        self,
        output: NDArray[np.float32],
        letterbox: Letterbox,
        info: ImageInfo,
        prototypes: NDArray[np.float32] | None = None,
    ) -> Prediction:
        """Convert the output for one image.

        What has a number that is NaN or infinite, an impossible class id or an empty mask is
        `unusable`.

        Args:
            output: float32 rows x columns, with boxes in pixels of the input. For the task
                classify, the confidence of each class.
            letterbox: how the pixels lie in the input.
            info: the full image's size.
            prototypes: float32 channels x height x width, for the task segment.

        Raises:
            ValueError: a segmentation model has no prototypes, or ones of another size.
        """
        if self.task is Task.CLASSIFY:
            return Prediction(classes=self._classes(output.ravel()))
        letterbox = letterbox.onto(info)
        # Not `>=`, which would also leave out a confidence that is NaN.
        confident = output[~(output[:, _CONFIDENCE] < self.min_confidence)]
        is_sound = _is_sound(confident)
        unusable = [self._unusable(row, letterbox) for row in confident[~is_sound].tolist()]
        confident = confident[is_sound]
        ordered = confident[np.argsort(-confident[:, _CONFIDENCE], kind="stable")]
        match self.task:
            case Task.SEGMENT:
                found = self._segmented(ordered, letterbox, prototypes)
                detections = [item for item in found if item.area is not None]
                unusable += [item for item in found if item.area is None]
            case Task.POSE:
                detections = [self._pose(row, letterbox) for row in ordered.tolist()]
            case Task.OBB:
                detections = [self._rotated(row, letterbox) for row in ordered.tolist()]
            case _:
                detections = [self._detection(row, letterbox) for row in ordered.tolist()]
        return Prediction(tuple(detections), unusable=tuple(unusable))

    def _unusable(self, row: Sequence[float], letterbox: Letterbox) -> Detection:
        """Convert a row that is not sound. A box that is not known is NaN."""
        is_box = self.task is not Task.OBB and all(map(math.isfinite, row[:4]))
        box = letterbox.box(*row[:4]) if is_box else Box(*4 * [math.nan])
        class_id = int(row[_CLASS]) if 0 <= row[_CLASS] < MAX_CLASSES else UNKNOWN_CLASS
        return Detection(label_of(self.labels, class_id), class_id, row[_CONFIDENCE], box)

    def _detection(self, row: Sequence[float], letterbox: Letterbox) -> Detection:
        class_id = int(row[_CLASS])
        return Detection(
            label_of(self.labels, class_id), class_id, row[_CONFIDENCE], letterbox.box(*row[:4])
        )

    def _segmented(
        self,
        rows: NDArray[np.float32],
        letterbox: Letterbox,
        prototypes: NDArray[np.float32] | None,
    ) -> list[Detection]:
        """Return the detections. Those whose mask has no pixel have no area.

        ultralytics leaves the latter out.
        """
        if prototypes is None:
            raise ValueError("A segmentation model returned no prototypes")
        # Imported for the first image: OpenCV takes a sixth of a second.
        from service.inference.masks import Masks

        masks = Masks(prototypes, letterbox)
        detections = []
        for row in rows:
            detection = self._detection(row[:BOX_COLUMNS].tolist(), letterbox)
            if mask := masks.mask(row[BOX_COLUMNS:], detection.box):
                detection = replace(detection, polygons=mask.polygons, area=mask.area)
            detections.append(detection)
        return detections

    def _pose(self, row: Sequence[float], letterbox: Letterbox) -> Detection:
        detection, layout = self._detection(row, letterbox), self.keypoints
        if layout is None:
            raise ValueError("A pose model needs the layout of its points")
        step = 3 if layout.has_confidence else 2
        names = layout.names.get(detection.class_id, layout.default_names)
        points = []
        for index, name in enumerate(names):
            x, y, *confidence = row[BOX_COLUMNS + step * index :][:step]
            x, y = letterbox.point(x, y)
            points.append(Keypoint(name, x, y, confidence[0] if confidence else 1.0))
        return replace(detection, keypoints=tuple(points))

    def _rotated(self, row: Sequence[float], letterbox: Letterbox) -> Detection:
        """Convert centre, sides, confidence, class id and the angle in radians."""
        cx, cy, width, height = letterbox.centered_box(*row[:4])
        rotated = regularized(cx, cy, width, height, row[BOX_COLUMNS])
        class_id = int(row[_CLASS])
        return Detection(
            label_of(self.labels, class_id),
            class_id,
            row[_CONFIDENCE],
            enclosing_box(rotated, letterbox.width, letterbox.height),
            rotated_box=rotated,
        )

    def _classes(self, confidences: NDArray[np.float32]) -> tuple[ClassScore, ...]:
        order = np.argsort(-confidences, kind="stable")
        order = order[np.isfinite(confidences[order])][:MAX_CLASS_SCORES]
        return tuple(
            ClassScore(label_of(self.labels, class_id), class_id, float(confidences[class_id]))
            for class_id in order.tolist()
        )


def _is_sound(rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which rows have finite numbers only, and a class id that a model may have."""
    class_ids = rows[:, _CLASS]
    is_class = (class_ids >= 0) & (class_ids < MAX_CLASSES)
    return np.logical_and(np.isfinite(rows).all(axis=1), is_class)


def regularized(cx: float, cy: float, width: float, height: float, angle: float) -> RotatedBox:
    """Return a rotated box with its angle in [0, 90) degrees, its sides swapped if needed.

    As `regularize_rboxes` in ultralytics 8.4 (utils/ops.py).

    Args:
        cx: x of the centre in pixels.
        cy: y of the centre in pixels.
        width: the side that lies along the x axis at angle 0, in pixels.
        height: the other side in pixels.
        angle: in radians.
    """
    quarters, rest = divmod(angle, math.pi / 2)
    degrees = math.degrees(rest)
    if degrees >= 90:  # by rounding, for a tiny negative angle
        quarters, degrees = quarters + 1, 0.0
    if quarters % 2:
        width, height = height, width
    return RotatedBox(cx, cy, width, height, degrees)


def enclosing_box(rotated: RotatedBox, width: int, height: int) -> Box:
    """Return the smallest upright box around a rotated box, clipped to an image of this size."""
    corners = rotated.corners
    x = [min(max(value, 0.0), float(width)) for value in corners[::2]]
    y = [min(max(value, 0.0), float(height)) for value in corners[1::2]]
    return Box(min(x), min(y), max(x), max(y))


def columns_of(task: Task, keypoints: KeypointLayout | None, prototypes: int | None) -> int:
    """Return the number of columns of a model's rows.

    Args:
        task: the model's task, other than classify.
        keypoints: for the task pose.
        prototypes: number of prototypes, for the task segment.
    """
    extra: dict[Task, Any] = {
        Task.SEGMENT: prototypes,
        Task.POSE: keypoints and keypoints.columns,
        Task.OBB: 1,
    }
    return BOX_COLUMNS + (extra.get(task) or 0)
