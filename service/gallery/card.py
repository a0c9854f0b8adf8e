"""What a page shows of one result, as JSON: boxes, masks and keypoints for the script to draw."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from flask import url_for

from service.document import STATUS_DONE, STATUS_FAILED, STATUS_PARKED
from service.edited import as_list, as_map, maps_of, number_or_none, text_or_none
from service.errors import FaintBytesError
from service.faint import unpack
from service.gallery.images import View
from service.gcp.result_pages import StoredResult
from service.result_filter import Shown

_MAX_DETECTIONS = 1000  # of one card. A model finds at most 300.
_SHOWN_LABELS = 5


def card(result: StoredResult) -> dict[str, Any]:
    """Return what the pages show of a result, whatever a person has edited in the document.

    Keys: `id`, `generation`, `name`, `uri`, `source`, `shown` (`service.result_filter.Shown`, or
    null if the document is unreadable), `error` (`code` and `message`, or null), `width`, `height`
    (pixels of the upright image, or null), `created_at` and `captured_at` (RFC 3339, or null),
    `task`, `thumbnail` and `large` (URLs, or null), `detections` and `faint` (the most confident
    first), `faint_cut`, `classes`, `redacted` (whether only redacted copies are shown), `alt`.

    A detection has `label`, `class_id`, `confidence`, `box` (x1, y1, x2, y2 in pixels) and, if the
    task has them, `polygons` (rings: x1, y1, x2, y2, ...), `keypoints` (x, y, confidence, name),
    `corners` (x1, y1, ..., x4, y4), `angle` (degrees), `area` (of the mask, in pixels) and `zones`.
    """
    document = result.document
    generation = _integer(document.get("generation"))
    is_done = document.get("status") == STATUS_DONE
    image = as_map(document.get("image"))
    return {
        "id": result.id,
        "generation": generation,
        "name": text_or_none(document.get("name")),
        "uri": text_or_none(document.get("uri")),
        "source": text_or_none(as_map(document.get("source")).get("id")),
        "shown": shown(document),
        "error": _error(document),
        "width": _size(image.get("width")),
        "height": _size(image.get("height")),
        "created_at": _time(document.get("created_at")),
        "captured_at": _time(document.get("captured_at")),
        "task": text_or_none(document.get("task")),
        "thumbnail": _url(result, generation, View.THUMBNAIL) if is_done else None,
        "large": _url(result, generation, View.LARGE) if is_done else None,
        "detections": list(_each(document.get("detections"), _detection)),
        "faint": list(_faint(document.get("faint"))),
        "faint_cut": number_or_none(document.get("faint_cut")),
        "classes": list(_each(document.get("classes"), _class)),
        "redacted": any(
            item.get("kind") == "redacted" for item in maps_of(document.get("derived"))
        ),
        "alt": alt_text(document),
    }


def shown(document: Mapping[str, Any]) -> str | None:
    """Return the status of an image, or None if the document does not have a known one."""
    match document.get("status"):
        case status if status == STATUS_DONE:
            return Shown.FOUND if document.get("labels") else Shown.NOTHING_FOUND
        case status if status == STATUS_FAILED:
            return Shown.FAILED
        case status if status == STATUS_PARKED:
            return Shown.PARKED
    return None


def alt_text(document: Mapping[str, Any]) -> str:
    """Return what a screen reader says in place of an image."""
    name = text_or_none(document.get("name")) or "an image without a name"
    match shown(document):
        case Shown.FOUND:
            counts = as_map(document.get("counts"))
            listed = [f"{count} {label}" for label, count in list(counts.items())[:_SHOWN_LABELS]]
            return f"{name}: {', '.join(listed)}" if listed else name
        case Shown.NOTHING_FOUND:
            return f"{name}: nothing found"
        case Shown.FAILED:
            return f"{name}: failed"
        case Shown.PARKED:
            return f"{name}: parked"
    return f"{name}: the document is unreadable"


def _url(result: StoredResult, generation: int | None, view: View) -> str | None:
    """Return the address of an image. Browsers keep what it shows.

    A result that replaced another one, for example with a redaction, has another address.
    """
    if generation is None:
        return None
    created_at = result.document.get("created_at")
    return url_for(
        "images.show",
        document_id=result.id,
        generation=generation,
        view=str(view),
        result=created_at.strftime("%Y%m%dT%H%M%S%f") if isinstance(created_at, datetime) else None,
    )


def _error(document: Mapping[str, Any]) -> dict[str, str | None] | None:
    error = document.get("error")
    if not isinstance(error, dict):
        return None
    return {key: text_or_none(error.get(key)) for key in ("code", "message")}


def _detection(item: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a detection, or None if it has no box."""
    box = as_map(item.get("box"))
    corners = [number_or_none(box.get(key)) for key in ("x1", "y1", "x2", "y2")]
    confidence = number_or_none(item.get("confidence"))
    if confidence is None or None in corners:
        return None
    detection: dict[str, Any] = {
        "label": text_or_none(item.get("label")) or "",
        "class_id": _integer(item.get("class_id")),
        "confidence": confidence,
        "box": corners,
    }
    rings = [
        ring for each in maps_of(item.get("polygons")) if (ring := _points(each.get("points")))
    ]
    keypoints = [point for each in maps_of(item.get("keypoints")) if (point := _keypoint(each))]
    zones = [zone for zone in as_list(item.get("zones")) if isinstance(zone, str)]
    rotated = _points(item.get("corners"))
    further = {"polygons": rings, "keypoints": keypoints, "zones": zones, "corners": rotated}
    numbers = {
        "area": number_or_none(item.get("area")),
        "angle": number_or_none(as_map(item.get("obb")).get("angle_degrees")),
    }
    return (
        detection
        | {key: value for key, value in further.items() if value}
        | {key: value for key, value in numbers.items() if value is not None}
    )


def _class(item: Mapping[str, Any]) -> dict[str, Any] | None:
    confidence = number_or_none(item.get("confidence"))
    if confidence is None:
        return None
    return {"label": text_or_none(item.get("label")) or "", "confidence": confidence}


def _keypoint(item: Mapping[str, Any]) -> dict[str, Any] | None:
    values = {key: number_or_none(item.get(key)) for key in ("x", "y", "confidence")}
    return (
        None if None in values.values() else values | {"name": text_or_none(item.get("name")) or ""}
    )


def _faint(data: Any) -> Iterator[dict[str, Any]]:
    try:
        detections = unpack(data) if isinstance(data, bytes) else ()
    except FaintBytesError:
        return
    for item in detections[:_MAX_DETECTIONS]:
        box = item.box
        yield {
            "label": item.label,
            "class_id": item.class_id,
            "confidence": item.confidence,
            "box": [box.x1, box.y1, box.x2, box.y2],
        }


def _each(
    items: Any, read: Callable[[Mapping[str, Any]], dict[str, Any] | None]
) -> Iterator[dict[str, Any]]:
    for item in maps_of(items)[:_MAX_DETECTIONS]:
        if (found := read(item)) is not None:
            yield found


def _integer(value: Any) -> int | None:
    is_integer = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_integer else None


def _size(value: Any) -> int | None:
    return value if _integer(value) else None


def _points(value: Any) -> list[float]:
    """Return x1, y1, x2, y2, ..., or nothing if a value is no number."""
    numbers = [number_or_none(each) for each in as_list(value)]
    return (
        []
        if None in numbers or len(numbers) % 2
        else [each for each in numbers if each is not None]
    )


def _time(value: Any) -> str | None:
    return value.isoformat() if isinstance(value, datetime) else None
