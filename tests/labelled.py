"""The demo's drawn samples with their labels, in COCO's format."""

from typing import Any

from devtools.demo_model.shapes import sample_scenes


def labelled_samples() -> dict[str, Any]:
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
