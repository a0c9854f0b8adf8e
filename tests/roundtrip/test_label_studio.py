"""Label Studio reads what is exported for it."""

from collections.abc import Callable
from typing import Any

import pytest

from service.result_exports.exported import plain_label
from tests.roundtrip.samples import HOSTILE, detect, every_sample, export_to, image_of

pytestmark = pytest.mark.roundtrip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, read_in: Callable[[str], Any]) -> Any:
    """What label-studio-sdk reads of all samples."""
    read = read_in("label-studio")
    export = export_to(tmp_path_factory.mktemp("folder") / "export", "label-studio", every_sample())
    return read("label_studio.py", export.folder)


def test_label_studio_accepts_config_and_predictions(report: Any) -> None:
    assert report["errors"] == []


def test_label_studio_has_every_label(report: Any) -> None:
    expected = {plain_label(label) for label in HOSTILE}
    assert expected <= set(report["labels"]["box"])
    assert report["labels"]["mask"] == ["fox"]
    assert report["labels"]["point"] == ["nose", "left eye", "hidden", "outside"]
    assert set(report["labels"]["class"]) == {"owl", "with, comma"}


def test_label_studio_gives_the_same_boxes(report: Any) -> None:
    coco, item = report["coco"], image_of(detect())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    [image] = [each for each in coco["images"] if each["file_name"].endswith("detect/a.jpg")]
    assert (image["width"], image["height"]) == (1920, 1081)
    found = [each for each in coco["annotations"] if each["image_id"] == image["id"]]
    assert item.result and len(found) == len(item.result.detections)
    for annotation, detection in zip(found, item.result.detections, strict=True):
        box = detection.box
        expected = [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]
        assert annotation["bbox"] == pytest.approx(expected, abs=0.01)
        assert names[annotation["category_id"]] == plain_label(detection.label)
