"""Frictionless reads the data package of camera traps."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from service.domain import GeoPoint, Task
from service.gcp.result_pages import StoredResult
from service.result_exports.records import ExportOptions
from tests.roundtrip.camtrap_schemas import schemas
from tests.roundtrip.samples import (
    HEIGHT,
    WIDTH,
    damaged,
    detect,
    done,
    empty,
    every_sample,
    export_to,
    image_of,
    trapped,
)

pytestmark = pytest.mark.roundtrip
SIDES = ("X", "Y", "Width", "Height")
PLACE = GeoPoint(-1.23456, 36.78901)


def images() -> list[StoredResult]:
    return [
        trapped(item, source='=cmd, "river"\n', place=PLACE, minutes=number)
        for number, item in enumerate(every_sample())
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, read_in: Callable[[str], Any]) -> Any:
    """What frictionless reads of all samples, and of one without a time."""
    read = read_in("frictionless")
    tmp_path = tmp_path_factory.mktemp("folder")
    options = ExportOptions(with_images=True)
    unknown = done("unknown.jpg", Task.DETECT)
    export = export_to(tmp_path / "package", "camtrap-dp", [*images(), unknown], options)
    assert export.notes[0].startswith("1 images are left out")
    (tmp_path / "schemas.json").write_text(json.dumps(schemas()), encoding="utf-8")
    return read("camtrap_dp.py", tmp_path / "package", tmp_path / "schemas.json")


def test_camtrap_package_is_valid(report: Any) -> None:
    assert (report["errors"], report["valid"]) == ([], True)


def test_camtrap_has_one_deployment_a_place(report: Any) -> None:
    [deployment] = report["tables"]["deployments"]
    assert deployment["deploymentID"] == '\'=cmd, "river" @-1.2346,36.7890'
    assert (deployment["latitude"], deployment["longitude"]) == ("-1.2346", "36.789")
    assert deployment["deploymentStart"].startswith("2026-05-04T06:07:08")
    assert deployment["deploymentEnd"].startswith("2026-05-04T06:15:08")


def test_camtrap_has_every_image(report: Any) -> None:
    media = {row["mediaID"]: row for row in report["tables"]["media"]}
    assert list(media) == [item.id for item in images()]
    assert media[detect().id]["filePath"] == "images/detect/a.jpg"
    assert media[damaged().id]["mediaComments"] == '"It" is <damaged>.'


def test_camtrap_has_the_same_observations(report: Any) -> None:
    item, rows = image_of(detect()), report["tables"]["observations"]
    found = [row for row in rows if row["mediaID"] == item.document_id]
    assert item.result
    for row, detection in zip(found, item.result.detections, strict=True):
        x, y, width, height = (float(row[f"bbox{side}"]) for side in SIDES)
        corners = [x * WIDTH, y * HEIGHT, (x + width) * WIDTH, (y + height) * HEIGHT]
        box = detection.box
        assert corners == pytest.approx([box.x1, box.y1, box.x2, box.y2], abs=0.01)
        assert row["classificationProbability"] == str(detection.confidence)


def test_camtrap_tells_blank_from_unclassified(report: Any) -> None:
    kinds = {row["mediaID"]: row["observationType"] for row in report["tables"]["observations"]}
    assert kinds[empty().id] == "blank"
    assert kinds[damaged().id] == "unclassified"
