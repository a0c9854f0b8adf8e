"""The drawn images: reproducible, and with exact ground truth."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from devtools.demo_model import accuracy, card, shapes, train

CLASS_IDS = range(len(shapes.CLASS_NAMES))


def draw(seed: int = 7, index: int = 0, width: int = 200, height: int = 160) -> shapes.Scene:
    return shapes.draw_scene(shapes.scene_generator(seed, index), width, height)


def shape(label: str, class_id: int, box: shapes.Box) -> shapes.SceneObject:
    """Return a shape that fills its box."""
    left, top, right, bottom = map(int, box)
    visible = shapes.Patch(left, top, np.ones((bottom - top, right - left), np.float32))
    return shapes.SceneObject(label, class_id, box, visible)


def bounds(image: np.ndarray, at_least: int = 128) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(image.max(axis=2) >= at_least)
    return (
        int(columns.min()),
        int(rows.min()),
        int(columns.max()) + 1,
        int(rows.max()) + 1,
    )


def test_there_are_at_least_four_classes() -> None:
    assert len(set(shapes.CLASS_NAMES)) == len(shapes.CLASS_NAMES) >= 4


def test_same_seed_draws_the_same_image() -> None:
    first, second = draw(), draw()
    assert first.objects == second.objects
    assert np.array_equal(first.image, second.image)


def test_another_seed_or_index_draws_another_image() -> None:
    reference = draw()
    for other in (draw(seed=8), draw(index=1)):
        assert not np.array_equal(reference.image, other.image)


def test_sets_of_images_share_no_seed() -> None:
    seeds = [
        shapes.TRAIN_SEED,
        shapes.VALIDATION_SEED,
        shapes.HELD_OUT_SEED,
        shapes.SAMPLE_SEED,
    ]
    assert len(set(seeds)) == len(seeds)


def test_images_have_the_requested_size_and_boxes_are_inside() -> None:
    seen: set[str] = set()
    for index in range(30):
        scene = draw(index=index, width=170, height=120)
        assert scene.image.shape == (120, 170, 3)
        assert scene.image.dtype == np.uint8
        assert 1 <= len(scene.objects) <= shapes.MAX_OBJECTS
        for item in scene.objects:
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= 170
            assert 0 <= y1 < y2 <= 120
            assert shapes.CLASS_NAMES[item.class_id] == item.label
            seen.add(item.label)
    assert seen == set(shapes.CLASS_NAMES)


@pytest.mark.parametrize("class_id", CLASS_IDS, ids=shapes.CLASS_NAMES)
@pytest.mark.parametrize("degrees", [0.0, 17.0, 45.0, 200.0])
def test_box_is_tight(class_id: int, degrees: float) -> None:
    canvas = np.zeros((120, 140, 3), np.uint8)
    points = shapes.place(shapes.shape_outline(class_id), (71.3, 58.6), 40.25, degrees)
    shapes.fill_polygon(canvas, points, (255, 255, 255))
    box = shapes.tight_box(points, 140, 120)
    assert box is not None
    # A sharp corner covers little of its last pixels, so faint pixels count too.
    assert bounds(canvas, at_least=32) == pytest.approx(box, abs=1.0)


@pytest.mark.parametrize("class_id", CLASS_IDS, ids=shapes.CLASS_NAMES)
@pytest.mark.parametrize("centre", [(10.0, 50.0), (95.0, 20.0), (50.0, 92.0)])
def test_box_of_a_cut_shape_is_tight(class_id: int, centre: tuple[float, float]) -> None:
    canvas = np.zeros((100, 100, 3), np.uint8)
    points = shapes.place(shapes.shape_outline(class_id), centre, 30.0, 25.0)
    shapes.fill_polygon(canvas, points, (255, 255, 255))
    box = shapes.tight_box(points, 100, 100)
    assert box is not None
    # The bounds are whole pixels: they differ by up to one pixel, and by rounding.
    assert bounds(canvas, at_least=32) == pytest.approx(box, abs=1.2)


def test_shape_off_the_image_has_no_box_and_draws_nothing() -> None:
    canvas = np.zeros((50, 50, 3), np.uint8)
    points = shapes.place(shapes.shape_outline(0), (90.0, 20.0), 10.0, 0.0)
    assert shapes.tight_box(points, 50, 50) is None
    shapes.fill_polygon(canvas, points, (255, 255, 255))
    assert not canvas.any()


def test_shape_covers_its_true_area() -> None:
    canvas = np.zeros((100, 100, 3), np.uint8)
    points = shapes.place(shapes.shape_outline(shapes.CLASS_NAMES.index("circle")), (50, 50), 30, 0)
    shapes.fill_polygon(canvas, points, (255, 255, 255))
    assert canvas[:, :, 0].sum() / 255 == pytest.approx(math.pi * 30**2, rel=0.02)


@pytest.mark.parametrize("class_id", CLASS_IDS, ids=shapes.CLASS_NAMES)
def test_outlines_have_unit_size(class_id: int) -> None:
    outline = shapes.shape_outline(class_id)
    assert np.hypot(outline[:, 0], outline[:, 1]).max() == pytest.approx(1.0)


@pytest.mark.parametrize("class_id", [-1, len(shapes.CLASS_NAMES)])
def test_unknown_class_has_no_outline(class_id: int) -> None:
    with pytest.raises(ValueError, match="no class"):
        shapes.shape_outline(class_id)


def test_samples_are_written_as_jpeg_with_their_ground_truth(tmp_path: Path) -> None:
    written = shapes.write_samples(tmp_path / "new", count=2)
    assert [path.name for path, _ in written] == ["shapes-01.jpg", "shapes-02.jpg"]
    for path, scene in written:
        image = cv2.imread(str(path))
        assert image is not None
        assert image.shape == scene.image.shape
        assert np.abs(image.astype(int) - scene.image).mean() < 10
        assert scene.objects


def test_samples_are_landscape_portrait_and_square() -> None:
    shares = [width / height for width, height in shapes.SAMPLE_SIZES]
    assert min(shares) < 1.0 < max(shares)
    assert 1.0 in shares
    assert max(max(size) for size in shapes.SAMPLE_SIZES) <= 1000


def filled(rings: list[shapes.Points], width: int, height: int) -> np.ndarray:
    """Rasterise rings by the even-odd rule at 8 times the resolution."""
    fine = np.zeros((height * 8, width * 8), np.uint8)
    cv2.fillPoly(fine, [np.round(ring * 8 - 0.5).astype(np.int32) for ring in rings], 1)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA) > 0


def test_rings_outline_what_is_visible_of_each_shape() -> None:
    overlaps = []
    for index in range(30):
        scene = draw(index=index, width=320, height=240)
        for item in scene.objects:
            mask = filled(item.visible.rings(), 320, 240)
            overlaps.append(accuracy.mask_overlap(mask, item))
    assert len(overlaps) > 60
    assert min(overlaps) > 0.9


def test_shape_on_top_hides_what_is_below_it() -> None:
    """No pixel belongs to two shapes, and a hidden shape has less than its whole outline."""
    hidden = 0
    for index in range(30):
        scene = draw(index=index, width=320, height=240)
        owners = np.zeros((240, 320), np.float32)
        for item in scene.objects:
            owners[item.visible.window] += item.visible.coverage
            x1, y1, x2, y2 = item.box
            points = np.concatenate(item.visible.rings())
            assert points.min() >= 0
            assert (points >= np.array([x1, y1]) - 1).all()
            assert (points <= np.array([x2, y2]) + 1).all()
            hidden += float(np.ptp(points[:, 0])) < 0.9 * (x2 - x1)
        assert owners.max() < 1.01
    assert hidden > 0


def test_hole_and_second_part_are_rings_of_their_own() -> None:
    coverage = np.ones((20, 40), np.float32)
    coverage[5:15, 5:15] = 0  # a hole
    coverage[:, 25:30] = 0  # a gap
    rings = shapes.Patch(100, 50, coverage).rings()
    assert len(rings) == 3
    areas = [abs(cv2.contourArea(ring.astype(np.float32))) for ring in rings]
    assert sorted(areas) == pytest.approx([100, 200, 500], rel=0.07)
    joined = filled([train.joined_rings(rings) - (100, 50)], 40, 20)
    assert np.count_nonzero(joined != (coverage > 0)) <= 30  # the lines between the rings


def test_labels_of_masks_are_the_corners_as_shares() -> None:
    scene = shapes.Scene(
        np.zeros((100, 200, 3), np.uint8), (shape("square", 1, (10.0, 20.0, 30.0, 60.0)),)
    )
    label, *numbers = train.label_lines(scene, "segment").split()
    corners = np.array(numbers, float).reshape(-1, 2)
    assert label == "1"
    assert corners.min(axis=0) == pytest.approx((0.05, 0.20), abs=0.003)
    assert corners.max(axis=0) == pytest.approx((0.15, 0.60), abs=0.003)


def test_labels_are_shares_of_the_image() -> None:
    item = shape("triangle", 2, (10.0, 20.0, 30.0, 60.0))
    scene = shapes.Scene(np.zeros((100, 200, 3), np.uint8), (item,))
    assert train.label_lines(scene) == "2 0.100000 0.400000 0.100000 0.400000\n"


def test_detections_are_counted_as_found_repeated_or_wrong() -> None:
    objects = [
        shape("circle", 0, (0.0, 0.0, 10.0, 10.0)),
        shape("square", 1, (20.0, 20.0, 30.0, 30.0)),
        shape("star", 3, (50.0, 50.0, 60.0, 60.0)),
    ]
    detections = [
        (0, (0.0, 0.0, 10.0, 10.0)),  # found
        (0, (0.0, 0.0, 10.0, 9.0)),  # repeated
        (1, (0.0, 0.0, 10.0, 10.0)),  # the wrong class
        (1, (20.0, 20.0, 30.0, 31.0)),  # found
        (3, (80.0, 80.0, 90.0, 90.0)),  # no shape
    ]
    assert accuracy.tally(objects, detections, accuracy.box_overlap) == card.Tally(
        3, found=2, repeated=1, wrong=2
    )
