"""The size of a document, as Firestore counts it.

Source: https://firebase.google.com/docs/firestore/storage-size
"""

from collections.abc import Mapping
from typing import Any

from service.domain import GeoPoint

# Source: https://firebase.google.com/docs/firestore/quotas
MAX_DOCUMENT_BYTES = 2**20
_NAME_BYTES = 2048  # upper bound for the document's name and the bytes that Firestore adds
# Firestore adds them to each document. Its page does not say whether it also adds them to maps.
_MAP_BYTES = 32
_GEO_POINT_BYTES = 16


def document_bytes(document: Mapping[str, Any]) -> int:
    """Return an upper bound of a document's size in bytes."""
    return _size_bytes(document) + _NAME_BYTES


def _size_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode()) + 1
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Mapping):
        fields = value.items()
        return _MAP_BYTES + sum(_size_bytes(key) + _size_bytes(item) for key, item in fields)
    if isinstance(value, list):
        return sum(map(_size_bytes, value))
    if isinstance(value, GeoPoint):
        return _GEO_POINT_BYTES
    return 1 if value is None else 8  # 8: a number or a timestamp, and more than a boolean
