"""The reference of Firestore's indexes, from the files of the Terraform module."""

from collections.abc import Iterator

from devtools.bench import index_entries
from devtools.bench.monthly_cost import GIB, PRICES
from devtools.docs.markdown import code, table

_MODES = {"ASCENDING": "ascending", "DESCENDING": "descending", "CONTAINS": "array-contains"}
_IMAGES = 1_000_000
_HEADERS = ("index", "entries of an image", "bytes", "USD a month for a million images")


def render() -> str:
    """Return the table of the indexes, with what each costs."""
    return table(_HEADERS, _rows())


def storage() -> str:
    """Return the table of the storage of a document and its index entries."""
    return index_entries.table([index_entries.sample()])


def _rows() -> Iterator[tuple[object, ...]]:
    price = PRICES["Firestore storage"].usd / GIB
    for index, alone in index_entries.each_index(index_entries.deployed_indexes()):
        entries = index_entries.sample_entries(alone)
        name = ", ".join(f"{code(field)} {_MODES[mode]}" for field, mode in index)
        yield name, len(entries), sum(entries), f"{sum(entries) * _IMAGES * price:.3f}"
