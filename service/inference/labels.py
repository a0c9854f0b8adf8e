"""Read a model's labels, and check that Firestore can store them.

A document stores a label unchanged: as a key of `counts`, in `labels`, and in each detection. So a
label must follow Firestore's rules for field names. Otherwise, every commit of an image with such
an object would fail.
"""

from collections.abc import Mapping

from service.errors import ModelError

# Firestore allows 1,500 bytes for a field path (`counts.` included) and 1 MiB for a document, which
# repeats the labels of up to 300 detections three times.
MAX_LABEL_BYTES = 1000
MAX_CLASSES = 100_000
MAX_LISTED = 5  # labels in one error message
_MAX_QUOTED = 60  # characters of a label in an error message


_RENAME = "--rename OLD=NEW (or --rename '#ID=NEW', with the class's id)"
ADVICE_FOR_OTHERS = (
    "The labels of this export cannot be renamed: export again from its weights or from its "
    f"float model, with {_RENAME}"
)


def broken_rule(label: object) -> str | None:
    """Describe the rule that a label breaks, or return None if Firestore can store and query it.

    The rules are Firestore's own (https://firebase.google.com/docs/firestore/quotas), with a
    margin for the rest of the field path and of the document. Two rules are ours. NUL ends a string
    in C clients. A carriage return in the path of a query is read as a line feed by the emulator,
    so the query does not find the label.
    """
    if not isinstance(label, str):
        return (
            f"this is {type(label).__name__}, not text: without quotes, YAML reads words such as "
            "'no' and 'null' as other values, so put the label in quotes"
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
        return "a label must be valid Unicode, but this label cannot be written as UTF-8"
    if size > MAX_LABEL_BYTES:
        return f"a label may have at most {MAX_LABEL_BYTES:,} bytes, but this label has {size:,}"
    return None


def class_labels(
    names: object, *, model: object, count: int | None = None, advice: str
) -> dict[int, str]:
    """Return a model's labels by class id, after checking that each can be stored.

    Args:
        names: the model's `names`, a mapping from class ids or a list. Numbers become text.
        model: the model's name for error messages.
        count: number of classes of the model. None: as many as there are names.
        advice: how to rename labels of this model, for the error message. See
            `advice_for_weights`, `advice_for_export` and `ADVICE_FOR_OTHERS`.

    Raises:
        ModelError: a class has no label, or a label that Firestore cannot store.
    """
    labels = names_by_id(names, model)
    number = count or max(labels, default=-1) + 1
    problems = [
        f"class {class_id} has no label"
        if class_id not in labels
        else f"class {class_id}, {quote(labels[class_id])}: {broken_rule(labels[class_id])}"
        for class_id in sorted(labels.keys() | range(number))
        if class_id not in labels or broken_rule(labels[class_id])
    ]
    if not labels and not problems:
        problems = ["it names no classes"]
    if problems:
        more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise ModelError(
            f"{model} has labels that cannot be stored: {'; '.join(problems[:MAX_LISTED])}{more}. "
            f"{advice}"
        )
    return {class_id: str(label) for class_id, label in labels.items()}


def label_of(labels: Mapping[int, str], class_id: int) -> str:
    """Return the label of a class, or the class id as text if the model does not name the class.

    Such a model is rejected when it is loaded, unless its number of classes cannot be determined.
    """
    return labels.get(class_id) or str(class_id)


def advice_for_weights(path: object) -> str:
    """Return a sentence on how to rename the labels of weights."""
    return f"Rename them: yolo-batch export {path} {_RENAME}"


def advice_for_export(directory: object, precision: object) -> str:
    """Return a sentence on how to rename the labels of an export of this precision."""
    if precision in ("fp32", "fp16"):
        return (
            f"Rename them: yolo-batch export {directory} --precision {precision} "
            f"--output DIRECTORY {_RENAME}"
        )
    return ADVICE_FOR_OTHERS


def names_by_id(names: object, model: object) -> dict[int, object]:
    """Return names by class id, not checked yet. Numbers become text.

    Other types stay as they are: YAML may have changed what the author wrote, such as `no`.

    Raises:
        ModelError: `names` is not a list, or not a mapping whose keys are class ids.
    """
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping):
        raise ModelError(f"{model} does not name its classes: `names` is {names!r:.80}")
    try:
        labels = {int(key): label for key, label in names.items()}
    except (TypeError, ValueError, OverflowError) as exc:
        reason = str(exc)[:_MAX_QUOTED]
        raise ModelError(f"{model} does not name its classes by their ids: {reason}") from exc
    if max(labels, default=0) >= MAX_CLASSES:
        raise ModelError(f"{model} names class {max(labels)}: the last id is {MAX_CLASSES - 1:,}")
    if len(labels) < len(names) or any(class_id < 0 for class_id in labels):
        raise ModelError(f"{model} does not name each class once, by an id from 0 up")
    return {
        class_id: str(label) if type(label) in (int, float) else label
        for class_id, label in labels.items()
    }


def quote(label: object) -> str:
    """Return a label in quotes for a message, shortened if it is long."""
    text = repr(label)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."
