"""The schema of sources: what a person writes as YAML, and what the Firestore document has.

Both have the same fields. Only the points of a zone have two forms, because Firestore has no arrays
in arrays: `[x, y]` or `{x: x, y: y}`.

A source is untrusted input. So it cannot name a URL, an output, a model file or a regular
expression, and every field has a limit.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import time
from enum import StrEnum
from typing import Annotated, Any, Literal, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from service.derived import (
    MAX_CROPS,
    MAX_MARGIN,
    MAX_NORMALIZED_PIXELS,
    MAX_SIDE,
    Crops,
    DeriveOptions,
    Normalized,
    NormalizedFormat,
    Redaction,
    RedactionMode,
)
from service.domain import Severity
from service.errors import SourcesError
from service.sources import geometry

MAX_BYTES = 900_000  # of the document. Firestore's own limit is 1 MiB.
MAX_ZONES = 50
MAX_POINTS = 100
MAX_ALERTS = 20  # rules of a source
MAX_GROUPS = 100
THUMBNAIL_SIDE = 320  # pixels
_MAX_MINUTES = 7 * 24 * 60

Name = Annotated[str, Meta(pattern=r"\A[a-z0-9-]{1,63}\Z")]
# https://cloud.google.com/storage/docs/buckets#naming
_Bucket = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]\Z")]
# Escapes of YAML can make lone surrogates, which UTF-8 does not have.
_TEXT = r"\A[^\ud800-\udfff]*\Z"
_Prefix = Annotated[str, Meta(max_length=1024, pattern=_TEXT)]
_Label = Annotated[str, Meta(min_length=1, max_length=200, pattern=_TEXT)]
_Confidence = Annotated[float, Meta(ge=0.001, le=1)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Minutes = Annotated[int, Meta(ge=1, le=_MAX_MINUTES)]
_Labels = Annotated[frozenset[_Label], Meta(min_length=1, max_length=1000)]
Groups = Annotated[dict[Name, _Labels], Meta(max_length=MAX_GROUPS)]
# Time zones that only some machines have. They differ between machines, or count leap seconds.
_OF_THE_MACHINE = ("localtime", "posixrules", "posix/", "right/")
_Between = Annotated[str, Meta(pattern=r"\A([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d\Z")]


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


class AlertRule(_Strict, frozen=True, omit_defaults=True):
    """When an image of a source alerts somebody. See docs/how-to/alerts.md.

    `min_area` is a share of the image's area, and compared with the area of a detection's box.
    """

    name: Name
    labels: _Labels | None = None  # None: those of the group. Without a group: all labels.
    group: Name | None = None
    min_confidence: _Confidence | None = None  # None: every detection that is kept
    min_count: Annotated[int, Meta(ge=1, le=1000)] = 1
    zones: Annotated[frozenset[Name], Meta(min_length=1)] | None = None  # None: anywhere
    between: _Between | None = None  # local times, for example 22:00-06:00. None: always
    min_area: Annotated[float, Meta(gt=0, le=1)] | None = None
    cooldown_minutes: _Minutes = 15
    max_age_minutes: _Minutes = 60
    severity: Severity = Severity.WARNING

    def __post_init__(self) -> None:
        """Check that the labels are given once, and that the hours are not empty.

        Raises:
            ValueError: both `labels` and `group` are given, or `between` has no length.
        """
        if self.labels is not None and self.group is not None:
            raise ValueError(f"rule {self.name} has both labels and group: give one of them")
        if self.hours and self.hours[0] == self.hours[1]:
            raise ValueError(
                f"rule {self.name}: {self.between} is empty. Leave `between` out to alert all day"
            )

    @property
    def hours(self) -> tuple[time, time] | None:
        """The local times of `between`: the first minute, and the minute after the last one."""
        if self.between is None:
            return None
        start, end = self.between.split("-")
        return time.fromisoformat(start), time.fromisoformat(end)


class CropSettings(_Strict, frozen=True, omit_defaults=True):
    """Which detections of an image are cut out, as `service.derived.Crops` describes it."""

    labels: _Labels | None = None  # None: all labels
    margin: Annotated[float, Meta(ge=0, le=MAX_MARGIN)] = Crops.margin
    max: Annotated[int, Meta(ge=1, le=MAX_CROPS)] = Crops.max_count

    @property
    def options(self) -> Crops:
        """These settings, as the decoders get them."""
        return Crops(_sorted(self.labels), self.margin, self.max)


class RedactionSettings(_Strict, frozen=True, omit_defaults=True):
    """What is made unrecognisable in every derived image of a source."""

    labels: _Labels | None = None  # None: those of the group. Without a group: all labels.
    group: Name | None = None
    mode: RedactionMode = Redaction.mode

    def __post_init__(self) -> None:
        """Check that the labels are given once.

        Raises:
            ValueError: both `labels` and `group` are given.
        """
        if self.labels is not None and self.group is not None:
            raise ValueError("redacted has both labels and group: give one of them")

    def options(self, groups: Mapping[str, frozenset[str]]) -> Redaction:
        """Return these settings with the labels of their group."""
        labels = self.labels if self.group is None else groups[self.group]
        return Redaction(_sorted(labels), self.mode)


class NormalizedSettings(_Strict, frozen=True, omit_defaults=True):
    """The image for a training set, as `service.derived.Normalized` describes it."""

    max_pixels: Annotated[int, Meta(ge=4096, le=MAX_NORMALIZED_PIXELS)] = Normalized.max_pixels
    format: NormalizedFormat = Normalized.format

    @property
    def options(self) -> Normalized:
        """These settings, as the decoders get them."""
        return Normalized(self.max_pixels, self.format)


class DerivedSettings(_Strict, frozen=True, omit_defaults=True):
    """Which images are made from the images of a source. See docs/how-to/derived-images.md."""

    thumbnail: bool = True
    annotated: bool = False
    crops: CropSettings | None = None
    redacted: RedactionSettings | None = None
    normalized: NormalizedSettings | None = None
    max_side: Annotated[int, Meta(ge=THUMBNAIL_SIDE, le=MAX_SIDE)] = DeriveOptions.max_side

    def options(self, groups: Mapping[str, frozenset[str]]) -> DeriveOptions:
        """Return these settings with the labels of their groups."""
        return DeriveOptions(
            thumbnail_side=THUMBNAIL_SIDE if self.thumbnail else None,
            annotated=self.annotated,
            crops=self.crops.options if self.crops else None,
            redaction=self.redacted.options(groups) if self.redacted else None,
            normalized=self.normalized.options if self.normalized else None,
            max_side=self.max_side,
        )


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
    alerts: Annotated[tuple[AlertRule, ...], Meta(max_length=MAX_ALERTS)] = ()
    silent_minutes: _Minutes | None = None  # None: a source without images alerts nobody
    derived: DerivedSettings = DerivedSettings()

    def __post_init__(self) -> None:
        """Check the names of zones and rules, the position and the time zone.

        Raises:
            ValueError: two zones or rules have one name, a rule names a zone that cannot match,
                half of the position is missing, or the time zone is unknown.
        """
        if fault := next(self._alert_faults(), None):
            raise ValueError(fault)
        if name := _repeated(zone.name for zone in self.zones):
            raise ValueError(f"source {self.id} has two zones with the name {name}")
        if (self.latitude is None) != (self.longitude is None):
            raise ValueError(f"source {self.id} has only one of latitude and longitude: give both")
        if self.timezone is not None:
            try:
                if self.timezone.startswith(_OF_THE_MACHINE):
                    raise ValueError(self.timezone)
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

    def _alert_faults(self) -> Iterator[str]:
        """Yield what is wrong with the rules. Each message begins with the path of its fault."""
        include = {zone.name for zone in self.zones if zone.mode is Mode.INCLUDE}
        names = set()
        for index, rule in enumerate(self.alerts):
            if rule.name in names:
                yield f"alerts[{index}].name: source {self.id} has two rules named {rule.name}"
            names.add(rule.name)
            if missing := sorted((rule.zones or frozenset()) - include):
                yield (
                    f"alerts[{index}].zones: source {self.id} has no include zone {missing[0]}, "
                    f"so rule {rule.name} could not use it"
                )


class Sources(_Strict, frozen=True, omit_defaults=True):
    """All sources of a database. A group is a name for labels, for the settings of a source."""

    sources: tuple[Source, ...]
    groups: Groups = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that ids, and buckets with prefixes, are unique, and that groups exist.

        Raises:
            ValueError: two sources have the same id, or the same bucket and prefix, or a rule or
                a redaction names a group that does not exist.
        """
        for number, source in enumerate(self.sources):
            for index, rule in enumerate(source.alerts):
                if rule.group is not None and rule.group not in self.groups:
                    raise ValueError(
                        f"sources[{number}].alerts[{index}].group: there is no group {rule.group}"
                    )
            redacted = source.derived.redacted
            if redacted and redacted.group is not None and redacted.group not in self.groups:
                raise ValueError(
                    f"sources[{number}].derived.redacted.group: there is no group {redacted.group}"
                )
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


def check_buckets(sources: Sources, results_bucket: str | None) -> None:
    """Check that no source is in the bucket of the results.

    Otherwise the derived images would be processed as images.

    Raises:
        SourcesError: a source is.
    """
    for source in sources.sources:
        if source.bucket == results_bucket:
            raise SourcesError(
                f"The source {source.id} has the bucket {source.bucket}, which is RESULTS_BUCKET. "
                "It is not for images: use another bucket for one of them"
            )


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


def _sorted(labels: frozenset[str] | None) -> tuple[str, ...] | None:
    return None if labels is None else tuple(sorted(labels))


def _repeated(values: Iterable[str]) -> str | None:
    """Return a value that occurs more than once."""
    return next((value for value, count in Counter(values).items() if count > 1), None)
