"""Documents as JSON."""

import base64
import json
from datetime import datetime


def json_line(value: object, *, ensure_ascii: bool = True) -> str:
    """Return one line of JSON. Times are RFC 3339, bytes are base64.

    Places are objects with `latitude` and `longitude`.
    """
    return json.dumps(value, ensure_ascii=ensure_ascii, default=_plain)


def _plain(value: object) -> str | dict[str, float]:
    """Return a value of Firestore that JSON does not have.

    Raises:
        TypeError: the value is neither a time, nor bytes, nor a place.
    """
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    # The service's own type of a place, or Firestore's, which only service/gcp may import.
    if hasattr(value, "latitude") and hasattr(value, "longitude"):
        return {"latitude": value.latitude, "longitude": value.longitude}
    raise TypeError(f"{type(value).__name__} is not JSON")
