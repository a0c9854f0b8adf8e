"""Before a model serves, verify that its detections here match those on the export's machine.

A different CPU, a damaged file or another library version can make detections wrong without any
error. int8 models are affected more easily than float models. So an exported model carries
images and the detections that the model found in them at export. Before the service listens, it
decodes these images and runs the model on them, as it will do for uploads:

    MODEL_openvino_model/
    ├── metadata.yaml, MODEL.xml, MODEL.bin
    ├── canary/   expected.json and the images
    └── float/    only in an int8 export: the float model, a complete export with its own canary
"""

import faulthandler
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.domain import (
    Box,
    ClassScore,
    Detection,
    ImageInfo,
    Keypoint,
    Polygon,
    Prediction,
    RotatedBox,
    Task,
)
from service.errors import ModelError
from service.images.pixels import DecodedImage, Pixels
from service.inference.detector import OPENVINO_METADATA, Detector
from service.inference.similarity import match_detections, shape_similarity
from service.machine import cpu_name

logger = logging.getLogger(__name__)

CANARY = "canary"  # folder in an export
FALLBACK = "float"  # folder in an int8 export
EXPECTED = "expected.json"
# Values of `VerifiedModel.canary`.
PASSED = "passed"
NOT_COMPARED = "not compared"


# Decodes a file. The second argument is the longer side of the model's input, in pixels. The third
# is whether the model takes the middle square (see `service.images.crop`). Returns uint8 HxWx3 BGR
# pixels whose longer side is at most that.
Decode = Callable[[bytes, int, bool], Pixels]


_Found = Detection | ClassScore


@dataclass(frozen=True)
class Tolerance:
    """How much a prediction may differ from the expected prediction.

    Confidences are compared as logits, log(p / (1 - p)). In logits, a rounding error has the same
    size at every confidence. Detections near the threshold are not compared, because int8 kernels
    of different CPUs decide differently there. docs/evidence/performance.md has the measurements.

    Attributes:
        confidence: threshold. Detections are compared if they exceed it by `logit`.
        logit: the largest difference of two confidences, in logits.
        iou: the smallest IoU of two boxes of one object.
        shape: the smallest IoU of two masks or two rotated boxes of one object, or the smallest
            similarity of their keypoints (`shape_similarity`).
    """

    confidence: float = 0.25
    logit: float = 0.75
    iou: float = 0.85
    shape: float = 0.75


@dataclass(frozen=True)
class VerifiedModel:
    """A model that may serve.

    Attributes:
        detector: the model.
        path: the directory or file that it was loaded from.
        fallback: why the float model runs instead of the requested model, as a sentence. None if
            the requested model runs.
        canary: `PASSED`, or `NOT_COMPARED` if the image size differs from the export's image size.
            None if the model carries no canary. Then the model has not run yet.
    """

    detector: Detector
    path: Path
    fallback: str | None = None
    canary: str | None = None


def load_verified(
    path: Path,
    *,
    load: Callable[[Path], Detector],
    decode: Decode | None = None,
    min_confidence: float = 0.25,
) -> VerifiedModel:
    """Load a model and run its canary.

    If an int8 model cannot be loaded or fails its canary, its float model is loaded instead. If the
    native library crashes the process, the last log line names the model and the CPU. The revision
    then never becomes ready, and Cloud Run keeps the previous revision.

    Args:
        path: the model.
        load: loads the model at a path.
        decode: decodes as the service decodes uploads. None: decode in this process.
        min_confidence: the minimum confidence of the detectors that `load` returns.

    Raises:
        ModelError: the model cannot be loaded, or it failed its canary, and it has no float model
            that passes.
    """
    if decode is None:
        from service.images.decode import decode_in_process  # loads every format's library

        decode = decode_in_process
    try:
        detector, canary = _load_and_check(path, load, decode, min_confidence)
        return VerifiedModel(detector, path, canary=canary)
    except ModelError as exc:
        if not _has_fallback(path):
            raise
        reason = f"{exc}. The float model beside it runs instead"
    logger.error("Fell back to the float model", extra={"reason": reason})
    float_path = path / FALLBACK
    detector, canary = _load_and_check(float_path, load, decode, min_confidence)
    return VerifiedModel(detector, float_path, reason, canary)


