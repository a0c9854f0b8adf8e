"""How the detections of two models differ in one image, and the totals of many images.

It needs only detections, so it works for a stored result and a model, for two models, and for one
model with two thresholds. The classes of errors and their thresholds are those of TIDE (Bolya et
al., 2020): https://arxiv.org/abs/2008.08115
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from service.domain import Detection
from service.inference.similarity import iou

MIN_CONFIDENCE = 0.25  # detections below it do not count
SAME_IOU = 0.5  # two boxes with at least this IoU are the same object, at the same place
MOVED_IOU = 0.1  # two boxes with at least this IoU may be the same object, at another place


@dataclass(frozen=True)
class Pair:
    """One object that both models find: the detections of A and B, and the IoU of their boxes."""

    a: Detection
    b: Detection
    iou: float


@dataclass(frozen=True)
class Alone:
    """A detection that only one model has.

    `other_confidence` is the confidence with which the other model finds the same object, below
    the least confidence that counts. It is 0 if the other model does not find the object at all.
    """

    detection: Detection
    other_confidence: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """How the detections of model B differ from those of model A in one image.

    Attributes:
        kept: objects that both models find at the same place.
        moved: objects that both models find, but not at the same place.
        lost: detections that only A has.
        gained: detections that only B has.
    """

    kept: tuple[Pair, ...] = ()
    moved: tuple[Pair, ...] = ()
    lost: tuple[Alone, ...] = ()
    gained: tuple[Alone, ...] = ()

    @property
    def f1(self) -> float:
        """The agreement: 2 x kept / (detections of A + detections of B). It is 1 without any."""
        return self.total().f1

    @property
    def disagreement(self) -> float:
        """How much the models disagree: 0 if they find the same objects at the same places.

        A lost or gained detection adds the difference of the two models' confidences. A moved
        object adds its larger confidence times (1 - IoU).
        """
        alone = (item.detection.confidence - item.other_confidence for item in self._alone)
        moved = (max(pair.a.confidence, pair.b.confidence) * (1 - pair.iou) for pair in self.moved)
        return sum(alone) + sum(moved)

    @property
    def _alone(self) -> tuple[Alone, ...]:
        return self.lost + self.gained

    def total(self) -> "Total":
        """Return the counts of all labels together."""
        return sum_totals(self.by_label().values())

    def by_label(self) -> "dict[str, Total]":
        """Return the counts of each label."""
        totals: dict[str, Total] = defaultdict(Total)
        for pair in self.kept:
            totals[pair.a.label].kept += 1
        for pair in self.moved:
            totals[pair.a.label].moved += 1
        for item in self.lost:
            totals[item.detection.label].lost += 1
        for item in self.gained:
            totals[item.detection.label].gained += 1
        return totals


@dataclass
class Total:
    """Counts of objects, as `Comparison` defines them."""

    kept: int = 0
    moved: int = 0
    lost: int = 0
    gained: int = 0

    @property
    def f1(self) -> float:
        """The agreement: 2 x kept / (detections of A + detections of B). It is 1 without any."""
        count = 2 * (self.kept + self.moved) + self.lost + self.gained
        return 2 * self.kept / count if count else 1.0

    def add(self, other: "Total") -> None:
        """Add the counts of another total."""
        self.kept += other.kept
        self.moved += other.moved
        self.lost += other.lost
        self.gained += other.gained


def sum_totals(totals: Iterable[Total]) -> Total:
    """Return the sum of totals."""
    result = Total()
    for total in totals:
        result.add(total)
    return result


@dataclass
class Summary:
    """The totals of many images.

    Attributes:
        images: number of images.
        changed: number of images in which the models disagree.
        by_label: totals by label.
        by_source: totals by the id of the source. None: the image has no source.
    """

    images: int = 0
    changed: int = 0
    by_label: dict[str, Total] = field(default_factory=lambda: defaultdict(Total))
    by_source: dict[str | None, Total] = field(default_factory=lambda: defaultdict(Total))

    @property
    def total(self) -> Total:
        """The counts of all labels together."""
        return sum_totals(self.by_label.values())

    def add(self, comparison: Comparison, source: str | None = None) -> None:
        """Count one image."""
        self.images += 1
        self.changed += bool(comparison.lost or comparison.gained or comparison.moved)
        for label, total in comparison.by_label().items():
            self.by_label[label].add(total)
            self.by_source[source].add(total)


def compare(
    a: Iterable[Detection],
    b: Iterable[Detection],
    *,
    min_confidence: float = MIN_CONFIDENCE,
    same_iou: float = SAME_IOU,
    moved_iou: float = MOVED_IOU,
) -> Comparison:
    """Compare the detections of two models in one image.

    Detections are paired by label, one to one. As in COCO's evaluation, the detections of B choose
    in the order of their confidence. Each takes the free detection of A with the highest IoU. This
    happens twice: first with an IoU of at least `same_iou`, then with at least `moved_iou`.

    Args:
        a: detections of model A, in any order.
        b: detections of model B, in any order.
        min_confidence: detections below it do not count. They only explain why a detection is
            lost or gained.
        same_iou: least IoU of a kept object's boxes.
        moved_iou: least IoU of a moved object's boxes.
    """
    a_all, b_all = _sorted(a), _sorted(b)
    a_left, b_left = (
        [item for item in items if item.confidence >= min_confidence] for items in (a_all, b_all)
    )
    kept = _take_pairs(a_left, b_left, same_iou)
    moved = _take_pairs(a_left, b_left, moved_iou)
    a_faint, b_faint = (
        [item for item in items if item.confidence < min_confidence] for items in (a_all, b_all)
    )
    return Comparison(
        tuple(kept),
        tuple(moved),
        lost=tuple(_alone(a_left, b_faint, same_iou)),
        gained=tuple(_alone(b_left, a_faint, same_iou)),
    )


def _sorted(detections: Iterable[Detection]) -> list[Detection]:
    return sorted(detections, key=lambda item: -item.confidence)


def _take_pairs(a: list[Detection], b: list[Detection], min_iou: float) -> list[Pair]:
    """Pair detections of the same label, and remove them from both lists."""
    pairs = []
    for chooser in list(b):
        candidates = [(iou(item.box, chooser.box), item) for item in a if _same(item, chooser)]
        value, best = max(candidates, key=lambda candidate: candidate[0], default=(0.0, None))
        if best is not None and value >= min_iou:
            pairs.append(Pair(best, chooser, value))
            _remove(a, best)
            _remove(b, chooser)
    return pairs


def _same(a: Detection, b: Detection) -> bool:
    return a.label == b.label


def _remove(detections: list[Detection], item: Detection) -> None:
    """Remove exactly this object. Another detection may be equal to it."""
    del detections[next(i for i, other in enumerate(detections) if other is item)]


def _alone(
    detections: Iterable[Detection], faint: Sequence[Detection], min_iou: float
) -> Iterator[Alone]:
    """Yield detections with the other model's best confidence in the same object."""
    for item in detections:
        confidences = (
            other.confidence
            for other in faint
            if _same(item, other) and iou(item.box, other.box) >= min_iou
        )
        yield Alone(item, max(confidences, default=0.0))
