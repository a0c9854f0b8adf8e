"""The differences between two versions of the sources."""

from collections.abc import Iterator
from typing import Any

from service.sources.schema import Source, Sources, to_plain

_NAMED = {"zones": "zone", "alerts": "alert rule"}  # fields whose elements have names


def changes(old: Sources, new: Sources) -> list[str]:
    """Return one line for each source that was added or removed, and for each changed field."""
    before = {source.id: source for source in old.sources}
    after = {source.id: source for source in new.sources}
    lines = [f"- {source.id}: removed ({source.uri})" for source in _only(before, after)]
    lines += [f"+ {source.id}: added ({source.uri})" for source in _only(after, before)]
    for name in sorted(before.keys() & after.keys()):
        lines += _changed_fields(before[name], after[name])
    return [*_changed_groups(old, new), *lines]


def _changed_groups(old: Sources, new: Sources) -> Iterator[str]:
    for name in sorted(old.groups.keys() | new.groups.keys()):
        before, after = (sorted(s.groups.get(name, ())) for s in (old, new))
        if before != after:
            yield f"~ group {name}: {_labels(before)} -> {_labels(after)}"


def _labels(labels: list[str]) -> str:
    return ", ".join(labels) or "none"


def _only(sources: dict[str, Source], others: dict[str, Source]) -> Iterator[Source]:
    yield from (source for name, source in sources.items() if name not in others)


def _changed_fields(before: Source, after: Source) -> Iterator[str]:
    old, new = to_plain(before), to_plain(after)
    for name in sorted(old.keys() | new.keys()):
        if name in _NAMED:
            yield from _changed_items(after.id, name, old.get(name, []), new.get(name, []))
        elif old.get(name) != new.get(name):
            yield f"~ {after.id}: {name}: {_text(old, name)} -> {_text(new, name)}"


def _changed_items(source: str, field: str, old: list[Any], new: list[Any]) -> Iterator[str]:
    before, after = ({item["name"]: item for item in items} for items in (old, new))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            verb = "changed" if name in before.keys() & after.keys() else "added"
            yield f"~ {source}: {_NAMED[field]} {name}: {verb if name in after else 'removed'}"


def _text(fields: dict[str, Any], name: str) -> str:
    return str(fields[name]) if name in fields else "default"
