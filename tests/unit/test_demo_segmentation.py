"""The demo model for segmentation, on drawn images whose masks are known."""

from dataclasses import dataclass

import numpy as np
import pytest
from click.testing import CliRunner

from devtools.demo_model.shapes import SEGMENTATION_MODEL, SceneObject, sample_scenes
from service.cli.main import main
from service.domain import Detection, Task
from service.inference.detector import Detector
from service.inference.loading import load_detector, warm_up
from tests.boxes import found_in
from tests.polygons import Mask, mask_iou, rasterised

MAX_BYTES = 3_000_000


@dataclass(frozen=True)
class Example:
    """A drawn image: the visible part of each shape, and each detection with its mask."""

    shapes: list[tuple[str, Mask]]
    detections: list[tuple[Detection, Mask]]

    def best_iou(self, label: str, drawn: Mask) -> float:
        """Return the IoU of a drawn shape with the best mask of its label."""
        masks = (mask for detection, mask in self.detections if detection.label == label)
        return max((mask_iou(drawn, mask) for mask in masks), default=0.0)


@pytest.fixture(scope="module")
def detector() -> Detector:
    loaded = load_detector(SEGMENTATION_MODEL)
    warm_up(loaded)
    return loaded


@pytest.fixture(scope="module")
def examples(detector: Detector) -> list[Example]:
    scenes = [scene for _, scene in sample_scenes()]
    found = []
    for scene, detections in zip(
        scenes, found_in(detector, [scene.image for scene in scenes]), strict=True
    ):
        height, width = scene.image.shape[:2]
        shapes = [(item.label, visible(item, width, height)) for item in scene.objects]
        masks = [(each, rasterised(each.polygons, width, height)) for each in detections]
        found.append(Example(shapes, masks))
    return found


def visible(shape: SceneObject, width: int, height: int) -> Mask:
    """Return the pixels of which the visible part of a shape covers at least a half."""
    mask = np.zeros((height, width), bool)
    mask[shape.visible.window] = shape.visible.coverage >= 0.5
    return mask


def test_demo_model_for_segmentation_is_small(detector: Detector) -> None:
    files = [file for file in SEGMENTATION_MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    assert SEGMENTATION_MODEL / "canary" / "expected.json" in files
    assert (detector.info.name, detector.info.task) == ("shapes-seg.pt", Task.SEGMENT)


def test_canary_of_the_demo_model_passes_here() -> None:
    checked = CliRunner().invoke(main, ["check-model", str(SEGMENTATION_MODEL)])
    assert checked.exit_code == 0, checked.output
    assert "loaded and verified" in checked.stdout


def test_masks_are_those_of_the_drawn_shapes(examples: list[Example]) -> None:
    overlaps = np.array([each.best_iou(*shape) for each in examples for shape in each.shapes])
    assert len(overlaps) >= 50
    assert np.mean(overlaps >= 0.7) >= 0.85
    assert np.median(overlaps) >= 0.87


def test_masks_end_where_other_shapes_begin(examples: list[Example]) -> None:
    """Also where the other shape hides a part of this one."""
    foreign = []
    for each in examples:
        for _, mask in each.detections:
            shares = sorted((mask & drawn).sum() / mask.sum() for _, drawn in each.shapes)
            foreign.append(sum(shares[:-1]))  # the last one is the shape itself
    touching = sum(share > 0 for share in foreign)
    assert touching >= 5
    assert np.mean(foreign) <= 0.05


def test_areas_are_those_of_the_masks(examples: list[Example]) -> None:
    for each in examples:
        for detection, mask in each.detections:
            assert detection.area == pytest.approx(mask.sum(), rel=0.05)


def test_few_masks_belong_to_no_shape(examples: list[Example]) -> None:
    drawn = sum(len(each.shapes) for each in examples)
    assert sum(len(each.detections) for each in examples) <= 1.15 * drawn
