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
        self._seconds: defaultdict[tuple[int, str], float] = defaultdict(float)
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
                self._seconds[threading.get_native_id(), stage] += spent - self._inner.seconds
            self._inner.seconds = outer + spent

    def seconds(self) -> dict[str, float]:
        """CPU seconds so far, by stage."""
        with self._lock:
            counted = dict(self._seconds)
        totals: defaultdict[str, float] = defaultdict(float)
        for (_, stage), seconds in counted.items():
            totals[stage] += seconds
        return dict(totals)

    def report(self) -> dict[str, object]:
        """Fields of a log line: CPU seconds by stage, and those of each of Python's threads."""
        with self._lock:
            counted = dict(self._seconds)
        threads = {
            str(thread.native_id): {
                "name": thread.name,
                "cpu_seconds": {
                    stage: seconds
                    for (number, stage), seconds in counted.items()
                    if number == thread.native_id
                },
            }
            for thread in threading.enumerate()
        }
        return {"cpu_seconds": self.seconds(), "threads": threads}


class NoClock(StageClock):
    """Counts nothing, at next to no cost."""

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Do nothing."""
        yield


NO_CLOCK = NoClock()
