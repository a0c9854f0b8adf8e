"""The plan of derived images: sizes, regions, label files, and the limits of its options."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from service.derived import (
    LARGEST_OPTIONS,
    MAX_NORMALIZED_PIXELS,
    MAX_SIDE,
    Crops,
    DeriveOptions,
    Normalized,
    NormalizedFormat,
    Redaction,
    RedactionMode,
)
from service.domain import (
    UNKNOWN_CLASS,
    Box,
    DerivedKind,
    Detection,
    ImageInfo,
    Keypoint,
    Polygon,
    RotatedBox,
    Task,
)
from service.images.derive import DerivePlan, Region
from tests.plans import PLANS

FULL_HD = ImageInfo(1920, 1080, "JPEG")
PERSON = Detection("person", 0, 0.9, Box(480.0, 270.0, 960.0, 810.0))
DOG = Detection("dog", 16, 0.8, Box(0.0, 0.0, 192.0, 108.0))
NOTHING = DeriveOptions(thumbnail_side=None)
ALL = DeriveOptions(annotated=True, crops=Crops(), redaction=Redaction(), normalized=Normalized())


def plan(options: DeriveOptions = ALL, *found: Detection, **fields: Any) -> DerivePlan:
    return DerivePlan(options, fields.pop("image", FULL_HD), Task.DETECT, found, **fields)


def labels(task: Task, *found: Detection) -> str:
    options = DeriveOptions(normalized=Normalized())
    file = replace(plan(options, *found), task=task).label_file()
    assert file
    return file.data.decode()


def test_default_is_a_thumbnail_alone() -> None:
    [output] = plan(DeriveOptions(), PERSON).outputs()
    assert (output.kind, output.width, output.height) == (DerivedKind.THUMBNAIL, 320, 180)


def test_each_kind_has_its_size() -> None:
    sizes = {output.kind: (output.width, output.height) for output in plan(ALL, PERSON).outputs()}
    assert sizes == {
        DerivedKind.THUMBNAIL: (320, 180),
        DerivedKind.ANNOTATED: (1280, 720),
        DerivedKind.REDACTED: (1280, 720),
        DerivedKind.NORMALIZED: (1333, 750),
        DerivedKind.CROP: (384, 432),  # a margin of a tenth on each side
    }


def test_no_image_is_enlarged() -> None:
    small = plan(ALL, image=ImageInfo(40, 30, "PNG"))
    assert {(output.width, output.height) for output in small.outputs()} == {(40, 30)}


@pytest.mark.parametrize("size", [(1, 3_000_000), (3_000_000, 1), (1, 1), (70_000, 2)], ids=str)
def test_extreme_images_keep_all_limits(size: tuple[int, int]) -> None:
    extreme = plan(replace(ALL, normalized=Normalized(1000)), image=ImageInfo(*size, "PNG"))
    for output in extreme.outputs():
        assert output.width >= 1 and output.height >= 1
        assert max(output.width, output.height) <= max(1280, 65_500)
        if output.kind is DerivedKind.NORMALIZED:
            assert output.width * output.height <= 1000


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (DeriveOptions(), (320, 180)),
        (NOTHING, (1280, 720)),
        (DeriveOptions(redaction=Redaction()), (1280, 720)),
        (DeriveOptions(normalized=Normalized(2_000_000)), (1885, 1060)),
    ],
    ids=["thumbnail", "nothing", "redacted", "normalized"],
)
def test_file_is_decoded_no_larger_than_needed(
    options: DeriveOptions, size: tuple[int, int]
) -> None:
    assert plan(options).working_size == size


def test_crops_are_chosen_by_label_in_order_of_confidence() -> None:
    options = replace(NOTHING, crops=Crops(("dog",), margin=0))
    [crop] = plan(options, PERSON, DOG).outputs()
    assert (crop.class_id, crop.crop) == (16, Region(0, 0, 128, 72))
    first = plan(replace(NOTHING, crops=Crops(max_count=1)), PERSON, DOG)
    assert [output.class_id for output in first.outputs()] == [0]


def test_crop_is_clipped_to_the_image() -> None:
    edge = replace(DOG, box=Box(1800.0, 1000.0, 2000.0, 1100.0))
    [crop] = plan(replace(NOTHING, crops=Crops(margin=0)), edge).outputs()
    assert crop.crop == Region(1200, 666, 1280, 720)


def test_detection_outside_of_the_image_has_no_crop() -> None:
    outside = replace(DOG, box=Box(-200.0, 0.0, -100.0, 50.0))
    assert plan(replace(NOTHING, crops=Crops()), outside).outputs() == ()


def test_redaction_covers_faint_detections_of_its_labels() -> None:
    options = replace(ALL, redaction=Redaction(("person",), margin=0))
    faint = replace(PERSON, confidence=0.06, box=Box(0.0, 0.0, 192.0, 108.0))
    regions = plan(options, PERSON, DOG, faint=(faint,)).redacted_regions(1920, 1080)
    assert regions == [Region(479, 269, 961, 811), Region(0, 0, 193, 109)]


def test_redaction_of_every_label_needs_no_list() -> None:
    assert len(plan(ALL, PERSON, DOG).redacted_regions(1280, 720)) == 2
    assert plan(NOTHING, PERSON).redacted_regions(1280, 720) == []


def test_object_of_an_unknown_class_is_always_redacted() -> None:
    unknown = replace(DOG, class_id=UNKNOWN_CLASS, label="-1")
    options = replace(NOTHING, redaction=Redaction(labels=("person",)))
    assert len(plan(options, PERSON, DOG, unknown).redacted_regions(1280, 720)) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_box_that_is_no_number_redacts_the_whole_image(value: float) -> None:
    broken = replace(PERSON, box=Box(value, 10.0, 20.0, 30.0))
    found = plan(ALL, broken)
    assert found.redacted_regions(640, 480) == [Region(0, 0, 640, 480)]
    assert not [output for output in found.outputs() if output.crop]
    assert DerivePlan.from_bytes(found.to_bytes()).redacted_regions(640, 480)
    assert bool(labels(Task.DETECT, broken)) != math.isnan(value)


@given(PLANS)
def test_any_plan_stays_within_the_image(some: DerivePlan) -> None:
    width, height = some.view
    regions = some.redacted_regions(width, height)
    regions += [output.crop for output in some.outputs() if output.crop]
    for left, top, right, bottom in regions:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    file = some.label_file()
    for line in file.data.decode().splitlines() if file else ():
        assert all(0 <= float(value) <= 2 for value in line.split()[1:])
    assert repr(DerivePlan.from_bytes(some.to_bytes())) == repr(some)


# --- label files -------------------------------------------------------------------------------


def test_label_file_of_detect_has_centre_and_size() -> None:
    assert labels(Task.DETECT, PERSON) == "0 0.375000 0.500000 0.250000 0.500000\n"


def test_label_file_of_segment_has_the_largest_ring() -> None:
    rings = (
        Polygon((100.0, 100.0, 110.0, 100.0, 110.0, 110.0)),
        Polygon((0.0, 0.0, 960.0, 0.0, 960.0, 540.0)),
    )
    expected = "0 0.000000 0.000000 0.500000 0.000000 0.500000 0.500000\n"
    assert labels(Task.SEGMENT, replace(PERSON, polygons=rings)) == expected
    assert len(labels(Task.SEGMENT, PERSON).split()) == 9  # the corners of its box


def test_label_file_of_pose_hides_uncertain_keypoints() -> None:
    points = (Keypoint("nose", 960.0, 540.0, 0.9), Keypoint("left_eye", 9.0, 9.0, 0.1))
    line = labels(Task.POSE, replace(PERSON, keypoints=points))
    assert line.split()[5:] == ["0.500000", "0.500000", "2.000000"] + ["0.000000"] * 3


def test_label_file_of_obb_has_the_corners() -> None:
    turned = replace(PERSON, rotated_box=RotatedBox(960.0, 540.0, 192.0, 108.0, 0.0))
    assert labels(Task.OBB, turned).split()[1:3] == ["0.550000", "0.550000"]
    assert len(labels(Task.OBB, turned).split()) == 9


def test_image_of_the_task_classify_has_no_label_file() -> None:
    assert replace(plan(ALL), task=Task.CLASSIFY).label_file() is None
    assert plan(DeriveOptions()).label_file() is None


def test_label_file_of_an_empty_image_is_empty() -> None:
    assert labels(Task.DETECT) == ""


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"max_side": MAX_SIDE + 1},
        {"max_side": 0},
        {"thumbnail_side": 1281},
        {"crops": Crops(max_count=101)},
        {"crops": Crops(margin=1.1)},
        {"redaction": Redaction(margin=-0.1)},
        {"redaction": Redaction(margin=math.nan)},
        {"normalized": Normalized(MAX_NORMALIZED_PIXELS + 1)},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        replace(ALL, **change)


def test_every_option_adds_to_the_output_bytes() -> None:
    changes: list[dict[str, Any]] = [
        {"thumbnail_side": 320},
        {"annotated": True},
        {"crops": Crops()},
        {"redaction": Redaction(mode=RedactionMode.MOSAIC)},
        {"normalized": Normalized(format=NormalizedFormat.PNG)},
    ]
    sizes = [replace(NOTHING, **change).max_output_bytes for change in changes]
    assert all(size > 0 for size in sizes) and NOTHING.max_output_bytes == 0
    assert sum(sizes) == ALL.max_output_bytes <= LARGEST_OPTIONS.max_output_bytes
    assert NOTHING.is_empty and not any(replace(NOTHING, **item).is_empty for item in changes)
