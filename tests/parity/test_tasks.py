"""Both runtimes against ultralytics itself, for each task, on networks that find many objects.

The reference is `ultralytics.YOLO(...).predict(path, nms=False)` on the weights. The networks are
in `networks.py`. A table of the largest differences is printed at the end of the run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import yaml
from numpy.typing import NDArray

from service.domain import Box, ClassScore, Detection, Keypoint, Prediction, RotatedBox, Task
from service.export.accuracy import predict_files
from service.export.quantize import quantize
from service.export.weights import export_openvino, read_metadata
from service.images.decode import decode
from service.images.letterbox import fit, input_shapes
from service.inference import masks as our_masks
from service.inference.detector import Detector
from service.inference.loading import load_detector
from service.inference.openvino import OpenVINODetector
from service.inference.similarity import iou, rasterize, rotated_iou
from tests.parity.conftest import TABLE
from tests.parity.networks import IMAGE_SIZE, write_coco_segmentation, write_images, write_weights
from tests.parity.test_parity import COCO_IMAGES, COCO_WEIGHTS

pytestmark = [
    pytest.mark.ultralytics,
    pytest.mark.filterwarnings("ignore"),  # torch's to ultralytics, and NNCF's
]

RUNTIMES = ("openvino", "ultralytics")
WITH_BOXES = [task for task in Task if task is not Task.CLASSIFY]
MIN_CONFIDENCE = 0.1
MAX_CONFIDENCE = 0.95
MIN_DISTINCT_SCORES = 200
MAX_COMPARED = 60  # the most confident detections of an image: masks of full size take memory
MIN_IOU = 0.99
MAX_CONFIDENCE_GAP = 0.01
MIN_MASK_PIXELS = 1000
MIN_MASK_IOU = 0.99  # before the polygons are simplified
MIN_POLYGON_IOU = 0.97
MAX_KEYPOINT_PIXELS = 0.5
FLOAT_BRANCH = ".one2one_cv4"  # of masks, keypoints and angles: it stays in float
VISIBLE = 0.5  # ultralytics moves keypoints of a lower confidence to 0, 0


@dataclass
class Worst:
    """The largest differences over all images, and the number of compared items."""

    detections: int = 0
    confidence_gap: float = 0.0
    box_iou: float = 1.0
    mask_iou: float = 1.0
    masks: int = 0
    keypoint_pixels: float = 0.0
    keypoints: int = 0
    rotated_iou: float = 1.0
    angles: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """What ultralytics finds in one image. `masks` has a bool array HxW for each detection."""

    prediction: Prediction
    masks: NDArray[np.bool_] | None = None


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], Path]:
    """Return the path of the seeded weights of a task."""
    folder = tmp_path_factory.mktemp("weights")

    def write(task: Task) -> Path:
        path = folder / f"{task}.pt"
        return path if path.is_file() else write_weights(task, path)

    return write


@pytest.fixture(scope="module")
def detector_of(weights_of: Callable[[Task], Path]) -> Callable[[Task, str], Detector]:
    """Return the detector of a task with a runtime. The export is written once."""

    def load(task: Task, runtime: str) -> Detector:
        return load_with(weights_of(task), runtime)

    return load


def export_of(weights: Path) -> Path:
    """Return the export of weights, which is written once."""
    path = weights.with_name(f"{weights.stem}_openvino_model")
    return path if path.is_dir() else export_openvino(weights, image_size=IMAGE_SIZE)


def load_with(weights: Path, runtime: str) -> Detector:
    path = export_of(weights) if runtime == "openvino" else weights
    return load_detector(path, image_size=IMAGE_SIZE, min_confidence=0.05)


def predict(detector: Detector, path: Path) -> Prediction:
    decoded = decode(path.read_bytes(), max_pixels=10**8)
    [prediction] = detector.detect([decoded])
    return prediction


def refer(
    weights: Path, task: Task, path: Path, runtime: str, *, max_detections: int = MAX_COMPARED
) -> Reference:
    """Let ultralytics read and predict a file, in the input shape of our runtime."""
    size: int | list[int] = IMAGE_SIZE
    if runtime == "openvino" and task is not Task.CLASSIFY:
        height, width = decode(path.read_bytes(), max_pixels=10**8).pixels.shape[:2]
        fitted = fit(
            width, height, image_size=IMAGE_SIZE, shapes=input_shapes(IMAGE_SIZE, stride=32)
        )
        size = [fitted.input_height, fitted.input_width]
    [result] = _load_reference(weights, task).predict(
        path,
        imgsz=size,
        rect=isinstance(size, int),
        conf=MIN_CONFIDENCE,
        max_det=max_detections,
        nms=False,
        retina_masks=max_detections <= MAX_COMPARED,
        verbose=False,
    )
    result = result.cpu().numpy()
    if task is Task.CLASSIFY:
        order = np.argsort(-result.probs.data)
        scores = tuple(
            ClassScore(result.names[i], int(i), float(result.probs.data[i])) for i in order
        )
        return Reference(Prediction(classes=scores))
    found = result.obb if task is Task.OBB else result.boxes
    rows = [
        Detection(result.names[int(c)], int(c), float(confidence), Box(*map(float, xyxy)))
        for c, confidence, xyxy in zip(found.cls, found.conf, found.xyxy, strict=True)
    ]
    return Reference(
        Prediction(tuple(_with_shapes(rows, task, result))),
        result.masks.data.astype(bool) if task is Task.SEGMENT and result.masks else None,
    )


@cache
def _load_reference(weights: Path, task: Task) -> Any:
    from ultralytics import YOLO

    return YOLO(weights, task=str(task))


def _with_shapes(rows: Sequence[Detection], task: Task, result: Any) -> Iterator[Detection]:
    for index, row in enumerate(rows):
        if task is Task.POSE:
            points = result.keypoints.data[index]
            yield replace(row, keypoints=tuple(Keypoint("", *map(float, p)) for p in points))
        elif task is Task.OBB:
            cx, cy, width, height, angle = map(float, result.obb.xywhr[index])
            rotated = RotatedBox(cx, cy, width, height, float(np.degrees(angle)))
            yield replace(row, rotated_box=rotated)
        else:
            yield row


# --- the networks can fail ------------------------------------------------------------------------


@pytest.mark.parametrize("task", WITH_BOXES)
def test_networks_find_objects_of_different_scores_and_sizes(
    task: Task, weights_of: Callable[[Task], Path], images: list[Path]
) -> None:
    """A comparison of equal scores, or of boxes without area, could not fail."""
    for path in images:
        found = refer(weights_of(task), task, path, "ultralytics", max_detections=300)
        detections = found.prediction.detections
        scores = {each.confidence for each in detections}
        between = [score for score in scores if MIN_CONFIDENCE <= score <= MAX_CONFIDENCE]
        assert len(between) >= MIN_DISTINCT_SCORES, path
        TABLE.distinct_scores(task, len(between))
        assert len({each.class_id for each in detections}) >= 10
        boxes = [each.box for each in detections]
        sides = [side for box in boxes for side in (box.x2 - box.x1, box.y2 - box.y1)]
        if task is Task.OBB:
            rotated = [each.rotated_box for each in detections if each.rotated_box]
            sides = [side for box in rotated for side in (box.width, box.height)]
            angles = [box.angle_degrees % 90 for box in rotated]
            assert np.ptp(angles) > 45
        assert len(sides) == 2 * len(detections)
        assert min(sides) > 1
        assert np.ptp(sides) > 10


def test_classifier_network_sees_different_classes(
    weights_of: Callable[[Task], Path], images: list[Path]
) -> None:
    best = set()
    for path in images:
        scores = refer(weights_of(Task.CLASSIFY), Task.CLASSIFY, path, "ultralytics").prediction
        distinct = len({score.confidence for score in scores.classes})
        assert distinct >= MIN_DISTINCT_SCORES
        TABLE.distinct_scores(Task.CLASSIFY, distinct)
        best.add(scores.classes[0].class_id)
    assert len(best) >= 3


# --- parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("task", WITH_BOXES)
def test_task_agrees_with_ultralytics(
    task: Task,
    runtime: str,
    weights_of: Callable[[Task], Path],
    detector_of: Callable[[Task, str], Detector],
    images: list[Path],
) -> None:
    detector = detector_of(task, runtime)
    worst = Worst()
    for path in images:
        compare(predict(detector, path), refer(weights_of(task), task, path, runtime), worst)
    TABLE.add(task, runtime, len(images), worst)
    assert_close(task, worst)
    assert worst.detections > 40 * len(images)
    if task is Task.SEGMENT:
        assert worst.masks > 20 * len(images)
    if task is Task.POSE:
        assert worst.keypoints > 100 * len(images)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_masks_before_simplification_agree_with_ultralytics(
    runtime: str,
    weights_of: Callable[[Task], Path],
    detector_of: Callable[[Task, str], Detector],
    images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(our_masks, "_TOLERANCE_OF_WIDTH", 0.0)
    detector = detector_of(Task.SEGMENT, runtime)
    worst = Worst()
    for path in images:
        reference = refer(weights_of(Task.SEGMENT), Task.SEGMENT, path, runtime)
        compare(predict(detector, path), reference, worst)
    TABLE.add_unsimplified(runtime, worst)
    assert worst.masks > 20 * len(images)
    assert worst.mask_iou >= MIN_MASK_IOU


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_classes_agree_with_ultralytics(
    runtime: str,
    weights_of: Callable[[Task], Path],
    detector_of: Callable[[Task, str], Detector],
    images: list[Path],
) -> None:
    detector = detector_of(Task.CLASSIFY, runtime)
    worst = Worst()
    for path in images:
        ours = predict(detector, path)
        reference = refer(weights_of(Task.CLASSIFY), Task.CLASSIFY, path, runtime).prediction
        assert ours.detections == ()
        assert len(ours.classes) == 5
        expected = reference.classes[:5]
        assert [s.class_id for s in ours.classes] == [s.class_id for s in expected]
        gaps = [
            abs(a.confidence - b.confidence) for a, b in zip(ours.classes, expected, strict=True)
        ]
        worst.confidence_gap = max(worst.confidence_gap, *gaps)
        worst.detections += 5
    TABLE.add(Task.CLASSIFY, runtime, len(images), worst)
    assert worst.confidence_gap <= MAX_CONFIDENCE_GAP


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_segmentation_with_coco_boxes_agrees_with_ultralytics(
    runtime: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The boxes are those of trained weights, and the images are photographs."""
    if not COCO_WEIGHTS.is_file() or not COCO_IMAGES.is_dir():
        pytest.skip(
            f"NOT CHECKED: segmentation on COCO needs {COCO_WEIGHTS} and {COCO_IMAGES}; "
            "set PARITY_DATA to the folder that holds models/ and coco-mini/"
        )
    images = sorted(COCO_IMAGES.glob("*.jpg"))[:6]
    folder = tmp_path_factory.mktemp("coco")
    weights = write_coco_segmentation(COCO_WEIGHTS, folder / "coco-segment.pt")
    detector = load_with(weights, runtime)
    worst = Worst()
    for path in images:
        compare(predict(detector, path), refer(weights, Task.SEGMENT, path, runtime), worst)
    TABLE.add("segment, boxes of YOLO26n", runtime, len(images), worst)
    assert_close(Task.SEGMENT, worst)
    assert worst.masks > len(images)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("task", list(Task))
