"""The fields of a document as texts for a page, whatever a person has edited in the document."""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from service.document import STATUS_DONE
from service.domain import CapturedAtSource, GeoPoint, Timings
from service.edited import as_map

_MAX_TEXT = 2000  # characters of one value in a table. The raw document has the whole value.
_CAPTURED_AT = {
    CapturedAtSource.EXIF_OFFSET: "the file's EXIF data have the UTC offset",
    CapturedAtSource.EXIF_WITH_SOURCE_TIMEZONE: "EXIF data, with the time zone of the source",
}
_CAMERA = (("make", "Make"), ("model", "Model"), ("serial", "Serial number"))
_MODEL = (
    ("name", "Name"),
    ("version", "Version"),
    ("image_size", "Input size in pixels"),
    ("precision", "Precision"),
    ("runtime", "Runtime"),
    ("sha256", "SHA-256"),
)
_TIMINGS = tuple(spec.name for spec in fields(Timings))


@dataclass(frozen=True)
class Group:
    """A title, and pairs of a term and its value."""

    title: str
    facts: Sequence[tuple[str, str]]


def groups(document: Mapping[str, Any]) -> list[Group]:
    """Return what a page shows beside the image. Groups without a value are left out."""
    found = (
        Group("Object", list(_object(document))),
        Group("Taken", list(_capture(document))),
        Group("Model", list(_named(document.get("model"), _MODEL, _task(document)))),
        Group("Timings", list(_timings(document))),
        Group("Metadata of the uploader", list(_metadata(document))),
        Group("Derived images", list(_derived(document))),
    )
    return [group for group in found if group.facts]


def plain(value: Any) -> Any:
    """Return a value of Firestore as JSON has it. Bytes become base64, and times RFC 3339."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case bytes():
            return base64.b64encode(value).decode()
        case datetime():
            return value.isoformat()
        case GeoPoint():
            return asdict(value)
    return str(getattr(value, "path", value))  # for example a reference to a document


def raw(document: Mapping[str, Any]) -> str:
    """Return a document as JSON with indentation."""
    return json.dumps(plain(document), ensure_ascii=False, indent=2, sort_keys=True)


def as_text(value: Any) -> str:
    """Return a value as a text of limited length."""
    match value:
        case str():
            text = value
        case datetime():
            text = as_time(value)
        case _:
            text = json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def as_time(value: datetime) -> str:
    """Return a point in time in UTC, without fractions of a second."""
    try:
        utc = value.astimezone(UTC)
    except OverflowError:  # the first or the last day of the calendar
        utc = value
    return f"{utc:%Y-%m-%d %H:%M:%S} UTC"


def _object(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    image = as_map(document.get("image"))
    if image.get("width") is not None:
        yield "Image", f"{_pixels(image)}, {as_text(image.get('format'))}"
    if (size := document.get("size")) is not None:
        yield "Size", f"{size:,} bytes" if isinstance(size, int) else as_text(size)
    for key, term in (
        ("content_type", "Content type"),
        ("md5", "MD5 (base64)"),
        ("crc32c", "CRC32C (base64)"),
        ("generation", "Generation"),
        ("event_time", "Uploaded"),
        ("created_at", "Result written"),
        ("day", "Day"),
    ):
        if document.get(key) is not None:
            yield term, as_text(document[key])
    source = as_map(document.get("source"))
    if source.get("id") is not None:
        yield "Source", as_text(source["id"])
    if source.get("version") is not None:
        yield "Version of the sources", as_text(source["version"])


def _capture(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    taken = document.get("captured_at")
    if taken is not None:
        known = document.get("captured_at_source")
        how = _CAPTURED_AT.get(known) if isinstance(known, str) else None  # type: ignore[call-overload]
        yield "Taken", f"{as_text(taken)} ({how})" if how else as_text(taken)
    elif document.get("status") == STATUS_DONE:
        yield "Taken", "not known: the file has no usable EXIF time"
    for term, value in _named(document.get("camera"), _CAMERA):
        yield f"Camera: {term.lower()}", value
    place = document.get("location")
    if isinstance(place, GeoPoint):
        yield "Place", f"{place.latitude:.5f}, {place.longitude:.5f}"
    elif place is not None:
        yield "Place", as_text(place)


def _task(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("Task", as_text(document["task"]))] if document.get("task") is not None else []


def _named(
    value: Any, terms: Sequence[tuple[str, str]], first: Sequence[tuple[str, str]] = ()
) -> Iterator[tuple[str, str]]:
    yield from first
    found = as_map(value)
    for key, term in terms:
        if found.get(key) is not None:
            yield term, as_text(found[key])


def _timings(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    timings = as_map(document.get("timings"))
    for key in _TIMINGS:
        if (value := timings.get(key)) is not None:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            term = key.removesuffix("_ms").capitalize()
            yield term, f"{value:,.1f} ms" if is_number else as_text(value)
    if document.get("batch_size") is not None and timings:
        yield "Images in the batch", as_text(document["batch_size"])


def _metadata(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in as_map(document.get("metadata")).items():
        yield as_text(str(key)), as_text(value)
    if document.get("metadata_cut") is True:
        yield "Left out", "some of the metadata: they were too long"


def _derived(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    items = document.get("derived")
    for item in items if isinstance(items, list) else ():
        image = as_map(item)
        has_size = image.get("width") is not None  # a label file has none
        size = f" ({_pixels(image)})" if has_size else ""
        yield as_text(image.get("kind")), as_text(image.get("uri")) + size
    if document.get("derived_error") is not None:
        yield "None were made", as_text(document["derived_error"])


def _pixels(image: Mapping[str, Any]) -> str:
    return f"{as_text(image.get('width'))} × {as_text(image.get('height'))} pixels"
