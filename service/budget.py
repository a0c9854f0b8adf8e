"""A limit on bytes that many threads hold at once."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """Lets callers hold so many bytes together, first come, first served."""

    def __init__(self, limit: int) -> None:
        """Take the limit, in bytes."""
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until `count` more bytes may be held, and hold them.

        More than the limit is held alone. Those who came first go first, so that a large file is
        not overtaken for ever by small ones.
        """
        place = object()
        with self._changed:
            self._waiting.append(place)
            try:
                self._changed.wait_for(
                    lambda: (
                        self._waiting[0] is place
                        and (self._held == 0 or self._held + count <= self._limit)
                    )
                )
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
