"""The OpenVINO detector on a model of each task. The models return what the tests give them."""

import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from service.domain import Box, ImageInfo, Prediction, RotatedBox, Task
from service.errors import ModelError
from service.images.letterbox import shrink
from service.images.pixels import DecodedImage, Pixels
from service.inference.loading import load_detector
from service.inference.openvino import OpenVINODetector
from tests.polygons import Mask, mask_iou, rasterised
from tests.task_models import write_model

WIDTH, HEIGHT = 320, 240  # halved by the letterbox, then padded with 4 rows above and below
PADDING = 4
POINTS = [[30.0 + 4 * k, 50.0 + 2 * k, k / 20] for k in range(17)]  # in pixels of the input


def predicted(directory: Path, pixels: Pixels, info: ImageInfo | None = None) -> Prediction:
    image = DecodedImage(pixels, info or ImageInfo(pixels.shape[1], pixels.shape[0], "PNG"))
    [prediction] = load_detector(directory).detect([image])
    return prediction


def green(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    return np.full((height, width, 3), (0, 255, 0), np.uint8)


def row(x1: float, y1: float, x2: float, y2: float, confidence: float, *more: float) -> list[float]:
    """Return a row for a box in pixels of a WIDTH x HEIGHT image."""
    box = [x1 / 2, y1 / 2 + PADDING, x2 / 2, y2 / 2 + PADDING]
    return [*box, confidence, 1.0, *more]


def test_task_comes_from_the_metadata(tmp_path: Path) -> None:
    rows: dict[str, Any] = {
        "detect": [[0.0] * 6],
        "segment": [[0.0] * 9],
        "pose": [[0.0] * 57],
        "obb": [[0.0] * 7],
        "classify": [0.2, 0.3, 0.5],
    }
    assert list(rows) == list(Task)
    for task in Task:
        kpt_shape = [17, 3] if task is Task.POSE else None
        path = write_model(tmp_path / task, str(task), rows[task], kpt_shape=kpt_shape)
        assert load_detector(path).info.task is task


@pytest.mark.parametrize("task", ["semantic", "depth", "juggle", None])
def test_other_tasks_are_refused_by_name(tmp_path: Path, task: str | None) -> None:
    path = write_model(tmp_path / "model", task, [[0.0] * 6])
    with pytest.raises(ModelError, match=rf"task {task}, .*detect, segment, pose, obb, classify"):
        load_detector(path)


@pytest.mark.parametrize(("written", "expected"), [(None, None), ("v7", "v7"), (3, "3")])
def test_version_comes_from_the_metadata(
    tmp_path: Path, written: object, expected: str | None
) -> None:
    path = write_model(
        tmp_path / "model", "detect", [[0.0] * 6], version="8.4.190", model_version=written
    )
    assert load_detector(path).info.version == expected


def red_ring(pixels: Pixels, center: tuple[int, int]) -> Mask:
    """Draw a red ring, and return which pixels it covers."""
    covered = np.zeros(pixels.shape[:2], np.uint8)
    cv2.circle(covered, center, 70, 1, -1)
    cv2.circle(covered, center, 30, 0, -1)
    pixels[covered == 1] = (0, 0, 255)
    pixels_covered: Mask = covered == 1
    return pixels_covered


def test_segment_outlines_an_object_and_its_hole(tmp_path: Path) -> None:
    pixels = green()
    covered = red_ring(pixels, (150, 120))
    box = (70, 40, 230, 200)
    path = write_model(tmp_path / "model", "segment", [row(*box, 0.9, 1, -1, 0)])
    [detection] = predicted(path, pixels).detections
    assert detection.box == Box(*box)
    assert len(detection.polygons) == 2
    assert detection.area == pytest.approx(covered.sum(), rel=0.01)
    assert mask_iou(rasterised(detection.polygons, WIDTH, HEIGHT), covered) > 0.98


def test_segment_is_in_pixels_of_the_full_image(tmp_path: Path) -> None:
    full = np.repeat(np.repeat(green(), 5, axis=0), 5, axis=1)
    covered = np.zeros(full.shape[:2], np.uint8)
    cv2.ellipse(covered, (800, 600), (500, 300), 20, 0, 360, 1, -1)
    full[covered == 1] = (0, 0, 255)
    path = write_model(tmp_path / "model", "segment", [row(0, 0, WIDTH, HEIGHT, 0.9, 1, -1, 0)])
    info = ImageInfo(full.shape[1], full.shape[0], "JPEG")
    [detection] = predicted(path, shrink(full, image_size=160), info).detections
    assert detection.box == Box(0, 0, 1600, 1200)
    assert detection.area == pytest.approx(covered.sum(), rel=0.02)
    assert mask_iou(rasterised(detection.polygons, 1600, 1200), covered == 1) > 0.98


def test_segment_is_cropped_to_the_box(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", "segment", [row(100, 60, 180.5, 120, 0.9, 0, 1, 0)])
    [detection] = predicted(path, green()).detections
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[60:120, 100:181] = True
    assert (rasterised(detection.polygons, WIDTH, HEIGHT) == expected).all()
    assert detection.area == expected.sum()


def test_segment_without_a_mask_is_left_out(tmp_path: Path) -> None:
    rows = [row(100, 60, 180, 120, 0.9, 0, -1, 0), row(10, 10, 50, 50, 0.8, 0, 1, 0)]
    path = write_model(tmp_path / "model", "segment", rows)
    [detection] = predicted(path, green()).detections
    assert detection.confidence == pytest.approx(0.8)


def pose_row(points: list[list[float]]) -> list[float]:
    return [*row(60, 50, 200, 200, 0.9), *(value for point in points for value in point)]


def test_pose_has_points_in_pixels_of_the_image(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", "pose", [pose_row(POINTS)], kpt_shape=[17, 3])
    [detection] = predicted(path, green()).detections
    assert [point.name for point in detection.keypoints][:2] == ["nose", "left_eye"]
    for point, (x, y, confidence) in zip(detection.keypoints, POINTS, strict=True):
        assert astuple(point)[1:] == pytest.approx((2 * x, 2 * (y - PADDING), confidence))


def test_pose_points_are_clipped_to_the_image(tmp_path: Path) -> None:
    points = [[-3.0, 2.0], [500.0, 500.0]]
    path = write_model(tmp_path / "model", "pose", [pose_row(points)], kpt_shape=[2, 2])
    [detection] = predicted(path, green()).detections
    assert [astuple(point) for point in detection.keypoints] == [
        ("k0", 0.0, 0.0, 1.0),
        ("k1", WIDTH, HEIGHT, 1.0),
    ]


def test_pose_names_points_as_the_metadata_do(tmp_path: Path) -> None:
    row_of_dog = pose_row([[40.0, 40.0], [50.0, 60.0]])
    row_of_cat = [*row_of_dog[:5], 0.0, *row_of_dog[6:]]
    path = write_model(
        tmp_path / "model",
        "pose",
        [row_of_dog, row_of_cat],
        kpt_shape=[2, 2],
        kpt_names={1: ["head", "tail"]},
    )
    names = [[p.name for p in d.keypoints] for d in predicted(path, green()).detections]
    assert names == [["head", "tail"], ["k0", "k1"]]


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"kpt_shape": [2]},
        {"kpt_shape": [2, 5]},
        {"kpt_shape": [0, 2]},
        {"kpt_shape": "[2, 2]"},
        {"kpt_shape": [2, 2], "kpt_names": {1: ["head"]}},
        {"kpt_shape": [2, 2], "kpt_names": ["head", "tail"]},
        {"kpt_shape": [2, 2], "kpt_names": {1: 7}},
        {"kpt_shape": [2, 2], "kpt_names": {1: ["", "tail"]}},
        {"kpt_shape": [3, 2]},
    ],
)
def test_pose_with_malformed_metadata_is_refused(tmp_path: Path, metadata: dict[str, Any]) -> None:
    path = write_model(tmp_path / "model", "pose", [pose_row([[1.0, 1.0]] * 2)], **metadata)
    with pytest.raises(ModelError, match=r"kpt_shape|kpt_names|output"):
        load_detector(path)


