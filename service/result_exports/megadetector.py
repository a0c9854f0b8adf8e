"""MegaDetector's output format 1.6, for Timelapse, AddaxAI and MegaDetector's own tools.

https://lila.science/megadetector-output-format

The format has boxes only: no masks, keypoints or rotated boxes. For the task classify, one
detection of the category `whole image` covers the image, because classes belong to a detection.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.domain import Box, ImageInfo
from service.result_exports.exported import Exported, kept_classes, plain_label, reason_of

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


def entry_of(image: Exported, detected: Categories, classified: Categories) -> dict[str, Any]:
    """Return the element of `images`. An image without a result has `failure`."""
    result = image.result
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
    if classes := kept_classes(image):
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


@dataclass
class MegaDetectorWriter:
    """Writes one JSON file."""

    path: Path
    detected: Categories = field(default_factory=Categories)
    classified: Categories = field(default_factory=Categories)
    models: dict[str, None] = field(default_factory=dict)  # names, in order of occurrence
    written: int = 0
    left_out: int = 0

    def begin(self) -> None:
        """Begin the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text('{"images": [', encoding="utf-8")

    def add(self, image: Exported) -> None:
        """Append the entry of an image."""
        if is_video_name(image.path):
            self.left_out += 1
            return
        entry = entry_of(image, self.detected, self.classified)
        if image.result and image.result.model:
            self.models[image.result.model.name] = None
        separator = ",\n" if self.written else "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(separator + json.dumps(entry, ensure_ascii=False, allow_nan=False))
        self.written += 1

    def finish(self) -> Sequence[str]:
        """Close the file, and return notes for a person."""
        end = {
            "info": {
                "format_version": FORMAT_VERSION,
                "detector": ", ".join(self.models) or "unknown",
            },
            "detection_categories": self.detected.names(),
        }
        if self.classified.numbers:
            end["classification_categories"] = self.classified.names()
        text = json.dumps(end, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n],\n" + text.removeprefix("{") + "\n")
        if not self.left_out:
            return ()
        return (f"{self.left_out:,} objects are left out: the format takes them for videos.",)


def _part(pixels: float, side: int) -> float:
    return round(min(max(pixels / side, 0.0), 1.0), _DECIMALS)
