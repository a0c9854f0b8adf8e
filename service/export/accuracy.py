"""Measure how well two models agree, and the mAP of a model on labelled images."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from service.domain import Detection, ImageInfo, Prediction, Task
from service.errors import BadImageError, ModelError
from service.images.decode import decode
from service.images.exif import orientation_of_file
from service.images.letterbox import shrink
from service.images.pixels import DecodedImage
from service.images.transforms import TRANSPOSED
from service.inference.detector import Detector
from service.inference.similarity import iou, match_detections, shape_similarity
from service.truth import (
    LabelledObject,
    Labels,
    Truth,
    list_some,
    match_classes,
    read_truth,
)

MATCH_CONFIDENCE = 0.25  # detections below it do not count for the agreement
MATCH_IOU = 0.5  # two boxes with less IoU are of different objects
MIN_MAP_CONFIDENCE = 0.001  # the usual threshold of detections for mAP
_MIN_PLAUSIBLE_MAP50 = 0.05  # below it, the labels are more likely wrong than the model
# Share of an image's width and height. Correct labels rarely have nearly all boxes in this corner.
_CORNER = 0.6
_MAX_PIXELS = 2**30
_BATCH_SIZE = 8


@dataclass(frozen=True)
class Agreement:
    """How well the detections of two models agree.

    Attributes:
        f1: 2 x pairs / (detections of one model + detections of the other model). The detections of
            a pair have the same class and an IoU of at least `MATCH_IOU`. Only detections of at
            least `MATCH_CONFIDENCE` count.
        iou: mean IoU of the pairs' boxes.
        detections: number of the reference model's detections.
        shape: mean `shape_similarity` of the pairs: of their masks, keypoints or rotated boxes. It
            is 1 for the task detect.
    """

    f1: float
    iou: float
    detections: int
    shape: float = 1.0


@dataclass(frozen=True)
class ClassAgreement:
    """How well two classifiers agree.

    Attributes:
        top1: share of the images for which both models have the same most confident class.
        confidence_gap: mean difference of the two models' confidences in the reference model's most
            confident class.
        images: number of images.
    """

    top1: float
    confidence_gap: float
    images: int


class LabelledDetector(Detector, Protocol):
    """A detector with the labels of its classes."""

    @property
    def labels(self) -> Mapping[int, str]:
        """The labels by class id."""


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Mean average precision (mAP), in 0..1.

    Attributes:
        map50_95: mAP, averaged over the IoU thresholds from 0.5 to 0.95.
        map50: mAP at the IoU threshold 0.5.
        images: number of images on which mAP was measured.
        objects: number of labelled objects in them.
        notes: sentences about labels and images that were left out or corrected.
    """

    map50_95: float
    map50: float
    images: int
    objects: int
    notes: tuple[str, ...]


def predict_files(
    detector: Detector, files: Sequence[Path], *, reduced_decode: bool = True
) -> list[Prediction]:
    """Run a model on files as the pipeline does.

    Args:
        detector: the model.
        files: image files.
        reduced_decode: decode large JPEGs at a reduced scale, as the service does by default.

    Returns:
        The prediction for each file. Coordinates are in pixels of the full, upright image.

    Raises:
        ModelError: a file is not an image, or the model does not run.
    """
    predictions = []
    results = _detect(detector, files, reduced_decode=reduced_decode)
    for file, result in zip(files, results, strict=True):
        if isinstance(result, BadImageError):
            raise ModelError(f"{file}: {result}") from result
        predictions.append(result.prediction)
    return predictions


@dataclass(frozen=True)
class _Detected:
    info: ImageInfo
    prediction: Prediction


def _detect(
    detector: Detector, files: Sequence[Path], *, reduced_decode: bool
) -> Iterator[_Detected | BadImageError]:
    """Yield the detections of each file, or the error if it cannot be decoded."""
    size = detector.info.image_size
    # A classification model crops the full image.
    is_reduced = detector.info.task is not Task.CLASSIFY
    for start in range(0, len(files), _BATCH_SIZE):
        batch = [
            _decode(file, image_size=size if reduced_decode and is_reduced else None)
            for file in files[start : start + _BATCH_SIZE]
        ]
        images = [entry for entry in batch if not isinstance(entry, BadImageError)]
        small = images
        if is_reduced:
            small = [
                replace(image, pixels=shrink(image.pixels, image_size=size)) for image in images
            ]
        try:
            predictions = detector.detect(small)
        except Exception as exc:
            raise ModelError(f"{detector.info.name} cannot run on this machine: {exc}") from exc
        results = zip(small, predictions, strict=True)
        for entry in batch:
            if isinstance(entry, BadImageError):
                yield entry
                continue
            image, prediction = next(results)
            yield _Detected(image.info, prediction)


