"""The labels of a model: which ones Firestore can store, and how a class gets another one.

A label is stored as it is written: as a key of `counts`, in `labels` and in each detection. So it
must follow Firestore's rules for field names. A label that breaks one would make every commit of an
image that has such an object fail.
"""

from collections.abc import Mapping

from service.errors import ModelError

# Firestore allows 1,500 bytes for a field path (`counts.` included) and 1 MiB for a document, which
# repeats the labels of up to 300 detections three times.
MAX_LABEL_BYTES = 1000
MAX_CLASSES = 100_000
MAX_NAMED = 5  # problems in one message
_MAX_SHOWN = 60  # characters of a label in a message


_RENAME = "--rename OLD=NEW (or --rename '#ID=NEW', with the class's id)"
ADVICE_FOR_OTHERS = (
    "Such an export cannot be renamed: export again from its weights or from its float model, "
    f"with {_RENAME}"
)


def broken_rule(label: object) -> str | None:
    """Say which rule for labels this one breaks; None where Firestore stores and finds it.

    The rules are Firestore's own (https://firebase.google.com/docs/firestore/quotas), with room
    for the rest of the path and of the document. NUL is what a client in C ends a string at. In a
    query's path, the emulator reads a carriage return as a line feed: it finds no such label.
    """
    if not isinstance(label, str):
        return (
            f"this is {type(label).__name__}, not text: YAML reads an unquoted no or null as "
            "another value, so put it in quotes"
        )
    if not label:
        return "a label cannot be empty"
    if label.startswith("__") and label.endswith("__") and len(label) >= 4:
        return "Firestore reserves names that begin and end with two underscores"
    if "\0" in label:
        return "a label cannot contain the character NUL"
    if "\r" in label:
        return "a label cannot contain a carriage return, which queries do not find"
    try:
        size = len(label.encode())
    except UnicodeEncodeError:
        return "a label must be valid Unicode; this one cannot be written as UTF-8"
    if size > MAX_LABEL_BYTES:
        return f"a label may have {MAX_LABEL_BYTES:,} bytes at most; this one has {size:,}"
    return None


def class_labels(
    names: object, *, model: object, count: int | None = None, advice: str
) -> dict[int, str]:
    """Read a model's `names` as labels by class id; each of them can be stored.

    Args:
        names: a mapping from class ids, or a list in their order. Numbers become their digits.
        model: what to call the model in an error.
        count: classes that the network has; None: as many as there are names.
        advice: how to give this model other labels; see `advice_for_weights` and the others.

    Raises:
        ModelError: a class has no label, or one that Firestore cannot store.
    """
    labels = by_id(names, model)
    number = count or max(labels, default=-1) + 1
    problems = [
        f"class {class_id} has no label"
        if class_id not in labels
        else f"class {class_id}, {shown(labels[class_id])}: {broken_rule(labels[class_id])}"
        for class_id in sorted(labels.keys() | range(number))
        if class_id not in labels or broken_rule(labels[class_id])
    ]
    if not labels and not problems:
        problems = ["it names no classes"]
    if problems:
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise ModelError(
            f"{model} has labels that cannot be stored: {'; '.join(problems[:MAX_NAMED])}{more}. "
            f"{advice}"
        )
    return {class_id: str(label) for class_id, label in labels.items()}


def label_of(labels: Mapping[int, str], class_id: int) -> str:
    """Return the label of a class: its digits, where an export names fewer classes than it has.

    The load refuses such a model, unless it cannot count the network's classes.
    """
    return labels.get(class_id) or str(class_id)


def advice_for_weights(path: object) -> str:
    """Say how to rename labels of weights."""
    return f"Rename them: yolo-batch export {path} {_RENAME}"


def advice_for_export(directory: object, precision: object) -> str:
    """Say how to rename labels of a directory that `export` wrote in this precision."""
    if precision in ("fp32", "fp16"):
        return (
            f"Rename them: yolo-batch export {directory} --precision {precision} "
            f"--output DIRECTORY {_RENAME}"
        )
    return ADVICE_FOR_OTHERS


def by_id(names: object, model: object) -> dict[int, object]:
    """Read names by class id. Of what is not text, numbers alone are sure to be as written."""
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping):
        raise ModelError(f"{model} does not name its classes: `names` is {names!r:.80}")
    try:
        labels = {int(key): label for key, label in names.items()}
    except (TypeError, ValueError, OverflowError) as exc:
        reason = str(exc)[:_MAX_SHOWN]
        raise ModelError(f"{model} does not name its classes by their ids: {reason}") from exc
    if max(labels, default=0) >= MAX_CLASSES:
        raise ModelError(f"{model} names class {max(labels)}: the last id is {MAX_CLASSES - 1:,}")
    if len(labels) < len(names) or any(class_id < 0 for class_id in labels):
        raise ModelError(f"{model} does not name each class once, by an id from 0 up")
    return {
        class_id: str(label) if type(label) in (int, float) else label
        for class_id, label in labels.items()
    }


def shown(label: object) -> str:
    """Write a label for a message, cut where it is long."""
    text = repr(label)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