def describe_difference(
    expected: Prediction,
    actual: Prediction,
    tolerance: Tolerance,
    *,
    min_confidence: float = 0.0,
) -> str | None:
    """Describe the first difference between the expected and the actual prediction in one image.

    Args:
        expected: the prediction at export.
        actual: the prediction here, in the same unit, without detections below `min_confidence`.
        tolerance: smaller differences are ignored.
        min_confidence: threshold of the detections in `actual`.

    Returns:
        The difference as part of a sentence, or None if there is none.
    """
    limit = confidence_limit(tolerance, min_confidence)
    pairs = _pairs(expected, actual, tolerance)
    counterpart = {id(a): b for a, b in pairs} | {id(b): a for a, b in pairs}
    for item in items_of(expected):
        if item.confidence < limit:
            continue
        other = counterpart.get(id(item))
        if other is None:
            return f"expected {_describe(item)}, which was not found"
        gap = abs(_logit(item.confidence) - _logit(other.confidence))
        if not gap <= tolerance.logit:  # also true if a confidence is NaN
            return f"expected {_describe(item)}, found it at {other.confidence:.2f}"
        similarity = _shape_similarity(item, other)
        if not similarity >= tolerance.shape:
            return (
                f"expected {_describe(item)}, found it with another shape: "
                f"their similarity is {similarity:.2f}"
            )
    for item in items_of(actual):
        if item.confidence >= limit and id(item) not in counterpart:
            return f"found {_describe(item)}, which was not expected"
    return None


def items_of(prediction: Prediction) -> tuple[_Found, ...]:
    """Return what the model found in an image: detections, or classes of the image."""
    return (*prediction.detections, *prediction.classes)


def _pairs(
    expected: Prediction, actual: Prediction, tolerance: Tolerance
) -> list[tuple[_Found, _Found]]:
    """Pair detections by class and box, and classes of an image by class."""
    actual_classes = {score.class_id: score for score in actual.classes}
    return [
        *match_detections(expected.detections, actual.detections, min_iou=tolerance.iou),
        *(
            (score, actual_classes[score.class_id])
            for score in expected.classes
            if score.class_id in actual_classes
        ),
    ]


def _shape_similarity(expected: _Found, actual: _Found) -> float:
    if isinstance(expected, Detection) and isinstance(actual, Detection):
        return shape_similarity(expected, actual)
    return 1.0


def _has_fallback(path: Path) -> bool:
    return (path / FALLBACK / OPENVINO_METADATA).is_file()


def _load_and_check(
    path: Path, load: Callable[[Path], Detector], decode: Decode, min_confidence: float
) -> tuple[Detector, str | None]:
    """Load a model and run its canary. Return the model and the value of `VerifiedModel.canary`.

    Raises:
        ModelError: any step failed.
    """
    try:
        return _load_and_run_canary(path, load, decode, min_confidence)
    except ModelError:
        raise
    except Exception as exc:
        logger.exception("The model raised an unexpected error", extra={"model": str(path)})
        raise ModelError(f"{path} cannot be loaded or run: {exc!r}") from exc


def _load_and_run_canary(
    path: Path, load: Callable[[Path], Detector], decode: Decode, min_confidence: float
) -> tuple[Detector, str | None]:
    if not (path / OPENVINO_METADATA).is_file():
        return load(path), None  # not an export: weights, which ultralytics runs
    expected = _read_expected(path)
    if expected is None:
        logger.warning(
            "The model carries no canary, so its detections on this machine are not verified: "
            "export it with `yolo-batch export`",
            extra={"model": str(path)},
        )
        return load(path), None
    # Logged beforehand, and also with LOG_LEVEL=WARNING: if the native library crashes, this is
    # the last line, and it names the model and the CPU.
    level = logging.INFO if logger.isEnabledFor(logging.INFO) else logging.WARNING
    cpu = cpu_name()
    logger.log(level, "Running the model's canary", extra={"model": str(path), "cpu": cpu})
    if not faulthandler.is_enabled():
        faulthandler.enable()
    if sha256_of_xml_and_bin(path) != expected["files_sha256"]:
        raise ModelError(
            f"{path} is damaged: its .xml or .bin file has changed since the export. Copy or "
            "export it again"
        )
    detector = load(path)
    return detector, _run_canary(path, detector, expected, decode, min_confidence, cpu)


def _run_canary(
    path: Path,
    detector: Detector,
    expected: dict[str, Any],
    decode: Decode,
    min_confidence: float,
    cpu: str,
) -> str:
    """Run the model on each canary image. If the model has the export's image size, also compare.

    Returns:
        `PASSED` or `NOT_COMPARED`.

    Raises:
        ModelError: an image failed, or its detections differ.
    """
    tolerance = Tolerance(**expected["tolerance"])
    is_comparable = detector.info.image_size == expected["image_size"]
    for name, rows in expected["images"].items():
        try:
            actual, info = predict_file(detector, (path / CANARY / name).read_bytes(), decode)
        except Exception as exc:
            raise ModelError(f"The canary of {path} failed on {cpu}: {name}: {exc}") from exc
        if is_comparable:
            difference = describe_difference(
                prediction_from_json(rows, info), actual, tolerance, min_confidence=min_confidence
            )
            if difference:
                raise ModelError(f"The canary of {path} differs on {cpu}: in {name}, {difference}")
    if is_comparable:
        return PASSED
    logger.warning(
        "The canary ran, but was not compared: IMAGE_SIZE differs from the export's image size",
        extra={"model": str(path), "image_size": detector.info.image_size},
    )
    return NOT_COMPARED


