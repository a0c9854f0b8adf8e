"""Reads the detections and the alerts of a stored document, which a person may have edited."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from service.domain import (
    ClassScore,
    Detection,
    ImageInfo,
    ImageRef,
    ImageResult,
    ListedAlert,
    ModelInfo,
)
from service.errors import FaintBytesError, StoredResultError
from service.faint import unpack

Value = TypeVar("Value")

# Firestore refuses to read a longer id: https://firebase.google.com/docs/firestore/quotas
_MAX_ID_BYTES = 1500


def stored_result(document: Mapping[str, Any]) -> ImageResult:
    """Return the result of a done document, with what its detections depend on.

    Faint detections have boxes only. Other fields of the result, for example its times, are unset.

    Raises:
        StoredResultError: a field is missing or has another type. A person may have edited it.
    """
    try:
        model = document["model"] | {"task": document["task"]}
        faint = document["faint"]
        return ImageResult(
            ImageRef(
                _convert(document["bucket"], str),
                _convert(document["name"], str),
                _convert(document["generation"], int),
            ),
            image_info=_convert(document["image"], ImageInfo),
            model=_convert(model, ModelInfo),
            detections=stored_detections(document),
            faint=None if faint is None else unpack(faint),
            classes=_convert(document["classes"], tuple[ClassScore, ...]),
            left_out=tuple(document["left_out"]),
        )
    except (
        msgspec.ValidationError,
        FaintBytesError,
        LookupError,
        TypeError,
        AttributeError,
    ) as exc:
        raise StoredResultError(
            f"The document has another form than the service writes: {exc}"
        ) from exc


def stored_detections(document: Mapping[str, Any]) -> tuple[Detection, ...]:
    """Return the detections that a document has.

    Raises:
        msgspec.ValidationError: they have another form. Other forms can also raise LookupError or
            TypeError.
    """
    return tuple(map(_detection, document["detections"]))


def _detection(fields: Any) -> Detection:
    if not isinstance(fields, dict):  # a reference to a document has `get`, too
        raise TypeError("a detection is no map")
    return _convert(fields | {"rotated_box": fields.get("obb")}, Detection)


def listed_alerts(document_id: str, document: Mapping[str, Any]) -> tuple[ListedAlert, ...]:
    """Return the alerts that a document lists. Malformed entries are ignored.

    So are ids that do not belong to the document, because the alerts may be removed with it. So are
    ids that no document can have.
    """
    listed = document.get("alerts")
    return tuple(
        ListedAlert(item["id"], str(item.get("rule")), str(item.get("severity")))
        for item in (listed if isinstance(listed, list) else ())
        if isinstance(item, dict)
        and isinstance(item.get("id"), str)
        and item["id"].startswith(f"{document_id}-")
        and "/" not in item["id"]
        and len(item["id"].encode()) <= _MAX_ID_BYTES
    )


def _convert(value: Any, kind: type[Value]) -> Value:
    return msgspec.convert(value, kind)
