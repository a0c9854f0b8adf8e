"""A limit on what many threads hold at once, as bytes or pictures."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from service.errors import TooLateError


class Budget:
    """Lets callers hold so much together, first come, first served."""

    def __init__(self, limit: int) -> None:
        """Take the limit."""
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def hold(self, count: int, *, begin_by: float = math.inf) -> Iterator[None]:
        """Wait until `count` more may be held, and hold it.

        More than the limit is held alone. Those who came first go first, so that a large one is
        not overtaken for ever by small ones.

        Args:
            count: how much.
            begin_by: until when to wait, by the monotonic clock.

        Raises:
            TooLateError: until then it could not be held.
        """
        place = object()
        with self._changed:
            self._waiting.append(place)
            try:
                if not self._changed.wait_for(lambda: self._may(place, count), _left(begin_by)):
                    raise TooLateError
                self._held += count
            finally:  # where memory is short, waiting itself may raise: nobody waits behind it then
                self._waiting.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()

    def hold_all(self) -> AbstractContextManager[None]:
        """Wait until nobody holds anything, and hold all of it."""
        return self.hold(self._limit)

    def _may(self, place: object, count: int) -> bool:
        fits = self._held == 0 or self._held + count <= self._limit
        return self._waiting[0] is place and fits


def _left(begin_by: float) -> float | None:
    return None if begin_by == math.inf else max(0.0, begin_by - time.monotonic())