def _decode(file: Path, *, image_size: int | None) -> DecodedImage | BadImageError:
    try:
        return decode(file.read_bytes(), max_pixels=_MAX_PIXELS, image_size=image_size)
    except BadImageError as exc:
        return exc
    except OSError as exc:
        return BadImageError.corrupt(f"The file cannot be opened: {exc.strerror}.")


def agreement(reference: Sequence[Prediction], other: Sequence[Prediction]) -> Agreement:
    """Return the agreement of two models' detections in the same images, in the same order."""
    pairs: list[tuple[Detection, Detection]] = []
    reference_count = other_count = 0
    for reference_prediction, other_prediction in zip(reference, other, strict=True):
        expected, actual = (
            [found for found in prediction.detections if found.confidence >= MATCH_CONFIDENCE]
            for prediction in (reference_prediction, other_prediction)
        )
        reference_count += len(expected)
        other_count += len(actual)
        pairs += match_detections(expected, actual, min_iou=MATCH_IOU)
    count = reference_count + other_count
    return Agreement(
        f1=2 * len(pairs) / count if count else 1.0,
        iou=_mean([iou(a.box, b.box) for a, b in pairs], default=1.0),
        detections=reference_count,
        shape=_mean([shape_similarity(a, b) for a, b in pairs], default=1.0),
    )


def class_agreement(reference: Sequence[Prediction], other: Sequence[Prediction]) -> ClassAgreement:
    """Return the agreement of two classifiers on the same images, in the same order."""
    same: list[float] = []
    gaps: list[float] = []
    for expected, actual in zip(reference, other, strict=True):
        top = expected.classes[0]
        same.append(actual.classes[0].class_id == top.class_id)
        # A class that is not among the other model's best classes counts as 0 there.
        confidences = {score.class_id: score.confidence for score in actual.classes}
        gaps.append(abs(top.confidence - confidences.get(top.class_id, 0.0)))
    return ClassAgreement(
        top1=_mean(same, default=1.0),
        confidence_gap=_mean(gaps, default=0.0),
        images=len(same),
    )


def _mean(values: Sequence[float], *, default: float) -> float:
    return sum(values) / len(values) if values else default