def test_batch_gives_each_image_its_own_prediction(
    task: Task, runtime: str, detector_of: Callable[[Task, str], Detector], images: list[Path]
) -> None:
    """Images of several shapes at once, and one after the other."""
    detector = detector_of(task, runtime)
    paths = images[:2]  # one landscape, one portrait
    decoded = [decode(path.read_bytes(), max_pixels=10**8) for path in paths]
    together = list(detector.detect(decoded))
    for path, batched in zip(paths, together, strict=True):
        alone = predict(detector, path)
        assert [d.class_id for d in batched.detections[:20]] == [
            d.class_id for d in alone.detections[:20]
        ]
        assert [s.class_id for s in batched.classes] == [s.class_id for s in alone.classes]


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.DETECT])
def test_int8_of_each_task_runs_and_keeps_its_branch_in_float(
    task: Task, weights_of: Callable[[Task], Path], images: list[Path], tmp_path: Path
) -> None:
    float_export = export_of(weights_of(task))
    metadata = read_metadata(float_export)
    [file] = float_export.glob("*.xml")
    quantized = quantize(
        ov.Core().read_model(file),
        images,
        task=task,
        image_size=IMAGE_SIZE,
        stride=int(metadata["stride"]),
    )
    convolutions = [op for op in quantized.get_ordered_ops() if op.get_type_name() == "Convolution"]
    branch = [op for op in convolutions if FLOAT_BRANCH in op.get_friendly_name()]
    assert bool(branch) == (task is not Task.CLASSIFY)
    assert not any(is_quantized(op) for op in branch)
    assert sum(is_quantized(op) for op in convolutions) > len(convolutions) / 2

    directory = tmp_path / "int8"
    directory.mkdir()
    ov.save_model(quantized, directory / file.name, compress_to_fp16=False)
    (directory / "metadata.yaml").write_text(
        yaml.safe_dump(metadata | {"precision": "int8"}), encoding="utf-8"
    )
    reference, other = (
        predict_files(OpenVINODetector(path), images[:3]) for path in (float_export, directory)
    )
    for expected, actual in zip(reference, other, strict=True):
        assert len(actual.classes) == len(expected.classes)
        assert bool(expected.detections) == (task is not Task.CLASSIFY)
        assert len(actual.detections) >= len(expected.detections) / 2
        for found in actual.detections:
            assert bool(found.polygons) == (task is Task.SEGMENT)
            assert bool(found.keypoints) == (task is Task.POSE)
            assert bool(found.rotated_box) == (task is Task.OBB)