def test_obb_is_turned_into_the_first_quarter(tmp_path: Path) -> None:
    rotated = [80.0, 60.0 + PADDING, 40.0, 20.0, 0.9, 1.0, math.radians(120)]
    path = write_model(tmp_path / "model", "obb", [rotated])
    [detection] = predicted(path, green()).detections
    assert detection.rotated_box is not None
    assert astuple(detection.rotated_box) == pytest.approx((160, 120, 40, 80, 30), abs=1e-4)
    width, height = 40 * math.cos(math.pi / 6) + 40, 20 + 80 * math.cos(math.pi / 6)
    expected = (160 - width / 2, 120 - height / 2, 160 + width / 2, 120 + height / 2)
    assert astuple(detection.box) == pytest.approx(expected, abs=1e-3)


def test_obb_box_is_clipped_to_the_image(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", "obb", [[5.0, 30.0, 60.0, 40.0, 0.9, 1.0, 0.5]])
    [detection] = predicted(path, green()).detections
    assert (detection.box.x1, detection.box.y1) == (0, 0)
    assert isinstance(detection.rotated_box, RotatedBox)
    assert min(detection.rotated_box.corners) < 0


def test_classify_returns_the_best_five_classes(tmp_path: Path) -> None:
    scores = [0.05, 0.3, 0.1, 0.2, 0.04, 0.25, 0.06]
    names = {index: f"class {index}" for index in range(7)}
    path = write_model(tmp_path / "model", "classify", scores, names=names)
    prediction = predicted(path, green())
    assert prediction.detections == ()
    assert [score.class_id for score in prediction.classes] == [1, 5, 3, 2, 6]
    assert [score.label for score in prediction.classes][:2] == ["class 1", "class 5"]
    assert [score.confidence for score in prediction.classes] == pytest.approx(
        [0.3, 0.25, 0.2, 0.1, 0.06]
    )


def test_classify_returns_all_of_few_classes(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", "classify", [0.1, 0.7, 0.2])
    labels = [score.label for score in predicted(path, green()).classes]
    assert labels == ["dog", "owl", "cat"]


ROWS: dict[str, list[float]] = {
    "detect": row(60, 50, 200, 200, 0.9),
    "segment": row(60, 50, 200, 200, 0.9, 0, 1, 0),
    "pose": pose_row(POINTS),
    "obb": [80, 80, 40, 20, 0.9, 1, 0.3],
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("task", ROWS)
def test_rows_with_a_number_that_is_not_finite_are_left_out(
    tmp_path: Path, task: str, value: float
) -> None:
    good = ROWS[task]
    rows = [[*good[:column], value, *good[column + 1 :]] for column in range(len(good))]
    kpt_shape = [17, 3] if task == "pose" else None
    path = write_model(tmp_path / "model", task, [*rows, good], kpt_shape=kpt_shape)
    [detection] = predicted(path, green()).detections
    assert detection.label == "dog"


@pytest.mark.parametrize("class_id", [-1.0, 100_000.0, 2.0**63])
def test_rows_with_an_impossible_class_are_left_out(tmp_path: Path, class_id: float) -> None:
    rows = [[10, 10, 60, 60, 0.9, class_id], ROWS["detect"]]
    [detection] = predicted(write_model(tmp_path / "model", "detect", rows), green()).detections
    assert detection.label == "dog"


def test_scores_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", "classify", [math.nan, 0.7, math.inf])
    assert [score.label for score in predicted(path, green()).classes] == ["dog"]


@pytest.mark.parametrize("metadata", [{"imgsz": []}, {"imgsz": [160, 0]}, {"stride": 0}])
def test_impossible_sizes_are_refused(tmp_path: Path, metadata: dict[str, Any]) -> None:
    path = write_model(tmp_path / "model", "detect", [[0.0] * 6])
    text = yaml.safe_load((path / "metadata.yaml").read_text())
    (path / "metadata.yaml").write_text(yaml.safe_dump(text | metadata))
    with pytest.raises(ModelError, match="is not the metadata that ultralytics writes"):
        load_detector(path)


@pytest.mark.parametrize(("width", "height"), [(WIDTH, HEIGHT), (30, 90), (160, 160), (3, 2000)])
def test_classify_takes_every_image_in_one_shape(tmp_path: Path, width: int, height: int) -> None:
    detector = load_detector(write_model(tmp_path / "model", "classify", [0.1, 0.7, 0.2]))
    assert detector.input_shape(width, height) == (160, 160)
    [prediction] = detector.detect([DecodedImage.of(green(width, height))])
    assert len(prediction.classes) == 3


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("detect", [[0.0] * 7], r"not \[batch, boxes, 6\]"),
        ("obb", [[0.0] * 6], r"not \[batch, boxes, 7\]"),
        ("segment", [[0.0] * 8], r"not \[batch, boxes, 9\] and"),
        ("classify", [[0.0] * 6], r"not \[batch, classes\]"),
    ],
)
def test_outputs_that_do_not_fit_the_task_are_refused(
    tmp_path: Path, task: str, rows: Any, message: str
) -> None:
    if task == "classify":
        path = write_model(tmp_path / "model", "detect", rows)
        metadata = (path / "metadata.yaml").read_text()
        (path / "metadata.yaml").write_text(metadata.replace("detect", "classify"))
    else:
        path = write_model(tmp_path / "model", task, rows)
    with pytest.raises(ModelError, match=message):
        load_detector(path)


def test_classes_without_a_label_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", "classify", [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ModelError, match="class 3 has no label"):
        load_detector(path)


def test_detector_is_imported_without_opencv_and_pillow(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = write_model(tmp_path / "model", "segment", [row(0, 0, 9, 9, 0.9, 0, 1, 0)])
    code = (
        "import sys; from pathlib import Path\n"
        "from service.inference.openvino import OpenVINODetector\n"
        f"OpenVINODetector(Path({str(path)!r}))\n"
        "print(sorted({'cv2', 'PIL'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]", result.stderr
    assert OpenVINODetector(path).info.task is Task.SEGMENT
