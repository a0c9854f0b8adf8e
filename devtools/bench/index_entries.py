"""The storage of a document and of its index entries, by Firestore's published rules.

    python -m devtools.bench.index_entries
    yolo-batch results gs://BUCKET --json > results.jsonl
    python -m devtools.bench.index_entries results.jsonl

Sizes: https://firebase.google.com/docs/firestore/storage-size
Automatic indexes: https://firebase.google.com/docs/firestore/query-data/index-overview

Firestore charges for the storage of index entries. It does not charge for writing them: a write
costs the same with any number of indexes. More entries make it slower.
"""

import argparse
import base64
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from devtools.bench.errors import BenchError
from devtools.docs.document import DONE
from devtools.docs.terraform import MODULE, blocks_of
from service.document import to_document
from service.domain import Box, CapturedAtSource, Detection, GeoPoint, SourceVersion

EVERY_FIELD = "*"
AUTOMATIC = ("ASCENDING", "DESCENDING", "CONTAINS")
_EXTRA_BYTES = 32  # of a document, of a map, and of an index entry
_NAME_BYTES = 16  # of a document's name, beside its parts
_COLLECTION = "detections"
_INDEXED_STRING_BYTES = 1500  # longer strings are cut in an index
_TIMES = ("captured_at", "created_at", "event_time")  # strings in JSON, timestamps in Firestore
_PERSON, _CAR = ("person", 0), ("car", 2)  # labels and class ids
_FOUND = (_PERSON, _PERSON, _PERSON, _CAR, _CAR, _PERSON, ("traffic light", 9))


@dataclass(frozen=True)
class Indexes:
    """The indexes of a collection.

    Attributes:
        fields: modes (ASCENDING, DESCENDING, CONTAINS) by the path of a field. A field that is not
            there has the modes of the map above it, at last those of `*`.
        composite: each index as pairs of a field's path and a mode.
    """

    fields: Mapping[str, Sequence[str]]
    composite: Sequence[Sequence[tuple[str, str]]] = ()

    def owner(self, path: str) -> str:
        """Return the field whose modes a field has: itself, a map above it, or `*`."""
        while path not in self.fields and "." in path:
            path = path.rpartition(".")[0]
        return path if path in self.fields else EVERY_FIELD

    def modes(self, path: str) -> Sequence[str]:
        """Return the modes of a field's own index. `path` has no quotes."""
        return self.fields.get(self.owner(path), AUTOMATIC)


def deployed_indexes(*, index_all_fields: bool = False) -> Indexes:
    """Return the indexes that Terraform creates, read from firestore.tf.

    Args:
        index_all_fields: the value of this variable.
    """
    settings = _locals()
    fields = {field: tuple(modes) for field, modes in settings["single_field_indexes"].items()}
    if index_all_fields:
        fields = {field: modes and AUTOMATIC for field, modes in fields.items()}
    fields[EVERY_FIELD] = AUTOMATIC if index_all_fields else ()
    fields["created_at"] = ()
    return Indexes(fields, _composite(settings["composite_indexes"]))


def deployed_alert_indexes() -> Indexes:
    """Return the indexes of the alert documents, read from firestore.tf."""
    settings = _locals()
    fields = {field: tuple(modes) for field, modes in settings["alert_field_indexes"].items()}
    fields |= {EVERY_FIELD: (), "created_at": ()}
    return Indexes(fields, _composite(settings["alert_composite_indexes"]))


def _locals() -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for block in blocks_of(MODULE / "firestore.tf", "locals"):
        settings |= block
    return settings


