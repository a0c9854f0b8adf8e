"""The demo model for segmentation, on drawn images whose masks are known."""

import numpy as np
import pytest

from devtools.demo_model.shapes import SEGMENTATION_MODEL, Scene, SceneObject, sample_scenes
from service.domain import Detection, Task
from service.inference.detector import Detector
from service.inference.loading import load_detector, warm_up
from tests.boxes import found_in
from tests.polygons import Mask, mask_iou, rasterised

MAX_BYTES = 3_000_000
Found = tuple[SceneObject, float]  # a drawn shape, and the IoU of the best mask of its label


@pytest.fixture(scope="module")
def detector() -> Detector:
    loaded = load_detector(SEGMENTATION_MODEL)
    warm_up(loaded)
    return loaded


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene for _, scene in sample_scenes()]


@pytest.fixture(scope="module")
def results(detector: Detector, scenes: list[Scene]) -> list[list[Detection]]:
    return list(found_in(detector, [scene.image for scene in scenes]))


@pytest.fixture(scope="module")
def found(scenes: list[Scene], results: list[list[Detection]]) -> list[Found]:
    return [
        (shape, best_iou(shape, scene, detections))
        for scene, detections in zip(scenes, results, strict=True)
        for shape in scene.objects
    ]


def best_iou(shape: SceneObject, scene: Scene, detections: list[Detection]) -> float:
    height, width = scene.image.shape[:2]
    drawn: Mask = np.zeros((height, width), bool)
    drawn[shape.visible.window] = shape.visible.coverage >= 0.5
    masks = (
        rasterised(each.polygons, width, height) for each in detections if each.label == shape.label
    )
    return max((mask_iou(drawn, mask) for mask in masks), default=0.0)


def test_demo_model_for_segmentation_is_small(detector: Detector) -> None:
    files = [file for file in SEGMENTATION_MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    assert SEGMENTATION_MODEL / "canary" / "expected.json" in files
    assert (detector.info.name, detector.info.task) == ("shapes-seg.pt", Task.SEGMENT)


def test_masks_are_those_of_the_drawn_shapes(found: list[Found]) -> None:
    overlaps = np.array([iou for _, iou in found])
    assert len(overlaps) >= 50
    assert np.mean(overlaps >= 0.7) >= 0.9
    assert np.median(overlaps) >= 0.88


def test_hidden_parts_are_in_no_mask(found: list[Found]) -> None:
    """What another shape covers does not belong to a shape."""
    hidden = [iou for shape, iou in found if hidden_share(shape) > 0.1]
    assert len(hidden) >= 5
    assert np.mean(hidden) >= 0.7


def hidden_share(shape: SceneObject) -> float:
    """Return the share of the box's sides that what is visible does not reach."""
    points = np.concatenate(shape.visible.rings())
    x1, y1, x2, y2 = shape.box
    return float(1 - np.prod(np.ptp(points, axis=0)) / ((x2 - x1) * (y2 - y1)))


def test_areas_are_those_of_the_masks(scenes: list[Scene], results: list[list[Detection]]) -> None:
    for scene, detections in zip(scenes, results, strict=True):
        height, width = scene.image.shape[:2]
        for each in detections:
            filled = np.count_nonzero(rasterised(each.polygons, width, height))
            assert each.area == pytest.approx(filled, rel=0.05)


def test_few_masks_belong_to_no_shape(scenes: list[Scene], results: list[list[Detection]]) -> None:
    drawn = sum(len(scene.objects) for scene in scenes)
    assert sum(map(len, results)) <= 1.15 * drawn
