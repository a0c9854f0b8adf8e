"""Before a network serves: does it answer on this machine as it did where it was exported?

An exported directory carries drawn pictures and what its network found in them. Another CPU's
kernels, a damaged file or another version of a library can make a network wrong without any error;
int8 arithmetic more easily than float. So the pictures go through the real path first.

    MODEL_openvino_model/
    ├── metadata.yaml, MODEL.xml, MODEL.bin
    ├── canary/   expected.json and its pictures
    └── float/    of an int8 export: the float model, a complete export with a canary of its own
"""

import faulthandler
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.domain import Box, Detection
from service.errors import ModelError
from service.images.pixels import Pixels
from service.inference.detector import OPENVINO_METADATA, Detector
from service.machine import cpu_name

logger = logging.getLogger(__name__)

CANARY = "canary"
FALLBACK = "float"
# What `VerifiedModel.canary` is.
PASSED = "passed"
NOT_COMPARED = "not compared"
EXPECTED = "expected.json"


# A file, and the longer side that the model sees, to uint8 HxWx3 BGR pixels no larger than that.
Decode = Callable[[bytes, int], Pixels]


@dataclass(frozen=True)
class Tolerance:
    """How far an answer may be from the expected one, and still be the same network's.

    Detections are compared where they are at least `confidence` by a margin of `logit`; below, a
    network is undecided, and int8 kernels of different CPUs decide differently. Confidences are
    compared as logits (log(p / (1 - p))), in which the same rounding error has the same size at
    any confidence. `docs/evidence/performance.md` has the measurements behind the numbers.
    """

    confidence: float = 0.25
    logit: float = 0.75
    iou: float = 0.85


@dataclass(frozen=True)
class VerifiedModel:
    """A network that answered as expected.

    Attributes:
        detector: the network.
        path: the directory or file that it was loaded from.
        fallback: why it is not the one that was asked for, as a sentence; None where it is.
        canary: `PASSED`, or `NOT_COMPARED` where it ran at another image size than the export's;
            None where it carries none, and so has not run yet.
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
    """Load a network and try it on the pictures that its directory carries.

    When an int8 model gives wrong answers or raises an exception, the float model beside it is
    taken. A crash of the native library ends the process: the log then names the model and the
    CPU, the revision never becomes ready, and the platform keeps the one before it.

    Args:
        path: the model.
        load: loads the network at a path.
        decode: a file to the pixels that the service gives the model; None: in this process.
        min_confidence: detections below are left out by what `load` gives.

    Raises:
        ModelError: it cannot be loaded, or it failed and there is nothing beside it.
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
    beside = path / FALLBACK
    detector, canary = _load_and_check(beside, load, decode, min_confidence)
    return VerifiedModel(detector, beside, reason, canary)


def difference(
    expected: Sequence[Detection],
    found: Sequence[Detection],
    tolerance: Tolerance,
    *,
    min_confidence: float = 0.0,
) -> str | None:
    """Say how two answers on one picture differ, or None where they are the same.

    Boxes are in shares of the picture's sides. Detections below `min_confidence` were left out of
    `found`.
    """
    limit = confidence_limit(tolerance, min_confidence)
    pairs = match(expected, found, min_iou=tolerance.iou)
    partner = {id(a): b for a, b in pairs} | {id(b): a for a, b in pairs}
    for one in expected:
        if one.confidence < limit:
            continue
        other = partner.get(id(one))
        if other is None:
            return f"expected {_described(one)}, which was not found"
        apart = abs(_logit(one.confidence) - _logit(other.confidence))
        if not apart <= tolerance.logit:  # nor is it with a NaN
            return f"expected {_described(one)}, found it at {other.confidence:.2f}"
    for one in found:
        if one.confidence >= limit and id(one) not in partner:
            return f"found {_described(one)}, which was not expected"
    return None


def match(
    these: Sequence[Detection], those: Sequence[Detection], *, min_iou: float
) -> list[tuple[Detection, Detection]]:
    """Pair detections of the same class one to one, those that overlap most first."""
    candidates = [
        (overlap(a.box, b.box), i, j)
        for i, a in enumerate(these)
        for j, b in enumerate(those)
        if a.class_id == b.class_id
    ]
    pairs: dict[int, int] = {}
    for share, i, j in sorted(candidates, key=lambda one: (-one[0], one[1], one[2])):
        if share >= min_iou and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return [(these[i], those[j]) for i, j in pairs.items()]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(min(a.x2, b.x2) - max(a.x1, b.x1), 0.0)
    height = max(min(a.y2, b.y2) - max(a.y1, b.y1), 0.0)
    both = width * height
    union = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - both
    return both / union if union > 0 else 0.0


def _has_fallback(path: Path) -> bool:
    return (path / FALLBACK / OPENVINO_METADATA).is_file()


