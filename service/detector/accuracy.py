"""How well two networks agree, and how right one is on labelled pictures."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.detector import Detector
from service.detector.canary import match, overlap
from service.domain import Detection
from service.errors import BadImageError, ModelError
from service.images.decode import decode
from service.images.letterbox import enlarge_box, shrink
from service.images.pixels import Picture

CONFIDENCE = 0.25  # from which a detection counts for the agreement, as MIN_CONFIDENCE's default
IOU = 0.5  # at which two boxes are of one object
LEAST_CONFIDENCE = 0.001  # of detections that mAP is computed over, as everywhere
_MAX_PIXELS = 2**30
_BATCH = 8
# Of a COCO dataset, what pycocotools needs to compare boxes.
_FIELDS = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


@dataclass(frozen=True)
class Agreement:
    """How a network's detections agree with those of another.

    Attributes:
        f1: detections of at least `CONFIDENCE` that both have (same class, IoU at least `IOU`,
            one to one), times two, divided by those of both.
        iou: mean IoU of these pairs.
        detections: of the one that is compared with.
    """

    f1: float
    iou: float
    detections: int


@dataclass(frozen=True)
class Labels:
    """Labelled pictures: a file in COCO's format, and the folder of its pictures."""

    file: Path
    pictures: Path


@dataclass(frozen=True)
class MeanPrecision:
    """Mean average precision, in 0..1."""

    map50_95: float
    map50: float


def detect_files(
    detector: Detector, files: Sequence[Path], *, reduced_decode: bool = True
) -> list[list[Detection]]:
    """Detect on files as the pipeline does; boxes are in pixels of the upright picture.

    Args:
        detector: the network.
        files: the pictures.
        reduced_decode: decode large JPEGs at reduced scale, as the service does by default.

    Raises:
        ModelError: a file is no picture, or the network does not run.
    """
    size = detector.info.image_size
    found: list[list[Detection]] = []
    for start in range(0, len(files), _BATCH):
        batch = [
            _decoded(file, image_size=size if reduced_decode else None)
            for file in files[start : start + _BATCH]
        ]
        small = [shrink(picture.pixels, image_size=size) for picture in batch]
        try:
            answers = detector.detect(small)
        except Exception as exc:
            raise ModelError(f"{detector.info.name} cannot run on this machine: {exc}") from exc
        for picture, pixels, rows in zip(batch, small, answers, strict=True):
            sizes = {
                "small": (pixels.shape[1], pixels.shape[0]),
                "full": (picture.info.width, picture.info.height),
            }
            found.append([replace(row, box=enlarge_box(row.box, **sizes)) for row in rows])
    return found


def _decoded(file: Path, *, image_size: int | None) -> Picture:
    try:
        return decode(file.read_bytes(), max_pixels=_MAX_PIXELS, image_size=image_size)
    except BadImageError as exc:
        raise ModelError(f"{file}: {exc}") from exc


def agreement(
    reference: Sequence[Sequence[Detection]], found: Sequence[Sequence[Detection]]
) -> Agreement:
    """Compare two networks' detections on the same pictures."""
    shares: list[float] = []
    count = detections = 0
    for theirs, ours in zip(reference, found, strict=True):
        expected, confident = (
            [one for one in rows if one.confidence >= CONFIDENCE] for rows in (theirs, ours)
        )
        detections += len(expected)
        count += len(expected) + len(confident)
        pairs = match(expected, confident, min_iou=IOU)
        shares += [overlap(a.box, b.box) for a, b in pairs]
    return Agreement(
        f1=2 * len(shares) / count if count else 1.0,
        iou=sum(shares) / len(shares) if shares else 1.0,
        detections=detections,
    )


def mean_precision(
    detector: Detector, labels: Labels, *, reduced_decode: bool = True
) -> MeanPrecision:
    """Measure mAP with pycocotools; the network's classes are found by name among the labels'.

    Args:
        detector: gives detections from `LEAST_CONFIDENCE` up.
        labels: the truth.
        reduced_decode: see `detect_files`.

    Raises:
        ModelError: as `read_labels`, or the labels are none of this network.
    """
    truth = read_labels(labels)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    categories = {str(one["name"]): one["id"] for one in truth["categories"]}
    files = [labels.pictures / image["file_name"] for image in truth["images"]]
    detected = detect_files(detector, files, reduced_decode=reduced_decode)
    rows = [
        {
            "image_id": image["id"],
            "category_id": categories[one.label],
            "score": one.confidence,
            "bbox": [one.box.x1, one.box.y1, one.box.x2 - one.box.x1, one.box.y2 - one.box.y1],
        }
        for image, found in zip(truth["images"], detected, strict=True)
        for one in found
        if one.label in categories
    ]
    if not rows:
        raise ModelError(f"The network finds nothing of what {labels.file} has labels for")
    with contextlib.redirect_stdout(io.StringIO()):  # its progress
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return MeanPrecision(float(evaluation.stats[0]), float(evaluation.stats[1]))


def find_labels(file: Path, pictures: Path | None = None) -> Labels:
    """Find the pictures of a file of labels.

    By default they lie in `NAME` beside `instances_NAME.json`, else in the file's own folder.

    Raises:
        ModelError: there is no such folder.
    """
    if pictures is None:
        beside = file.with_name(file.stem.removeprefix("instances_"))
        pictures = beside if beside.is_dir() else file.parent
    if not pictures.is_dir():
        raise ModelError(f"There is no folder {pictures}")
    return Labels(file, pictures)


def read_labels(labels: Labels) -> dict[str, Any]:
    """Read what `mean_precision` needs: a COCO dataset, and all of its pictures in their folder.

    Raises:
        ModelError: pycocotools is not installed, the file lacks something, or a picture does.
    """
    try:
        import pycocotools  # noqa: F401
    except ImportError as exc:
        raise ModelError(
            "--data needs pycocotools, which is not installed: pip install 'yolo-batch[export]'"
        ) from exc
    truth = _read(labels.file)
    for image in truth["images"]:
        file = labels.pictures / image["file_name"]
        if not file.is_file():
            raise ModelError(f"{labels.file} names {file}, which is not there")
    return truth


def _read(file: Path) -> dict[str, Any]:
    try:
        truth: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for kind, fields in _FIELDS.items():
            if not truth[kind]:
                raise ValueError(f"there are no {kind}")
            for one in truth[kind]:
                if missing := [field for field in fields if field not in one]:
                    raise ValueError(f"one of the {kind} has no {missing[0]!r}")
        for one in truth["annotations"]:
            _, _, width, height = map(float, one["bbox"])
            one.setdefault("iscrowd", 0)
            one.setdefault("area", width * height)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"{file} is no file of labels in COCO's format: {exc!r}") from exc
    return truth
