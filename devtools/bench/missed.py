"""How many labelled objects a redaction would miss, on your own labels.

    python -m devtools.bench.missed --model yolo26n_openvino_model --data instances.json person

Redaction covers the boxes that the model finds. An object that the model misses stays visible. For
each labelled object, this command measures which share of its box is covered by redacted regions,
faint detections included. Objects count by their size as COCO does: small is less than 32 x 32
pixels, and large is at least 96 x 96. Groups of objects (`iscrowd`) are left out.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from service.derived import DeriveOptions, Redaction
from service.domain import Detection, ImageInfo, Task
from service.export.accuracy import find_labels, predict_files
from service.images.decode import decode
from service.images.derive import DerivePlan
from service.inference.loading import load_detector
from service.settings import Settings
from service.truth import LabelledObject, read_truth

_MAX_PIXELS = 2**30
SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}  # areas below, in pixels
# An object of which less than this share is covered counts as missed.
SHARES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Coverage:
    """The share of one labelled box that is covered, from 0 to 1, and the box's size."""

    share: float
    size: str


def coverage(
    info: ImageInfo,
    detections: Iterable[Detection],
    objects: Iterable[LabelledObject],
    redaction: Redaction,
) -> list[Coverage]:
    """Return how much of each object the redaction of the detections covers."""
    options = DeriveOptions(thumbnail_side=None, redaction=redaction)
    plan = DerivePlan(options, info, Task.DETECT, tuple(detections))
    is_covered = np.zeros((info.height, info.width), np.bool_)
    for left, top, right, bottom in plan.redacted_regions(info.width, info.height):
        is_covered[top:bottom, left:right] = True
    result = []
    for item in objects:
        x, y, width, height = item.bbox
        inside = is_covered[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1]
        size = next(name for name, area in SIZES.items() if width * height < area)
        result.append(Coverage(float(inside.mean()) if inside.size else 1.0, size))
    return result


def report(found: Sequence[Coverage]) -> str:
    """Tabulate the objects that are missed, by their size."""
    rows = []
    for size in (*SIZES, "all"):
        shares = [item.share for item in found if size in (item.size, "all")]
        missed = [sum(share < least for share in shares) for least in SHARES]
        texts = [f"{count} ({count / len(shares):.0%})" if shares else "-" for count in missed]
        rows.append([size, len(shares), *texts])
    headers = ["objects", "number", *(f"less than {share:.0%} covered" for share in SHARES)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("label", help="the label that is redacted, for example person")
    parser.add_argument("--model", type=Path, required=True, help="exported model")
    parser.add_argument(
        "--data", type=Path, required=True, action="append", help="labels in COCO's format"
    )
    parser.add_argument("--data-images", type=Path, help="folder of the images")
    parser.add_argument(
        "--confidence", type=float, default=Settings.store_confidence, help="STORE_CONFIDENCE"
    )
    parser.add_argument("--margin", type=float, default=Redaction().margin)
    options = parser.parse_args()
    redaction = Redaction((options.label,), margin=options.margin)
    detector = load_detector(options.model, min_confidence=options.confidence)
    found: list[Coverage] = []
    images = 0
    for data in options.data:
        truth = read_truth(find_labels(data, options.data_images))
        files = [image.file for image in truth.images]
        images += len(files)
        for number, (file, prediction) in enumerate(
            zip(files, predict_files(detector, files), strict=True)
        ):
            objects = [
                item
                for item in truth.objects
                if item.image == number and item.name == options.label and not item.is_crowd
            ]
            info = decode(file.read_bytes(), max_pixels=_MAX_PIXELS).info
            found += coverage(info, prediction.detections, objects, redaction)
    if not found:
        parser.error(f"no object has the label {options.label!r}")
    print(
        f"{images} images, {detector.info.name} ({detector.info.precision}), label "
        f"{options.label}, confidence {options.confidence:g}, margin {options.margin:g}\n"
    )
    print(report(found))


if __name__ == "__main__":
    main()
