"""Write the canary of an export: images, and the detections in them on this machine."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.domain import Detection
from service.errors import BadImageError, ModelError
from service.images.decode import decode_in_process
from service.inference.canary import (
    CANARY,
    EXPECTED,
    Tolerance,
    confidence_limit,
    detect_file,
    sha256_of_xml_and_bin,
)
from service.inference.detector import Detector

# Lower than the threshold of the comparison: on another machine, a weak detection may be stronger,
# and must then have an expected counterpart.
MIN_STORED_CONFIDENCE = 0.05


def write_canary(directory: Path, detector: Detector, images: Mapping[str, bytes]) -> int:
    """Write images and the detections in them to the canary folder of an export.

    Args:
        directory: the export, without a canary.
        detector: the exported model, with `MIN_STORED_CONFIDENCE` as its minimum confidence.
        images: files by name.

    Returns:
        How many detections the service compares when it starts with the default MIN_CONFIDENCE.

    Raises:
        ModelError: a file is not a supported image, or the model does not run.
    """
    folder = directory / CANARY
    folder.mkdir()
    detections = {}
    for name, data in images.items():
        (folder / name).write_bytes(data)
        try:
            detections[name] = detect_file(detector, data, decode_in_process)
        except BadImageError as exc:
            raise ModelError(f"{name} cannot be a canary image: {exc}") from exc
        except Exception as exc:
            raise ModelError(f"{detector.info.name} cannot run on this machine: {exc}") from exc
    tolerance = Tolerance()
    expected = {
        "files_sha256": sha256_of_xml_and_bin(directory),
        "image_size": detector.info.image_size,
        "tolerance": asdict(tolerance),
        "images": {name: [_to_json(row) for row in rows] for name, rows in detections.items()},
    }
    text = json.dumps(expected, indent=1, ensure_ascii=False) + "\n"
    (folder / EXPECTED).write_text(text, encoding="utf-8")
    limit = confidence_limit(tolerance, 0.0)
    return sum(row.confidence >= limit for rows in detections.values() for row in rows)


def _to_json(detection: Detection) -> dict[str, Any]:
    return {
        "label": detection.label,
        "class_id": detection.class_id,
        "confidence": round(detection.confidence, 4),
        "box": {side: round(value, 4) for side, value in asdict(detection.box).items()},
    }
