"""Faults that wait for calls to strike."""

import threading
from collections import Counter
from collections.abc import Collection

from devtools.chaos.plan import FaultKind


class Armed:
    """A proxy's faults, oldest first; safe to use from many threads."""

    def __init__(self) -> None:
        """Start with none."""
        self._lock = threading.Lock()
        self._waiting: list[FaultKind] = []
        self._struck: Counter[FaultKind] = Counter()

    def arm(self, kind: FaultKind, calls: int) -> None:
        """Let a fault strike the next calls that it can strike."""
        with self._lock:
            self._waiting += [kind] * calls

    def take(self, possible: Collection[FaultKind]) -> FaultKind | None:
        """Take the fault that strikes this call, of those that can; None for no fault."""
        with self._lock:
            for position, kind in enumerate(self._waiting):
                if kind in possible:
                    del self._waiting[position]
                    self._struck[kind] += 1
                    return kind
        return None

    @property
    def struck(self) -> Counter[FaultKind]:
        """How many calls each fault has struck."""
        with self._lock:
            return Counter(self._struck)
