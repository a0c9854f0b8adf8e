"""The filter of results: what a URL states, and what it says of impossible values."""

from datetime import UTC, datetime

import pytest

from service.result_filter import FilterError, Order, ResultFilter, Shown
from tests.filters import possible_filters


def test_filter_survives_its_url() -> None:
    for chosen in possible_filters():
        assert ResultFilter.parse(chosen.arguments()) == chosen


def test_unknown_and_empty_arguments_are_ignored() -> None:
    assert ResultFilter.parse({"label": "", "size": "3", "cursor": "x"}) == ResultFilter()


def test_time_without_a_zone_is_utc() -> None:
    time = datetime(2026, 11, 30, 1, tzinfo=UTC)
    for text in ("2026-11-30T01:00", "2026-11-30T01:00:00Z", "2026-11-30T02:00+01:00"):
        assert ResultFilter.parse({"until": text}).until == time
        assert ResultFilter.parse({"until": text}).arguments() == {"until": time.isoformat()}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("order", "oldest"),
        ("shown", "x"),
        ("day", "30.11.2026"),
        ("until", "now"),
        ("until", "0001-01-01T00:00:00+14:00"),
        ("until", "9999-12-31T23:59:59-14:00"),
        ("label", "x" * 1401),
        ("label", "é" * 701),
        ("source", "\ud800"),
        ("prefix", "x" * 1401),
    ],
)
def test_impossible_value_of_a_filter_is_refused(name: str, text: str) -> None:
    with pytest.raises(FilterError, match=name):
        ResultFilter.parse({name: text})


def test_zone_and_label_together_have_a_limit() -> None:
    with pytest.raises(FilterError, match="zone"):
        ResultFilter(zone="z" * 700, label="x" * 800)


@pytest.mark.parametrize(
    ("chosen", "field", "advice"),
    [
        (ResultFilter(zone="door"), "zone", "choose the source"),
        (ResultFilter(prefix="cam1/"), "prefix", "needs a bucket"),
        (ResultFilter(bucket="uploads"), "bucket", "sort by name"),
        (ResultFilter(order=Order.NAME), "order", "choose a bucket"),
        (ResultFilter(order=Order.NAME, bucket="b", source="s"), "source", "Remove the bucket"),
        (ResultFilter(order=Order.CONFIDENT, shown=Shown.FAILED), "shown", "by the newest"),
        (
            ResultFilter(order=Order.UNCERTAIN, label="x", source="s"),
            "source",
            "sort by the newest",
        ),
        (ResultFilter(order=Order.UNCERTAIN, label="__x__"), "label", "Choose another"),
    ],
    ids=str,
)
def test_conflict_says_what_to_do_instead(chosen: ResultFilter, field: str, advice: str) -> None:
    assert advice in chosen.conflicts()[field]
    rest = chosen.without(*chosen.conflicts())
    assert not rest.conflicts()


def test_newest_first_combines_with_every_condition() -> None:
    every = ResultFilter(
        label="person",
        shown=Shown.FOUND,
        error_code="corrupt_image",
        source="gate",
        zone="door",
        day=datetime(2026, 11, 30, tzinfo=UTC).date(),
        until=datetime(2026, 11, 30, tzinfo=UTC),
    )
    assert not every.conflicts()
