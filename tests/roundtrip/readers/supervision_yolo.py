"""Run with the Python of supervision: reads YOLO labels as a dataset.

Arguments: folders of the images and of the labels, and `data.yaml`. Prints JSON.
"""

import json
import sys

import supervision

images, labels, data = sys.argv[1:]
dataset = supervision.DetectionDataset.from_yolo(images, labels, data)
report = {
    path.removeprefix(f"{images}/"): {
        "boxes": found.xyxy.tolist(),
        "labels": [dataset.classes[number] for number in found.class_id.tolist()],
    }
    for path, found in dataset.annotations.items()
}
print(json.dumps(report))