def mean_average_precision(
    detector: LabelledDetector, labels: Labels, *, reduced_decode: bool = True
) -> MeanAveragePrecision:
    """Measure mAP with pycocotools, over the classes that both the model and the labels have.

    Images that cannot be read, or whose size differs from the size in the labels, are left out.

    Args:
        detector: the model, with `MIN_MAP_CONFIDENCE` as its minimum confidence.
        labels: the labelled images.
        reduced_decode: decode large JPEGs at a reduced scale, as the service does by default.

    Raises:
        ModelError: see `read_labels`, or no class of the labels is a class of the model, or
            nothing can be measured.
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
    objects = [o for o in truth.objects if o.image in sizes and o.name in classes.label_of]
    if all(labelled.is_crowd for labelled in objects):
        left_out = ". ".join((*truth.notes, *classes.notes, *notes))
        raise ModelError(f"{labels.file} has no object that can be measured. {left_out}")
    notes += _doubtful_boxes(objects, sizes)
    rows: list[dict[str, Any]] = [
        {
            "image_id": index + 1,
            "category_id": ids[detection.label],
            "score": detection.confidence,
            "bbox": [
                detection.box.x1,
                detection.box.y1,
                detection.box.x2 - detection.box.x1,
                detection.box.y2 - detection.box.y1,
            ],
        }
        for index, result in enumerate(results)
        if index in sizes and isinstance(result, _Detected)
        for detection in result.prediction.detections
        if detection.label in ids
    ]
    if not rows:
        raise ModelError(f"{labels.file} labels no class in which the model detects an object")
    dataset = {
        "images": [{"id": index + 1} for index in sizes],
        "categories": [{"id": number, "name": label} for label, number in ids.items()],
        "annotations": [
            {
                "id": number,  # not 0: pycocotools counts an object with the id 0 as not found
                "image_id": labelled.image + 1,
                "category_id": ids[classes.label_of[labelled.name]],
                "bbox": list(labelled.bbox),
                "area": labelled.bbox[2] * labelled.bbox[3],
                "iscrowd": int(labelled.is_crowd),
            }
            for number, labelled in enumerate(objects, 1)
        ],
    }
    map50_95, map50 = _evaluate(dataset, rows)
    confident = sum(row["score"] >= MATCH_CONFIDENCE for row in rows)
    if map50 < _MIN_PLAUSIBLE_MAP50 and confident:
        notes.insert(
            0,
            f"WARNING: mAP50 is {100 * map50:.2f}, yet the model finds {confident} objects in the "
            f"images with a confidence of at least {MATCH_CONFIDENCE}. The boxes, ids or sizes in "
            "the labels probably do not fit the images",
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
    """Select the images on which mAP can be measured.

    Returns:
        The (width, height) of these images in pixels, by index, and notes about the other images.
    """
    sizes: dict[int, tuple[int, int]] = {}
    unreadable, resized, rotated = [], [], []
    without_size = 0
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
            without_size += image.size is None
            orientation = orientation_of_file(image.file)
            # A quarter turn exchanges width and height. So if the sizes are equal, and the image
            # is not square, the labels are certainly for the upright image.
            is_certain = image.size and size[0] != size[1] and orientation in TRANSPOSED
            if orientation != 1 and not is_certain:
                rotated.append(image.file.name)
    notes = []
    if unreadable:
        notes.append(
            f"Images that cannot be read, left out: {len(unreadable)}: {list_some(unreadable)}"
        )
    if resized:
        notes.append(
            f"Images of another size than in the labels, left out: {len(resized)}: "
            f"{list_some(resized)}"
        )
    if without_size:
        notes.append(
            f"Images without a width and height in the labels: {without_size}. "
            "Boxes for images of another size would lower mAP"
        )
    if rotated:
        notes.append(
            f"Images rotated by their EXIF orientation: {len(rotated)}: {list_some(rotated)}. "
            "Boxes that were drawn on the image before its rotation would lower mAP"
        )
    return sizes, notes


def _doubtful_boxes(
    objects: Sequence[LabelledObject], sizes: Mapping[int, tuple[int, int]]
) -> list[str]:
    """Return notes about boxes that are probably not in pixels of these images.

    Args:
        objects: the labelled objects.
        sizes: (width, height) in pixels, by index of the image.
    """
    notes = []
    outside = sum(not _is_inside(labelled, sizes[labelled.image]) for labelled in objects)
    if outside:
        notes.append(
            f"{outside} of {len(objects)} boxes reach beyond their image, so detections cannot "
            "match them well: are they x, y, width, height in pixels?"
        )
    corner = sum(
        labelled.bbox[axis] + labelled.bbox[axis + 2] <= _CORNER * sizes[labelled.image][axis]
        for labelled in objects
        for axis in (0, 1)
    )
    if len(objects) >= 10 and corner >= 0.95 * 2 * len(objects):
        notes.append(
            f"Nearly all of the {len(objects)} boxes end before {100 * _CORNER:.0f}% of the width "
            "and height of their image: are they percentages, or for images of another size?"
        )
    return notes


def _is_inside(labelled: LabelledObject, size: tuple[int, int]) -> bool:
    x, y, width, height = labelled.bbox
    slack = 0.01 * max(size) + 1
    return min(x, y) >= -slack and x + width <= size[0] + slack and y + height <= size[1] + slack


def _evaluate(dataset: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return mAP50-95 and mAP50 in 0..1, computed by pycocotools.

    Args:
        dataset: labels in COCO's format.
        rows: detections in COCO's format for results.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def find_labels(file: Path, image_folder: Path | None = None) -> Labels:
    """Find the images of a label file.

    Args:
        file: a label file in COCO's format.
        image_folder: the images' folder. None: `NAME` beside `instances_NAME.json`, or the file's
            own folder.

    Raises:
        ModelError: there is no such folder.
    """
    if image_folder is None:
        beside = file.with_name(file.stem.removeprefix("instances_"))
        image_folder = beside if beside.is_dir() else file.parent
    if not image_folder.is_dir():
        raise ModelError(
            f"There is no folder {image_folder}: give the images' folder with --data-images"
        )
    return Labels(file, image_folder)


def read_labels(labels: Labels) -> Truth:
    """Read a label file for `mean_average_precision`.

    Raises:
        ModelError: pycocotools is not installed, the file is malformed, or an image is missing.
    """
    try:
        import pycocotools  # noqa: F401
    except ImportError as exc:
        raise ModelError(
            "--data needs pycocotools, which is not installed: pip install 'yolo-batch[export]'"
        ) from exc
    return read_truth(labels)
