"""Give an export its canary: images, and what the network finds in them on this machine."""

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
    find,
    sha256_of_xml_and_bin,
)
from service.inference.detector import Detector

# Rows below are written down too, so that one that has grown is not taken for a wrong one.
MIN_STORED_CONFIDENCE = 0.05


def write_canary(directory: Path, detector: Detector, pictures: Mapping[str, bytes]) -> int:
    """Add pictures and what the network finds in them to an exported directory.

    Args:
        directory: the export.
        detector: its network, which gives detections from `MIN_STORED_CONFIDENCE` up.
        pictures: files by name.

    Returns:
        How many detections a start will compare, with MIN_CONFIDENCE at its default.

    Raises:
        ModelError: a file is no picture, or the network does not run.
    """
    folder = directory / CANARY
    folder.mkdir()
    found = {}
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
        try:
            found[name] = find(detector, data, decode_in_process)
        except BadImageError as exc:
            raise ModelError(f"{name} cannot be a canary's picture: {exc}") from exc
        except Exception as exc:
            raise ModelError(f"{detector.info.name} cannot run on this machine: {exc}") from exc
    tolerance = Tolerance()
    expected = {
        "network": sha256_of_xml_and_bin(directory),
        "image_size": detector.info.image_size,
        "tolerance": asdict(tolerance),
        "pictures": {name: [_to_json(one) for one in rows] for name, rows in found.items()},
    }
    text = json.dumps(expected, indent=1, ensure_ascii=False) + "\n"
    (folder / EXPECTED).write_text(text, encoding="utf-8")
    limit = confidence_limit(tolerance, 0.0)
    return sum(one.confidence >= limit for rows in found.values() for one in rows)


def _to_json(found: Detection) -> dict[str, Any]:
    return {
        "label": found.label,
        "class_id": found.class_id,
        "confidence": round(found.confidence, 4),
        "box": {side: round(value, 4) for side, value in asdict(found.box).items()},
    }
