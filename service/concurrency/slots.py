"""Admission: how many images are in flight."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from service.errors import NoFreeSlotError, ShuttingDownError


class Slots:
    """A slot for each image in flight. Messages in job form get some of them only.

    Pub/Sub knows no fairness between subscriptions: without that limit a back-fill of a bucket
    would take every slot from the uploads.
    """

    def __init__(self, total: int, *, jobs: int) -> None:
        """Take the numbers of slots: in all, and those of them that jobs may have."""
        self._free = threading.Semaphore(total)
        self._free_for_jobs = threading.Semaphore(jobs)
        self.is_stopped = False

    def stop(self) -> None:
        """Admit nothing new. Safe to call from a signal handler: it takes no lock."""
        self.is_stopped = True

    @contextmanager
    def take(self, *, is_job: bool) -> Iterator[None]:
        """Take a slot without waiting, for as long as the block lasts.

        Raises:
            NoFreeSlotError: all slots are taken, or all that jobs may have.
            ShuttingDownError: no image is admitted any more.
        """
        if self.is_stopped:
            raise ShuttingDownError("The service is shutting down.")
        with ExitStack() as taken:
            for free in (self._free_for_jobs, self._free) if is_job else (self._free,):
                if not free.acquire(blocking=False):
                    raise NoFreeSlotError("Too many images are in flight.")
                taken.callback(free.release)
            yield
