"""Which detections the rules of a source keep."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.document import detection_fields
from service.domain import (
    Box,
    ClassScore,
    Detection,
    ImageInfo,
    ImageRef,
    ImageResult,
    Prediction,
)
from service.evaluation import evaluate
from service.faint import MAX_BYTES, pack, unpack
from service.sources.rules import Rules
from service.sources.schema import Anchor, Mode, Zone

LABELS = ("person", "car", "dog")
SIZE = (100, 80)
RESULT = ImageResult(ImageRef("uploads", "a.jpg", 1), image_info=ImageInfo(*SIZE, "JPEG"))
LEFT = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
BOTTOM = ((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0))
WHOLE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


def zone(name: str, points: Any, mode: str = "include", **fields: Any) -> Zone:
    if "labels" in fields:
        fields["labels"] = frozenset(fields["labels"])
    return Zone(name=name, points=points, mode=Mode(mode), **fields)


def detection(
    label: str = "person", confidence: float = 0.9, box: Any = (0, 0, 10, 10)
) -> Detection:
    return Detection(label, LABELS.index(label), confidence, Box(*map(float, box)))


def kept(rules: Rules, *found: Detection) -> list[tuple[str, tuple[str, ...]]]:
    result = evaluate(RESULT, Prediction(found), rules)
    assert result.faint is not None
    assert len(result.detections) + len(result.faint) == len(found)
    return [(item.label, item.zones) for item in result.detections]


def test_labels_have_their_own_thresholds() -> None:
    rules = Rules(0.5, {"person": 0.8, "car": 0.2})
    found = [detection("person", 0.7), detection("car", 0.2), detection("dog", 0.5)]
    assert kept(rules, *found) == [("dog", ()), ("car", ())]


def test_dropped_labels_are_faint_whatever_their_confidence() -> None:
    rules = Rules(0.5, keep_labels=frozenset({"car"}))
    result = evaluate(RESULT, Prediction((detection("dog", 0.99), detection("car"))), rules)
    assert [item.label for item in result.detections] == ["car"]
    assert [item.label for item in result.faint or ()] == ["dog"]


def test_without_keep_faint_nothing_else_is_recorded() -> None:
    result = evaluate(RESULT, Prediction((detection(confidence=0.1),)), Rules(keep_faint=False))
    assert result.detections == () and result.faint is None


def test_exclude_zone_drops_its_labels_only() -> None:
    rules = Rules(zones=(zone("road", LEFT, "exclude", labels=["car"]),))
    assert kept(rules, detection("car"), detection("person")) == [("person", ())]
    assert kept(replace(rules, zones=(zone("road", LEFT, "exclude"),)), detection()) == []


def test_include_zones_keep_only_what_is_in_one_of_them() -> None:
    rules = Rules(zones=(zone("left", LEFT), zone("bottom", BOTTOM, labels=["person"])))
    right_top, right_bottom = (80, 0, 90, 10), (80, 60, 90, 70)
    found = [detection("person", box=right_bottom), detection("car", box=right_bottom)]
    assert kept(rules, *found) == [("person", ("bottom",))]
    assert kept(rules, detection(box=(0, 60, 10, 70))) == [("person", ("left", "bottom"))]
    assert kept(rules, detection(box=right_top)) == []


def test_labels_without_an_include_zone_are_kept_everywhere() -> None:
    rules = Rules(zones=(zone("left", LEFT, labels=["person"]),))
    assert kept(rules, detection("car", box=(80, 0, 90, 10))) == [("car", ())]


def test_exclude_wins_over_include() -> None:
    rules = Rules(zones=(zone("left", LEFT), zone("bottom", BOTTOM, "exclude")))
    assert kept(rules, detection(box=(0, 60, 10, 70))) == []


def test_zone_of_the_whole_image_keeps_the_rest() -> None:
    rules = Rules(zones=(zone("left", LEFT), zone("everywhere", WHOLE)))
    assert kept(rules, detection(box=(80, 70, 100, 80))) == [("person", ("everywhere",))]


@pytest.mark.parametrize(
    ("anchor", "min_overlap", "box", "is_in"),
    [
        ("bottom_center", 0.5, (0, 0, 10, 40), True),  # its lowest point is on the edge
        ("bottom_center", 0.5, (0, 0, 10, 39), False),
        ("center", 0.5, (0, 0, 10, 79), False),
        ("center", 0.5, (0, 2, 10, 79), True),
        ("overlap", 0.5, (0, 20, 10, 60), True),
        ("overlap", 0.6, (0, 20, 10, 60), False),
        ("overlap", 1.0, (0, 41, 100, 80), True),
        ("overlap", 0.01, (5, 50, 5, 60), False),  # a box without an area
    ],
)
def test_anchor_decides_whether_a_box_is_in_a_zone(
    anchor: str, min_overlap: float, box: Any, is_in: bool
) -> None:
    bottom = zone("bottom", BOTTOM, anchor=Anchor(anchor), min_overlap=min_overlap)
    assert bool(kept(Rules(zones=(bottom,)), detection(box=box))) == is_in


def test_zones_do_not_apply_to_classes() -> None:
    prediction = Prediction(classes=(ClassScore("dog", 2, 0.9), ClassScore("car", 1, 0.1)))
    result = evaluate(RESULT, prediction, Rules(zones=(zone("left", LEFT),)))
    assert [item.label for item in result.kept_classes] == ["dog"]
    assert len(result.classes) == 2


def test_counts_by_zone_count_include_zones() -> None:
    zones = (zone("left", LEFT), zone("all", WHOLE), zone("sky", LEFT, "exclude", labels=["dog"]))
    result = evaluate(RESULT, Prediction((detection(), detection("car"))), Rules(zones=zones))
    assert detection_fields(result)["counts_by_zone"] == {
        "left": {"car": 1, "person": 1},
        "all": {"car": 1, "person": 1},
    }


SHARES = st.integers(0, 10).map(lambda tenth: tenth / 10)
RECTANGLES = st.tuples(SHARES, SHARES, SHARES, SHARES).filter(lambda r: r[0] < r[2] and r[1] < r[3])
ZONES = st.builds(
    lambda r, mode, anchor, labels, overlap: Zone(
        name="zone",
        points=((r[0], r[1]), (r[2], r[1]), (r[2], r[3]), (r[0], r[3])),
        mode=mode,
        anchor=anchor,
        labels=labels,
        min_overlap=overlap,
    ),
    RECTANGLES,
    st.sampled_from(Mode),
    st.sampled_from(Anchor),
    st.frozensets(st.sampled_from(LABELS), max_size=2),
    st.sampled_from([0.2, 0.5, 1.0]),
)
CONFIDENCES = st.floats(0.05, 1)
RULES = st.builds(
    Rules,
    CONFIDENCES,
    st.dictionaries(st.sampled_from(LABELS), CONFIDENCES),
    st.none() | st.frozensets(st.sampled_from(LABELS), min_size=1),
    st.lists(ZONES, max_size=4).map(tuple),
)
EDGES = st.tuples(st.floats(-5, 105), st.floats(-5, 105)).map(sorted)
DETECTIONS = st.builds(
    lambda label, confidence, xs, ys: detection(label, confidence, (xs[0], ys[0], xs[1], ys[1])),
    st.sampled_from(LABELS),
    CONFIDENCES | st.sampled_from([0.25, 0.5]),
    EDGES,
    EDGES,
)
CLASSES = st.builds(
    lambda label, confidence: ClassScore(label, LABELS.index(label), confidence),
    st.sampled_from(LABELS),
    CONFIDENCES,
)
PREDICTIONS = st.builds(
    Prediction,
    st.lists(DETECTIONS, max_size=12).map(tuple),
    st.lists(CLASSES, max_size=3).map(lambda c: tuple(sorted(c, key=lambda x: -x.confidence))),
)


@settings(max_examples=300, deadline=None)
@given(PREDICTIONS, RULES, RULES)
def test_rules_decide_later_as_at_the_commit(
    prediction: Prediction, before: Rules, after: Rules
) -> None:
    """Evaluate what a document stores, and compare with the evaluation of the prediction."""
    stored = evaluate(RESULT, prediction, before)
    packed = pack(stored.faint or (), max_bytes=MAX_BYTES)
    assert packed.cut is None
    found = (*stored.detections, *unpack(packed.data))
    later = evaluate(stored, Prediction(found, stored.classes), after)
    assert later == evaluate(RESULT, prediction, after)
