"""Faults that strike the next calls."""

import threading
from collections import Counter
from collections.abc import Collection

from devtools.chaos.plan import FaultKind


class Armed:
    """The faults that a proxy has yet to cause, oldest first. Safe to use from many threads."""

    def __init__(self) -> None:
        """Start without faults."""
        self._lock = threading.Lock()
        self._waiting: list[FaultKind] = []
        self._struck: Counter[FaultKind] = Counter()

    def arm(self, kind: FaultKind, calls: int) -> None:
        """Make a fault affect the next `calls` calls that it can affect."""
        with self._lock:
            self._waiting += [kind] * calls

    def take(self, possible: Collection[FaultKind]) -> FaultKind | None:
        """Remove and return the oldest fault that this call can have. None if there is none."""
        with self._lock:
            for position, kind in enumerate(self._waiting):
                if kind in possible:
                    del self._waiting[position]
                    self._struck[kind] += 1
                    return kind
        return None

    @property
    def struck(self) -> Counter[FaultKind]:
        """Number of calls that each fault has affected."""
        with self._lock:
            return Counter(self._struck)
