"""Verdicts: what a page may send, and what a stored one counts for."""

from typing import Any

import pytest

from service.verdicts import Given, Judged, VerdictError, reviewed_image, verdict_of

ITEMS = [
    {"label": "star", "confidence": 0.9, "box": [1.0, 2.0, 3.0, 4.0]},
    {"label": "fox", "confidence": 0.8},
]
BODY: dict[str, Any] = {"correct": [0], "wrong": [1], "missed": False, "order": "random"}


def test_verdict_has_what_was_judged() -> None:
    document = {"model": {"name": "m", "sha256": "ab"}, "source": {"id": "gate"}, "labels": ["x"]}
    verdict = verdict_of(Given.parse(BODY, 2), document, ITEMS, "a@example.com")
    assert verdict["detections"] == [
        {
            "index": 0,
            "label": "star",
            "confidence": 0.9,
            "box": {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0},
            "verdict": "correct",
        },
        {"index": 1, "label": "fox", "confidence": 0.8, "box": None, "verdict": "wrong"},
    ]
    assert (verdict["image"], verdict["reviewer"]) == ("wrong", "a@example.com")
    image = reviewed_image(verdict)
    assert image is not None
    assert image.detections == (
        Judged("star", 0.9, True, "gate"),
        Judged("fox", 0.8, False, "gate"),
    )
    assert (image.model, image.order, image.is_missed) == ("ab", "random", False)


def test_missed_object_makes_an_image_wrong() -> None:
    body = BODY | {"wrong": [], "missed": True, "missed_label": "cat"}
    verdict = verdict_of(Given.parse(body, 2), {}, ITEMS, "local")
    assert (verdict["image"], verdict["missed_label"]) == ("wrong", "cat")


def test_verdict_has_nothing_that_its_database_refuses() -> None:
    """A reference to a document cannot be read in another database."""
    reference = object()
    document = dict.fromkeys(("generation", "created_at", "uri", "day", "model"), reference)
    verdict = verdict_of(Given.parse(BODY, 2), document, ITEMS, "local")
    assert reference not in verdict.values()
    assert (verdict["generation"], verdict["result_created_at"]) == (None, None)


@pytest.mark.parametrize(
    "changed",
    [
        {"correct": None},
        {"correct": [0, 1]},
        {"correct": [-1]},
        {"correct": [2]},
        {"correct": [True]},
        {"correct": [0.0]},
        {"correct": "0"},
        {"correct": [0] * 3},
        {"missed": 1},
        {"missed_label": 5},
        {"missed_label": "x" * 201},
        {"missed_label": "\ud800", "missed": True},
        {"order": None},
        {"order": "x" * 201},
    ],
)
def test_impossible_verdict_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(VerdictError):
        Given.parse(BODY | changed, 2)


@pytest.mark.parametrize(
    "verdict",
    [{}, {"image": 5}, {"image": "fine"}, {"image": ["correct"]}, {"image": {"correct": 1}}],
)
def test_unreadable_verdict_counts_for_nothing(verdict: dict[str, Any]) -> None:
    assert reviewed_image(verdict) is None


def test_edited_verdict_counts_what_is_readable() -> None:
    sound = {"label": "star", "confidence": 1, "verdict": "wrong"}
    broken = [5, None, {}, sound | {"label": 5}, sound | {"confidence": float("nan")}]
    broken += [sound | {"confidence": "1"}, sound | {"verdict": "x"}, sound | {"verdict": []}]
    image = reviewed_image(
        {"image": "correct", "detections": [*broken, sound], "model": 5, "source": []}
    )
    assert image is not None
    assert image.detections == (Judged("star", 1.0, False, None),)
    nothing = reviewed_image({"image": "correct", "detections": 5})
    assert nothing is not None
    assert nothing.detections == ()
