"""The codec of faint detections, and the grid that the thresholds are applied on."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Box, ClassScore, Detection, Polygon, Prediction
from service.errors import FaintBytesError
from service.faint import MAX_BYTES, pack, rounded, sort_key, unpack
from service.inference.similarity import iou

LABELS = st.text(st.characters(exclude_categories=["Cs"]), max_size=1000)
COORDINATES = st.floats(-1e5, 1e5)
BOXES = st.builds(Box, COORDINATES, COORDINATES, COORDINATES, COORDINATES)
DETECTIONS = st.builds(Detection, LABELS, st.integers(0, 10_000), st.floats(0, 1), BOXES)
ANY_NUMBER = st.floats()
ANY_BOXES = st.builds(Box, ANY_NUMBER, ANY_NUMBER, ANY_NUMBER, ANY_NUMBER)
ANY_DETECTIONS = st.builds(Detection, LABELS, st.integers(0, 100), ANY_NUMBER, ANY_BOXES)


def grid(detections: list[Detection]) -> tuple[Detection, ...]:
    return rounded(Prediction(tuple(detections))).detections


@given(st.lists(DETECTIONS, max_size=20))
def test_detections_that_fit_are_read_back_unchanged(detections: list[Detection]) -> None:
    expected = grid(detections)
    packed = pack(expected, max_bytes=10**6)
    assert packed.cut is None
    assert unpack(packed.data) == expected


@given(st.lists(DETECTIONS, max_size=20), st.integers(2, MAX_BYTES))
def test_packed_detections_never_exceed_the_limit(
    detections: list[Detection], max_bytes: int
) -> None:
    expected = grid(detections)
    packed = pack(expected, max_bytes=max_bytes)
    assert len(packed.data) <= max_bytes
    read = unpack(packed.data)
    assert read == expected[: len(read)]
    assert packed.cut == (expected[len(read)].confidence if len(read) < len(expected) else None)


def test_every_detection_above_the_cut_is_packed() -> None:
    detections = grid(
        [Detection(f"label {i % 7}", i % 7, i / 500, Box(i, i, i + 50, i + 50)) for i in range(500)]
    )
    packed = pack(detections)
    assert packed.cut is not None
    above = [item for item in detections if item.confidence > packed.cut]
    assert list(unpack(packed.data)[: len(above)]) == above


def test_two_kilobytes_hold_the_boxes_of_a_crowded_image() -> None:
    """120 large boxes of a 12-megapixel image fit, with 20 labels."""
    detections = grid(
        [
            Detection(f"label {i % 20}", i % 20, 0.25 - i / 1000, Box(i * 20.3, i * 19, 3900, 2900))
            for i in range(120)
        ]
    )
    assert pack(detections).cut is None


def test_label_of_a_thousand_bytes_counts_once() -> None:
    detections = grid([Detection("x" * 1000, 0, 0.1, Box(0, 0, 9, i)) for i in range(20)])
    packed = pack(detections)
    assert unpack(packed.data) == detections
    assert pack(grid([Detection("x" * 3000, 0, 0.1, Box(0, 0, 9, 9))])).cut == 0.1


@given(st.lists(ANY_DETECTIONS, max_size=10))
def test_rounding_twice_is_rounding_once(detections: list[Detection]) -> None:
    once = rounded(Prediction(tuple(detections)))
    assert rounded(once) == once
    assert unpack(pack(once.detections, max_bytes=10**6).data) == once.detections


@given(st.floats(0, 635), st.floats(0, 635), st.floats(5, 640), st.floats(5, 640))
def test_rounded_box_of_five_pixels_is_the_same_box(
    x: float, y: float, width: float, height: float
) -> None:
    box = Box(x, y, x + width, y + height)
    (found,) = grid([Detection("a", 0, 0.5, box)])
    assert iou(found.box, box) >= 0.99


def test_rounded_numbers_are_short() -> None:
    (found,) = grid([Detection("a", 0, 0.123456, Box(1.006, 2.3333333, 99.996, 100.1 + 0.2))])
    assert found == Detection("a", 0, 0.1235, Box(1.01, 2.33, 100.0, 100.3))
    score = rounded(Prediction(classes=(ClassScore("a", 0, 0.99999),))).classes
    assert score == (ClassScore("a", 0, 1.0),)


def test_order_does_not_depend_on_the_order_of_the_model() -> None:
    found = [Detection("a", i % 2, 0.30001, Box(9 - i, 0, 20, 20)) for i in range(8)]
    assert grid(found) == grid(found[::-1])
    assert list(grid(found)) == sorted(grid(found), key=sort_key)


def test_rounding_keeps_all_else() -> None:
    found = Detection("a", 3, 0.5, Box(1, 2, 3, 4), polygons=(Polygon((1.23456,)),), area=9.87654)
    assert grid([found]) == (found,)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for candidate in (data, b"\x01" + data):
        with contextlib.suppress(FaintBytesError):
            assert len(unpack(candidate)) <= len(candidate)


DAMAGED = {
    "nothing": b"",
    "other version": b"\x02\x00",
    "no count": b"\x01",
    "number without end": b"\x01" + b"\xff" * 20,
    "label cut short": b"\x01\x01\x00\x05ab",
    "label that is not UTF-8": b"\x01\x01\x00\x01\xff",
    "label that is not there": b"\x01\x01\x00\x01a\x01\x00\x00\x00\x00\x00",
    "negative confidence": b"\x01\x01\x00\x01a\x00\xff\x7f\x00\x00\x00\x00",
    "detection cut short": b"\x01\x01\x00\x01a\x00\x00\x00",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FaintBytesError):
        unpack(data)


def test_format_is_as_documented() -> None:
    """With another format, the bytes of old documents would be read wrongly."""
    cat = Detection("cat", 15, 0.2, Box(1.0, -0.5, 2.0, 1.0))
    dog = Detection("dog", 300, 0.1999, Box(0.0, 0.0, 3.0, 4.0))
    again = replace(cat, confidence=0.1)
    assert pack([cat, dog, again]).data == (
        b"\x01\x02"
        b"\x0f\x03cat"
        b"\xac\x02\x03dog"
        b"\x00\xc0\x3e" + b"\xc8\x01\x63\xc8\x01\xac\x02" + b"\x01\x01\x00\x00\xd8\x04\xa0\x06"
        b"\x00\xe7\x07\xc8\x01\x63\xc8\x01\xac\x02"
    )


def test_label_that_is_not_text_raises() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        pack([Detection("\ud800", 0, 0.1, Box(0, 0, 1, 1))])
