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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.domain import Box, Detection, Task
from service.errors import ModelError
from service.images.pixels import DecodedImage, Pixels
from service.inference.detector import OPENVINO_METADATA, Detector
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


@dataclass(frozen=True)
class Tolerance:
    """How much detections may differ from the expected detections.

    Confidences are compared as logits, log(p / (1 - p)). In logits, a rounding error has the same
    size at every confidence. Detections near the threshold are not compared, because int8 kernels
    of different CPUs decide differently there. docs/evidence/performance.md has the measurements.

    Attributes:
        confidence: threshold. Detections are compared if they exceed it by `logit`.
        logit: the largest difference of two confidences, in logits.
        iou: the smallest IoU of two boxes of one object.
    """

    confidence: float = 0.25
    logit: float = 0.75
    iou: float = 0.85


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
    expected: Sequence[Detection],
    detections: Sequence[Detection],
    tolerance: Tolerance,
    *,
    min_confidence: float = 0.0,
) -> str | None:
    """Describe the first difference between expected and actual detections in one image.

    Args:
        expected: the detections at export. Boxes are in fractions of the image's width and height.
        detections: the detections here, in the same unit, without those below `min_confidence`.
        tolerance: smaller differences are ignored.
        min_confidence: threshold of `detections`.

    Returns:
        The difference as part of a sentence, or None if there is none.
    """
    limit = confidence_limit(tolerance, min_confidence)
    pairs = match_detections(expected, detections, min_iou=tolerance.iou)
    counterpart = {id(a): b for a, b in pairs} | {id(b): a for a, b in pairs}
    for detection in expected:
        if detection.confidence < limit:
            continue
        other = counterpart.get(id(detection))
        if other is None:
            return f"expected {_describe(detection)}, which was not found"
        gap = abs(_logit(detection.confidence) - _logit(other.confidence))
        if not gap <= tolerance.logit:  # also true if a confidence is NaN
            return f"expected {_describe(detection)}, found it at {other.confidence:.2f}"
    for detection in detections:
        if detection.confidence >= limit and id(detection) not in counterpart:
            return f"found {_describe(detection)}, which was not expected"
    return None


def match_detections(
    first: Sequence[Detection], second: Sequence[Detection], *, min_iou: float
) -> list[tuple[Detection, Detection]]:
    """Pair detections of the same class one to one, beginning with the pair of the highest IoU."""
    candidates = [
        (iou(a.box, b.box), i, j)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if a.class_id == b.class_id
    ]
    pairs: dict[int, int] = {}
    for value, i, j in sorted(candidates, key=lambda row: (-row[0], row[1], row[2])):
        if value >= min_iou and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return [(first[i], second[j]) for i, j in pairs.items()]


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, in 0..1."""
    width = max(min(a.x2, b.x2) - max(a.x1, b.x1), 0.0)
    height = max(min(a.y2, b.y2) - max(a.y1, b.y1), 0.0)
    intersection = width * height
    union = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - intersection
    return intersection / union if union > 0 else 0.0


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
            detections = detect_file(detector, (path / CANARY / name).read_bytes(), decode)
        except Exception as exc:
            raise ModelError(f"The canary of {path} failed on {cpu}: {name}: {exc}") from exc
        if is_comparable:
            difference = describe_difference(
                [_from_json(row) for row in rows],
                detections,
                tolerance,
                min_confidence=min_confidence,
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


def detect_file(detector: Detector, data: bytes, decode: Decode) -> list[Detection]:
    """Decode one file and detect objects in it, as the pipeline does.

    Returns:
        Detections whose boxes are in fractions of the image's width and height.
    """
    pixels = decode(data, detector.info.image_size, detector.info.task is Task.CLASSIFY)
    height, width = pixels.shape[:2]
    [prediction] = detector.detect([DecodedImage.of(pixels)])
    return [replace(d, box=_scale(d.box, 1 / width, 1 / height)) for d in prediction.detections]


def _scale(box: Box, x: float, y: float) -> Box:
    return Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y)


def confidence_limit(tolerance: Tolerance, min_confidence: float) -> float:
    """Return the confidence from which a detection must have a counterpart."""
    logit = _logit(max(tolerance.confidence, min_confidence)) + tolerance.logit
    return 1 / (1 + math.exp(-logit))


def _logit(confidence: float) -> float:
    finite = min(max(confidence, 1e-6), 1 - 1e-6)
    return math.log(finite / (1 - finite))


def _describe(detection: Detection) -> str:
    box = detection.box
    corners = ", ".join(f"{100 * value:.0f}" for value in (box.x1, box.y1, box.x2, box.y2))
    return f"{detection.label!r} at {detection.confidence:.2f} in ({corners}) % of the image"


def _from_json(row: Mapping[str, Any]) -> Detection:
    return Detection(row["label"], row["class_id"], row["confidence"], Box(**row["box"]))


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
        _ = [_from_json(row) for rows in expected["images"].values() for row in rows]
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
