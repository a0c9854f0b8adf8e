"""Which images were tried again a moment ago, so that a double click publishes one job."""

import threading
from collections.abc import Callable
from time import monotonic

from cachetools import TTLCache

_SECONDS = 60
_MAX_IMAGES = 10_000


class Recently:
    """The ids of the last minute. Safe to use from many threads."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        """Take a clock in seconds."""
        self._ids: TTLCache[str, None] = TTLCache(_MAX_IMAGES, _SECONDS, timer=clock)
        self._lock = threading.Lock()

    def add(self, document_id: str) -> bool:
        """Add an id. Return False if it was added within the last minute."""
        with self._lock:
            if document_id in self._ids:
                return False
            self._ids[document_id] = None
            return True

    def remove(self, document_id: str) -> None:
        """Forget an id, because nothing was published."""
        with self._lock:
            self._ids.pop(document_id, None)