def is_quantized(convolution: ov.Node) -> bool:
    return bool(convolution.input_value(0).get_node().get_type_name() == "FakeQuantize")


def assert_close(task: Task, worst: Worst) -> None:
    assert worst.confidence_gap <= MAX_CONFIDENCE_GAP
    assert worst.box_iou >= MIN_IOU
    if task is Task.SEGMENT:
        assert worst.mask_iou >= MIN_POLYGON_IOU
    if task is Task.POSE:
        assert worst.keypoint_pixels <= MAX_KEYPOINT_PIXELS
    if task is Task.OBB:
        assert worst.rotated_iou >= MIN_IOU
        assert all(0 <= angle < 90 for angle in worst.angles)


def compare(ours: Prediction, reference: Reference, worst: Worst) -> None:
    """Compare the predictions for one image, in both directions."""
    theirs = reference.prediction.detections
    lowest = min((each.confidence for each in theirs), default=MIN_CONFIDENCE)
    # One that is just over the threshold, or among the best, may not be so in the other. Fewer than
    # `MAX_COMPARED` may be left of the best, because those without a mask are dropped.
    limit = (lowest if len(theirs) > MAX_COMPARED // 2 else MIN_CONFIDENCE) + MAX_CONFIDENCE_GAP
    worst.angles += [each.rotated_box.angle_degrees for each in ours.detections if each.rotated_box]
    for index, expected in enumerate(theirs):
        if expected.confidence < limit or is_thin(expected):
            continue
        found = counterpart(expected, ours.detections)
        worst.detections += 1
        worst.confidence_gap = max(
            worst.confidence_gap, abs(expected.confidence - found.confidence)
        )
        worst.box_iou = min(worst.box_iou, overlap(expected, found))
        if expected.rotated_box and found.rotated_box:
            worst.rotated_iou = min(
                worst.rotated_iou, rotated_iou(expected.rotated_box, found.rotated_box)
            )
        compare_keypoints(expected, found, worst)
        if reference.masks is not None:
            compare_mask(reference.masks[index], found, worst)
    for found in ours.detections:
        if found.confidence >= limit and not is_thin(found):
            assert overlap(found, counterpart(found, theirs)) >= MIN_IOU, f"only ours: {found}"


def is_thin(detection: Detection) -> bool:
    """Whether nearly all of a box is in the padding: clipped to the image, it has no area."""
    box = detection.box
    return not detection.rotated_box and min(box.x2 - box.x1, box.y2 - box.y1) <= 1


def counterpart(detection: Detection, others: Sequence[Detection]) -> Detection:
    rivals = [other for other in others if other.class_id == detection.class_id]
    assert rivals, f"{detection} has no counterpart"
    return max(rivals, key=lambda other: overlap(detection, other))


def overlap(a: Detection, b: Detection) -> float:
    if a.rotated_box and b.rotated_box:
        return rotated_iou(a.rotated_box, b.rotated_box)
    return iou(a.box, b.box)


def compare_keypoints(expected: Detection, found: Detection, worst: Worst) -> None:
    assert len(expected.keypoints) == len(found.keypoints)
    for theirs, ours in zip(expected.keypoints, found.keypoints, strict=True):
        gap = abs(theirs.confidence - ours.confidence)
        worst.confidence_gap = max(worst.confidence_gap, gap)
        if theirs.confidence >= VISIBLE + gap:
            distance = float(np.hypot(theirs.x - ours.x, theirs.y - ours.y))
            worst.keypoint_pixels = max(worst.keypoint_pixels, distance)
            worst.keypoints += 1


def compare_mask(expected: NDArray[np.bool_], found: Detection, worst: Worst) -> None:
    if np.count_nonzero(expected) < MIN_MASK_PIXELS:
        return
    height, width = expected.shape
    stored = rasterize(found.polygons, np.arange(width) + 0.5, np.arange(height) + 0.5)
    union = np.count_nonzero(stored | expected)
    worst.mask_iou = min(worst.mask_iou, np.count_nonzero(stored & expected) / union)
    worst.masks += 1
