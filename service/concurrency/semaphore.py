"""A limit on what many threads hold together, such as bytes in memory."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from service.deadline import Deadline
from service.errors import TooLateError


class FairSemaphore:
    """Grants amounts first come, first served: small requests cannot starve a large one."""

    def __init__(self, limit: int) -> None:
        """Take the amount that may be held at once."""
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def acquire(self, count: int, deadline: Deadline) -> Iterator[None]:
        """Wait for an amount, and hold it while the block lasts.

        A request above the limit waits until it is the only holder. Do not acquire twice in one
        thread: two that hold a part and wait for the rest would wait for each other.

        Raises:
            TooLateError: the deadline passed first.
        """
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                timeout_seconds = deadline.wait_seconds(threading.TIMEOUT_MAX)
                if not self._changed.wait_for(lambda: self._may_hold(turn, count), timeout_seconds):
                    raise TooLateError
                self._held += count
            finally:  # also when there is no memory to wait: the next ones must not wait for it
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()

    def _may_hold(self, turn: object, count: int) -> bool:
        fits = self._held == 0 or self._held + count <= self._limit
        return self._waiting[0] is turn and fits