def _composite(settings: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    return [[(each["path"], each["mode"]) for each in index] for index in settings.values()]


def name_bytes(path: Sequence[str]) -> int:
    """Return the size of a document's name, whose parts are collections and ids in turn."""
    return sum(_string_bytes(part) for part in path) + _NAME_BYTES if path else 0


def document_bytes(path: Sequence[str], document: Mapping[str, Any]) -> int:
    """Return the size of a document."""
    return name_bytes(path) + _value_bytes(document)


def index_entries(
    path: Sequence[str], document: Mapping[str, Any], indexes: Indexes
) -> Iterator[int]:
    """Yield the size in bytes of each index entry of a document.

    Indexes have the scope of a collection. A document of a top-level collection has no parent
    document, so nothing is counted for its parent's name.
    """
    names = name_bytes(path) + name_bytes(path[:-2]) + _EXTRA_BYTES
    for field, value in _fields(document):
        for mode in indexes.modes(field):
            # An index by array-contains has an entry for each different element.
            for entry in _distinct(value) if mode == "CONTAINS" else [value]:
                yield names + _string_bytes(field) + _indexed_bytes(entry)
    values = dict(_fields(document))
    for index in indexes.composite:
        if all(field in values for field, _ in index):
            entries = [0]
            for field, mode in index:
                each = _distinct(values[field]) if mode == "CONTAINS" else [values[field]]
                entries = [known + _indexed_bytes(value) for known in entries for value in each]
            yield from (names + entry for entry in entries)


def each_index(indexes: Indexes) -> Iterator[tuple[Sequence[tuple[str, str]], Indexes]]:
    """Yield each index as pairs of a field's path and a mode, and as the only one of `Indexes`."""
    for field, modes in indexes.fields.items():
        for mode in modes:
            yield [(field, mode)], Indexes({EVERY_FIELD: (), field: (mode,)})
    for index in indexes.composite:
        yield index, Indexes({EVERY_FIELD: ()}, [index])


def _fields(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of each field and subfield. Elements of arrays are no fields."""
    for name, value in document.items():
        yield above + name, value
        if isinstance(value, Mapping):
            yield from _fields(value, f"{above}{name}.")


def _distinct(value: Any) -> list[Any]:
    if not isinstance(value, list):
        return []
    return list({repr(item): item for item in value}.values())


def _string_bytes(text: str) -> int:
    return len(text.encode()) + 1


def _indexed_bytes(value: Any) -> int:
    return min(_value_bytes(value), _INDEXED_STRING_BYTES)


def _value_bytes(value: Any) -> int:
    if value is None or isinstance(value, bool):
        return 1
    if isinstance(value, str):
        return _string_bytes(value)
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, GeoPoint):
        return 16
    if isinstance(value, Mapping):
        fields = (_string_bytes(name) + _value_bytes(each) for name, each in value.items())
        return sum(fields) + _EXTRA_BYTES
    if isinstance(value, list):
        return sum(_value_bytes(each) for each in value)
    return 8  # integer, number, timestamp


def sample_entries(indexes: Indexes) -> list[int]:
    """Return the size in bytes of each index entry of the sample."""
    path = (_COLLECTION, DONE.ref.document_id)
    return list(index_entries(path, sample(), indexes))


def sample() -> dict[str, Any]:
    """Return the document of an image of a source, with seven detections of three labels.

    It also has 20 faint detections of these labels, and the time at which it was taken.
    """
    box = Box(12.5, 40.0, 181.2, 470.9)
    found = (
        Detection(label, class_id, 0.8 - index / 20, box)
        for index, (label, class_id) in enumerate(_FOUND)
    )
    faint = (
        Detection(label, class_id, 0.24 - index / 110, box)
        for index, (label, class_id) in enumerate((*_FOUND, *_FOUND, *_FOUND[:6]))
    )
    time = datetime(2026, 11, 21, 3, 26, 1, tzinfo=UTC)
    result = replace(
        DONE,
        detections=tuple(found),
        faint=tuple(faint),
        captured_at=time,
        captured_at_source=CapturedAtSource.EXIF_OFFSET,
        day=time.date(),
        source=SourceVersion("gate", time),
    )
    return to_document(result) | {"created_at": time}


def table(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of the mean storage of documents, for each choice of indexes."""
    path = (_COLLECTION, DONE.ref.document_id)
    size = sum(document_bytes(path, each) for each in documents) / len(documents)
    rows = []
    for name, indexes in {
        "`index_all_fields = true`": deployed_indexes(index_all_fields=True),
        "default": deployed_indexes(),
    }.items():
        entries = [entry for each in documents for entry in index_entries(path, each, indexes)]
        count, total = len(entries) / len(documents), sum(entries) / len(documents)
        rows.append([name, f"{count:,.0f}", *(f"{n:,.0f}" for n in (size, total, size + total))])
    headers = ["indexes", "index entries", "document, bytes", "entries, bytes", "sum, bytes"]
    align = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def read(file: Path) -> list[dict[str, Any]]:
    """Return the documents of a file that `yolo-batch results --json` wrote.

    Raises:
        BenchError: the file cannot be read, or contains something else.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        documents = [json.loads(line) for line in lines if line.strip()]
        for document in documents:
            times = [(document, name) for name in _TIMES]
            for values, name in [*times, (document.get("source") or {}, "version")]:
                if isinstance(text := values.get(name), str):
                    values[name] = datetime.fromisoformat(text)
            if isinstance(text := document.get("faint"), str):
                document["faint"] = base64.b64decode(text)
            if place := document.get("location"):
                document["location"] = GeoPoint(**place)
    except (OSError, ValueError, TypeError, AttributeError) as exc:
        raise BenchError(f"{file} is not what yolo-batch results --json prints: {exc}") from exc
    if not documents:
        raise BenchError(f"{file} contains no documents")
    return documents


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", help="documents, one JSON object a line")
    file = parser.parse_args().file
    try:
        print(table(read(file) if file else [sample()]))
    except BenchError as exc:
        sys.exit(f"error: {exc}")


if __name__ == "__main__":
    main()