def predict_file(detector: Detector, data: bytes, decode: Decode) -> tuple[Prediction, ImageInfo]:
    """Decode one file and run the model on it, as the pipeline does.

    Returns:
        The prediction, and the image in whose pixels its coordinates are.
    """
    info = detector.info
    image = DecodedImage.of(decode(data, info.image_size, info.task is Task.CLASSIFY))
    [prediction] = detector.detect([image])
    return prediction, image.info


def confidence_limit(tolerance: Tolerance, min_confidence: float) -> float:
    """Return the confidence from which a detection must have a counterpart."""
    logit = _logit(max(tolerance.confidence, min_confidence)) + tolerance.logit
    return 1 / (1 + math.exp(-logit))


def _logit(confidence: float) -> float:
    finite = min(max(confidence, 1e-6), 1 - 1e-6)
    return math.log(finite / (1 - finite))


def _describe(item: _Found) -> str:
    text = f"{item.label!r} at {item.confidence:.2f}"
    if isinstance(item, ClassScore):
        return text
    box = item.box
    corners = ", ".join(f"{value:.0f}" for value in (box.x1, box.y1, box.x2, box.y2))
    return f"{text} in the box ({corners})"


def prediction_to_json(prediction: Prediction, info: ImageInfo) -> list[dict[str, Any]]:
    """Return the elements of `expected.json` for one image.

    Coordinates are fractions of the image's width and height. Those of a rotated box are fractions
    of its width, so that the angle is kept.
    """
    x, y = 1 / info.width, 1 / info.height
    rows = []
    for score in prediction.classes:
        rows.append(_score_to_json(score))
    for found in prediction.detections:
        sides = asdict(_scale(found.box, x, y))
        row = _score_to_json(found) | {"box": {k: round(v, 4) for k, v in sides.items()}}
        if found.polygons:
            row["polygons"] = [
                [round(value * (x, y)[index % 2], 4) for index, value in enumerate(ring.points)]
                for ring in found.polygons
            ]
        if found.keypoints:
            row["keypoints"] = [
                [round(p.x * x, 4), round(p.y * y, 4), round(p.confidence, 4)]
                for p in found.keypoints
            ]
        if rotated := found.rotated_box:
            sizes = (rotated.cx, rotated.cy, rotated.width, rotated.height)
            row["rotated_box"] = [*(round(v * x, 4) for v in sizes), rotated.angle_degrees]
        rows.append(row)
    return rows


def _score_to_json(item: _Found) -> dict[str, Any]:
    return {
        "label": item.label,
        "class_id": item.class_id,
        "confidence": round(item.confidence, 4),
    }


def prediction_from_json(rows: Sequence[Mapping[str, Any]], info: ImageInfo) -> Prediction:
    """Return the prediction that `prediction_to_json` wrote, in pixels of the image."""
    return Prediction(
        tuple(_detection_from_json(row, info) for row in rows if "box" in row),
        tuple(
            ClassScore(row["label"], row["class_id"], row["confidence"])
            for row in rows
            if "box" not in row
        ),
    )


def _detection_from_json(row: Mapping[str, Any], info: ImageInfo) -> Detection:
    width, height = info.width, info.height
    rotated = row.get("rotated_box")
    if rotated:
        *sizes, angle = rotated
        cx, cy, long, short = (value * width for value in sizes)
        rotated = RotatedBox(cx, cy, long, short, angle)
    return Detection(
        row["label"],
        row["class_id"],
        row["confidence"],
        _scale(Box(**row["box"]), width, height),
        polygons=tuple(
            Polygon(tuple(v * (width, height)[i % 2] for i, v in enumerate(ring)))
            for ring in row.get("polygons", ())
        ),
        keypoints=tuple(
            Keypoint("", x * width, y * height, confidence)
            for x, y, confidence in row.get("keypoints", ())
        ),
        rotated_box=rotated,
    )


def _scale(box: Box, x: float, y: float) -> Box:
    return Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y)


def _read_expected(directory: Path) -> dict[str, Any] | None:
    """Read the canary's `expected.json`. Return None if the export has no canary.

    Raises:
        ModelError: the file is malformed.
    """
    path = directory / CANARY / EXPECTED
    if not path.parent.exists():
        return None
    try:
        expected: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        (
            str(expected["files_sha256"]),
            int(expected["image_size"]),
            Tolerance(**expected["tolerance"]),
        )
        for rows in expected["images"].values():
            prediction_from_json(rows, ImageInfo(1, 1, ""))
        if not expected["images"]:
            raise ValueError("it names no images")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ModelError(
            f"{path} is not what `yolo-batch export` writes: {exc!r}. Export the model again"
        ) from exc
    return expected


def sha256_of_xml_and_bin(directory: Path) -> str:
    """Return the SHA-256 of an export's .xml and .bin files, in hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted([*directory.glob("*.xml"), *directory.glob("*.bin")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()
