"""The format `coco`: one JSON file, as https://cocodataset.org/#format-data describes it.

Ids count from 1, in order. COCO has no polygons with holes, so a mask is the list of its outer
rings, and the rings of holes are left out. Rotated boxes are written as polygons of four points.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from service.domain import MIN_KEYPOINT_CONFIDENCE, Detection, ImageResult
from service.result_exports.exported import outer_rings
from service.result_exports.records import ExportedImage, ExportOptions, Output, Stateless

FILE = "annotations.json"
_PART = "annotations"
_INFO = {"description": "Detections of yolo-batch", "version": "1.0"}
_LICENSES = [{"id": 1, "name": "Unknown", "url": ""}]  # CVAT needs one


class CocoWriter(Stateless):
    """Writes the images at once, and the annotations to a part that goes behind them."""

    def __init__(self, options: ExportOptions) -> None:
        """Take the options."""
        super().__init__(options)
        self._images = 0
        self._annotations = 0
        self._categories: dict[str, int] = {}
        self._keypoints: dict[str, list[str]] = {}
        self._left_out: Counter[str] = Counter()

    def begin(self, output: Output) -> None:
        """Write the beginning of the file."""
        head = json.dumps({"info": _INFO, "licenses": _LICENSES})[:-1]
        output.append(FILE, f'{head}, "images": ['.encode())

    def add(self, image: ExportedImage, output: Output) -> None:
        """Write one image. An image without a result has no size, so it is left out."""
        result = image.result
        if result is None or result.image_info is None:
            self._left_out["images without a result"] += 1
            return
        if result.classes:
            self._left_out["images with classes only"] += 1
        self._images += 1
        separator = "" if self._images == 1 else ",\n"
        output.append(FILE, (separator + json.dumps(self._image(image, result))).encode())
        for item in result.detections:
            self._annotations += 1
            separator = "" if self._annotations == 1 else ",\n"
            text = separator + json.dumps(self._annotation(item))
            output.append_part(_PART, text.encode())

    def finish(self, output: Output) -> None:
        """Write the annotations and the categories."""
        output.append(FILE, b'], "annotations": [')
        with output.read_part(_PART) as part:
            while block := part.read(2**20):
                output.append(FILE, block)
        output.append(FILE, f'], "categories": {json.dumps(list(self._all()))}}}\n'.encode())

    def state(self) -> dict[str, Any]:
        """Return the counters and the categories."""
        return {
            "images": self._images,
            "annotations": self._annotations,
            "categories": self._categories,
            "keypoints": self._keypoints,
            "left_out": self._left_out,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue behind an image."""
        self._images, self._annotations = state["images"], state["annotations"]
        self._categories, self._keypoints = state["categories"], state["keypoints"]
        self._left_out = Counter(state["left_out"])

    def notes(self) -> Sequence[str]:
        """Return what was left out."""
        return [
            f"{count:,} {what}: COCO has no place for them."
            for what, count in self._left_out.items()
        ]

    def _image(self, image: ExportedImage, result: ImageResult) -> dict[str, Any]:
        assert result.image_info
        captured = image.document.get("captured_at")
        return {
            "id": self._images,
            "file_name": image.path,
            "width": result.image_info.width,
            "height": result.image_info.height,
            "license": 1,
            "date_captured": captured.isoformat() if isinstance(captured, datetime) else "",
            "uri": result.ref.uri,
            "generation": result.ref.generation,
        }

    def _annotation(self, item: Detection) -> dict[str, Any]:
        box = item.box
        width, height = box.x2 - box.x1, box.y2 - box.y1
        rings = [list(ring.points) for ring in outer_rings(item.polygons) if len(ring.points) >= 6]
        if item.rotated_box:
            rings = [[round(value, 2) for value in item.rotated_box.corners]]
        annotation: dict[str, Any] = {
            "id": self._annotations,
            "image_id": self._images,
            "category_id": self._category(item),
            "bbox": [box.x1, box.y1, round(width, 2), round(height, 2)],
            "area": round(width * height, 2) if item.area is None else item.area,
            "iscrowd": 0,
            "segmentation": rings,
            "score": item.confidence,
        }
        if item.keypoints:
            self._keypoints.setdefault(item.label, [point.name for point in item.keypoints])
            visible = [point.confidence >= MIN_KEYPOINT_CONFIDENCE for point in item.keypoints]
            annotation["keypoints"] = [
                value
                for point, is_visible in zip(item.keypoints, visible, strict=True)
                for value in ((point.x, point.y, 2) if is_visible else (0, 0, 0))
            ]
            annotation["num_keypoints"] = sum(visible)
        return annotation

    def _category(self, item: Detection) -> int:
        """Return the id of a label: the user's, or the class id + 1, or the next that is free."""
        if item.label not in self._categories:
            wanted = (self.options.category_ids or {}).get(item.label, item.class_id + 1)
            taken = {*self._categories.values(), *(self.options.category_ids or {}).values()}
            is_own = item.label in (self.options.category_ids or {})
            if not is_own and (wanted in taken or wanted < 1):
                wanted = max(taken, default=0) + 1
            self._categories[item.label] = wanted
        return self._categories[item.label]

    def _all(self) -> Iterator[dict[str, Any]]:
        ids = self._categories | dict(self.options.category_ids or {})
        for label, number in sorted(ids.items(), key=lambda pair: pair[1]):
            category: dict[str, Any] = {"id": number, "name": label, "supercategory": ""}
            if label in self._keypoints:
                category |= {"keypoints": self._keypoints[label], "skeleton": []}
            yield category
