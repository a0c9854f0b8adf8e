"""The reference of the Firestore document, from what `service.document` writes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from devtools.docs.markdown import code, fence, table
from service.document import to_document
from service.domain import (
    Box,
    Detection,
    ErrorCode,
    Failure,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    ObjectMetadata,
    Timings,
)

_UPLOADED_AT = datetime(2026, 11, 21, 3, 26, 0, tzinfo=UTC)
_RECORDED_AT = datetime(2026, 11, 21, 3, 26, 1, tzinfo=UTC)
_METADATA = ObjectMetadata(130510, "image/jpeg", "XUFAKrxLKna5cZ2REBfFkg==", "yZRlqg==")
DONE = ImageResult(
    ref=ImageRef("uploads", "cam1/07.jpg", 1732832936756275, _METADATA),
    image_info=ImageInfo(640, 480, "JPEG"),
    model=ModelInfo("yolo26n.pt", "455f42aa" * 8, 640, "fp32", "openvino 2026.4.1"),
    detections=(Detection("person", 0, 0.93, Box(12.5, 40.0, 181.2, 470.9)),),
    batch_size=8,
    timings=Timings(21.4, 5.1, 18.0, 25.9),
    event_time=_UPLOADED_AT,
)
FAILED = ImageResult(
    ref=ImageRef(
        "uploads",
        "cam1/08.jpg",
        1732832936756276,
        ObjectMetadata(0, "image/jpeg", "1B2M2Y8AsgTpgAmY7PhCfg==", "AAAAAA=="),
    ),
    failure=Failure(ErrorCode.EMPTY_OBJECT, "The object has no bytes."),
    timings=Timings(download_ms=18.2),
    event_time=_UPLOADED_AT,
)
_COMPOSITE = replace(DONE, ref=replace(DONE.ref, metadata=replace(_METADATA, md5=None)))

# Meaning of each field by its path, and when the field is null or absent.
MEANINGS: Mapping[str, tuple[str, str]] = {
    "uri": ("Address of the object, without its generation.", "never"),
    "bucket": ("Name of the bucket.", "never"),
    "name": ("Name of the object.", "never"),
    "generation": (
        "Generation of the object. Each has its own document. 0 if Cloud Storage did not name it.",
        "never",
    ),
    "content_type": ("Content type as the uploader set it. It is not verified.", "if not set"),
    "size": ("Size of the object, in bytes.", "if not reported"),
    "md5": ("MD5 of the object, base64.", "if not reported. Absent if `crc32c` is there"),
    "crc32c": ("CRC32C of a composite object, base64.", "absent if the object has an MD5"),
    "status": ("`done`, `failed` or `parked`. A document that is `parked` is not final.", "never"),
    "error": ("Why the image failed or is parked.", "if `done`"),
    "error.code": ("One of the [error codes](error-codes.md).", "never"),
    "error.message": ("A sentence for a person: what was wrong.", "never"),
    "image": ("The decoded image.", "if it was not decoded"),
    "image.width": ("Width of the upright image, in pixels.", "never"),
    "image.height": ("Height of the upright image, in pixels.", "never"),
    "image.format": ("Format of the file, for example `JPEG`.", "never"),
    "model": ("The model that ran.", "if it did not run"),
    "model.name": ("Name of the weights.", "never"),
    "model.sha256": (
        "SHA-256 of the weights (with the labels, if the export renamed any), hexadecimal.",
        "never",
    ),
    "model.image_size": ("Longer side of the model's input, in pixels.", "never"),
    "model.precision": ("`fp32`, `fp16` or `int8`.", "never"),
    "model.runtime": ("Inference library and its version.", "never"),
    "detections": ("Detected objects. Empty if there are none.", "never"),
    "detections[].label": ("Label of the class, exactly as the model has it.", "never"),
    "detections[].class_id": ("Number of the class in the model, from 0.", "never"),
    "detections[].confidence": ("Confidence, from 0 to 1.", "never"),
    "detections[].box": ("Bounding box in the upright image.", "never"),
    "detections[].box.x1": ("Left edge, in pixels.", "never"),
    "detections[].box.y1": ("Top edge, in pixels.", "never"),
    "detections[].box.x2": ("Right edge, in pixels.", "never"),
    "detections[].box.y2": ("Bottom edge, in pixels.", "never"),
    "labels": ("The labels that were detected, each once, sorted.", "never"),
    "counts": ("Number of detections of each label. The keys are the labels.", "never"),
    "num_detections": ("Number of detections.", "never"),
    "max_confidence": ("Highest confidence.", "if there are no detections"),
    "batch_size": ("Number of images in the batch. 0 if the model did not run.", "never"),
    "timings": ("Time of each stage. 0 for a stage that was not reached.", "never"),
    "timings.download_ms": ("Download from Cloud Storage, in milliseconds.", "never"),
    "timings.decode_ms": ("Decode, with its wait for a decoder, in milliseconds.", "never"),
    "timings.queue_ms": ("Wait for the model, in milliseconds.", "never"),
    "timings.inference_ms": (
        "Inference, in milliseconds. CPU: the image's own time. GPU: its share of the batch.",
        "never",
    ),
    "event_time": ("When the upload finished, as the event says.", "if the event has no time"),
    "created_at": ("When Firestore created the document, by Firestore's clock.", "never"),
}


def samples() -> list[dict[str, Any]]:
    """Return three documents that together have every field: done, failed, composite object.

    The store adds `created_at`.
    """
    return [
        to_document(result) | {"created_at": _RECORDED_AT} for result in (DONE, FAILED, _COMPOSITE)
    ]


def examples() -> str:
    """Return the documents of a done and of a failed image as JSON."""
    done, failed, _ = (
        json.dumps(each, indent=2, default=lambda time: time.isoformat().replace("+00:00", "Z"))
        for each in samples()
    )
    return (
        f"An image that was processed:\n\n{fence('json', done)}\n\n"
        f"An image that failed:\n\n{fence('json', failed)}"
    )


def fields_table() -> str:
    """Return a table of the fields.

    Raises:
        LookupError: MEANINGS has other fields than the documents.
    """
    types = {path: kind for document in samples()[::-1] for path, kind in _paths(document)}
    if set(types) != set(MEANINGS):
        differing = sorted(set(types) ^ set(MEANINGS))
        raise LookupError(
            f"devtools/docs/document.py: MEANINGS and the document differ: {differing}"
        )
    rows = [(code(path), types[path], meaning, null) for path, (meaning, null) in MEANINGS.items()]
    return table(("field", "type", "meaning", "null"), rows)


def _paths(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each field's path and Firestore type, without the fields that are null."""
    for key, item in value.items():
        path = f"{prefix}{key}"
        if item is None:
            continue
        yield path, _type(item)
        if path == "counts":  # its keys are data
            continue
        if isinstance(item, dict):
            yield from _paths(item, f"{path}.")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            yield from _paths(item[0], f"{path}[].")


def _type(value: Any) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case datetime():
            return "timestamp"
        case list():
            return "array of strings" if value and isinstance(value[0], str) else "array of maps"
        case _:
            return "map"
