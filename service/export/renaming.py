"""Rename the labels of a model's classes: `yolo-batch export --rename OLD=NEW`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice

from service.errors import ModelError
from service.inference.labels import (
    MAX_CLASSES,
    MAX_LISTED,
    broken_rule,
    class_labels,
    names_by_id,
    quote,
)


def sha256_of_renamed(sha256: str, labels: Mapping[int, str]) -> str:
    """Return the SHA-256 by which documents identify weights with renamed labels.

    It differs from the SHA-256 of the weights. So documents with the old labels count as stale.

    Args:
        sha256: SHA-256 of the weights.
        labels: the labels by class id, after renaming.
    """
    text = json.dumps([sha256, sorted(labels.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def rename(
    names: object, renames: Sequence[str], *, model: object, count: int | None = None
) -> dict[int, object]:
    """Return a model's labels by class id after renaming.

    Args:
        names: the model's `names`, as `class_labels` takes them.
        renames: each is `OLD=NEW`. OLD is a label, which may be empty, or `#` and a class id. All
            classes with the label OLD are renamed. OLD means a label before any renaming.
        model: the model's name for error messages.
        count: number of classes of the model. None: as many as there are names.

    Raises:
        ModelError: OLD does not exist or is ambiguous, NEW cannot be stored, or another class has
            the label NEW, so that their counts would be mixed.
    """
    labels = names_by_id(names, model)
    renamed = dict(labels)
    sources: dict[int, str] = {}
    for text in renames:
        old, ids, new = _parse(text, labels, model, count or max(labels, default=-1) + 1)
        if rule := broken_rule(new):
            raise ModelError(f"--rename {quote(text)} is wrong: {quote(new)}: {rule}")
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
                    f"{max(class_id, other)} one label, {quote(label)}: "
                    "their counts would be mixed"
                )
    return renamed


def apply_renames(
    names: object, renames: Sequence[str], *, model: object, count: int | None, advice: str
) -> tuple[dict[int, str], bool]:
    """Rename labels and check them. The arguments are those of `rename` and `class_labels`.

    Returns:
        The labels by class id, and whether any label changed.

    Raises:
        ModelError: see `rename` and `class_labels`.
    """
    if not renames:
        return class_labels(names, model=model, count=count, advice=advice), False
    renamed = rename(names, renames, model=model, count=count)
    labels = class_labels(renamed, model=model, count=count, advice=advice)
    return labels, labels != names_by_id(names, model)


def shared_labels(labels: Mapping[int, str]) -> dict[str, list[int]]:
    """Return each label that several classes have, with their class ids."""
    ids: dict[str, list[int]] = {}
    for class_id, label in sorted(labels.items()):
        ids.setdefault(label, []).append(class_id)
    return {label: shared for label, shared in ids.items() if len(shared) > 1}


def _parse(
    text: str, labels: Mapping[int, object], model: object, count: int
) -> tuple[str, list[int], str]:
    """Split `OLD=NEW`. Both may contain `=`, so OLD is the part that is a label of the model.

    Returns:
        OLD, the ids of its classes, and NEW.

    Raises:
        ModelError: the option is malformed, ambiguous, or names no class of the model.
    """
    option = f"--rename {quote(text)}"
    if "=" not in text:
        raise ModelError(f"{option} is wrong: write OLD=NEW")
    positions = [index for index, character in enumerate(text) if character == "="]
    splits = [(text[:index], text[index + 1 :]) for index in positions]
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
    known = ", ".join(quote(label) for label in islice(labels.values(), MAX_LISTED))
    more = ", ..." if len(labels) > MAX_LISTED else ""
    raise ModelError(f"{option}: {model} has no class {quote(old)}. It has {known}{more}")


def _id(text: str) -> int | None:
    """Return the class id in `#ID`, or None if the text has another form."""
    digits = text.removeprefix("#")
    if digits == text or not digits.isdecimal() or len(digits) > len(str(MAX_CLASSES)):
        return None
    return int(digits)
