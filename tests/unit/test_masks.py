"""Masks and their rings, as pure functions of prototypes and pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from service.domain import Box, Polygon
from service.images.letterbox import Letterbox, letterbox
from service.inference import masks as module
from service.inference.masks import MAX_TOLERANCE, Masks, rings_of
from tests.polygons import mask_iou, rasterised

Floats = NDArray[np.float32]

bitmaps = arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)
)


def polygons(bitmap: NDArray[np.uint8]) -> list[Polygon]:
    return [Polygon(tuple(ring.ravel().tolist())) for ring in rings_of(bitmap)]


@given(bitmaps)
@settings(deadline=None, max_examples=300)
def test_rings_enclose_exactly_the_pixels_of_the_mask(bitmap: NDArray[np.uint8]) -> None:
    height, width = bitmap.shape
    assert (rasterised(polygons(bitmap), width, height) == bitmap.astype(bool)).all()


@given(bitmaps)
@settings(deadline=None, max_examples=100)
def test_rings_have_about_the_area_of_the_mask(bitmap: NDArray[np.uint8]) -> None:
    """A ring cuts at most an eighth of a pixel at each corner of a pixel."""
    rings = list(rings_of(bitmap))
    signed = [
        float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)
        for x, y in (ring.T.astype(float) for ring in rings)
    ]
    # Rings of objects and of holes go round in opposite directions.
    assert abs(sum(signed) - bitmap.sum()) <= sum(len(ring) for ring in rings) / 8


def test_ring_of_one_pixel_goes_through_the_middles_of_its_edges() -> None:
    [ring] = rings_of(np.ones((1, 1), np.uint8))
    assert {tuple(point) for point in ring.tolist()} == {(1, 0.5), (0.5, 1), (0, 0.5), (0.5, 0)}


def test_ring_is_scaled_and_shifted() -> None:
    [ring] = rings_of(np.ones((1, 2), np.uint8), (10.0, 20.0), (100, 200))
    assert ring.min(axis=0).tolist() == [100, 200]
    assert ring.max(axis=0).tolist() == [120, 220]


def test_mask_without_pixels_has_no_ring() -> None:
    assert not list(rings_of(np.zeros((3, 4), np.uint8)))


def interpolated(values: Floats, height: int, width: int) -> Floats:
    """Resize as `torch.nn.functional.interpolate(mode="bilinear")`, one axis after the other."""
    for size in (height, width):  # of the columns, and after the transposition of the rows
        count = len(values)
        positions = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
        lines = [np.interp(positions, np.arange(count), column) for column in values.T]
        values = np.array(lines, np.float32)
    return values


def reference(
    prototypes: Floats, coefficients: Floats, fitted: Letterbox, box: Box
) -> NDArray[np.bool_]:
    """Compute a mask of the whole image, as `process_mask_native` in ultralytics 8.4."""
    logits = np.tensordot(coefficients, prototypes, 1)
    padding = (fitted.input_height - fitted.resized_height) | (
        fitted.input_width - fitted.resized_width
    )
    scale = next(s for s in (1, 2, 4) if padding * s % 4 == 0 and padding // 2 * s % 4 == 0)
    enlarged = interpolated(logits, scale * logits.shape[0], scale * logits.shape[1])
    top, left = fitted.top * scale // 4, fitted.left * scale // 4
    content = enlarged[
        top : top + fitted.resized_height * scale // 4,
        left : left + fitted.resized_width * scale // 4,
    ]
    mask = interpolated(content, fitted.height, fitted.width) > 0
    y, x = np.mgrid[: fitted.height, : fitted.width]
    inside: NDArray[np.bool_] = (x >= box.x1) & (x < box.x2) & (y >= box.y1) & (y < box.y2)
    return mask & inside


def smooth(generator: np.random.Generator, height: int, width: int) -> Floats:
    """Return 4 prototypes whose masks are a few large blobs."""
    coarse = generator.normal(size=(4, 6, 6)).astype(np.float32)
    return np.stack([interpolated(plane, height, width) for plane in coarse])


SIZES = [(160, 120), (320, 240), (300, 451), (97, 640), (640, 90), (801, 600), (33, 47)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_mask_is_that_of_ultralytics(width: int, height: int) -> None:
    generator = np.random.default_rng(width)
    fitted = letterbox(width, height, image_size=160, stride=32)
    prototypes = smooth(generator, fitted.input_height // 4, fitted.input_width // 4)
    masks = Masks(prototypes, fitted)
    for box in (
        Box(0, 0, width, height),
        Box(0.3 * width, 0.2 * height, 0.9 * width, 0.71 * height),
        Box(0.5 * width + 0.4, 0, 0.5 * width + 1.6, height),
    ):
        coefficients = generator.normal(size=4).astype(np.float32)
        expected = reference(prototypes, coefficients, fitted, box)
        mask = masks.mask(coefficients, box)
        if not expected.any():
            assert mask is None
            continue
        assert mask is not None
        # A pixel in which the sum is nearly 0 may be rounded otherwise.
        assert mask.area == pytest.approx(expected.sum(), abs=2)
        if expected.sum() >= 1000:
            assert mask_iou(rasterised(mask.polygons, width, height), expected) > 0.98


def test_mask_of_a_large_box_is_sampled_with_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted = letterbox(800, 600, image_size=160, stride=32)
    prototypes = smooth(np.random.default_rng(3), 32, 40)
    box, coefficients = Box(0, 0, 800, 600), np.array([1, 0, 0, 0], np.float32)
    exact = Masks(prototypes, fitted).mask(coefficients, box)
    monkeypatch.setattr(module, "MAX_SAMPLES", 800 * 600 // 9)
    sampled = Masks(prototypes, fitted).mask(coefficients, box)
    assert exact is not None
    assert sampled is not None
    assert sampled.area == pytest.approx(exact.area, rel=0.01)
    covered, expected = (rasterised(mask.polygons, 800, 600) for mask in (sampled, exact))
    assert mask_iou(covered, expected) > 0.98


def test_points_of_an_image_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = letterbox(160, 160, image_size=160, stride=32)
    noise = np.random.default_rng(0).normal(size=(1, 40, 40)).astype(np.float32)
    weight, box = np.ones(1, np.float32), Box(0, 0, 160, 160)
    unbounded = Masks(noise, fitted).mask(weight, box)
    assert unbounded is not None
    assert len(unbounded.polygons) > 30
    monkeypatch.setattr(module, "MAX_POINTS", len(unbounded.polygons[0].points) // 2 + 1)
    masks = Masks(noise, fitted)
    first, later = masks.mask(weight, box), masks.mask(weight, box)
    assert first is not None
    assert later is not None
    assert first.polygons == unbounded.polygons[:2]
    assert later.polygons == unbounded.polygons[:1]
    assert later.area == unbounded.area


def test_mask_of_a_box_without_a_pixels_corner_is_none() -> None:
    masks = Masks(np.ones((1, 32, 40), np.float32), letterbox(160, 120, image_size=160, stride=32))
    weight = np.ones(1, np.float32)
    assert masks.mask(weight, Box(10.2, 10, 10.8, 50)) is None
    assert masks.mask(weight, Box(10, 50, 10, 50)) is None
    assert masks.mask(weight, Box(10, 10, float("nan"), 50)) is None
    assert masks.mask(weight, Box(10, 10, 11, 11)) is not None


def test_prototypes_of_another_size_are_refused() -> None:
    fitted = letterbox(160, 160, image_size=160, stride=32)
    with pytest.raises(ValueError, match="do not fit an input"):
        Masks(np.ones((4, 20, 20), np.float32), fitted)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_simplified_rings_keep_their_area(seed: int) -> None:
    generator = np.random.default_rng(seed)
    fitted = letterbox(320, 256, image_size=160, stride=32)
    prototypes = smooth(generator, fitted.input_height // 4, fitted.input_width // 4)
    box = Box(0, 0, 320, 256)
    coefficients = generator.normal(size=4).astype(np.float32)
    expected = reference(prototypes, coefficients, fitted, box)
    mask = Masks(prototypes, fitted).mask(coefficients, box)
    if mask and mask.area >= 1000:
        assert mask_iou(rasterised(mask.polygons, 320, 256), expected) > 0.97
        xy = np.concatenate([np.reshape(p.points, (-1, 2)) for p in mask.polygons])
        assert xy.min() >= 0
        assert (xy <= (320, 256)).all()


def test_tolerance_is_at_most_one_pixel() -> None:
    assert MAX_TOLERANCE == 1.0
    bitmap = np.zeros((1000, 1000), np.uint8)
    y, x = np.mgrid[:1000, :1000]
    bitmap[(x - 500) ** 2 + (y - 500) ** 2 < 450**2] = 1
    [ring] = rings_of(bitmap)
    points = np.reshape(module._simplified(ring).points, (-1, 2))
    assert len(points) < len(ring) / 20
    # The chords of a circle are off by their sagitta.
    chords = np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1)
    assert (450 - np.sqrt(450**2 - (chords / 2) ** 2)).max() < MAX_TOLERANCE + 1
