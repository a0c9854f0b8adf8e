"""Where the CPU time of a process goes, by stage."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Adds up CPU seconds by stage; safe to use from many threads.

    Stages nest: what an inner stage takes is not counted for the outer one. Only the calling
    thread's own time is seen (`time.thread_time`).
    """

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = threading.local()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count what the calling thread does inside for a stage."""
        outer = getattr(self._inner, "seconds", 0.0)
        self._inner.seconds = 0.0
        started = time.thread_time()
        try:
            yield
        finally:
            spent = time.thread_time() - started
            with self._lock:
                self._seconds[stage] += spent - self._inner.seconds
            self._inner.seconds = outer + spent

    def seconds(self) -> dict[str, float]:
        """CPU seconds so far, by stage."""
        with self._lock:
            return dict(self._seconds)


class NoClock(StageClock):
    """Counts nothing, at next to no cost."""

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Do nothing."""
        yield


NO_CLOCK = NoClock()
