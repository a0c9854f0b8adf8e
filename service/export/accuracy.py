"""How well two networks agree, and how right one is on labelled pictures."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from service.domain import Detection, ImageInfo
from service.errors import BadImageError, ModelError
from service.export.truth import (
    LabelledObject,
    Labels,
    Truth,
    list_some,
    match_classes,
    read_truth,
)
from service.images.decode import decode
from service.images.exif import orientation_of_file
from service.images.letterbox import enlarge_box, shrink
from service.images.pixels import DecodedImage
from service.images.transforms import TRANSPOSED
from service.inference.canary import match, overlap
from service.inference.detector import Detector

CONFIDENCE = 0.25  # from which a detection counts for the agreement, as MIN_CONFIDENCE's default
IOU = 0.5  # at which two boxes are of one object
MIN_MAP_CONFIDENCE = 0.001  # of detections that mAP is computed over, as everywhere
_MIN_PLAUSIBLE_MAP50 = 0.05  # below it, the labels are more likely wrong than the model
_CORNER = 0.6  # few label files have nearly all boxes in this part of width and height
_MAX_PIXELS = 2**30
_BATCH = 8


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


class LabelledDetector(Detector, Protocol):
    """A detector that says which classes it knows."""

    @property
    def labels(self) -> Mapping[int, str]:
        """Labels of the classes, by their ids."""


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Mean average precision, in 0..1.

    Attributes:
        map50_95: mean over IoU thresholds from 0.5 to 0.95.
        map50: at the IoU threshold 0.5.
        images: that were measured on.
        objects: labelled objects in them.
        notes: sentences about what was left out, or taken for something else.
    """

    map50_95: float
    map50: float
    images: int
    objects: int
    notes: tuple[str, ...]


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
    found = []
    results = _detect(detector, files, reduced_decode=reduced_decode)
    for file, result in zip(files, results, strict=True):
        if isinstance(result, BadImageError):
            raise ModelError(f"{file}: {result}") from result
        found.append(result.detections)
    return found


@dataclass(frozen=True)
class _Detected:
    info: ImageInfo
    detections: list[Detection]


def _detect(
    detector: Detector, files: Sequence[Path], *, reduced_decode: bool
) -> Iterator[_Detected | BadImageError]:
    """Detect on each file; what cannot be decoded gives the reason."""
    size = detector.info.image_size
    for start in range(0, len(files), _BATCH):
        batch = [
            _decoded(file, image_size=size if reduced_decode else None)
            for file in files[start : start + _BATCH]
        ]
        pictures = [each for each in batch if not isinstance(each, BadImageError)]
        small = [shrink(picture.pixels, image_size=size) for picture in pictures]
        try:
            answers = detector.detect(small)
        except Exception as exc:
            raise ModelError(f"{detector.info.name} cannot run on this machine: {exc}") from exc
        rows_of = zip(pictures, small, answers, strict=True)
        for each in batch:
            if isinstance(each, BadImageError):
                yield each
                continue
            picture, pixels, rows = next(rows_of)
            sizes = {
                "small": (pixels.shape[1], pixels.shape[0]),
                "full": (picture.info.width, picture.info.height),
            }
            yield _Detected(
                picture.info, [replace(row, box=enlarge_box(row.box, **sizes)) for row in rows]
            )


def _decoded(file: Path, *, image_size: int | None) -> DecodedImage | BadImageError:
    try:
        return decode(file.read_bytes(), max_pixels=_MAX_PIXELS, image_size=image_size)
    except BadImageError as exc:
        return exc
    except OSError as exc:
        return BadImageError.corrupt(f"The file cannot be opened: {exc.strerror}.")


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


