"""What two models find in one image: kept, moved, lost and gained."""

import pytest

from service.comparison import Comparison, Summary, compare
from service.domain import Box, Detection


def found(label: str, confidence: float, x: float = 0.0, width: float = 100.0) -> Detection:
    return Detection(label, 0, confidence, Box(x, 0.0, x + width, 100.0))


def counts(comparison: Comparison) -> tuple[int, int, int, int]:
    total = comparison.total()
    return total.kept, total.moved, total.lost, total.gained


def test_equal_detections_are_kept_and_agree() -> None:
    comparison = compare(
        [found("cat", 0.9), found("dog", 0.8)], [found("dog", 0.7), found("cat", 1)]
    )
    assert counts(comparison) == (2, 0, 0, 0)
    assert comparison.f1 == 1
    assert comparison.disagreement == 0


def test_two_empty_images_agree() -> None:
    assert compare([], []).f1 == 1


def test_other_label_at_the_same_place_is_lost_and_gained() -> None:
    comparison = compare([found("cat", 0.9)], [found("dog", 0.8)])
    assert counts(comparison) == (0, 0, 1, 1)
    assert comparison.f1 == 0
    assert comparison.disagreement == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (33.0, (1, 0, 0, 0)),  # IoU 0.504
        (34.0, (0, 1, 0, 0)),  # IoU 0.493
        (81.0, (0, 1, 0, 0)),  # IoU 0.105
        (82.0, (0, 0, 1, 1)),  # IoU 0.099
    ],
)
def test_overlap_decides_kept_moved_or_lost(x: float, expected: tuple[int, ...]) -> None:
    assert counts(compare([found("cat", 0.9)], [found("cat", 0.9, x)])) == expected


def test_moved_object_lowers_the_agreement() -> None:
    comparison = compare([found("cat", 0.8)], [found("cat", 0.6, 50.0)])
    assert comparison.f1 == 0
    assert comparison.disagreement == pytest.approx(0.8 * (1 - 1 / 3))


def test_detection_pairs_only_once() -> None:
    comparison = compare([found("cat", 0.9)], [found("cat", 0.5), found("cat", 0.9)])
    assert counts(comparison) == (1, 0, 0, 1)
    assert comparison.gained[0].detection.confidence == 0.5


def test_equal_detections_are_counted_each() -> None:
    twice = [found("cat", 0.9), found("cat", 0.9)]
    assert counts(compare(twice, twice)) == (2, 0, 0, 0)


def test_confident_detection_chooses_first() -> None:
    a = [found("cat", 0.9), found("cat", 0.8, 30.0)]
    comparison = compare(a, [found("cat", 0.4, 5.0), found("cat", 0.9, 10.0)])
    assert comparison.kept[0].a is a[0]
    assert comparison.kept[0].b.confidence == 0.9
    assert counts(comparison) == (2, 0, 0, 0)


def test_same_place_is_paired_before_a_moved_one() -> None:
    a = [found("cat", 0.9), found("cat", 0.9, 60.0)]
    b = [found("cat", 0.9, 45.0), found("cat", 0.3)]
    assert counts(compare(a, b)) == (2, 0, 0, 0)


def test_detections_below_the_threshold_do_not_count() -> None:
    comparison = compare([found("cat", 0.2)], [found("dog", 0.24)])
    assert counts(comparison) == (0, 0, 0, 0)
    assert comparison.f1 == 1


def test_faint_detection_explains_a_loss() -> None:
    comparison = compare([found("cat", 0.26)], [found("cat", 0.24), found("cat", 0.1)])
    [lost] = comparison.lost
    assert lost.other_confidence == 0.24
    assert comparison.disagreement == pytest.approx(0.02)


def test_faint_detection_of_another_label_explains_nothing() -> None:
    [lost] = compare([found("cat", 0.9)], [found("dog", 0.24)]).lost
    assert lost.other_confidence == 0


def test_summary_counts_labels_sources_and_images() -> None:
    summary = Summary()
    summary.add(compare([found("cat", 0.9)], [found("cat", 0.9)]), "door")
    summary.add(compare([found("cat", 0.9)], [found("dog", 0.9)]))
    assert (summary.images, summary.changed) == (2, 1)
    assert summary.by_label["cat"].lost == 1
    assert summary.by_label["dog"].gained == 1
    assert summary.by_source["door"].kept == 1
    assert summary.by_source[None].lost == 1
    assert summary.total.f1 == pytest.approx(0.5)
