"""Which results a person wants to see, and in which order. The URL of a page has both."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, Self

from service.errors import YoloBatchError

_MAX_TEXT_BYTES = 1400  # of a value. Firestore refuses longer ones. A zone and its label are one.
_RESERVED = re.compile("__.*__", re.DOTALL)  # such a field cannot exist, so no label is like this


class FilterError(YoloBatchError):
    """The filter of a page, or a cursor, is not possible. The message is for a person."""


class Shown(StrEnum):
    """The status of an image, as the gallery shows it: `done` is split by what was kept."""

    FOUND = "found"  # done, and at least one detection or class was kept
    NOTHING_FOUND = "nothing_found"  # done, and nothing was kept
    FAILED = "failed"
    PARKED = "parked"


class Order(StrEnum):
    """In which order results are listed."""

    NEWEST = "newest"  # by `created_at`
    CONFIDENT = "confident"  # the most confident first: of the label, if the filter has one
    UNCERTAIN = "uncertain"  # the least certain first: of the label, if the filter has one
    NAME = "name"  # by the object's name. Only with a bucket.
    RANDOM = "random"  # by the document's id, which is a hash: unlike what an image shows


@dataclass(frozen=True)
class ResultFilter:
    """A filter. None: any value.

    `zone` needs `source`, because a zone belongs to a source. With `label`, the image has that
    label in that zone. `prefix` needs `bucket`. `until` starts at a point in time: only results
    that were created before it. `day` is the date on which the image was taken (`day` of the
    document).
    """

    order: Order = Order.NEWEST
    label: str | None = None
    shown: Shown | None = None
    error_code: str | None = None
    source: str | None = None
    zone: str | None = None
    day: date | None = None
    until: datetime | None = None
    bucket: str | None = None
    prefix: str | None = None

    @classmethod
    def parse(cls, arguments: Mapping[str, str]) -> Self:
        """Read the arguments of a URL. Unknown and empty arguments are ignored.

        Raises:
            FilterError: a value has another form. The combination is not checked: see `conflicts`.
        """
        values = {
            spec.name: _parsed(spec.name, arguments[spec.name])
            for spec in fields(cls)
            if arguments.get(spec.name)
        }
        return cls(**values)

    def arguments(self) -> dict[str, str]:
        """Return the arguments of a URL that `parse` reads. Defaults are left out."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        defaults = {spec.name: spec.default for spec in fields(self)}
        return {
            name: value.isoformat() if isinstance(value, date) else str(value)
            for name, value in values.items()
            if value != defaults[name]
        }

    def conflicts(self) -> dict[str, str]:
        """Return the fields that are not possible, or not with the others, each with the reason.

        Firestore needs an index for each combination of an order and conditions, and each index
        costs storage. docs/decisions/0027-queries-of-the-gallery.md has the list.
        """
        found = self._impossible_texts()
        if self.zone and not self.source:
            found["zone"] = "A zone belongs to a source: choose the source, too."
        if self.prefix and not self.bucket:
            found["prefix"] = "A prefix needs a bucket."
        if self.bucket and self.order is not Order.NAME:
            found["bucket"] = "A bucket or a prefix needs the order by name: sort by name."
        if self.order is Order.NAME and not self.bucket:
            found["order"] = "To sort by name, choose a bucket."
        for name in _IMPOSSIBLE[self.order]:
            if getattr(self, name) is not None:
                found.setdefault(name, f"{_NAMED[name]} is not possible {_WITH[self.order]}.")
        if self.order in (Order.CONFIDENT, Order.UNCERTAIN) and self.label:
            if self.source:
                found["source"] = (
                    "By confidence, choose a label or a source. To have both, sort by the newest."
                )
            if _RESERVED.fullmatch(self.label):
                found["label"] = "No label begins and ends with two underscores. Choose another."
        return found

    def _impossible_texts(self) -> dict[str, str]:
        """Return the fields with a text that Firestore cannot compare with."""
        texts = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        found = {
            name: fault
            for name, text in texts.items()
            if isinstance(text, str) and (fault := _fault(name, text))
        }
        if not found and self.zone and (fault := _fault("zone", f"{self.zone}/{self.label}")):
            found["zone"] = fault
        return found

    def without(self, *names: str) -> Self:
        """Return the filter with these fields at their defaults."""
        defaults = {spec.name: spec.default for spec in fields(self) if spec.name in names}
        return replace(self, **defaults)  # type: ignore[arg-type]


_IMPOSSIBLE = {  # fields that an order does not have
    Order.NEWEST: (),
    Order.NAME: ("source", "zone", "day", "until", "error_code"),
    Order.CONFIDENT: ("shown", "zone", "day", "until", "error_code"),
    Order.UNCERTAIN: ("shown", "zone", "day", "until", "error_code"),
    Order.RANDOM: ("shown", "source", "zone", "day", "until", "error_code"),
}
_NAMED = {
    "shown": "A status",
    "error_code": "An error code",
    "source": "A source",
    "zone": "A zone",
    "day": "A day",
    "until": "A time",
}
_WITH = {
    Order.NAME: "by name. Remove the bucket and sort by the newest",
    Order.CONFIDENT: "by confidence. Sort by the newest instead",
    Order.UNCERTAIN: "by confidence. Sort by the newest instead",
    Order.RANDOM: "in random order. Sort by the newest instead",
}


def _parsed(name: str, text: str) -> Any:
    """Return the value of one argument.

    Raises:
        FilterError: the text has another form.
    """
    try:
        match name:
            case "order":
                return Order(text)
            case "shown":
                return Shown(text)
            case "day":
                return date.fromisoformat(text)
            case "until":
                time = datetime.fromisoformat(text)
                return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise FilterError(f"{name}={text[:80]!r} is not possible in a filter.") from exc
    if fault := _fault(name, text):
        raise FilterError(fault)
    return text


def _fault(name: str, text: str) -> str | None:
    """Return why Firestore cannot compare with a text, or None."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return f"{name}={text[:80]!r} is not possible in a filter."
    if size > _MAX_TEXT_BYTES:
        return f"{name} is too long for a filter: it has more than {_MAX_TEXT_BYTES:,} bytes."
    return None
