"""Limits what many threads use together, for example bytes of memory."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from service.deadline import Deadline
from service.errors import TooLateError


class FairSemaphore:
    """Grants amounts, first come, first served. Small requests cannot starve a large one."""

    def __init__(self, limit: int) -> None:
        """Set the total amount."""
        self._limit = limit
        self._acquired = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def acquire(self, count: int, deadline: Deadline) -> Iterator[Callable[[int], None]]:
        """Acquire an amount while the block runs.

        Yields a function that reduces the amount to a smaller one.

        An amount above the limit waits until nothing else is acquired. A thread must not acquire
        twice: two threads that each wait for a second amount could deadlock.

        Raises:
            TooLateError: the deadline passed first.
        """
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                timeout_seconds = deadline.wait_seconds(threading.TIMEOUT_MAX)
                can_acquire = partial(self._can_acquire, ticket, count)
                if not self._changed.wait_for(can_acquire, timeout_seconds):
                    raise TooLateError
                self._acquired += count
            finally:  # also after a MemoryError: otherwise later tickets would wait for ever
                self._waiting.remove(ticket)
                self._changed.notify_all()
        held = count

        def release_all_but(kept: int) -> None:
            nonlocal held
            with self._changed:
                self._acquired -= max(held - kept, 0)
                held = min(held, kept)
                self._changed.notify_all()

        try:
            yield release_all_but
        finally:
            release_all_but(0)

    def _can_acquire(self, ticket: object, count: int) -> bool:
        fits = self._acquired == 0 or self._acquired + count <= self._limit
        return self._waiting[0] is ticket and fits
