"""MegaDetector's own tools read what is exported for them."""

from collections.abc import Callable
from typing import Any

import pytest

from service.result_exports.exported import plain_label
from tests.roundtrip.samples import (
    HEIGHT,
    WIDTH,
    Exported,
    damaged,
    detect,
    empty,
    every_sample,
    export_to,
    image_of,
)

pytestmark = pytest.mark.roundtrip
NO_FAILURE = "##megadetector-missing-field-value##"  # of the table that the tool makes


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_to(tmp_path_factory.mktemp("folder") / "export", "megadetector", every_sample())


@pytest.fixture(scope="module")
def report(export: Exported, read_in: Callable[[str], Any]) -> Any:
    """What megadetector-utils reads of all samples."""
    read = read_in("megadetector")
    return read("megadetector.py", export.folder / "megadetector.json")


def row_of(report: Any, path: str) -> Any:
    [row] = [row for row in report["rows"] if row["file"] == path]
    return row


def test_megadetector_validator_finds_no_fault(report: Any) -> None:
    assert (report["validation"]["errors"], report["validation"]["warnings"]) == ([], [])


def test_megadetector_reads_every_image(report: Any, export: Exported) -> None:
    assert [row["file"] for row in report["rows"]] == [image.path for image in export.images]


def test_megadetector_reads_the_same_detections(report: Any) -> None:
    item, found = image_of(detect()), row_of(report, "detect/a.jpg")["detections"]
    names = report["fields"]["detection_categories"]
    assert item.result
    for row, detection in zip(found, item.result.detections, strict=True):
        x, y, width, height = row["bbox"]
        corners = [x * WIDTH, y * HEIGHT, (x + width) * WIDTH, (y + height) * HEIGHT]
        box = detection.box
        assert corners == pytest.approx([box.x1, box.y1, box.x2, box.y2], abs=0.01)
        assert names[row["category"]] == plain_label(detection.label)
        assert row["conf"] == detection.confidence


def test_megadetector_reads_failures_and_empty_images(report: Any, export: Exported) -> None:
    failed = row_of(report, export.path(damaged()))
    assert (failed["failure"], failed["detections"]) == ('"It" is <damaged>.', None)
    assert row_of(report, "bad/parked.jpg")["failure"] == "The day's limit is reached."
    assert row_of(report, "bad/unreadable.jpg")["failure"].startswith(
        "The document has another form"
    )
    nothing = row_of(report, export.path(empty()))
    assert (nothing["detections"], nothing["failure"]) == ([], NO_FAILURE)


def test_megadetector_reads_the_classes(report: Any) -> None:
    [found] = row_of(report, "classify/a.jpg")["detections"]
    names = report["fields"]["classification_categories"]
    classes = [(names[number], score) for number, score in found["classifications"]]
    assert classes == [("owl", 0.8123), ("with, comma", 0.15)]
    assert report["fields"]["detection_categories"][found["category"]] == "whole image"
