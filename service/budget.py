"""A limit on bytes that many threads hold at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """Lets callers hold so many bytes together, first come, first served."""

    def __init__(self, limit: int) -> None:
        """Take the limit, in bytes."""
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()
        self._next_ticket = 0
        self._serving = 0

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until `count` more bytes may be held, and hold them.

        More than the limit is held alone. Those who came first go first, so that a large file is
        not overtaken for ever by small ones.
        """
        with self._changed:
            ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
            self._changed.wait_for(
                lambda: (
                    ticket == self._serving
                    and (self._held == 0 or self._held + count <= self._limit)
                )
            )
            self._serving += 1
            self._held += count
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()
