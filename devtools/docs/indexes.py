"""The reference of Firestore's indexes, from the files of the Terraform module."""

from collections.abc import Sequence

from devtools.bench import index_entries
from devtools.docs.markdown import code, table

_MODES = {"ASCENDING": "ascending", "DESCENDING": "descending", "CONTAINS": "array-contains"}


def render() -> str:
    """Return the table of the indexes, and which variable adds each."""
    default = _rows(index_entries.deployed_indexes())
    by_time = _rows(index_entries.deployed_indexes(by_time=True))
    rows = [[each, ""] for each in default]
    rows += [[each, code("query_by_time")] for each in by_time if each not in default]
    return table(("index", "only with"), rows)


def storage() -> str:
    """Return the table of the storage of a document and its index entries."""
    return index_entries.table([index_entries.sample()])


def _rows(indexes: index_entries.Indexes) -> list[str]:
    single: list[Sequence[tuple[str, str]]] = [
        [(field, mode)] for field, modes in indexes.fields.items() for mode in modes
    ]
    return [
        ", ".join(f"{code(field)} {_MODES[mode]}" for field, mode in fields)
        for fields in [*single, *indexes.composite]
    ]
