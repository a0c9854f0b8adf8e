"""What reads COCO files reads ours: pycocotools, supervision, and the rules of CVAT."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from service.domain import Task
from tests.roundtrip.samples import (
    Exported,
    detect,
    done,
    empty,
    every_sample,
    export_to,
    image_of,
    pose,
    segment,
)

FILE = "annotations.json"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_to(tmp_path_factory.mktemp("folder") / "export", "coco", every_sample())


def corners(box: Any) -> list[float]:
    return [box.x1, box.y1, box.x2, box.y2]


@pytest.mark.ultralytics  # pycocotools comes with the same extra
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # its masks
def test_pycocotools_reads_the_same_detections(export: Exported) -> None:
    coco_module = pytest.importorskip("pycocotools.coco")
    coco = coco_module.COCO(str(export.folder / FILE))
    by_name = {image["file_name"]: image["id"] for image in coco.loadImgs(coco.getImgIds())}
    assert set(by_name) == {image.path for image in export.images if image.result}
    for item in (detect(), segment(), pose(), empty()):
        image = image_of(item)
        found = coco.loadAnns(coco.getAnnIds(imgIds=[by_name[export.path(item)]]))
        assert image.result and len(found) == len(image.result.detections)
        for annotation, detection in zip(found, image.result.detections, strict=True):
            x, y, width, height = annotation["bbox"]
            expected = pytest.approx(corners(detection.box), abs=0.01)
            assert [x, y, x + width, y + height] == expected
            assert coco.cats[annotation["category_id"]]["name"] == detection.label
            assert annotation["score"] == detection.confidence
            assert not annotation["segmentation"] or coco.annToMask(annotation).sum() > 0


@pytest.mark.roundtrip
def test_supervision_reads_the_same_boxes(tmp_path: Path, read_in: Callable[[str], Any]) -> None:
    read = read_in("supervision")
    items = [detect(), done("more/b.jpg", Task.DETECT, [])]
    export = export_to(tmp_path / "export", "coco", items)
    report = read("supervision_coco.py", export.folder / "images", export.folder / FILE)
    result = image_of(detect()).result
    found = report["images"]["detect/a.jpg"]
    assert result and found["labels"] == [item.label for item in result.detections]
    for box, item in zip(found["boxes"], result.detections, strict=True):
        assert box == pytest.approx(corners(item.box), abs=0.01)
    assert report["images"]["more/b.jpg"]["boxes"] == []


def test_coco_follows_the_rules_of_cvat(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "b/A.JPG", "b/a.jpg", "c.d.jpg", "c.e.jpg"]
    export = export_to(tmp_path, "coco", [done(name, Task.DETECT) for name in names])
    content = export.json(FILE)
    assert content["licenses"] and {"info", "images", "annotations", "categories"} <= set(content)
    paths = [PurePosixPath(image["file_name"]) for image in content["images"]]
    stems = {str(path.with_suffix("")) for path in paths}
    assert len(stems) == len(names)
    assert [image["id"] for image in content["images"]] == list(range(1, len(names) + 1))
