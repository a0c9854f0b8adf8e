"""The reference of Firestore's indexes, from the files of the Terraform module."""

from collections.abc import Sequence

from devtools.bench import index_entries
from devtools.docs.markdown import code

_MODES = {"ASCENDING": "ascending", "DESCENDING": "descending", "CONTAINS": "array-contains"}


def render() -> str:
    """Return the list of the indexes."""
    return "\n".join(f"- {each}" for each in _rows(index_entries.deployed_indexes()))


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
