"""What verdicts show: precision, its interval, and thresholds."""

import math
import random

import pytest

from service.review_statistics import (
    MAX_WIDTH,
    Estimate,
    by_confidence,
    row,
    rows,
    thresholds,
    wilson,
)
from service.verdicts import Judged


def judged(confidence: float, is_correct: bool, label: str = "star") -> Judged:
    return Judged(label, confidence, is_correct, "gate")


# From scipy 1.17: binomtest(correct, count).proportion_ci(method="wilson")
@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        (0, 20, 0.0, 0.161125),
        (20, 20, 0.838875, 1.0),
        (81, 263, 0.255289, 0.366210),
        (15, 148, 0.062386, 0.160487),
        (1, 29, 0.006113, 0.171755),
    ],
)
def test_interval_is_that_of_wilson(correct: int, count: int, low: float, high: float) -> None:
    interval = wilson(correct, count)
    assert interval.low == pytest.approx(low, abs=1e-6)
    assert interval.high == pytest.approx(high, abs=1e-6)


def test_interval_solves_the_equation_of_wilson() -> None:
    """Its ends are the shares that are just 1.96 standard deviations from what was counted."""
    for correct, count in ((1, 7), (30, 40), (999, 1000)):
        interval = wilson(correct, count)
        for end in (interval.low, interval.high):
            distance = abs(correct / count - end) / math.sqrt(end * (1 - end) / count)
            assert distance == pytest.approx(1.959964, abs=1e-5)


def test_interval_has_the_true_share_about_95_times_of_100() -> None:
    chosen = random.Random(5)
    hits = 0
    for _ in range(2000):
        correct = sum(chosen.random() < 0.8 for _ in range(50))
        interval = wilson(correct, 50)
        hits += interval.low <= 0.8 <= interval.high
    assert 0.92 < hits / 2000 < 0.98


def test_nothing_judged_is_not_enough() -> None:
    estimate = Estimate.of([])
    assert (estimate.share, estimate.interval.width, estimate.is_enough) == (0.0, 1.0, False)


def test_few_verdicts_are_not_enough_and_many_are() -> None:
    assert not Estimate(9, 10).is_enough
    assert Estimate(90, 100).is_enough
    assert Estimate(90, 100).interval.width <= MAX_WIDTH


def test_bins_have_every_detection_once() -> None:
    detections = [judged(value / 10_000, value % 3 > 0) for value in range(10_001)]
    bins = by_confidence(detections)
    assert sum(each.precision.judged for each in bins) == len(detections)
    assert [each.precision.judged for each in bins] == [1000] * 9 + [1001]
    assert by_confidence([judged(0.3, True)])[3].precision.judged == 1
    assert by_confidence([judged(1.0, True)])[9].precision.judged == 1


@pytest.mark.parametrize(("confidence", "index"), [(1e308, 9), (-1e308, 0), (-0.5, 0), (7.0, 9)])
def test_edited_confidence_is_in_the_nearest_bin(confidence: float, index: int) -> None:
    bins = by_confidence([judged(confidence, True)])
    assert [each.precision.judged for each in bins].index(1) == index


def test_bins_do_not_depend_on_what_was_reviewed_first() -> None:
    chosen = random.Random(7)
    everything = [
        judged(confidence, chosen.random() < confidence)
        for confidence in (chosen.random() for _ in range(4000))
    ]
    doubtful = sorted(everything, key=lambda item: item.confidence)[:2000]
    whole, part = by_confidence(everything), by_confidence(doubtful)
    assert [each.precision for each in whole[:4]] == [each.precision for each in part[:4]]
    assert Estimate.of(doubtful).share < Estimate.of(everything).share - 0.1


def test_equal_confidences_are_kept_together() -> None:
    found = thresholds([judged(0.5, True), judged(0.5, False), judged(0.9, True)])
    assert [(each.value, each.precision.correct, each.kept) for each in found] == [
        (0.9, 1, 1),
        (0.5, 2, 3),
    ]


def test_threshold_is_the_lowest_that_reaches_the_precision() -> None:
    detections = [judged(0.9, True)] * 40 + [judged(0.5, True)] * 10 + [judged(0.4, False)] * 6
    found = row("star", "gate", detections, 0.89).threshold
    assert found is not None
    assert (found.value, found.kept, found.of) == (0.4, 56, 56)
    found = row("star", "gate", detections, 0.95).threshold
    assert found is not None
    assert (found.value, found.kept, found.precision.share) == (0.5, 50, 1.0)


def test_threshold_needs_enough_verdicts() -> None:
    few = row("star", "gate", [judged(0.9, True)] * 5, 0.9)
    assert (few.threshold, few.has_enough_verdicts) == (None, False)
    wrong = row("star", "gate", [judged(0.9, False)] * 50, 0.9)
    assert (wrong.threshold, wrong.has_enough_verdicts) == (None, True)


def test_rows_are_by_label_and_source_the_most_judged_first() -> None:
    detections = [judged(0.5, True), judged(0.6, False), judged(0.5, True, "heart")]
    detections.append(Judged("star", 0.4, True, None))
    found = rows(detections)
    assert [(each.label, each.source, each.precision) for each in found] == [
        ("star", "gate", Estimate(1, 2)),
        ("heart", "gate", Estimate(1, 1)),
        ("star", None, Estimate(1, 1)),
    ]
