"""The formats of labelling tools: Label Studio, MegaDetector and Camtrap DP."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Box, ErrorCode, GeoPoint, ImageInfo, Polygon, RotatedBox, Task
from service.result_exports.camtrap_dp import (
    CamtrapWriter,
    deployment_of,
    media_row,
    observation_type,
)
from service.result_exports.exported import NO_LABEL, plain_label, shown_uri
from service.result_exports.label_studio import (
    LabelStudioWriter,
    Vocabulary,
    config_of,
    outer_rings,
    task_of,
)
from service.result_exports.megadetector import Categories, MegaDetectorWriter, relative_box
from tests.roundtrip.samples import (
    HEIGHT,
    HOSTILE,
    WIDTH,
    Sample,
    classify,
    damaged,
    detect,
    detection,
    done,
    empty,
    failed,
    parked,
    pose,
    segment,
    trapped,
    unreadable,
)

PLACE = GeoPoint(-1.23456, 36.78901)


def regions_of(item: Sample) -> list[dict[str, Any]]:
    task = task_of(item)
    assert task is not None
    found: list[dict[str, Any]] = task["predictions"][0]["result"]
    return found


def corners_of(region: dict[str, Any]) -> list[tuple[float, float]]:
    """The corners that Label Studio draws: it turns the rectangle around its first corner."""
    value = region["value"]
    x, y = value["x"] / 100 * WIDTH, value["y"] / 100 * HEIGHT
    width, height = value["width"] / 100 * WIDTH, value["height"] / 100 * HEIGHT
    angle = math.radians(value["rotation"])
    right, down = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    return [
        (
            x + a * width * right[0] + b * height * down[0],
            y + a * width * right[1] + b * height * down[1],
        )
        for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))
    ]


ROTATED = st.builds(
    RotatedBox,
    st.floats(0, WIDTH),
    st.floats(0, HEIGHT),
    st.floats(1, WIDTH),
    st.floats(1, HEIGHT),
    st.floats(0, 89.99),
)


@given(ROTATED)
def test_label_studio_rotated_box_has_the_same_corners(box: RotatedBox) -> None:
    [region] = regions_of(done("a.jpg", Task.OBB, [detection(0, "ship", rotated_box=box)]))
    value = region["value"]
    assert all(0 <= value[key] <= 100 for key in ("x", "y", "width", "height"))
    if value["rotation"] or not box.angle_degrees:
        expected = sorted(zip(box.corners[::2], box.corners[1::2], strict=True))
        found = sorted(corners_of(region))
        near = [min(math.dist(point, other) for other in expected) for point in found]
        assert max(near) <= 0.01 + 1e-4 * max(box.width, box.height) * math.tau / 360
    else:  # no corner fits: the upright box
        assert corners_of(region)[0] == pytest.approx((10.01, 20.02), abs=0.01)


def test_label_studio_leaves_holes_of_masks_out() -> None:
    regions = regions_of(segment())
    assert [len(region["value"]["points"]) for region in regions] == [4, 3]
    assert all(region["value"]["polygonlabels"] == ["fox"] for region in regions)


def test_ring_inside_of_a_hole_is_kept() -> None:
    def square(start: float, side: float) -> Polygon:
        end = start + side
        return Polygon((start, start, end, start, end, end, start, end))

    rings = [square(0, 100), square(10, 80), square(20, 60)]
    assert outer_rings(rings) == [rings[0], rings[2]]


def test_label_studio_has_visible_keypoints_only() -> None:
    box, *points = regions_of(pose())
    assert box["type"] == "rectanglelabels"
    assert [point["value"]["keypointlabels"] for point in points] == [["nose"], ["left eye"]]
    assert {point["parentID"] for point in points} == {box["id"]}
    assert points[0]["value"]["x"] == pytest.approx(50.25 / WIDTH * 100)


def test_label_studio_has_choices_of_kept_classes() -> None:
    [region] = regions_of(classify())
    assert region["value"] == {"choices": ["owl", "with, comma"]}


def test_label_studio_has_empty_but_not_failed_images(tmp_path: Path) -> None:
    writer = LabelStudioWriter(tmp_path)
    writer.begin()
    for item in (empty(), damaged(), parked(), unreadable()):
        writer.add(item)
    assert writer.finish() == ("3 images are not in tasks.json: they have no result to show.",)
    [task] = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert task["predictions"] == [{"model_version": "yolo26n-detect.pt", "result": []}]


def test_label_studio_config_escapes_labels() -> None:
    labels = [plain_label(label) for label in HOSTILE]
    config = config_of(Vocabulary({"box": dict.fromkeys(labels)}))
    found = [label.get("value") for label in ElementTree.fromstring(config).iter("Label")]
    assert found == sorted(set(labels))


@pytest.mark.parametrize("label", ["", " ", "\n"])
def test_blank_label_gets_a_name(label: str) -> None:
    assert plain_label(label) == NO_LABEL


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_label_can_be_in_xml(label: str) -> None:
    config = config_of(Vocabulary({"box": {plain_label(label): None}}))
    [found] = ElementTree.fromstring(config).iter("Label")
    assert found.get("value") == plain_label(label)


def test_label_studio_address_of_an_image() -> None:
    item = replace(empty(), path="a b/ü#?&%.jpg")
    own, local = task_of(item), task_of(item, url_prefix="/data/local-files/?d=images/")
    assert own and local
    assert own["data"]["image"] == "gs://uploads/empty/nothing.jpg"
    assert local["data"]["image"] == ("/data/local-files/?d=images/a%20b/%C3%BC%23%3F%26%25.jpg")


def with_document(item: Sample, **fields: Any) -> Sample:
    return replace(item, document=dict(item.document) | fields)


def test_redacted_image_is_never_the_original() -> None:
    copy = {"kind": "redacted", "uri": "gs://results/copy.jpg"}
    assert shown_uri(with_document(empty(), derived=[copy]).document) == "gs://results/copy.jpg"
    broken = with_document(empty(), derived=[{"kind": "redacted", "uri": None}])
    failed_copy = with_document(empty(), derived_error="It failed.")
    for item in (broken, failed_copy):
        assert shown_uri(item.document) is None
        assert task_of(item) is None
        located = trapped(item, source="river", place=PLACE, minutes=0)
        deployment = deployment_of(located)
        assert deployment and media_row(located, deployment, with_files=False) is None


def test_category_number_is_the_class_id_plus_one() -> None:
    categories = Categories()
    assert [categories.number("fox", 2), categories.number("owl", 0)] == ["3", "1"]
    assert categories.names() == {"1": "owl", "3": "fox"}


def test_second_label_of_a_class_id_gets_a_free_number() -> None:
    categories = Categories()
    numbers = [
        categories.number(label, class_id) for label, class_id in (("a", 4), ("b", 4), ("c", 5))
    ]
    assert numbers == ["5", "6", "7"]
    assert categories.number("b", 9) == "6"


@given(*(st.floats(-50, 2000) for _ in range(4)))
def test_relative_box_is_within_the_image(x: float, y: float, right: float, bottom: float) -> None:
    box = Box(min(x, right), min(y, bottom), max(x, right), max(y, bottom))
    left, top, width, height = relative_box(box, ImageInfo(WIDTH, HEIGHT, "JPEG"))
    assert 0 <= left <= left + width <= 1 + 1e-9
    assert 0 <= top <= top + height <= 1 + 1e-9


def test_megadetector_leaves_videos_out(tmp_path: Path) -> None:
    writer = MegaDetectorWriter(tmp_path / "md.json")
    writer.begin()
    writer.add(failed("clip.MP4", ErrorCode.UNSUPPORTED_MEDIA, "It is a video."))
    assert writer.finish() == ("1 objects are left out: the format takes them for videos.",)
    content = json.loads(writer.path.read_text(encoding="utf-8"))
    assert (content["images"], content["detection_categories"]) == ([], {})


def test_camtrap_without_a_place_has_no_package(tmp_path: Path) -> None:
    writer = CamtrapWriter(tmp_path)
    writer.begin()
    writer.add(detect())
    assert writer.finish()[0].startswith("No image has a time and a place")
    assert not (tmp_path / "datapackage.json").exists()


@pytest.mark.parametrize(
    ("label", "kind"),
    [("Person", "human"), (" truck ", "vehicle"), ("zebra", "animal"), ("cross", "unclassified")],
)
def test_camtrap_kind_of_a_label(label: str, kind: str) -> None:
    assert observation_type(label) == kind


def test_camtrap_cells_are_no_formulas(tmp_path: Path) -> None:
    writer = CamtrapWriter(tmp_path, with_files=True)
    writer.begin()
    item = replace(detect(), path="=cmd.jpg")
    writer.add(trapped(item, source="@source", place=PLACE, minutes=0))
    writer.add(trapped(damaged(), source="+1", place=PLACE, minutes=0))
    writer.finish()
    for table in ("deployments", "media", "observations"):
        with (tmp_path / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                numbers = {"latitude", "longitude"}
                cells = [text for name, text in row.items() if name not in numbers]
                assert not [text for text in cells if text.startswith(("=", "+", "-", "@"))]


@pytest.mark.parametrize("name", ["a..b.jpg", "../a.jpg", ".hidden.jpg", "~a.jpg", "=a.jpg"])
def test_camtrap_address_fits_the_schema(name: str) -> None:
    item = trapped(done(name, Task.DETECT), source="river", place=PLACE, minutes=0)
    deployment = deployment_of(item)
    row = deployment and media_row(item, deployment, with_files=True)
    assert row and row["filePath"].startswith("gs://uploads/")
    assert ".." not in row["filePath"]


@pytest.mark.parametrize(
    "place", [None, "here", GeoPoint(91, 0), GeoPoint(0, 181), GeoPoint(math.nan, 0)]
)
def test_camtrap_ignores_an_impossible_place(place: Any) -> None:
    assert deployment_of(trapped(detect(), source="river", place=place, minutes=0)) is None
