"""Values of documents that a person has edited."""

from datetime import UTC, datetime
from typing import Any

import pytest

from service.edited import (
    as_list,
    as_map,
    maps_of,
    number_or_none,
    text_or_none,
    texts_of,
)

TIME = datetime(2026, 11, 30, tzinfo=UTC)
VALUES: tuple[Any, ...] = (
    None, True, 0, 1.5, float("nan"), float("inf"), 10**400, "a", b"a", TIME, [1, "a", {"b": 1}],
    {"a": 1}, object(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("read", "kept", "otherwise"),
    [
        (as_map, [{"a": 1}], {}),
        (as_list, [[1, "a", {"b": 1}]], []),
        (text_or_none, ["a"], None),
        (number_or_none, [0, 1.5], None),
    ],
)
def test_value_of_another_type_is_left_out(read: Any, kept: list[Any], otherwise: Any) -> None:
    for value in VALUES:
        is_kept = type(value) is not bool and any(value is each or value == each for each in kept)
        assert read(value) == (value if is_kept else otherwise), repr(value)


def test_elements_of_another_type_are_left_out() -> None:
    assert maps_of([1, "a", {"b": 1}, None]) == [{"b": 1}]
    assert texts_of([1, "a", {"b": 1}, None]) == ["a"]
    assert maps_of(5) == []
    assert texts_of({"a": 1}) == []
