"""Mean average precision (mAP) of boxes, and how sure it is: the bootstrap over images.

The definition is that of COCO's evaluation, `COCOeval` in pycocotools 2.0 with `iouType="bbox"`:
10 IoU thresholds, 101 recall thresholds, objects of every size, and the 100 most confident
detections of each label in an image. The tests compare the values with those of pycocotools, to
1e-9. NumPy is enough for it, so the commands need no further library.

For the bootstrap, the images are drawn again with replacement, as many as there are. The detections
of an image match its objects in the same way in every draw. So each image is matched once, and a
draw only changes how often its detections and objects count.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain import Detection

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
_MAX_DETECTIONS = 100  # of one label in one image
RESAMPLES = 1000
_SEED = 20260101
_CONFIDENCE_PERCENT = 95
# The draws of fewer images differ too little to say how sure a value is.
MIN_IMAGES_FOR_INTERVAL = 5
_MAX_ELEMENTS = 4_000_000  # of one array: 32 MB

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class TrueBox:
    """One labelled object. `bbox` is x, y, width and height in pixels.

    A crowd is a group of objects. Neither missing it nor detecting it is an error.
    """

    label: str
    bbox: tuple[float, float, float, float]
    is_crowd: bool = False


@dataclass(frozen=True)
class Estimate:
    """A value in 0..1, and its 95 % interval, or None for both ends if the images are too few."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class MeasuredLabel:
    """Average precision (AP) of one label.

    Attributes:
        ap50_95: AP, averaged over the IoU thresholds from 0.5 to 0.95.
        ap50: AP at the IoU threshold 0.5.
        objects: number of labelled objects, without crowds.
        images: number of images that have them.
        detections: number of detections.
    """

    ap50_95: Estimate
    ap50: Estimate
    objects: int
    images: int
    detections: int


@dataclass(frozen=True)
class Measured:
    """Mean average precision of all labels that have objects, and the values of each label."""

    map50_95: Estimate
    map50: Estimate
    labels: Mapping[str, MeasuredLabel]


@dataclass
class _Matches:
    """The detections and objects of one label in all images, in the order of the images."""

    scores: list[Floats] = field(default_factory=list)
    images: list[NDArray[np.int64]] = field(default_factory=list)
    matched: list[Bools] = field(default_factory=list)  # thresholds x detections
    ignored: list[Bools] = field(default_factory=list)  # thresholds x detections
    objects: dict[int, int] = field(default_factory=dict)  # number by image


