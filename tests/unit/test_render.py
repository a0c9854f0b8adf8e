"""Derived images: what is drawn, redacted and cropped, and that nothing else is left of a file."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.derived import (
    Crops,
    DeriveOptions,
    Normalized,
    NormalizedFormat,
    Redaction,
    RedactionMode,
)
from service.domain import Box, DerivedKind, Detection, ImageInfo, Task
from service.images import render as module
from service.images.derive import DerivePlan, Region
from service.images.pixels import Pixels
from service.images.redact import CELLS, redact
from service.images.render import render
from tests.plans import PLANS

WIDTH, HEIGHT = 640, 480
INFO = ImageInfo(WIDTH, HEIGHT, "PNG")
PERSON = Detection("person", 0, 0.9, Box(100.0, 100.0, 300.0, 400.0))
FAINT = Detection("person", 0, 0.06, Box(400.0, 50.0, 500.0, 150.0))
CAR = Detection("car", 2, 0.8, Box(420.0, 300.0, 620.0, 420.0))
EVERYTHING = DeriveOptions(
    annotated=True,
    crops=Crops(margin=0),
    redaction=Redaction(("person",), margin=0),
    normalized=Normalized(format=NormalizedFormat.PNG),
)


def noise(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def plan(options: DeriveOptions, *found: Detection, faint: Sequence[Detection] = ()) -> DerivePlan:
    return DerivePlan(options, INFO, Task.DETECT, found, tuple(faint))


def images(pixels: Pixels, some: DerivePlan) -> dict[str, Pixels]:
    """Return the decoded images by kind. Crops have their class id appended."""
    files = render(pixels.copy(), some)
    decoded = {}
    for output, file in zip(some.outputs(), files, strict=True):
        image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None and image.shape[:2] == (output.height, output.width)
        assert file.startswith(output.signature)
        decoded[f"{output.kind}{'' if output.class_id is None else output.class_id}"] = image
    return decoded  # type: ignore[return-value]


def test_equal_pixels_and_plans_give_equal_bytes() -> None:
    some = plan(EVERYTHING, PERSON, CAR, faint=[FAINT])
    assert render(noise(), some) == render(noise(), some)


@pytest.mark.parametrize("kind", ["thumbnail", "annotated", "redacted", "normalized", "crop0"])
@pytest.mark.parametrize("mode", RedactionMode)
def test_every_image_is_made_of_redacted_pixels(kind: str, mode: RedactionMode) -> None:
    """Two images that differ only in the redacted regions, and not in their mean colours."""
    options = replace(EVERYTHING, redaction=Redaction(("person",), mode))
    some = plan(options, PERSON, CAR, faint=[FAINT])
    light, dark = np.full((2, HEIGHT, WIDTH, 3), 128, np.uint8)
    for region in some.redacted_regions(WIDTH, HEIGHT):
        checks = np.indices((region.bottom - region.top, region.right - region.left)).sum(0) % 2
        inside = np.s_[region.top : region.bottom, region.left : region.right]
        light[inside], dark[inside] = (255 * checks)[..., None], (255 - 255 * checks)[..., None]
    assert np.abs(images(light, some)[kind].astype(int) - images(dark, some)[kind]).max() <= 16


def test_pixels_outside_of_redacted_regions_stay() -> None:
    found = images(noise(), plan(EVERYTHING, PERSON, CAR, faint=[FAINT]))["normalized"]
    is_same = (found == noise()).all(axis=2)
    assert is_same[:, :98].all() and is_same[200:, 510:].all()
    assert not is_same[110:390, 110:290].any() and not is_same[60:140, 410:490].any()


def test_without_redaction_no_pixel_is_changed() -> None:
    options = DeriveOptions(normalized=Normalized(format=NormalizedFormat.PNG))
    assert np.array_equal(images(noise(), plan(options, PERSON))["normalized"], noise())


@pytest.mark.parametrize("mode", RedactionMode)
@pytest.mark.parametrize("size", [(300, 200), (7, 90), (1, 1), (3, 2)], ids=str)
def test_redacted_region_has_few_colours_left(mode: RedactionMode, size: tuple[int, int]) -> None:
    """The region is a function of at most CELLS x CELLS means, however large it is."""
    pixels = noise(*size)
    redact(pixels, [Region(0, 0, *size)], mode)
    small = cv2.resize(noise(*size), _cells(*size), interpolation=cv2.INTER_AREA)
    assert small.shape[0] * small.shape[1] <= CELLS**2
    if mode is RedactionMode.MOSAIC:
        colours = {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}
        assert len(colours) <= CELLS**2
    else:
        smooth = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(pixels, smooth)


def _cells(width: int, height: int) -> tuple[int, int]:
    longer = max(width, height)
    return max(1, round(CELLS * width / longer)), max(1, round(CELLS * height / longer))


def test_coordinates_are_scaled_to_a_reduced_image() -> None:
    """The full image has twice the pixels that are given, as after a reduced decode."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[100:400, 100:300] = 200
    box = Box(200.0, 200.0, 600.0, 800.0)
    options = DeriveOptions(crops=Crops(margin=0), max_side=WIDTH)
    some = DerivePlan(
        options,
        ImageInfo(2 * WIDTH, 2 * HEIGHT, "JPEG"),
        Task.DETECT,
        (replace(PERSON, box=box),),
    )
    crop = images(pixels, some)["crop0"]
    assert crop.shape == (300, 200, 3) and crop[5:-5, 5:-5].min() > 190