def _load_and_check(
    path: Path, load: Callable[[Path], Detector], decode: Decode, min_confidence: float
) -> tuple[Detector, str | None]:
    """Load a network and run its canary; return what `VerifiedModel.canary` says of it, too.

    Raises:
        ModelError: whatever went wrong.
    """
    try:
        return _try(path, load, decode, min_confidence)
    except ModelError:
        raise
    except Exception as exc:
        logger.exception("The model failed in an unforeseen way", extra={"model": str(path)})
        raise ModelError(f"{path} cannot be loaded and tried: {exc!r}") from exc


def _try(
    path: Path, load: Callable[[Path], Detector], decode: Decode, min_confidence: float
) -> tuple[Detector, str | None]:
    if not (path / OPENVINO_METADATA).is_file():
        return load(path), None  # weights, which ultralytics runs
    expected = _read(path)
    if expected is None:
        logger.warning(
            "The model carries no canary, so whether it answers right on this machine is not "
            "checked: export it with `yolo-batch export`",
            extra={"model": str(path)},
        )
        return load(path), None
    # Logged first: a crash of the native library leaves no time, and this line then names the model
    # and the CPU. So LOG_LEVEL=WARNING must not hide it either.
    level = logging.INFO if logger.isEnabledFor(logging.INFO) else logging.WARNING
    cpu = cpu_name()
    logger.log(level, "Trying the model's canary", extra={"model": str(path), "cpu": cpu})
    if not faulthandler.is_enabled():
        faulthandler.enable()
    if sha256_of_xml_and_bin(path) != expected["network"]:
        raise ModelError(f"{path} is damaged: its network is not the one that was exported")
    detector = load(path)
    return detector, _check(path, detector, expected, decode, min_confidence, cpu)


def _check(
    path: Path,
    detector: Detector,
    expected: dict[str, Any],
    decode: Decode,
    min_confidence: float,
    cpu: str,
) -> str:
    tolerance = Tolerance(**expected["tolerance"])
    is_comparable = detector.info.image_size == expected["image_size"]
    for name, rows in expected["pictures"].items():
        try:
            found = find(detector, (path / CANARY / name).read_bytes(), decode)
        except Exception as exc:
            raise ModelError(f"The canary of {path} failed on {cpu}: {name}: {exc}") from exc
        if is_comparable:
            wanted = [_from_json(row) for row in rows]
            what = difference(wanted, found, tolerance, min_confidence=min_confidence)
            if what:
                raise ModelError(
                    f"The canary of {path} differs on {cpu}: in {name} the network {what}"
                )
    if is_comparable:
        return PASSED
    logger.warning(
        "The canary ran, but was not compared: IMAGE_SIZE is not the one of the export",
        extra={"model": str(path), "image_size": detector.info.image_size},
    )
    return NOT_COMPARED


def find(detector: Detector, data: bytes, decode: Decode) -> list[Detection]:
    """Detect on one file as the pipeline does; boxes in shares of the image's sides."""
    pixels = decode(data, detector.info.image_size)
    height, width = pixels.shape[:2]
    [found] = detector.detect([pixels])
    return [
        Detection(one.label, one.class_id, one.confidence, _scaled(one.box, 1 / width, 1 / height))
        for one in found
    ]


def _scaled(box: Box, x: float, y: float) -> Box:
    return Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y)


def confidence_limit(tolerance: Tolerance, min_confidence: float) -> float:
    """Confidence from which a detection has to be in both answers."""
    logit = _logit(max(tolerance.confidence, min_confidence)) + tolerance.logit
    return 1 / (1 + math.exp(-logit))


def _logit(confidence: float) -> float:
    inside = min(max(confidence, 1e-6), 1 - 1e-6)
    return math.log(inside / (1 - inside))


def _described(found: Detection) -> str:
    corners = (found.box.x1, found.box.y1, found.box.x2, found.box.y2)
    place = ", ".join(f"{100 * value:.0f}" for value in corners)
    return f"{found.label!r} at {found.confidence:.2f} in ({place}) % of the picture"


def _from_json(row: Mapping[str, Any]) -> Detection:
    return Detection(row["label"], row["class_id"], row["confidence"], Box(**row["box"]))


def _read(directory: Path) -> dict[str, Any] | None:
    path = directory / CANARY / EXPECTED
    if not path.parent.exists():
        return None
    try:
        expected: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        str(expected["network"]), int(expected["image_size"]), Tolerance(**expected["tolerance"])
        _ = [_from_json(row) for rows in expected["pictures"].values() for row in rows]
        if not expected["pictures"]:
            raise ValueError("it names no pictures")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ModelError(f"{path} is not what `yolo-batch export` writes: {exc!r}") from exc
    return expected


def sha256_of_xml_and_bin(directory: Path) -> str:
    """Hash the network's files."""
    digest = hashlib.sha256()
    for file in sorted([*directory.glob("*.xml"), *directory.glob("*.bin")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()