class AveragePrecision:
    """Takes image after image, and computes mAP at the end."""

    def __init__(self) -> None:
        """Begin without images."""
        self._images = 0
        self._matches: dict[str, _Matches] = defaultdict(_Matches)

    def add(self, truth: Iterable[TrueBox], detections: Iterable[Detection]) -> None:
        """Add one image with its labelled objects and its detections, both in any order."""
        image, self._images = self._images, self._images + 1
        objects: dict[str, list[TrueBox]] = defaultdict(list)
        found: dict[str, list[Detection]] = defaultdict(list)
        for item in truth:
            objects[item.label].append(item)
        for detection in detections:
            found[detection.label].append(detection)
        for label in sorted({*objects, *found}):
            # Crowds come last, because a detection prefers a single object.
            boxes = sorted(objects[label], key=lambda item: item.is_crowd)
            best = sorted(found[label], key=lambda item: -item.confidence)[:_MAX_DETECTIONS]
            matches = self._matches[label]
            matches.objects[image] = sum(not item.is_crowd for item in boxes)
            if best:
                matched, ignored = _match(boxes, best)
                matches.scores.append(np.array([item.confidence for item in best]))
                matches.images.append(np.full(len(best), image))
                matches.matched.append(matched)
                matches.ignored.append(ignored)

    def result(self, *, resamples: int = RESAMPLES, seed: int = _SEED) -> Measured:
        """Return mAP of the images so far.

        Args:
            resamples: how often the images are drawn again. 0: no intervals.
            seed: of the draws. Equal arguments give equal intervals.
        """
        tables = {
            label: _Table.of(matches, self._images)
            for label, matches in sorted(self._matches.items())
            if any(matches.objects.values())
        }
        ones = np.ones((1, self._images))
        values = {label: table.precision(ones)[0] for label, table in tables.items()}
        draws: dict[str, list[Floats]] = {label: [] for label in tables}
        if self._images < MIN_IMAGES_FOR_INTERVAL:
            resamples = 0
        for weights in self._draws(resamples, seed, tables.values()):
            for label, table in tables.items():
                draws[label].append(table.precision(weights))
        drawn = {label: _stacked(parts) for label, parts in draws.items()}
        means = _stacked([_mean_of(list(drawn.values()))] if resamples and drawn else [])
        labels = {}
        for label, table in tables.items():
            is_sure = np.count_nonzero(table.objects) >= MIN_IMAGES_FOR_INTERVAL
            labels[label] = MeasuredLabel(
                *_estimates(values[label], drawn[label] if is_sure else _stacked([])),
                objects=int(table.objects.sum()),
                images=int(np.count_nonzero(table.objects)),
                detections=len(table.images),
            )
        value = np.mean(list(values.values()), axis=0) if values else np.zeros(2)
        return Measured(*_estimates(value, means), labels=labels)

    def _draws(self, resamples: int, seed: int, tables: "Iterable[_Table]") -> Iterator[Floats]:
        """Yield how often each image counts in each draw: arrays of shape (draws, images)."""
        random = np.random.default_rng(seed)
        longest = max([self._images, *(len(table.images) for table in tables)])
        step = max(1, min(resamples, _MAX_ELEMENTS // max(longest, 1)))
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            shares = np.full(self._images, 1 / self._images)
            yield random.multinomial(self._images, shares, size=count).astype(np.float64)


@dataclass(frozen=True)
class _Table:
    """The detections of one label, the most confident first, and its objects by image."""

    images: NDArray[np.int64]
    matched: Bools
    ignored: Bools
    objects: Floats

    @classmethod
    def of(cls, matches: _Matches, images: int) -> "_Table":
        objects = np.zeros(images)
        for image, count in matches.objects.items():
            objects[image] = count
        if not matches.scores:
            nothing = np.zeros((len(IOU_THRESHOLDS), 0), np.bool_)
            return cls(np.zeros(0, np.int64), nothing, nothing, objects)
        # Detections of equal confidence keep the order of their images, as in pycocotools.
        order = np.argsort(-np.concatenate(matches.scores), kind="stable")
        return cls(
            np.concatenate(matches.images)[order],
            np.concatenate(matches.matched, axis=1)[:, order],
            np.concatenate(matches.ignored, axis=1)[:, order],
            objects,
        )

    def precision(self, weights: Floats) -> Floats:
        """Return AP50-95 and AP50 of each draw. It is NaN if a draw has no object.

        Args:
            weights: how often each image counts, of shape (draws, images).

        Returns:
            Values of shape (draws, 2).
        """
        objects = weights @ self.objects
        each = weights[:, self.images]
        counted = np.cumsum(each, axis=1)
        values = np.zeros((len(IOU_THRESHOLDS), len(weights)))
        for row, (matched, ignored) in enumerate(zip(self.matched, self.ignored, strict=True)):
            if ignored.any():
                values[row] = _average(
                    each, matched & ~ignored, np.cumsum(each * ~ignored, axis=1), objects
                )
            else:
                values[row] = _average(each, matched, counted, objects)
        values[:, objects == 0] = np.nan
        return np.stack([values.mean(axis=0), values[0]], axis=1)


def _average(each: Floats, is_true: Bools, counted: Floats, objects: Floats) -> Floats:
    """Return AP of each draw at one IoU threshold.

    Measured can only rise at a true detection, so only these columns are needed.

    Args:
        each: how often each detection counts, of shape (draws, detections).
        is_true: whether a detection is of an object.
        counted: number of detections up to each detection.
        objects: number of objects of each draw.
    """
    [columns] = np.nonzero(is_true)
    if not len(columns):
        return np.zeros(len(each))
    true = np.cumsum(each[:, columns], axis=1)
    precision = true / (counted[:, columns] + np.spacing(1))
    recall = true / np.maximum(objects, 1)[:, None]
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(_RECALL_THRESHOLDS, recall, side="right")
    steps = np.diff(reached, axis=1, prepend=0)
    average: Floats = (best_from_here * steps).sum(axis=1) / len(_RECALL_THRESHOLDS)
    return average


def _match(objects: Sequence[TrueBox], detections: Sequence[Detection]) -> tuple[Bools, Bools]:
    """Match the detections of one label in one image, the most confident first.

    Args:
        objects: the labelled objects, crowds last.
        detections: the detections, the most confident first.

    Returns:
        Whether each detection is matched, and whether it is ignored because it is in a crowd: two
        arrays of shape (IoU thresholds, detections).
    """
    shape = len(IOU_THRESHOLDS), len(detections)
    matched, ignored = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    if not objects:
        return matched, ignored
    overlaps = _overlaps(objects, detections).tolist()
    for row, threshold in enumerate(IOU_THRESHOLDS.tolist()):
        taken = [False] * len(objects)
        for column, overlap in enumerate(overlaps):
            chosen = _choose(objects, overlap, taken, min(threshold, 1 - 1e-10))
            if chosen is not None:
                taken[chosen] = True
                matched[row, column] = True
                ignored[row, column] = objects[chosen].is_crowd
    return matched, ignored


def _choose(
    objects: Sequence[TrueBox], overlap: Sequence[float], taken: Sequence[bool], best: float
) -> int | None:
    """Return the index of the free object with the highest IoU of at least `best`, or None."""
    chosen = None
    for index, item in enumerate(objects):
        if taken[index] and not item.is_crowd:
            continue
        if chosen is not None and item.is_crowd and not objects[chosen].is_crowd:
            break
        if overlap[index] >= best:
            best, chosen = overlap[index], index
    return chosen


def _overlaps(objects: Sequence[TrueBox], detections: Sequence[Detection]) -> Floats:
    """Return the IoU of each detection with each object.

    For a crowd, it is the share of the detection's box that is in the crowd's box.
    """
    a = np.array(
        [(d.box.x1, d.box.y1, d.box.x2 - d.box.x1, d.box.y2 - d.box.y1) for d in detections]
    )
    b = np.array([item.bbox for item in objects], np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    sides = np.maximum(high - low, 0)
    inside = sides[..., 0] * sides[..., 1]
    area_a, area_b = a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]
    is_crowd = np.array([item.is_crowd for item in objects])
    union = np.where(is_crowd[None, :], area_a[:, None], area_a[:, None] + area_b - inside)
    shares: Floats = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    return shares


def _mean_of(values: Sequence[Floats]) -> Floats:
    """Return the mean over the labels of each draw. Labels without objects in it do not count."""
    stacked = np.stack(values)
    is_known = ~np.isnan(stacked)
    count = np.maximum(is_known.sum(axis=0), 1)
    mean: Floats = np.where(is_known, stacked, 0).sum(axis=0) / count
    return mean


def _stacked(parts: Sequence[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.zeros((0, 2))


def _estimates(values: Any, drawn: Floats) -> tuple[Estimate, Estimate]:
    """Return the estimates of AP50-95 and AP50."""
    tail = (100 - _CONFIDENCE_PERCENT) / 2
    known = drawn[~np.isnan(drawn).any(axis=1)]
    if not len(known):
        return Estimate(float(values[0])), Estimate(float(values[1]))
    low, high = np.percentile(known, [tail, 100 - tail], axis=0)
    # With many equal confidences, most draws are better than the images themselves: an image that
    # is drawn twice puts its true detections next to each other.
    low, high = np.minimum(low, values), np.maximum(high, values)
    first, second = (Estimate(float(values[i]), float(low[i]), float(high[i])) for i in range(2))
    return first, second
