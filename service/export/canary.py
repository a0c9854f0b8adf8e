"""Write the canary of an export: images, and the predictions in them on this machine."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from service.errors import BadImageError, ModelError
from service.images.decode import decode_in_process
from service.inference.canary import (
    CANARY,
    EXPECTED,
    Tolerance,
    confidence_limit,
    items_of,
    predict_file,
    prediction_to_json,
    sha256_of_xml_and_bin,
)
from service.inference.detector import Detector

# Lower than the threshold of the comparison: on another machine, a weak detection may be stronger,
# and must then have an expected counterpart.
MIN_STORED_CONFIDENCE = 0.05


def write_canary(directory: Path, detector: Detector, images: Mapping[str, bytes]) -> int:
    """Write images and the predictions in them to the canary folder of an export.

    Args:
        directory: the export, without a canary.
        detector: the exported model, with `MIN_STORED_CONFIDENCE` as its minimum confidence.
        images: files by name.

    Returns:
        How many detections, or classes of images, the service compares when it starts.

    Raises:
        ModelError: a file is not a supported image, or the model does not run.
    """
    folder = directory / CANARY
    folder.mkdir()
    images_json = {}
    compared = 0
    limit = confidence_limit(Tolerance(), 0.0)
    for name, data in images.items():
        (folder / name).write_bytes(data)
        try:
            prediction, info = predict_file(detector, data, decode_in_process)
        except BadImageError as exc:
            raise ModelError(f"{name} cannot be a canary image: {exc}") from exc
        except Exception as exc:
            raise ModelError(f"{detector.info.name} cannot run on this machine: {exc}") from exc
        images_json[name] = prediction_to_json(prediction, info)
        compared += sum(item.confidence >= limit for item in items_of(prediction))
    expected = {
        "files_sha256": sha256_of_xml_and_bin(directory),
        "image_size": detector.info.image_size,
        "tolerance": asdict(Tolerance()),
        "images": images_json,
    }
    text = json.dumps(expected, indent=1, ensure_ascii=False) + "\n"
    (folder / EXPECTED).write_text(text, encoding="utf-8")
    return compared
