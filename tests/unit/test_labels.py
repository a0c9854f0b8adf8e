"""Which labels Firestore can store, and how they are renamed."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import ModelError
from service.export.renaming import apply_renames, rename, sha256_of_renamed, shared_labels
from service.export.weights import _write_metadata, read_metadata
from service.inference.labels import (
    MAX_LABEL_BYTES,
    advice_for_export,
    advice_for_weights,
    broken_rule,
    label_of,
)
from service.inference.labels import class_labels as class_labels_advised

ADVICE = "What to do."


def class_labels(names: Any, *, model: str, count: int | None = None) -> dict[int, str]:
    return class_labels_advised(names, model=model, count=count, advice=ADVICE)


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
        ("two\rlines", "carriage return"),
        ("two lines\r\n", "carriage return"),
        ("half a \ud83d", "as UTF-8"),
        ("x" * 1600, "at most 1,000 bytes, but this label has 1,600"),
        ("é" * 501, "at most 1,000 bytes, but this label has 1,002"),
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
        "return",
        "line-ends",
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
    with pytest.raises(ModelError, match=rf"a\.pt has labels .*class 1, .*{rule}.*{ADVICE}"):
        class_labels(names, model="a.pt")


@given(st.text(st.characters(exclude_categories=[]), max_size=1100))
def test_label_that_is_accepted_fits_firestores_rules(label: str) -> None:
    if broken_rule(label) is None:
        size = len(label.encode())
        assert 0 < size <= 1000
        assert not set("\0\r") & set(label)
        assert not (label[:2] == label[-2:] == "__" and len(label) > 3)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
@example("\x85")
@example(" a\n\u2028b: #c\t")
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
        ({1_000_000_000: "a"}, "names class 1000000000: the last id is 99,999"),
        ({float("inf"): "a"}, "by their ids"),
        ({"9" * 5000: "a"}, "by their ids"),
        ({"x" * 5000: "a"}, "by their ids: .{,60}$"),
    ],
    ids=[
        "gap",
        "few",
        "negative",
        "twice",
        "turned",
        "none",
        "null",
        "text",
        "huge",
        "infinite",
        "digits",
        "long",
    ],
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
        (["a", "a=b"], ["a=b=c"], "is ambiguous"),
        (["a", "b"], ["#" + "1" * 5000 + "=x"], "a.pt has no class '#11"),
        (["a", "b"], ["#²=x"], "a.pt has no class '#²'"),
        (["a", "b"], ["1" * 5000], "write OLD=NEW"),
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
        "digits",
        "superscript",
        "long",
    ],
)
def test_rename_that_is_wrong_says_why(names: list[str], renames: list[str], what: str) -> None:
    with pytest.raises(ModelError) as caught:
        rename(names, renames, model="a.pt")
    assert what in str(caught.value)
    assert len(str(caught.value)) < 300


def test_labels_that_change_give_the_model_another_identity() -> None:
    options: dict[str, Any] = {"model": "a.pt", "count": 2, "advice": ADVICE}
    assert apply_renames(["a", 7], ["a=a"], **options) == ({0: "a", 1: "7"}, False)
    assert apply_renames(["a", 7], [], **options) == ({0: "a", 1: "7"}, False)
    changed, is_renamed = apply_renames(["a", 7], ["7=b"], **options)
    assert (changed, is_renamed) == ({0: "a", 1: "b"}, True)
    shas = [
        sha256_of_renamed("0" * 64, labels)
        for labels in (changed, {1: "b", 0: "a"}, {0: "b", 1: "a"})
    ]
    assert shas[0] == shas[1] != shas[2]
    assert sha256_of_renamed("1" * 64, changed) != shas[0]
    assert all(len(sha) == 64 for sha in shas)


def test_advice_fits_the_model() -> None:
    assert "export a.pt --rename OLD=NEW" in advice_for_weights("a.pt")
    half = advice_for_export("a_openvino_model", "fp16")
    assert "export a_openvino_model --precision fp16 --output DIRECTORY --rename OLD=NEW" in half
    for precision in ("int8", None):
        advice = advice_for_export("a_openvino_model", precision)
        assert "cannot be renamed: export again from its weights" in advice


def test_class_without_a_label_is_named_by_its_digits() -> None:
    assert [label_of({0: "a"}, class_id) for class_id in (0, 7)] == ["a", "7"]


def test_shared_labels_lists_the_classes() -> None:
    assert shared_labels({0: "a", 1: "b", 2: "a"}) == {"a": [0, 2]}
