"""What decoding at reduced scale costs in accuracy and saves in time, on labelled images.

    python -m devtools.bench.reduced_decode --model yolo26n_openvino_model --data instances_dev.json

The labelled images are resized (Lanczos) to 1, 2, 4 and 8 times the size that the model sees, and
stored as JPEG. Each image is decoded twice, at reduced scale and in full, and the model runs on
both. The table has the mAP of both, and the CPU time of one decode and resize, as the operating
system measures it.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from service.export.accuracy import MIN_MAP_CONFIDENCE, find_labels, mean_average_precision
from service.images.decode import decode
from service.images.letterbox import shrink
from service.inference.openvino import OpenVINODetector
from service.truth import Labels

FACTORS = (1, 2, 4, 8)
QUALITY = 90


def enlarge(labels: Labels, directory: Path, longer_side: int) -> Labels:
    """Write enlarged images, and return labels that fit them."""
    truth = json.loads(labels.file.read_text(encoding="utf-8"))
    scales = {}
    for image in truth["images"]:
        with Image.open(labels.image_folder / image["file_name"]) as opened:
            scale = longer_side / max(opened.size)
            size = round(opened.width * scale), round(opened.height * scale)
            large = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        large.save(directory / image["file_name"], "JPEG", quality=QUALITY)
        scales[image["id"]] = scale
        image["width"], image["height"] = size
    for annotation in truth["annotations"]:
        scale = scales[annotation["image_id"]]
        annotation["bbox"] = [side * scale for side in annotation["bbox"]]
        annotation["area"] *= scale**2
        annotation.pop("segmentation", None)
    file = directory / labels.file.name
    file.write_text(json.dumps(truth), encoding="utf-8")
    return Labels(file, directory)


def decode_ms(files: list[Path], image_size: int, *, reduced: bool) -> float:
    """Return the CPU milliseconds of one decode and resize, on average."""
    started = time.process_time()
    for file in files:
        size = image_size if reduced else None
        pixels = decode(file.read_bytes(), max_pixels=2**30, image_size=size).pixels
        shrink(pixels, image_size=image_size)
    return (time.process_time() - started) * 1000 / len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="exported model")
    parser.add_argument("--data", type=Path, required=True, help="labels in COCO's format")
    arguments = parser.parse_args()
    detector = OpenVINODetector(arguments.model, min_confidence=MIN_MAP_CONFIDENCE)
    image_size = detector.info.image_size
    rows = []
    for factor in FACTORS:
        with tempfile.TemporaryDirectory() as scratch:
            labels = enlarge(find_labels(arguments.data), Path(scratch), factor * image_size)
            files = sorted(Path(scratch).glob("*.jpg"))
            full = mean_average_precision(detector, labels, reduced_decode=False).map50_95
            reduced = mean_average_precision(detector, labels).map50_95
            rows.append(
                (
                    f"{factor * image_size} px",
                    f"{full:.3f}",
                    f"{reduced:.3f}",
                    f"{100 * (reduced - full):+.1f}",
                    f"{decode_ms(files, image_size, reduced=False):.1f}",
                    f"{decode_ms(files, image_size, reduced=True):.1f}",
                )
            )
    headers = ("longer side", "mAP full", "mAP reduced", "points", "CPU ms full", "CPU ms reduced")
    print(f"{len(files)} images, {detector.info.name} ({detector.info.precision})")
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
