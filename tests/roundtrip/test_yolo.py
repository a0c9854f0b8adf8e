"""What reads YOLO labels reads ours: ultralytics' own loader, and supervision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from service.domain import Task
from service.gcp.result_pages import StoredResult
from tests.roundtrip.samples import (
    HEIGHT,
    WIDTH,
    Exported,
    damaged,
    detection,
    done,
    export_to,
    image_of,
)

ROUNDING = 0.01  # pixels: six decimals of a share of 1,920, twice


def items() -> list[StoredResult]:
    # supervision reads the images of one folder, so no name has a folder.
    found = [detection(0, "fox"), detection(3, "with, comma"), detection(5, "=cmd")]
    return [done("a.jpg", Task.DETECT, found), done("nothing.jpg", Task.DETECT), damaged()]


@pytest.fixture
def export(tmp_path: Path) -> Exported:
    """An export with the files of its done images, as `--images` fetches them."""
    export = export_to(tmp_path / "export", "yolo", items())
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for image in export.images:
        if image.result:
            path = export.folder / "images" / image.path
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), pixels)
    return export


def corners(item: StoredResult) -> list[list[float]]:
    result = image_of(item).result
    assert result
    boxes = [detection.box for detection in result.detections]
    return [[box.x1, box.y1, box.x2, box.y2] for box in boxes]


@pytest.mark.ultralytics
def test_ultralytics_loads_the_same_boxes(export: Exported) -> None:
    dataset_module = pytest.importorskip("ultralytics.data.dataset")
    data = yaml.safe_load((export.folder / "data.yaml").read_text(encoding="utf-8"))
    dataset = dataset_module.YOLODataset(
        img_path=str(export.folder / "images"), data=data | {"channels": 3}, task="detect"
    )
    by_name = {Path(each["im_file"]).name: each for each in dataset.labels}
    assert set(by_name) == {"a.jpg", "nothing.jpg"}
    found = by_name["a.jpg"]
    assert [data["names"][int(number)] for number in found["cls"].ravel()] == [
        "fox", "with, comma", "=cmd",
    ]  # fmt: skip
    expected = corners(items()[0])
    for (cx, cy, width, height), box in zip(found["bboxes"], expected, strict=True):
        left, top = (cx - width / 2) * WIDTH, (cy - height / 2) * HEIGHT
        right, bottom = (cx + width / 2) * WIDTH, (cy + height / 2) * HEIGHT
        assert [left, top, right, bottom] == pytest.approx(box, abs=ROUNDING)
    assert len(by_name["nothing.jpg"]["bboxes"]) == 0


@pytest.mark.roundtrip
def test_supervision_reads_the_yolo_labels(export: Exported, read_in: Callable[[str], Any]) -> None:
    read, folder = read_in("supervision"), export.folder
    report = read("supervision_yolo.py", folder / "images", folder / "labels", folder / "data.yaml")
    assert report["a.jpg"]["labels"] == ["fox", "with, comma", "=cmd"]
    for found, box in zip(report["a.jpg"]["boxes"], corners(items()[0]), strict=True):
        assert found == pytest.approx(box, abs=ROUNDING)
    assert report["nothing.jpg"]["boxes"] == []