def mean_average_precision(
    detector: LabelledDetector, labels: Labels, *, reduced_decode: bool = True
) -> MeanAveragePrecision:
    """Measure mAP with pycocotools, over the classes that both the model and the labels have.

    Images that cannot be read, or that have another size than the labels say, are left out.

    Args:
        detector: gives detections from `MIN_MAP_CONFIDENCE` up.
        labels: the truth.
        reduced_decode: see `detect_files`.

    Raises:
        ModelError: as `read_labels`, or the labels are none of this network.
    """
    truth = read_labels(labels)
    classes = match_classes(truth, detector.labels.values(), file=labels.file)
    results = list(
        _detect(detector, [image.file for image in truth.images], reduced_decode=reduced_decode)
    )
    sizes, notes = _measurable(truth, results)
    ids = {
        label: number for number, label in enumerate(dict.fromkeys(classes.label_of.values()), 1)
    }
    objects = [
        thing for thing in truth.objects if thing.image in sizes and thing.name in classes.label_of
    ]
    if all(thing.is_crowd for thing in objects):
        left_out = ". ".join((*truth.notes, *classes.notes, *notes))
        raise ModelError(f"{labels.file} has no object that can be measured. {left_out}")
    notes += _doubts(objects, sizes)
    rows: list[dict[str, Any]] = [
        {
            "image_id": index + 1,
            "category_id": ids[found.label],
            "score": found.confidence,
            "bbox": [
                found.box.x1,
                found.box.y1,
                found.box.x2 - found.box.x1,
                found.box.y2 - found.box.y1,
            ],
        }
        for index, result in enumerate(results)
        if index in sizes and isinstance(result, _Detected)
        for found in result.detections
        if found.label in ids
    ]
    if not rows:
        raise ModelError(f"{labels.file} labels no class in which the model detects an object")
    dataset = {
        "images": [{"id": index + 1} for index in sizes],
        "categories": [{"id": number, "name": label} for label, number in ids.items()],
        "annotations": [
            {
                "id": number,  # from 1 up: pycocotools takes 0 for an object that was not found
                "image_id": thing.image + 1,
                "category_id": ids[classes.label_of[thing.name]],
                "bbox": list(thing.bbox),
                "area": thing.bbox[2] * thing.bbox[3],
                "iscrowd": int(thing.is_crowd),
            }
            for number, thing in enumerate(objects, 1)
        ],
    }
    map50_95, map50 = _evaluate(dataset, rows)
    confident = sum(row["score"] >= CONFIDENCE for row in rows)
    if map50 < _MIN_PLAUSIBLE_MAP50 and confident:
        notes.insert(
            0,
            f"WARNING: mAP50 is {100 * map50:.2f}, yet the model finds {confident} objects in the "
            f"images with a confidence of at least {CONFIDENCE}. The boxes, ids or sizes of the "
            "labels probably do not fit the images",
        )
    return MeanAveragePrecision(
        map50_95,
        map50,
        images=len(sizes),
        objects=len(objects),
        notes=(*notes, *truth.notes, *classes.notes),
    )


def _measurable(
    truth: Truth, results: Sequence[_Detected | BadImageError]
) -> tuple[dict[int, tuple[int, int]], list[str]]:
    """Return the sizes of the images that can be measured on, by index, and why others cannot."""
    sizes: dict[int, tuple[int, int]] = {}
    unreadable, resized, turned = [], [], []
    unsized = 0
    for index, (image, result) in enumerate(zip(truth.images, results, strict=True)):
        if isinstance(result, BadImageError):
            unreadable.append(f"{image.file.name} ({result})")
            continue
        size = result.info.width, result.info.height
        if image.size and image.size != size:
            width, height = image.size
            resized.append(f"{image.file.name} ({size[0]}x{size[1]}, labelled {width}x{height})")
        else:
            sizes[index] = size
            unsized += image.size is None
            orientation = orientation_of_file(image.file)
            # Where the sizes are equal and width and height differ, the labels are for the upright
            # image: a quarter turn would have exchanged them.
            is_proven = image.size and size[0] != size[1] and orientation in TRANSPOSED
            if orientation != 1 and not is_proven:
                turned.append(image.file.name)
    notes = []
    if unreadable:
        notes.append(
            f"Images that cannot be read, left out: {len(unreadable)}: {list_some(unreadable)}"
        )
    if resized:
        notes.append(
            f"Images of another size than labelled, left out: {len(resized)}: {list_some(resized)}"
        )
    if unsized:
        notes.append(
            f"Images without a width and height in the labels: {unsized}. "
            "Boxes for images of another size would lower mAP"
        )
    if turned:
        notes.append(
            f"Images turned by their EXIF orientation: {len(turned)}: {list_some(turned)}. "
            "Boxes that were drawn on the image before it is turned would lower mAP"
        )
    return sizes, notes


def _doubts(objects: Sequence[LabelledObject], sizes: Mapping[int, tuple[int, int]]) -> list[str]:
    """Say what boxes have in common that boxes in pixels of these images rarely have."""
    notes = []
    outside = sum(not _is_inside(thing, sizes[thing.image]) for thing in objects)
    if outside:
        notes.append(
            f"{outside} of {len(objects)} boxes reach beyond their image, so they cannot be found "
            "well: are they x, y, width, height in pixels?"
        )
    corner = sum(
        thing.bbox[axis] + thing.bbox[axis + 2] <= _CORNER * sizes[thing.image][axis]
        for thing in objects
        for axis in (0, 1)
    )
    if len(objects) >= 10 and corner >= 0.95 * 2 * len(objects):
        notes.append(
            f"Nearly all of the {len(objects)} boxes end before {100 * _CORNER:.0f}% of the width "
            "and height of their image: are they percentages, or for images of another size?"
        )
    return notes


def _is_inside(thing: LabelledObject, size: tuple[int, int]) -> bool:
    x, y, width, height = thing.bbox
    slack = 0.01 * max(size) + 1
    return min(x, y) >= -slack and x + width <= size[0] + slack and y + height <= size[1] + slack


def _evaluate(dataset: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return mAP50-95 and mAP50 as pycocotools computes them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # its progress
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


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


def read_labels(labels: Labels) -> Truth:
    """Read what `mean_average_precision` needs; see `service.export.truth`.

    Raises:
        ModelError: pycocotools is not installed, the file lacks something, or an image does.
    """
    try:
        import pycocotools  # noqa: F401
    except ImportError as exc:
        raise ModelError(
            "--data needs pycocotools, which is not installed: pip install 'yolo-batch[export]'"
        ) from exc
    return read_truth(labels)
