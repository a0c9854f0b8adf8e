"""Which labels Firestore can store, and how a class gets another one."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.detector.export import _write_metadata, read_metadata
from service.errors import ModelError
from service.labels import MAX_LABEL_BYTES, broken_rule, class_labels, rename, shared_labels

STORABLE = [
    "person",
    "traffic light",
    "a.b/c`d [x] *~",
    "back\\slash \"quotes\" 'too'",
    "1",
    "no",
    "__",
    "___",
    "__open",
    " ",
    "signalisation é 🛑\u200b\n",
    "x" * MAX_LABEL_BYTES,
]


@pytest.mark.parametrize("label", STORABLE)
def test_label_that_can_be_stored_stays_as_it_is(label: str) -> None:
    assert broken_rule(label) is None
    assert class_labels({0: label}, model="a.pt") == {0: label}


@pytest.mark.parametrize(
    ("label", "rule"),
    [
        ("", "cannot be empty"),
        ("__background__", "two underscores"),
        ("____", "two underscores"),
        ("__a\nb__", "two underscores"),
        ("sign\0nul", "character NUL"),
        ("half a \ud83d", "as UTF-8"),
        ("x" * 1600, "1,000 bytes at most; this one has 1,600"),
        ("é" * 501, "1,000 bytes at most; this one has 1,002"),
        (None, "NoneType, not text"),
        (False, "bool, not text"),
        (["car"], "list, not text"),
    ],
    ids=[
        "empty",
        "reserved",
        "four",
        "lines",
        "nul",
        "surrogate",
        "long",
        "bytes",
        "null",
        "no",
        "list",
    ],
)
def test_label_that_cannot_be_stored_is_refused(label: Any, rule: str) -> None:
    names = ["person", label]
    with pytest.raises(
        ModelError, match=rf"a\.pt has labels .*class 1, .*{rule}.*--rename OLD=NEW"
    ):
        class_labels(names, model="a.pt")


@given(st.text(st.characters(exclude_categories=[]), max_size=1100))
def test_label_that_is_accepted_fits_firestores_rules(label: str) -> None:
    if broken_rule(label) is None:
        size = len(label.encode())
        assert 0 < size <= 1000
        assert "\0" not in label
        assert not (label[:2] == label[-2:] == "__" and len(label) > 3)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
@example("\x85")
@example(" a\r\n\u2028b: #c\t")
def test_label_survives_the_metadata_of_an_export(label: str) -> None:
    if broken_rule(label) is None:
        with tempfile.TemporaryDirectory() as directory:
            _write_metadata(Path(directory), {"names": {0: label}})
            names = read_metadata(Path(directory))["names"]
        assert class_labels(names, model="a.pt") == {0: label}


@pytest.mark.parametrize(
    "names",
    [
        ["zero", "one"],
        ("zero", "one"),
        {0: "zero", 1: "one"},
        {"1": "one", "0": "zero"},
    ],
    ids=["list", "tuple", "ids", "text"],
)
def test_names_are_read_by_class_id(names: Any) -> None:
    assert class_labels(names, model="a.pt", count=2) == {0: "zero", 1: "one"}


def test_numbers_become_their_digits() -> None:
    assert class_labels([0, 0.5], model="a.pt") == {0: "0", 1: "0.5"}


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ({0: "a", 2: "c"}, "class 1 has no label"),
        ({0: "a", 1: "b"}, "class 2 has no label"),
        ({0: "a", 1: "b", -1: "c"}, "by an id from 0 up"),
        ({0: "a", "0": "b", 1: "c"}, "does not name each class once"),
        ({"a": 0, "b": 1}, "by their ids"),
        ({}, "class 0 has no label; class 1 .*class 2"),
        (None, "does not name its classes"),
        ("abc", "does not name its classes"),
    ],
    ids=["gap", "few", "negative", "twice", "turned", "none", "null", "text"],
)
def test_class_without_a_label_is_found_at_load(names: Any, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        class_labels(names, model="a.pt", count=3)


def test_many_broken_labels_make_a_short_message() -> None:
    with pytest.raises(ModelError, match="class 4.*; and 75 more") as caught:
        class_labels(["x" * 5000] * 80, model="a.pt")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("names", "renames", "expected"),
    [
        (["a", "b"], ["a=x"], ["x", "b"]),
        (["", "b"], ["=background"], ["background", "b"]),
        (["a", "b"], ["a=b", "b=a"], ["b", "a"]),
        (["a=b", "c"], ["a=b=x"], ["x", "c"]),
        (["a", "c"], ["a=x=y"], ["x=y", "c"]),
        (["a", "a"], ["a=x"], ["x", "x"]),
        (["a", "a"], ["#1=b"], ["a", "b"]),
        (["s\0", "b"], ["#0=x"], ["x", "b"]),
        (["a", "#0"], ["#0=x"], ["a", "x"]),
        ([None, "b"], ["None=x"], ["x", "b"]),
        (["a"], ["#1=b"], ["a", "b"]),
        (["a", "b"], ["a=a"], ["a", "b"]),
    ],
    ids=[
        "one",
        "empty",
        "swap",
        "old-with-equals",
        "new-with-equals",
        "shared",
        "one-of-shared",
        "id",
        "label-before-id",
        "null",
        "missing",
        "same",
    ],
)
def test_rename_gives_a_class_its_new_label(
    names: list[Any], renames: list[str], expected: list[str]
) -> None:
    renamed = rename(names, renames, model="a.pt", count=2)
    assert renamed == dict(enumerate(expected))


@pytest.mark.parametrize(
    ("names", "renames", "what"),
    [
        (["a", "b"], ["c=x"], "a.pt has no class 'c'. It has 'a', 'b'"),
        (["a", "b"], ["=x"], "a.pt has no class ''"),
        (["a", "b"], ["#2=x"], "a.pt has no class '#2'"),
        (["a", "b"], ["a"], "write OLD=NEW"),
        (["a", "b"], ["a="], "a label cannot be empty"),
        (["a", "b"], ["a=__x__"], "two underscores"),
        (["a", "b"], ["a=b"], "the classes 0 and 1 one label, 'b'"),
        (["a", "b"], ["a=x", "b=x"], "the classes 0 and 1 one label, 'x'"),
        (["a", "b"], ["a=x", "#0=y"], "names class 0 twice"),
        (["a", "a=b"], ["a=b=c"], "can be read in two ways"),
    ],
    ids=[
        "unknown",
        "no-empty",
        "no-id",
        "form",
        "to-empty",
        "to-reserved",
        "to-existing",
        "to-one",
        "twice",
        "two-ways",
    ],
)
def test_rename_that_is_wrong_says_why(names: list[str], renames: list[str], what: str) -> None:
    with pytest.raises(ModelError) as caught:
        rename(names, renames, model="a.pt")
    assert what in str(caught.value)


def test_shared_labels_lists_the_classes() -> None:
    assert shared_labels({0: "a", 1: "b", 2: "a"}) == {"a": [0, 2]}
