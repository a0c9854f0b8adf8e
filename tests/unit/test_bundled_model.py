"""The bundled model, on drawn images whose ground truth is known."""

import numpy as np
import pytest

from devtools.demo_model.shapes import Scene, sample_scenes
from service.domain import Box
from service.inference.detector import Detector
from service.inference.loading import load_detector, warm_up
from service.settings import BUNDLED_MODEL
from tests.boxes import count_found, found_in

MAX_BYTES = 3 * 2**20


@pytest.fixture(scope="module")
def detector() -> Detector:
    loaded = load_detector(BUNDLED_MODEL)
    warm_up(loaded)
    return loaded


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene for _, scene in sample_scenes()]


def test_bundled_model_is_small_and_has_its_metadata(detector: Detector) -> None:
    files = [file for file in BUNDLED_MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    assert BUNDLED_MODEL / "canary" / "expected.json" in files
    assert (detector.info.name, detector.info.precision) == ("shapes.pt", "fp16")
    assert len(detector.info.sha256) == 64


def test_bundled_model_detects_the_drawn_shapes(detector: Detector, scenes: list[Scene]) -> None:
    results = list(found_in(detector, [scene.image for scene in scenes]))
    drawn = sum(len(scene.objects) for scene in scenes)
    matched = sum(
        count_found(
            [(shape.label, Box(*shape.box)) for shape in scene.objects],
            [(detection.label, detection.box) for detection in detections],
        )
        for scene, detections in zip(scenes, results, strict=True)
    )
    assert drawn >= 50
    assert matched >= 0.95 * drawn
    assert sum(map(len, results)) <= 1.1 * drawn


def test_bundled_model_detects_the_same_in_a_batch_and_alone(
    detector: Detector, scenes: list[Scene]
) -> None:
    batched = found_in(detector, [scene.image for scene in scenes])
    alone = [detections for scene in scenes for detections in found_in(detector, [scene.image])]
    assert [[each.label for each in detections] for detections in batched] == [
        [each.label for each in detections] for detections in alone
    ]


def test_bundled_model_detects_nothing_in_no_images(detector: Detector) -> None:
    assert list(found_in(detector, [])) == []


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 20_000), (20_000, 1), (1, 1), (320, 20)],
    ids=["tall", "wide", "pixel", "strip"],
)
def test_bundled_model_accepts_thin_images(detector: Detector, width: int, height: int) -> None:
    """The head needs at least 300 anchors. The smallest input of a thin image has fewer."""
    (detections,) = found_in(detector, [np.full((height, width, 3), 114, np.uint8)])
    assert all(each.box.x2 <= width and each.box.y2 <= height for each in detections)
