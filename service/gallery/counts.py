"""Counts of results. Each is kept for a minute, because counting costs reads."""

import threading
from typing import cast

from cachetools import TTLCache
from flask import current_app

from service.gallery.parts import parts
from service.result_filter import ResultFilter

SECONDS = 60.0
EXTENSION = "counts"  # key in `app.extensions`


class Counts:
    """The counts of one application. Safe to use from many threads."""

    def __init__(self) -> None:
        """Start without counts."""
        self._lock = threading.Lock()
        self._known: TTLCache[ResultFilter, int] = TTLCache(10_000, SECONDS)

    def of(self, chosen: ResultFilter) -> int:
        """Return how many results a filter has.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        with self._lock:
            count = self._known.get(chosen)
        if count is None:
            count = parts().results.count(chosen)
            with self._lock:
                self._known[chosen] = count
        return count


def count(chosen: ResultFilter) -> int:
    """Return how many results a filter has, from the counts of the current application.

    Raises:
        FirestoreUnavailableError: Firestore did not respond, or lacks the index.
    """
    return cast(Counts, current_app.extensions[EXTENSION]).of(chosen)
