"""The metadata that an uploader gave an object are untrusted: they are limited."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.object_metadata import MAX_BYTES, read_custom, read_custom_headers


def test_metadata_are_kept_with_their_keys_in_lower_case() -> None:
    assert read_custom({"Camera-Id": "Gate 4", "note": "é 日本"}) == (
        {"camera-id": "Gate 4", "note": "é 日本"},
        False,
    )


@pytest.mark.parametrize("absent", [None, {}])
def test_object_without_metadata_has_none(absent: Any) -> None:
    assert read_custom(absent) == (absent, False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", "x"),
        ("__name__", "x"),
        ("____", "x"),
        ("k" * 3000, "x"),
        ("k" * 1491, "x"),  # a field path has at most 1,500 bytes
        ("é" * 351, "x"),
        ("big", "x" * 3000),
        ("number", 7),
        ("null", None),
        ("map", {"a": "b"}),
        ("surrogate", "\ud800"),
        ("\udfff", "x"),
        ("KEPT", "the same key in upper case"),
    ],
)
def test_item_that_firestore_does_not_store_is_left_out(key: str, value: Any) -> None:
    kept = "the same key in upper case" if key == "KEPT" else "yes"
    assert read_custom({"kept": "yes", key: value}) == ({"kept": kept}, True)


@pytest.mark.parametrize("value", ["text", 7, [], [["a", "b"]], True])
def test_metadata_that_are_no_map_are_left_out(value: Any) -> None:
    assert read_custom(value) == (None, True)


def test_metadata_are_cut_at_two_kilobytes() -> None:
    full = {"a": "x" * (MAX_BYTES - 1)}
    assert read_custom(full) == (full, False)
    assert read_custom({"a": "x" * MAX_BYTES, "b": "y"}) == ({"b": "y"}, True)


def test_headers_are_read_as_utf8() -> None:
    headers = {
        "X-Goog-Meta-Camera-Id": "Gate é".encode().decode("latin-1"),
        "x-goog-meta-latin": "\xe9",
        "x-goog-meta-": "no key",
        "X-Goog-Generation": "1",
    }
    assert read_custom_headers(headers) == ({"camera-id": "Gate é", "latin": "é"}, True)
    assert read_custom_headers({"Content-Type": "image/jpeg"}) == (None, False)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), st.text() | _JSON) | _JSON)
def test_every_json_gives_short_text_or_says_that_it_is_cut(value: Any) -> None:
    kept, is_cut = read_custom(value)
    total = sum(len(key.encode()) + len(text.encode()) for key, text in (kept or {}).items())
    assert total <= MAX_BYTES
    if isinstance(value, dict) and not is_cut:
        assert kept == {key.lower(): text for key, text in value.items()}
