"""Frictionless reads the data package of camera traps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.domain import GeoPoint
from service.result_exports.camtrap_dp import CamtrapWriter
from tests.roundtrip.camtrap_schemas import schemas
from tests.roundtrip.samples import (
    HEIGHT,
    TAKEN,
    WIDTH,
    Sample,
    damaged,
    detect,
    empty,
    every_sample,
    trapped,
)

pytestmark = pytest.mark.roundtrip
SIDES = ("X", "Y", "Width", "Height")
PLACE = GeoPoint(-1.23456, 36.78901)


def images() -> list[Sample]:
    return [
        trapped(item, source='=cmd, "river"\n', place=PLACE, minutes=number)
        for number, item in enumerate(every_sample())
    ]


@pytest.fixture
def report(tmp_path: Path, read_in: Callable[[str], Any]) -> Any:
    """What frictionless reads of all samples, and of one without a time."""
    read = read_in("frictionless")
    writer = CamtrapWriter(tmp_path / "package", with_files=True, created=TAKEN)
    writer.begin()
    for item in (*images(), detect()):
        writer.add(item)
    [note] = writer.finish()
    assert note.startswith("1 images are left out")
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
    assert list(media) == [item.document_id for item in images()]
    assert media[detect().document_id]["filePath"] == "detect/a.jpg"
    assert media[damaged().document_id]["mediaComments"] == '"It" is <damaged>.'


def test_camtrap_has_the_same_observations(report: Any) -> None:
    item, rows = detect(), report["tables"]["observations"]
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
    assert kinds[empty().document_id] == "blank"
    assert kinds[damaged().document_id] == "unclassified"
