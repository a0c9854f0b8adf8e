"""Documents as JSON."""

import base64
import json
from collections.abc import Sequence
from datetime import datetime


def json_line(value: object, *, ensure_ascii: bool = True) -> str:
    """Return one line of JSON. Times are RFC 3339, bytes are base64.

    Places are objects with `latitude` and `longitude`. References are paths, vectors are lists. NaN
    and infinite numbers, which JSON does not have, are null.
    """
    text = json.dumps(value, ensure_ascii=ensure_ascii, default=_plain)
    if "NaN" in text or "Infinity" in text:
        finite = json.loads(text, parse_constant=lambda name: None)
        return json.dumps(finite, ensure_ascii=ensure_ascii)
    return text


def _plain(value: object) -> str | dict[str, float] | list[object]:
    """Return a value of Firestore that JSON does not have.

    Raises:
        TypeError: Firestore has no such type.
    """
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    # The service's own type of a place, or Firestore's, which only service/gcp may import.
    if hasattr(value, "latitude") and hasattr(value, "longitude"):
        return {"latitude": value.latitude, "longitude": value.longitude}
    if isinstance(value, Sequence):  # Firestore's vector
        return list(value)
    if isinstance(path := getattr(value, "path", None), str):  # Firestore's reference
        return path
    raise TypeError(f"{type(value).__name__} is not JSON")
