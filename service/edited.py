"""Reads values of documents that a person may have edited: each can have any type."""

import math
from collections.abc import Mapping
from typing import Any


def as_map(value: Any) -> Mapping[str, Any]:
    """Return a map, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a list, or an empty one for anything else."""
    return value if isinstance(value, list) else []


def maps_of(value: Any) -> list[dict[str, Any]]:
    """Return the maps in a list."""
    return [item for item in as_list(value) if isinstance(item, dict)]


def texts_of(value: Any) -> list[str]:
    """Return the texts in a list."""
    return [item for item in as_list(value) if isinstance(item, str)]


def text_or_none(value: Any) -> str | None:
    """Return a text, or None for anything else."""
    return value if isinstance(value, str) else None


def number_or_none(value: Any) -> float | None:
    """Return a finite number, or None for anything else, also for a boolean."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) else None
    except OverflowError:  # an integer with hundreds of digits
        return None