def test_crops_beyond_the_byte_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    options = DeriveOptions(crops=Crops(), max_side=WIDTH)
    whole = replace(PERSON, box=Box(0.0, 0.0, 640.0, 480.0))
    some = plan(options, *[whole] * 20)
    files = render(noise(), some)
    assert 1 < len(files) < len(some.outputs())
    assert sum(map(len, files)) <= options.max_output_bytes


@pytest.mark.parametrize("size", [(640, 640), (1, 640), (640, 1), (33, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", NormalizedFormat)
def test_noise_keeps_the_byte_limits(size: tuple[int, int], kind: NormalizedFormat) -> None:
    options = replace(EVERYTHING, crops=None, redaction=None, max_side=max(320, *size))
    options = replace(options, normalized=Normalized(size[0] * size[1], kind))
    some = DerivePlan(options, ImageInfo(*size, "PNG"), Task.DETECT)
    extreme = 255 * (noise(*size) > 127).astype(np.uint8)
    for pixels in (noise(*size), extreme):
        assert sum(map(len, render(pixels, some))) <= options.max_output_bytes


def test_no_memory_to_encode_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
    with pytest.raises(MemoryError):
        render(noise(), plan(DeriveOptions()))


def test_opencv_without_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = cv2.error("no memory")
    error.code = cv2.Error.StsNoMem

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module, "_render", fail)
    with pytest.raises(MemoryError):
        render(noise(), plan(DeriveOptions()))
    error.code = cv2.Error.StsBadArg
    with pytest.raises(cv2.error):
        render(noise(), plan(DeriveOptions()))


def test_derived_files_have_no_metadata() -> None:
    some = plan(EVERYTHING, PERSON, CAR)
    for file in render(noise(), some):
        with Image.open(io.BytesIO(file)) as image:
            names = {*image.info} - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
            assert not names, names
            assert not image.getexif()


def test_kinds_are_in_a_fixed_order() -> None:
    kinds = [output.kind for output in plan(EVERYTHING, PERSON, CAR).outputs()]
    assert kinds == [
        DerivedKind.THUMBNAIL,
        DerivedKind.ANNOTATED,
        DerivedKind.REDACTED,
        DerivedKind.NORMALIZED,
        DerivedKind.CROP,
        DerivedKind.CROP,
    ]


@given(PLANS, st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_any_plan_is_rendered_within_its_limits(some: DerivePlan, factor: int) -> None:
    """The pixels are those of a reduced decode, and the coordinates are any numbers."""
    width, height = min(some.image.width, 700), min(some.image.height, 700)
    some = replace(some, image=ImageInfo(width, height, "PNG"))
    reduced = (
        max(some.working_size[0], width // factor),
        max(some.working_size[1], height // factor),
    )
    with np.errstate(all="ignore"):
        files = render(np.full((reduced[1], reduced[0], 3), 99, np.uint8), some)
    assert sum(map(len, files)) <= some.options.max_output_bytes
    for output, file in zip(some.outputs(), files, strict=False):
        with Image.open(io.BytesIO(file)) as image:
            assert image.size == (output.width, output.height)
