"""Run with the Python of supervision: reads a COCO file as a dataset.

Arguments: folder of the images, and the file. Prints JSON.
"""

import json
import sys

import supervision

dataset = supervision.DetectionDataset.from_coco(sys.argv[1], sys.argv[2])
report = {
    "classes": dataset.classes,
    "images": {
        path.removeprefix(f"{sys.argv[1]}/"): {
            "boxes": found.xyxy.tolist(),
            "labels": [dataset.classes[number] for number in found.class_id.tolist()],
        }
        for path, found in dataset.annotations.items()
    },
}
print(json.dumps(report))
