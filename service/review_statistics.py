"""What verdicts show: precision with its interval, and the threshold that reaches a precision."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from service.verdicts import Judged

MAX_WIDTH = 0.2  # a wider interval says too little, so there is no number
WANTED = 0.9  # precision
BINS = 10
_Z = 1.959963984540054  # 95 % of the normal distribution are between -_Z and _Z


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a share."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """The difference of its ends."""
        return self.high - self.low


def wilson(correct: int, judged: int) -> Interval:
    """Return Wilson's score interval. Nothing judged: 0 to 1.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
    the American Statistical Association 22 (1927), 209-212. Unlike the interval that most textbooks
    begin with, it is usable with few verdicts, and if all of them are the same.
    """
    if not judged:
        return Interval(0.0, 1.0)
    share, square = correct / judged, _Z * _Z
    center = (share + square / (2 * judged)) / (1 + square / judged)
    spread = math.sqrt(share * (1 - share) / judged + square / (4 * judged * judged))
    half = _Z / (1 + square / judged) * spread
    # Without rounding errors, an interval reaches 0 or 1 only if all verdicts are the same.
    low = 0.0 if correct == 0 else center - half
    return Interval(low, 1.0 if correct == judged else center + half)


@dataclass(frozen=True)
class Estimate:
    """A share of verdicts, for example the precision of a label."""

    correct: int
    judged: int

    @classmethod
    def of(cls, detections: Iterable[Judged]) -> "Estimate":
        """Count detections."""
        verdicts = [item.is_correct for item in detections]
        return cls(sum(verdicts), len(verdicts))

    @property
    def share(self) -> float:
        """The share of the correct ones. 0 without verdicts."""
        return self.correct / self.judged if self.judged else 0.0

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the share."""
        return wilson(self.correct, self.judged)

    @property
    def is_enough(self) -> bool:
        """Whether the interval is narrow enough to say something."""
        return self.interval.width <= MAX_WIDTH


@dataclass(frozen=True)
class Bin:
    """The detections whose confidence is from `low` to below `high`. The last bin includes 1."""

    low: float
    high: float
    precision: Estimate


def by_confidence(detections: Iterable[Judged]) -> list[Bin]:
    """Return the precision in each of ten ranges of the confidence.

    Within a range, it does not depend on which confidences were reviewed first.
    """
    groups: dict[int, list[Judged]] = defaultdict(list)
    for item in detections:
        # 0.3 * 10 is below 3, and the confidences have four decimals.
        # A person may have edited a confidence, so it may be any number.
        confidence = min(max(item.confidence, 0.0), 1.0)
        groups[min(int(confidence * BINS + 1e-9), BINS - 1)].append(item)
    return [
        Bin(index / BINS, (index + 1) / BINS, Estimate.of(groups.get(index, ())))
        for index in range(BINS)
    ]


@dataclass(frozen=True)
class Threshold:
    """The detections with at least this confidence, and their precision."""

    value: float
    precision: Estimate
    of: int  # judged detections of any confidence

    @property
    def kept(self) -> int:
        """How many of the judged detections it keeps."""
        return self.precision.judged


def thresholds(detections: Iterable[Judged]) -> list[Threshold]:
    """Return each confidence as a threshold, the highest first."""
    falling = sorted(detections, key=lambda item: -item.confidence)
    found, correct, judged = [], 0, 0
    for value, equal in groupby(falling, key=lambda item: item.confidence):
        verdicts = [item.is_correct for item in equal]
        correct += sum(verdicts)
        judged += len(verdicts)
        found.append(Threshold(value, Estimate(correct, judged), len(falling)))
    return found


@dataclass(frozen=True)
class Row:
    """The precision of a label in a source.

    `threshold` is the lowest one that reaches the wanted precision, among those with enough
    verdicts. None: there is none.
    """

    label: str
    source: str | None
    precision: Estimate
    threshold: Threshold | None
    has_enough_verdicts: bool  # for a threshold, if none reaches the precision


def row(label: str, source: str | None, detections: Sequence[Judged], wanted: float) -> Row:
    """Return the precision of some detections, and the threshold that reaches `wanted`."""
    enough = [each for each in thresholds(detections) if each.precision.is_enough]
    reached = [each for each in enough if each.precision.share >= wanted]
    threshold = reached[-1] if reached else None
    return Row(label, source, Estimate.of(detections), threshold, bool(enough))


def rows(detections: Iterable[Judged], wanted: float = WANTED) -> list[Row]:
    """Return a row for each label and source, sorted by the number of verdicts."""
    groups: dict[tuple[str, str | None], list[Judged]] = defaultdict(list)
    for item in detections:
        groups[item.label, item.source].append(item)
    found = [row(label, source, items, wanted) for (label, source), items in groups.items()]
    return sorted(found, key=lambda each: (-each.precision.judged, each.label, each.source or ""))
