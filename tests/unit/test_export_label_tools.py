"""The formats of labelling tools: Label Studio, MegaDetector and Camtrap DP."""

import csv
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Box, ErrorCode, GeoPoint, ImageInfo, Polygon, RotatedBox, Task
from service.gcp.result_pages import StoredResult
from service.result_exports.camtrap_dp import (
    deployment_of,
    media_row,
    observation_type,
)
from service.result_exports.exported import NO_LABEL, outer_rings, plain_label, shown_uri
from service.result_exports.formats import FORMATS
from service.result_exports.label_studio import (
    Vocabulary,
    config_of,
    task_of,
)
from service.result_exports.megadetector import Categories, relative_box
from service.result_exports.records import ExportOptions
from tests.roundtrip.samples import (
    HEIGHT,
    HOSTILE,
    WIDTH,
    classify,
    damaged,
    detect,
    detection,
    done,
    edited,
    empty,
    every_sample,
    export_to,
    failed,
    image_of,
    parked,
    pose,
    segment,
    trapped,
    unreadable,
)

BOX = ("x1", "y1", "x2", "y2")
PLACE = GeoPoint(-1.23456, 36.78901)


class Memory:
    """An output in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def append(self, path: str, data: bytes) -> None:
        self.files[path] = self.files.get(path, b"") + data

    def append_part(self, name: str, data: bytes) -> None:
        self.append(f"part {name}", data)

    @contextmanager
    def read_part(self, name: str) -> Iterator[BinaryIO]:
        yield io.BytesIO(self.files[f"part {name}"])

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        file = io.BytesIO()
        yield file
        self.files[path] = file.getvalue()


def regions_of(item: StoredResult) -> list[dict[str, Any]]:
    task = task_of(image_of(item), "")
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
    st.floats(0.01, 89.99),
)


@given(ROTATED)
def test_label_studio_rotated_box_has_the_same_corners(box: RotatedBox) -> None:
    [region] = regions_of(done("a.jpg", Task.OBB, [detection(0, "ship", rotated_box=box)]))
    value = region["value"]
    assert all(0 <= value[key] <= 100 for key in ("x", "y", "width", "height"))
    if value["rotation"]:
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
    items = [empty(), damaged(), parked(), unreadable()]
    export = export_to(tmp_path, "label-studio", items)
    [task] = export.json("tasks.json")
    assert export.notes[0].startswith("3 images without a result")
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
    item = image_of(done("a b/ü#&%.jpg", Task.DETECT))
    cloud, local = task_of(item, "gs://"), task_of(item, "/data/local-files/?d=images/")
    assert cloud and local
    assert cloud["data"]["image"] == "gs://uploads/a b/ü#&%.jpg"
    assert local["data"]["image"] == "/data/local-files/?d=images/a%20b/%C3%BC%23%26%25.jpg"


def test_redacted_image_is_never_the_original() -> None:
    copy = {"kind": "redacted", "uri": "gs://results/copy.jpg"}
    assert shown_uri(edited(empty(), derived=[copy]).document) == "gs://results/copy.jpg"
    broken = edited(empty(), derived=[{"kind": "redacted", "uri": None}])
    failed_copy = edited(empty(), derived_error="It failed.")
    for item in (broken, failed_copy):
        assert task_of(image_of(item), "gs://") is None
        located = image_of(trapped(item, source="river", place=PLACE, minutes=0))
        deployment = deployment_of(located)
        assert deployment and media_row(located, deployment, with_files=True) is None


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
    video = failed("clip.MP4", ErrorCode.UNSUPPORTED_MEDIA, "It is a video.")
    export = export_to(tmp_path, "megadetector", [video])
    content = export.json("megadetector.json")
    assert (content["images"], content["detection_categories"]) == ([], {})
    assert export.notes == ["1 objects named like a video: the format has no place for them."]


def test_megadetector_says_what_it_leaves_out(tmp_path: Path) -> None:
    export = export_to(tmp_path, "megadetector", [segment(), pose()])
    assert [note.split(":")[0] for note in export.notes] == ["1 masks", "1 poses"]


def test_camtrap_without_a_place_has_no_package(tmp_path: Path) -> None:
    export = export_to(tmp_path, "camtrap-dp", [detect()])
    assert export.notes[1].startswith("No image has a time and a place")
    assert not (tmp_path / "datapackage.json").exists()


@pytest.mark.parametrize(
    ("label", "kind"),
    [("Person", "human"), (" truck ", "vehicle"), ("zebra", "animal"), ("cross", "unclassified")],
)
def test_camtrap_kind_of_a_label(label: str, kind: str) -> None:
    assert observation_type(label) == kind


def test_camtrap_cells_are_no_formulas(tmp_path: Path) -> None:
    items = [done("=cmd.jpg", Task.DETECT), damaged(), detect()]
    located = [trapped(item, source="@source", place=PLACE, minutes=0) for item in items]
    export_to(tmp_path, "camtrap-dp", located, ExportOptions(with_images=True))
    for table in ("deployments", "media", "observations"):
        with (tmp_path / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                numbers = {"latitude", "longitude"}
                cells = [text for name, text in row.items() if name not in numbers]
                assert not [text for text in cells if text.startswith(("=", "+", "-", "@"))]


@pytest.mark.parametrize("name", ["a..b.jpg", "../a.jpg", ".hidden.jpg", "~a.jpg", "=a.jpg"])
@pytest.mark.parametrize("with_files", [True, False])
def test_camtrap_address_fits_the_schema(name: str, with_files: bool) -> None:
    item = image_of(trapped(done(name, Task.DETECT), source="river", place=PLACE, minutes=0))
    deployment = deployment_of(item)
    row = deployment and media_row(item, deployment, with_files=with_files)
    assert row and row["filePath"].startswith(("gs://uploads/", "images/"))
    assert ".." not in row["filePath"]


@pytest.mark.parametrize(
    "place", [None, "here", GeoPoint(91, 0), GeoPoint(0, 181), GeoPoint(math.nan, 0)]
)
def test_camtrap_ignores_an_impossible_place(place: Any) -> None:
    item = trapped(detect(), source="river", place=place, minutes=0)
    assert deployment_of(image_of(item)) is None


NUMBERS: list[dict[str, Any]] = [
    {"detections": [{**detect().document["detections"][0], "confidence": math.nan}]},
    {"detections": [{**detect().document["detections"][0], "confidence": 7.0}]},
    {"detections": [{**detect().document["detections"][0], "box": dict.fromkeys(BOX, math.inf)}]},
    {"image": {"width": 0, "height": 9, "format": "JPEG"}},
]


@pytest.mark.parametrize("fields", NUMBERS)
@pytest.mark.parametrize("format_name", ["label-studio", "megadetector", "camtrap-dp"])
def test_impossible_numbers_do_not_end_an_export(
    tmp_path: Path, format_name: str, fields: dict[str, Any]
) -> None:
    items = [edited(detect(), **fields), empty()]
    located = [trapped(item, source="river", place=PLACE, minutes=0) for item in items]
    export = export_to(tmp_path, format_name, located)
    assert len(export.images) == 2
    for path in tmp_path.glob("*.json"):
        assert "NaN" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("format_name", ["label-studio", "megadetector", "camtrap-dp"])
def test_continued_export_is_the_same(tmp_path: Path, format_name: str) -> None:
    items = [
        trapped(item, source="river", place=PLACE, minutes=number)
        for number, item in enumerate(every_sample())
    ]
    images = [image_of(item) for item in items]
    outputs = []
    for cut in (None, *range(len(images))):
        output, writer = Memory(), FORMATS[format_name].writer(ExportOptions())
        writer.begin(output)
        for number, image in enumerate(images):
            if number == cut:
                state = json.loads(json.dumps(writer.state()))
                writer = FORMATS[format_name].writer(ExportOptions())
                writer.restore(state)
            writer.add(image, output)
        writer.finish(output)
        output.files.pop("datapackage.json", None)  # it has the time of the export
        outputs.append((output.files, list(writer.notes())))
    assert all(found == outputs[0] for found in outputs)
