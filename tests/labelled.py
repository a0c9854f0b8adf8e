"""The demo's drawn samples with their labels, in COCO's format.

Drawing them takes most of a second, so they are drawn once for all tests of a run.
"""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from devtools.demo_model.shapes import (
    SAMPLE_COUNT,
    SAMPLE_JPEG_QUALITY,
    encode_jpeg,
    sample_scenes,
)


def write_drawn_samples(directory: Path, *, count: int = SAMPLE_COUNT) -> None:
    """Write the same files as `write_samples`, or the first `count` of them."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in _files()[:count]:
        (directory / name).write_bytes(data)


def labelled_samples() -> dict[str, Any]:
    """Return a copy of the labels, which a test may change."""
    return deepcopy(_labels())


@cache
def _files() -> list[tuple[str, bytes]]:
    return [
        (name, encode_jpeg(scene.image, SAMPLE_JPEG_QUALITY)) for name, scene in sample_scenes()
    ]


@cache
def _labels() -> dict[str, Any]:
    truth: dict[str, Any] = {"images": [], "annotations": []}
    classes: dict[str, int] = {}
    for image_id, (name, scene) in enumerate(sample_scenes(), 1):
        height, width = scene.image.shape[:2]
        image = {"id": image_id, "file_name": name, "width": width, "height": height}
        truth["images"].append(image)
        for thing in scene.objects:
            category = classes.setdefault(thing.label, len(classes) + 7)
            x1, y1, x2, y2 = thing.box
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    truth["categories"] = [{"id": number, "name": name} for name, number in classes.items()]
    return truth
