"""The metadata that an uploader gave an object, limited to what Firestore stores."""

from collections.abc import Mapping
from typing import Any

MAX_BYTES = 2000  # of all keys and values
HEADER_PREFIX = "x-goog-meta-"
# Key that marks an object in RESULTS_BUCKET, which the service made. Its value does not matter.
RESULT_MARKER = "yolo-batch-result"
# A path of fields (`metadata.KEY`) has at most 1,500 bytes. In it, a character can be escaped.
# https://firebase.google.com/docs/firestore/quotas
_MAX_KEY_BYTES = 700
_RESERVED = "__"  # Firestore reserves keys that begin and end with it


def is_marked(custom: Mapping[str, str] | None) -> bool:
    """Return whether metadata of `read_custom` have the marker of a result object."""
    return RESULT_MARKER in (custom or {})


def read_custom(resource: Any) -> tuple[Mapping[str, str] | None, bool]:
    """Return the uploader's metadata, and whether some were left out.

    Keys become lower case, because the headers of a download do not keep their case. Items are kept
    in the order of their keys, if they still fit into `MAX_BYTES`. Values that are not text, and
    keys that Firestore does not store, are left out.

    Args:
        resource: `metadata` of a Cloud Storage object, untrusted. None: the object has none.
    """
    if resource is None:
        return None, False
    if not isinstance(resource, dict):
        return None, True
    kept: dict[str, str] = {}
    bytes_left = MAX_BYTES
    is_cut = False
    for name in sorted(resource):  # keys of JSON objects are texts
        key, value = name.lower(), resource[name]
        size = _size(key, value)
        if size is None or size > bytes_left or key in kept:
            is_cut = True
        else:
            bytes_left -= size
            kept[key] = value
    return kept, is_cut


def read_custom_headers(headers: Mapping[str, str]) -> tuple[Mapping[str, str] | None, bool]:
    """Return the metadata in the headers of a download, as `read_custom` does.

    Args:
        headers: of the response. Their bytes were decoded as Latin-1 (RFC 9110, 5.5).
    """
    found = {
        name.lower().removeprefix(HEADER_PREFIX): _utf8(value)
        for name, value in headers.items()
        if name.lower().startswith(HEADER_PREFIX)
    }
    return read_custom(found or None)


def _size(key: str, value: Any) -> int | None:
    """Return the bytes of an item, or None if Firestore does not store it."""
    is_reserved = key.startswith(_RESERVED) and key.endswith(_RESERVED)
    if not key or is_reserved or not isinstance(value, str):
        return None
    try:
        key_bytes = len(key.encode())
        return key_bytes + len(value.encode()) if key_bytes <= _MAX_KEY_BYTES else None
    except UnicodeEncodeError:  # JSON allows lone surrogates, but UTF-8 does not
        return None


def _utf8(value: str) -> str:
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
