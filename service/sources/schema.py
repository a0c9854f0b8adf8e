"""The schema of sources: what a person writes as YAML, and what the Firestore document has.

Both have the same fields. Only the points of a zone have two forms, because Firestore has no arrays
in arrays: `[x, y]` or `{x: x, y: y}`.

A source is untrusted input. So it cannot name a URL, an output, a model file or a regular
expression, and every field has a limit.
"""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from service.errors import SourcesError
from service.sources import geometry

MAX_BYTES = 900_000  # of the document. Firestore's own limit is 1 MiB.
MAX_ZONES = 50
MAX_POINTS = 100

Name = Annotated[str, Meta(pattern=r"\A[a-z0-9-]{1,63}\Z")]
# https://cloud.google.com/storage/docs/buckets#naming
_Bucket = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]\Z")]
# Escapes of YAML can make lone surrogates, which UTF-8 does not have.
_TEXT = r"\A[^\ud800-\udfff]*\Z"
_Prefix = Annotated[str, Meta(max_length=1024, pattern=_TEXT)]
_Label = Annotated[str, Meta(min_length=1, max_length=200, pattern=_TEXT)]
_Confidence = Annotated[float, Meta(ge=0.001, le=1)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class Mode(StrEnum):
    """What a zone does with the detections of its labels."""

    INCLUDE = "include"
    EXCLUDE = "exclude"


class Anchor(StrEnum):
    """Which part of a detection's box decides whether the detection is in a zone."""

    BOTTOM_CENTER = "bottom_center"
    CENTER = "center"
    OVERLAP = "overlap"


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An immutable object. Unknown fields are refused."""


class _Point(_Strict, frozen=True):
    """A point of a zone: shares of the image's width and height."""

    x: _Share
    y: _Share


class Zone(_Strict, frozen=True, omit_defaults=True):
    """A polygon in the images of a source. See docs/how-to/sources.md."""

    name: Name
    points: Annotated[
        tuple[tuple[_Share, _Share] | _Point, ...], Meta(min_length=3, max_length=MAX_POINTS)
    ]
    mode: Mode
    labels: frozenset[_Label] = frozenset()  # empty: all labels
    anchor: Anchor = Anchor.BOTTOM_CENTER
    min_overlap: Annotated[float, Meta(gt=0, le=1)] = 0.5

    def __post_init__(self) -> None:
        """Bring the points to one form, and check the polygon.

        Raises:
            ValueError: the polygon crosses itself, or has no area.
        """
        points = tuple((p.x, p.y) if isinstance(p, _Point) else p for p in self.points)
        msgspec.structs.force_setattr(self, "points", points)
        if fault := geometry.fault(self.polygon):
            raise ValueError(f"zone {self.name}: {fault}")

    @property
    def polygon(self) -> tuple[geometry.Point, ...]:
        """The points as shares of the image's width and height."""
        return cast(tuple[geometry.Point, ...], self.points)

    def applies_to(self, label: str) -> bool:
        """Return whether the zone is for detections of this label."""
        return not self.labels or label in self.labels


class Source(_Strict, frozen=True, omit_defaults=True):
    """A bucket and prefix with its settings. See docs/how-to/sources.md."""

    id: Name
    bucket: _Bucket
    prefix: _Prefix = ""
    enabled: bool = True
    min_confidence: _Confidence | None = None  # None: the setting MIN_CONFIDENCE
    min_confidence_by_label: dict[_Label, _Confidence] = msgspec.field(default_factory=dict)
    keep_labels: Annotated[frozenset[_Label], Meta(min_length=1)] | None = None  # None: all
    zones: Annotated[tuple[Zone, ...], Meta(max_length=MAX_ZONES)] = ()
    timezone: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    store_location: bool = False
    keep_faint: bool = True
    latitude: Annotated[float, Meta(ge=-90, le=90)] | None = None
    longitude: Annotated[float, Meta(ge=-180, le=180)] | None = None
    deployment: Name | None = None
    model: Literal["default"] = "default"

    def __post_init__(self) -> None:
        """Check the names of zones, the position and the time zone.

        Raises:
            ValueError: two zones have one name, half of the position is missing, or the time zone
                is unknown.
        """
        if name := _repeated(zone.name for zone in self.zones):
            raise ValueError(f"source {self.id} has two zones with the name {name}")
        if (self.latitude is None) != (self.longitude is None):
            raise ValueError(f"source {self.id} has only one of latitude and longitude: give both")
        if self.timezone is not None:
            try:
                ZoneInfo(self.timezone)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError(
                    f"source {self.id}: {self.timezone!r} is not a time zone. Use a name such as "
                    "Europe/Berlin"
                ) from None

    @property
    def uri(self) -> str:
        """`gs://bucket/prefix`."""
        return f"gs://{self.bucket}/{self.prefix}"


class Sources(_Strict, frozen=True):
    """All sources of a database."""

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        """Check that ids, and buckets with prefixes, are unique.

        Raises:
            ValueError: two sources have the same id, or the same bucket and prefix.
        """
        if name := _repeated(source.id for source in self.sources):
            raise ValueError(f"two sources have the id {name}")
        if uri := _repeated(source.uri for source in self.sources):
            raise ValueError(f"two sources have the prefix {uri}")

    def find(self, bucket: str, name: str) -> Source | None:
        """Return the matching source with the longest prefix, or None if no source matches."""
        matching = (s for s in self.sources if s.bucket == bucket and name.startswith(s.prefix))
        return max(matching, key=lambda source: len(source.prefix), default=None)


def parse(document: Any) -> Sources:
    """Return the sources of a YAML file or of a Firestore document.

    Raises:
        SourcesError: it is broken. The message has the path of the fault.
    """
    try:
        return msgspec.convert(document, Sources)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise SourcesError(str(exc) or type(exc).__name__) from exc


def to_document(sources: Sources) -> dict[str, Any]:
    """Return the Firestore document of sources. Fields with their default are left out."""
    document: dict[str, Any] = to_plain(sources)
    for source in document["sources"]:
        for zone in source.get("zones", ()):
            zone["points"] = [{"x": x, "y": y} for x, y in zone["points"]]
    return document


def to_plain(value: msgspec.Struct) -> Any:
    """Return sources or a source as YAML and JSON have them. Sets become sorted lists."""
    return msgspec.json.decode(msgspec.json.encode(value, order="deterministic"))


def _repeated(values: Iterable[str]) -> str | None:
    """Return a value that occurs more than once."""
    return next((value for value, count in Counter(values).items() if count > 1), None)
