"""Verdicts: what people say about results, and the form in which they are stored."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from service.edited import as_map, text_or_none, texts_of
from service.errors import YoloBatchError

SCHEMA = 1
MAX_EARLIER = 20  # verdicts that a document keeps beside the current one
MAX_LABEL = 200  # characters of the label of a missed object


class VerdictError(YoloBatchError):
    """A verdict is not possible. The message is for a person."""


class VerdictChangedError(YoloBatchError):
    """The result or its verdict was changed meanwhile. The message is for a person."""


class Judgement(StrEnum):
    """What a person says about a detection, or about an image with all its detections."""

    CORRECT = "correct"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Judged:
    """A detection that a person has judged, as it was then."""

    label: str
    confidence: float
    is_correct: bool
    source: str | None


@dataclass(frozen=True, slots=True)
class ReviewedImage:
    """What the verdict of an image counts for. `order` is that in which it was reviewed."""

    model: str | None  # SHA-256
    model_name: str | None
    order: str | None
    is_missed: bool
    detections: tuple[Judged, ...]


@dataclass(frozen=True)
class Given:
    """What a reviewer says. Numbers are the positions of detections in the list of the page."""

    correct: frozenset[int]
    wrong: frozenset[int]
    is_missed: bool
    missed_label: str | None
    order: str

    @classmethod
    def parse(cls, body: Mapping[str, Any], count: int) -> "Given":
        """Read what a page has sent.

        Args:
            body: untrusted.
            count: how many detections the result has.

        Raises:
            VerdictError: it has another form, or names a detection that does not exist.
        """
        correct, wrong = (_positions(body.get(key), count) for key in Judgement)
        if correct & wrong:
            raise VerdictError("A detection cannot be both correct and wrong.")
        is_missed, label = body.get("missed", False), body.get("missed_label") or None
        order = body.get("order")
        is_label = label is None or (isinstance(label, str) and len(label) <= MAX_LABEL)
        if not isinstance(is_missed, bool) or not is_label or not _is_text(label):
            raise VerdictError("What was missed is not readable.")
        if not isinstance(order, str) or len(order) > MAX_LABEL or not _is_text(order):
            raise VerdictError("The order is not readable.")
        return cls(correct, wrong, is_missed, label if is_missed else None, order)


def verdict_of(
    given: Given, document: Mapping[str, Any], items: Sequence[Mapping[str, Any]], reviewer: str
) -> dict[str, Any]:
    """Return the fields of a verdict, without its time.

    Args:
        given: what the reviewer says.
        document: the result. A person may have edited it.
        items: its detections, with `label`, `confidence` and `box`, in the order of the page.
        reviewer: who says it.
    """
    model, source = as_map(document.get("model")), as_map(document.get("source"))
    is_wrong = bool(given.wrong) or given.is_missed
    return {
        "schema": SCHEMA,
        "image": str(Judgement.WRONG if is_wrong else Judgement.CORRECT),
        "missed": given.is_missed,
        "missed_label": given.missed_label,
        "detections": [
            _detection(index, items[index], index in given.correct)
            for index in sorted(given.correct | given.wrong)
        ],
        "reviewer": reviewer,
        "order": given.order,
        "uri": text_or_none(document.get("uri")),
        "bucket": text_or_none(document.get("bucket")),
        "generation": _of_type(document.get("generation"), int),
        "result_created_at": _of_type(document.get("created_at"), datetime),
        "model": {key: text_or_none(model.get(key)) for key in ("name", "sha256")},
        "source": text_or_none(source.get("id")),
        "labels": texts_of(document.get("labels")),
        "zone_labels": texts_of(document.get("zone_labels")),
        "found": bool(document.get("found")),
        "day": text_or_none(document.get("day")),
    }


def _of_type(value: Any, kind: type) -> Any:
    """Return a value of a document, or None if it has another type.

    A reference to a document, for example, cannot be read in the verdicts' database.
    """
    return value if isinstance(value, kind) else None


def reviewed_image(verdict: Mapping[str, Any]) -> ReviewedImage | None:
    """Return what a stored verdict counts for, or None if a person has made it unreadable."""
    if verdict.get("image") not in list(Judgement):
        return None
    model, source = as_map(verdict.get("model")), text_or_none(verdict.get("source"))
    return ReviewedImage(
        text_or_none(model.get("sha256")),
        text_or_none(model.get("name")),
        text_or_none(verdict.get("order")),
        verdict.get("missed") is True,
        tuple(_judged(verdict.get("detections"), source)),
    )


def _judged(items: Any, source: str | None) -> Iterator[Judged]:
    for item in items if isinstance(items, list) else ():
        values = as_map(item)
        label, confidence = values.get("label"), values.get("confidence")
        if not isinstance(label, str) or not isinstance(confidence, int | float):
            continue
        if math.isfinite(confidence) and values.get("verdict") in list(Judgement):
            is_correct = values["verdict"] == Judgement.CORRECT
            yield Judged(label, float(confidence), is_correct, source)


def _detection(index: int, item: Mapping[str, Any], is_correct: bool) -> dict[str, Any]:
    box = item.get("box")
    return {
        "index": index,
        "label": item["label"],
        "confidence": item["confidence"],
        "box": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) if box else None,
        "verdict": str(Judgement.CORRECT if is_correct else Judgement.WRONG),
    }


def _positions(value: Any, count: int) -> frozenset[int]:
    """Return numbers from 0 to `count` - 1.

    Raises:
        VerdictError: it is something else.
    """
    listed = value if isinstance(value, list) else None
    if listed is None or len(listed) > count:
        raise VerdictError("The verdict does not fit the result.")
    if not all(type(each) is int and 0 <= each < count for each in listed):
        raise VerdictError("The verdict does not fit the result.")
    return frozenset(listed)


def _is_text(value: Any) -> bool:
    """Return whether Firestore can store a text: JSON also has lone surrogates."""
    return value is None or not any(0xD800 <= ord(character) <= 0xDFFF for character in value)
