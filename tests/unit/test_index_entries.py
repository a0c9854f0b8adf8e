"""The storage of documents and index entries, against the examples of Firestore's documentation."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from devtools.bench.errors import BenchError
from devtools.bench.index_entries import (
    AUTOMATIC,
    Indexes,
    deployed_indexes,
    document_bytes,
    each_index,
    index_entries,
    name_bytes,
    read,
    sample,
    sample_entries,
    table,
)
from devtools.docs.document import DONE
from service.document import to_document
from service.stored_json import json_line

# https://firebase.google.com/docs/firestore/storage-size
PATH = ("users", "jeff", "tasks", "my_task_id")
TASK = {
    "type": "Personal",
    "done": False,
    "priority": 1,
    "description": "Learn Cloud Firestore",
}
TOP = ("detections", "a" * 40)


def test_sizes_are_those_of_firestores_examples() -> None:
    assert name_bytes(PATH) == 44
    assert document_bytes(PATH, TASK) == 147
    single = Indexes({"*": (), "done": ("ASCENDING",)})
    assert list(index_entries(PATH, TASK, single)) == [109]
    both = Indexes({"*": ()}, [[("done", "ASCENDING"), ("priority", "ASCENDING")]])
    assert list(index_entries(PATH, TASK, both)) == [112]


@pytest.mark.parametrize(
    ("document", "entries"),
    [
        ({"a": 1}, 2),
        ({"a": None}, 2),
        ({"a": ["x", "y", "x"]}, 4),  # the array, both ways, and each element once
        ({"a": {"b": 1, "c": {"d": 2}}}, 8),  # each map and each value, both ways
        ({"a": []}, 2),
    ],
)
def test_automatic_indexes_count_every_value(document: dict[str, object], entries: int) -> None:
    assert len(list(index_entries(TOP, document, Indexes({"*": AUTOMATIC})))) == entries


def test_subfields_inherit_the_indexes_of_their_map() -> None:
    indexes = Indexes({"*": (), "a": ("ASCENDING",), "a.c": ()})
    assert len(list(index_entries(TOP, {"a": {"b": 1, "c": 2}, "d": 3}, indexes))) == 2


def test_composite_index_has_an_entry_for_each_element() -> None:
    index = [("labels", "CONTAINS"), ("time", "DESCENDING")]
    indexes = Indexes({"*": ()}, [index])
    time = datetime(2026, 11, 30, tzinfo=UTC)
    assert len(list(index_entries(TOP, {"labels": ["a", "b"], "time": time}, indexes))) == 2
    assert not list(index_entries(TOP, {"labels": ["a"]}, indexes))  # a field is missing


def test_long_strings_are_cut_in_an_index() -> None:
    indexes = Indexes({"*": ("ASCENDING",)})
    [long] = index_entries(TOP, {"a": "x" * 5000}, indexes)
    [limit] = index_entries(TOP, {"a": "x" * 1499}, indexes)
    assert long == limit


def test_default_needs_about_a_third_of_the_storage() -> None:
    document = sample()
    assert set(document) == {*to_document(DONE), "created_at"}

    def total(indexes: Indexes) -> int:
        return document_bytes(TOP, document) + sum(index_entries(TOP, document, indexes))

    assert total(deployed_indexes()) < 0.36 * total(deployed_indexes(index_all_fields=True))


def test_parts_of_the_indexes_add_up() -> None:
    indexes = deployed_indexes()
    parts = [entry for _, each in each_index(indexes) for entry in sample_entries(each)]
    assert sorted(parts) == sorted(sample_entries(indexes))


def test_table_reads_what_the_command_printed(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    lines = [json_line(sample())] * 2
    file.write_text("\n".join(lines) + "\n\n")
    assert table(read(file)) == table([sample()])
    other = '{"name": "a\u2028b"}'  # a line for str.splitlines, but not for JSON
    file.write_text(other, encoding="utf-8")
    assert read(file) == [json.loads(other)]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"created_at": "yesterday"}'])
def test_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(text)
    with pytest.raises(BenchError, match="results.jsonl"):
        read(file)
    with pytest.raises(BenchError, match="results.jsonl"):
        read(file / "missing")
