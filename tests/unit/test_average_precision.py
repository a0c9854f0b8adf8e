"""mAP and its intervals: equal to pycocotools, and as sure as the images allow."""

import contextlib
import io
import random
from typing import Any

import numpy as np
import pytest

from service.domain import Box, Detection
from service.inference.average_precision import (
    MIN_IMAGES_FOR_INTERVAL,
    AveragePrecision,
    Measured,
    TrueBox,
)

Row = dict[str, Any]


def precision(images: int, objects: list[Row], found: list[Row], **options: Any) -> Measured:
    evaluation = AveragePrecision()
    for image in range(1, images + 1):
        evaluation.add(
            [
                TrueBox(str(row["category_id"]), tuple(row["bbox"]), bool(row["iscrowd"]))
                for row in objects
                if row["image_id"] == image
            ],
            [detection(row) for row in found if row["image_id"] == image],
        )
    return evaluation.result(**options)


def detection(row: Row) -> Detection:
    x, y, width, height = row["bbox"]
    return Detection(str(row["category_id"]), 0, row["score"], Box(x, y, x + width, y + height))


def scene(
    images: int, labels: int, most: int, *, seed: int = 1, digits: int = 2
) -> tuple[list[Row], list[Row]]:
    """Return random objects, some of them crowds, and detections near them and elsewhere."""
    chance = random.Random(seed)

    def box() -> list[float]:
        x, y, width, height = (chance.uniform(*span) for span in [(0, 500)] * 2 + [(5, 200)] * 2)
        return [x, y, width, height]

    def near(bbox: list[float]) -> list[float]:
        x, y, width, height = bbox
        return [
            x + chance.gauss(0, width / 10),
            y + chance.gauss(0, height / 10),
            width * chance.uniform(0.8, 1.2),
            height * chance.uniform(0.8, 1.2),
        ]

    objects: list[Row] = []
    found: list[Row] = []

    def find(image: int, label: int, bbox: list[float], most: float) -> None:
        score = round(most * chance.random(), digits)  # few digits: many equal scores
        row = {"image_id": image, "category_id": label, "bbox": bbox, "score": score}
        found.append(row)

    for image in range(1, images + 1):
        for _ in range(chance.randint(0, most)):
            label, bbox = chance.randint(1, labels), box()
            crowd = int(chance.random() < 0.1)
            common = {"id": len(objects) + 1, "image_id": image, "iscrowd": crowd}
            objects.append(common | {"category_id": label, "bbox": bbox, "area": 1.0})
            for _ in range(chance.randint(0, 3)):
                other = chance.randint(1, labels)
                find(image, label if chance.random() < 0.9 else other, near(bbox), 1.0)
        for _ in range(chance.randint(0, most)):
            find(image, chance.randint(1, labels), box(), 0.5)
    return objects, found


def coco(images: int, objects: list[Row], found: list[Row], labels: int) -> Any:
    """Return pycocotools' evaluation."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = {
            "images": [{"id": image} for image in range(1, images + 1)],
            "annotations": objects,
            "categories": [{"id": label, "name": str(label)} for label in range(1, labels + 1)],
        }
        dataset.createIndex()
        evaluation = COCOeval(dataset, dataset.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.ultralytics
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize(("images", "labels", "most"), [(4, 2, 3), (40, 5, 6), (8, 1, 150)])
def test_map_equals_that_of_pycocotools(images: int, labels: int, most: int) -> None:
    objects, found = scene(images, labels, most)
    expected = coco(images, objects, found, labels)
    actual = precision(images, objects, found, resamples=0)
    assert actual.map50_95.value == pytest.approx(expected.stats[0], abs=1e-9)
    assert actual.map50.value == pytest.approx(expected.stats[1], abs=1e-9)
    for label in range(labels):
        row = actual.labels[str(label + 1)]
        values = expected.eval["precision"][:, :, label, 0, 2]
        assert row.ap50_95.value == pytest.approx(values.mean(), abs=1e-9)
        assert row.ap50.value == pytest.approx(values[0].mean(), abs=1e-9)


@pytest.mark.ultralytics
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools'
def test_a_draw_equals_an_evaluation_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # Scores differ: equal scores of two copies of an image have no order that both would agree on.
    objects, found = scene(12, 3, 5, digits=9)
    draw = np.random.default_rng(3).integers(1, 13, size=12)
    copies: tuple[list[Row], list[Row]] = ([], [])
    for number, image in enumerate(draw, 1):
        for rows, copied in zip((objects, found), copies, strict=True):
            copied += [row | {"image_id": number} for row in rows if row["image_id"] == image]
    for number, row in enumerate(copies[0], 1):
        row["id"] = number
    expected = coco(12, *copies, 3)
    weights = np.bincount(draw - 1, minlength=12).astype(float)[None]
    monkeypatch.setattr(AveragePrecision, "_draws", lambda *_: iter([weights]))
    interval = precision(12, objects, found, resamples=1).map50_95
    # One end is the draw. The other is the value, which an interval always contains.
    drawn = interval.high if interval.low == interval.value else interval.low
    assert drawn == pytest.approx(expected.stats[0], abs=1e-9)


def perfect(images: int) -> tuple[list[Row], list[Row]]:
    rows = [
        {"image_id": image, "category_id": 1, "bbox": [10.0, 10.0, 50.0, 50.0], "score": 0.9}
        for image in range(1, images + 1)
    ]
    objects = [row | {"iscrowd": 0, "area": 2500.0} for row in rows]
    return objects, rows


def test_perfect_results_have_an_interval_of_no_width() -> None:
    actual = precision(10, *perfect(10))
    estimate = actual.map50_95
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1, 1, 1))


def test_equal_arguments_give_equal_intervals() -> None:
    objects, found = scene(20, 3, 5)
    first, second = (precision(20, objects, found, resamples=50) for _ in range(2))
    assert first == second
    other = precision(20, objects, found, resamples=50, seed=7)
    assert other.map50_95.value == first.map50_95.value
    assert other.map50_95.low != first.map50_95.low


def test_interval_contains_the_value_and_narrows_with_images() -> None:
    widths = []
    for images in (20, 320):
        estimate = precision(images, *scene(images, 1, 4), resamples=200).map50_95
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high
        widths.append(estimate.high - estimate.low)
    assert widths[1] < widths[0] / 2


def test_few_images_have_no_interval() -> None:
    few = MIN_IMAGES_FOR_INTERVAL - 1
    actual = precision(few, *perfect(few))
    assert (actual.map50_95.low, actual.map50_95.high) == (None, None)


def test_label_in_few_images_has_no_interval() -> None:
    objects, found = perfect(20)
    objects[0]["category_id"] = found[0]["category_id"] = 2
    labels = precision(20, objects, found).labels
    assert labels["2"].ap50_95.low is None
    assert labels["1"].ap50_95.low is not None


def test_label_that_is_never_detected_counts_as_zero() -> None:
    objects, found = perfect(10)
    objects[0]["category_id"] = 2
    actual = precision(10, objects, found)
    assert actual.labels["2"].ap50.value == 0
    assert actual.map50.value == pytest.approx(actual.labels["1"].ap50.value / 2)


def test_label_that_no_object_has_does_not_count() -> None:
    objects, found = perfect(10)
    found[0]["category_id"] = 2
    assert list(precision(10, objects, found).labels) == ["1"]


def test_long_results_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    objects, found = scene(20, 3, 5)
    whole = precision(20, objects, found, resamples=30)
    monkeypatch.setattr("service.inference.average_precision._MAX_ELEMENTS", 500)
    parts = precision(20, objects, found, resamples=30)
    assert parts == whole
