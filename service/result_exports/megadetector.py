"""MegaDetector's output format 1.6, for Timelapse, AddaxAI and MegaDetector's own tools.

https://lila.science/megadetector-output-format

The format has boxes only: no masks, keypoints or rotated boxes. For the task classify, one
detection of the category `whole image` covers the image, because classes belong to a detection.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from service.domain import Box, ImageInfo, ImageResult
from service.result_exports.exported import plain_label, reason_of, usable_result
from service.result_exports.records import ExportedImage, ExportOptions, Output

FILE = "megadetector.json"
FORMAT_VERSION = "1.6"
WHOLE_IMAGE = "whole image"  # category of the detection that carries an image's classes
_DECIMALS = 7  # of a side: less than 0.01 pixels in an image of 65,500 pixels
# Readers take a file with such a name for a video, which needs a frame rate.
_VIDEO_SUFFIXES = (".mp4", ".avi", ".mpeg", ".mpg", ".mov", ".mkv", ".flv")


@dataclass
class Categories:
    """Numbers of labels, from 1. A label has its class id plus one, unless that number is taken.

    Two models can give a class id to different labels. Then the second label gets a free number
    above all class ids that were seen.
    """

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, label: str, class_id: int | None = None) -> str:
        """Return the number of a label, as text."""
        if label not in self.numbers:
            taken = set(self.numbers.values())
            wished = class_id + 1 if class_id is not None and class_id >= 0 else None
            free = wished if wished and wished not in taken else max(taken, default=0) + 1
            self.numbers[label] = free
        return str(self.numbers[label])

    def names(self) -> dict[str, str]:
        """Return the labels by number."""
        ordered = sorted(self.numbers.items(), key=lambda item: item[1])
        return {str(number): label for label, number in ordered}


def is_video_name(path: str) -> bool:
    """Return whether readers of the format take a file for a video, by its name."""
    return path.lower().endswith(_VIDEO_SUFFIXES)


def entry_of(image: ExportedImage, detected: Categories, classified: Categories) -> dict[str, Any]:
    """Return the element of `images`. An image without a result has `failure`."""
    result = usable_result(image)
    if not result or not result.image_info:
        return {"file": image.path, "failure": reason_of(image), "detections": None}
    detections = [
        {
            "category": detected.number(plain_label(item.label), item.class_id),
            "conf": float(item.confidence),
            "bbox": relative_box(item.box, result.image_info),
        }
        for item in result.detections
    ]
    if classes := sorted(result.classes, key=lambda item: -item.confidence):
        detections.append(
            {
                "category": detected.number(WHOLE_IMAGE),
                "conf": float(classes[0].confidence),
                "bbox": [0.0, 0.0, 1.0, 1.0],
                "classifications": [
                    [classified.number(plain_label(item.label), item.class_id), item.confidence]
                    for item in classes
                ],
            }
        )
    return {"file": image.path, "detections": detections}


def relative_box(box: Box, info: ImageInfo) -> list[float]:
    """Return left, top, width and height as parts of the image's sides, within the image."""
    x1, x2 = (_part(x, info.width) for x in (box.x1, box.x2))
    y1, y2 = (_part(y, info.height) for y in (box.y1, box.y2))
    return [x1, y1, round(x2 - x1, _DECIMALS), round(y2 - y1, _DECIMALS)]


class MegaDetectorWriter:
    """Writes one JSON file."""

    def __init__(self, options: ExportOptions) -> None:
        """Take the options. The format uses none."""
        self._detected = Categories()
        self._classified = Categories()
        self._models: dict[str, None] = {}  # names, in order of occurrence
        self._written = 0
        self._left_out: Counter[str] = Counter()

    def begin(self, output: Output) -> None:
        """Begin the list of images."""
        output.append(FILE, b'{"images": [')

    def add(self, image: ExportedImage, output: Output) -> None:
        """Write the entry of an image."""
        if is_video_name(image.path):
            self._left_out["objects named like a video"] += 1
            return
        entry = entry_of(image, self._detected, self._classified)
        if image.result:
            self._count_shapes(image.result)
        if image.result and image.result.model:
            self._models[image.result.model.name] = None
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
        output.append(FILE, (",\n" if self._written else "\n").encode() + text.encode())
        self._written += 1

    def finish(self, output: Output) -> None:
        """End the list of images, and write what the numbers of the categories mean."""
        detector = ", ".join(self._models) or "unknown"
        end: dict[str, Any] = {
            "info": {"format_version": FORMAT_VERSION, "detector": detector},
            "detection_categories": self._detected.names(),
        }
        if self._classified.numbers:
            end["classification_categories"] = self._classified.names()
        text = json.dumps(end, ensure_ascii=False).removeprefix("{")
        output.append(FILE, f"\n],\n{text}\n".encode())

    def state(self) -> dict[str, Any]:
        """Return the categories and the counters."""
        return {
            "detected": self._detected.numbers,
            "classified": self._classified.numbers,
            "models": list(self._models),
            "written": self._written,
            "left_out": self._left_out,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue behind an image."""
        self._detected = Categories(state["detected"])
        self._classified = Categories(state["classified"])
        self._models = dict.fromkeys(state["models"])
        self._written, self._left_out = state["written"], Counter(state["left_out"])

    def notes(self) -> Sequence[str]:
        """Return what was left out."""
        left_out = self._left_out.items()
        return [f"{count:,} {what}: the format has no place for them." for what, count in left_out]

    def _count_shapes(self, result: ImageResult) -> None:
        for item in result.detections:
            self._left_out.update(
                name
                for name, value in (
                    ("masks", item.polygons),
                    ("poses", item.keypoints),
                    ("rotated boxes", item.rotated_box),
                )
                if value
            )


def _part(pixels: float, side: int) -> float:
    return round(min(max(pixels / side, 0.0), 1.0), _DECIMALS)
