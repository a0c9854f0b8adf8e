"""Limits how many images are in flight."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from service.errors import NoFreeSlotError, ShuttingDownError


class Slots:
    """One slot for each image in flight. Jobs may take only some of them.

    Pub/Sub has no fairness between subscriptions. Without the limit for jobs, a back-fill of a
    bucket could take every slot from the uploads.
    """

    def __init__(self, total: int, *, jobs: int) -> None:
        """Create `total` slots, of which jobs may take at most `jobs`."""
        self._free = threading.Semaphore(total)
        self._free_for_jobs = threading.Semaphore(jobs)
        self.is_stopped = False

    def stop(self) -> None:
        """Reject further images. Safe to call from a signal handler, because it takes no lock."""
        self.is_stopped = True

    @contextmanager
    def take(self, *, is_job: bool) -> Iterator[None]:
        """Take a slot while the block runs. Do not wait for a free slot.

        Raises:
            NoFreeSlotError: no slot is free, or jobs have all slots that jobs may take.
            ShuttingDownError: `stop` was called.
        """
        if self.is_stopped:
            raise ShuttingDownError("The service is shutting down.")
        with ExitStack() as taken:
            for free in (self._free_for_jobs, self._free) if is_job else (self._free,):
                if not free.acquire(blocking=False):
                    raise NoFreeSlotError("Too many images are in flight.")
                taken.callback(free.release)
            yield
