"""Other labels for the classes of a model: `yolo-batch export --rename OLD=NEW`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice

from service.errors import ModelError
from service.inference.labels import (
    MAX_CLASSES,
    MAX_NAMED,
    broken_rule,
    by_id,
    class_labels,
    shown,
)


def sha256_of_renamed(sha256: str, labels: Mapping[int, str]) -> str:
    """Return the sha256 that documents carry for weights whose labels were renamed.

    It differs from that of the weights, so documents with the old labels count as stale.
    """
    text = json.dumps([sha256, sorted(labels.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def rename(
    names: object, renames: Sequence[str], *, model: object, count: int | None = None
) -> dict[int, object]:
    """Give classes other labels, each written as `OLD=NEW`.

    OLD is a label, which may be empty, or `#` and a class id. Every class of the label gets the new
    one. Labels are compared as they are written, all of them before any is renamed.

    Args:
        names: as `class_labels` takes them, and returns them afterwards.
        renames: `OLD=NEW` each.
        model: what to call the model in an error.
        count: classes that the network has; None: as many as there are names.

    Raises:
        ModelError: there is no such label, it is not clear which one is meant, the new label cannot
            be stored, or another class has it already: their counts could not be told apart.
    """
    labels = by_id(names, model)
    renamed = dict(labels)
    sources: dict[int, str] = {}
    for text in renames:
        old, ids, new = _parsed(text, labels, model, count or max(labels, default=-1) + 1)
        if rule := broken_rule(new):
            raise ModelError(f"--rename {shown(text)} is wrong: {shown(new)}: {rule}")
        for class_id in ids:
            if class_id in sources:
                raise ModelError(f"--rename names class {class_id} twice")
            sources[class_id] = old
            renamed[class_id] = new
    for class_id, old in sources.items():
        for other, label in renamed.items():
            if label == renamed[class_id] and sources.get(other) != old:
                raise ModelError(
                    f"--rename would give the classes {min(class_id, other)} and "
                    f"{max(class_id, other)} one label, {shown(label)}: "
                    "their counts could not be told apart"
                )
    return renamed


def apply_renames(
    names: object, renames: Sequence[str], *, model: object, count: int | None, advice: str
) -> tuple[dict[int, str], bool]:
    """Return the labels after `rename`, as `class_labels` does, and whether that changed any.

    Raises:
        ModelError: as these two.
    """
    if not renames:
        return class_labels(names, model=model, count=count, advice=advice), False
    renamed = rename(names, renames, model=model, count=count)
    labels = class_labels(renamed, model=model, count=count, advice=advice)
    return labels, labels != by_id(names, model)


def shared_labels(labels: Mapping[int, str]) -> dict[str, list[int]]:
    """List the labels that several classes have, with the ids of these."""
    ids: dict[str, list[int]] = {}
    for class_id, label in sorted(labels.items()):
        ids.setdefault(label, []).append(class_id)
    return {label: shared for label, shared in ids.items() if len(shared) > 1}


def _parsed(
    text: str, labels: Mapping[int, object], model: object, count: int
) -> tuple[str, list[int], str]:
    """Split `OLD=NEW`; either may contain `=`, so OLD is what the model has."""
    option = f"--rename {shown(text)}"
    if "=" not in text:
        raise ModelError(f"{option} is wrong: write OLD=NEW")
    places = [place for place, letter in enumerate(text) if letter == "="]
    splits = [(text[:place], text[place + 1 :]) for place in places]
    by_label = [
        (old, [class_id for class_id, label in labels.items() if str(label) == old], new)
        for old, new in splits
    ]
    matches = [match for match in by_label if match[1]]
    if len(matches) > 1:
        raise ModelError(f"{option} is ambiguous: name the class by '#ID=NEW'")
    if matches:
        return matches[0]
    old, new = splits[0]
    if (class_id := _id(old)) is not None and class_id < count:
        return old, [class_id], new
    known = ", ".join(shown(label) for label in islice(labels.values(), MAX_NAMED))
    more = ", ..." if len(labels) > MAX_NAMED else ""
    raise ModelError(f"{option}: {model} has no class {shown(old)}. It has {known}{more}")


def _id(text: str) -> int | None:
    """Read `#` and a class id; None for anything else."""
    digits = text.removeprefix("#")
    if digits == text or not digits.isdecimal() or len(digits) > len(str(MAX_CLASSES)):
        return None
    return int(digits)
