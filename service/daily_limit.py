"""Limits how many images a day are processed, over all instances of the service.

The instances count together, in one document a day. Each instance adds its own count once a minute,
and learns the new total from the same request. In between it adds its own images to the last total
that it knows. So together they may exceed the limit, by what they process in a minute: at most
instances x (images of an instance in 60 s + MAX_IN_FLIGHT).

If the counter cannot be written, images are still processed. An instance then counts only its own.
"""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Protocol

from service.deadline import Deadline
from service.domain import ErrorCode, Failure

logger = logging.getLogger(__name__)

SHARE_EVERY = timedelta(seconds=60)


class Counter(Protocol):
    """Counts the images of a day. `service.gcp.daily_count.DailyCount` implements it."""

    def add(self, day: date, images: int, deadline: Deadline) -> int:
        """Add images to a day's count, atomically. Return the new count of all instances."""


def _now() -> datetime:
    return datetime.now(UTC)


class DailyLimit:
    """The count of this instance, and the last known count of all. Safe to use from many threads.

    There is no thread: the requests themselves share the count, after their image is recorded.
    """

    def __init__(
        self, images: int, counter: Counter, *, now: Callable[[], datetime] = _now
    ) -> None:
        """Start with a day of which nothing is known.

        Args:
            images: how many images a day are processed.
            counter: the count of all instances.
            now: the clock. A day begins at midnight UTC.
        """
        self._limit = images
        self._counter = counter
        self._now = now
        self._lock = threading.Lock()
        self._day = now().date()
        self._total = 0  # the last known count of the day, over all instances
        self._unshared = 0  # images of this instance that are not part of it
        self._shared_at = now() - SHARE_EVERY
        self._is_sharing = False
        self._is_reached = False  # and logged

    def admit(self) -> bool:
        """Count an image and return True, or return False if the day's limit is reached."""
        with self._lock:
            self._start_day(self._now())
            if self._total + self._unshared < self._limit:
                self._unshared += 1
                return True
            is_first, self._is_reached = not self._is_reached, True
        if is_first:
            logger.warning(
                "The day's limit of images is reached: further images are parked",
                extra={"limit": self._limit},
            )
        return False

    def share(self, deadline: Deadline, *, is_due: bool = False) -> None:
        """Add this instance's count to the counter, if the last time was a minute ago.

        It never raises: an image must not fail because it cannot be counted. The count is kept, and
        shared a minute later.

        Args:
            deadline: how long it may take.
            is_due: share now, even without images, to learn the total.
        """
        with self._lock:
            now = self._now()
            self._start_day(now)
            # abs: a clock that was set back must not stop the sharing.
            is_old = abs(now - self._shared_at) >= SHARE_EVERY
            if self._is_sharing or not (is_due or (is_old and self._unshared)):
                return
            day, images = self._day, self._unshared
            self._is_sharing = True
            self._shared_at = now
        total = None
        try:
            total = self._counter.add(day, images, deadline)
        except BaseException as exc:  # noqa: BLE001 - a Rust library's panic is not an Exception
            logger.warning(
                "The day's images could not be counted, so DAILY_IMAGE_LIMIT may be exceeded",
                extra={"images": images, "reason": str(exc) or type(exc).__name__},
            )
        with self._lock:
            self._is_sharing = False
            if total is not None and day == self._day:
                # max: the count may have been deleted or edited. Each image still counts once here.
                self._total = max(total, self._total + images)
                self._unshared -= images

    def failure(self) -> Failure:
        """Return why an image is parked, for its document."""
        return Failure(
            ErrorCode.DAILY_IMAGE_LIMIT,
            f"The limit of {self._limit} images a day (DAILY_IMAGE_LIMIT) was reached on "
            f"{self._now():%Y-%m-%d} (UTC), so the image was not processed. `yolo-batch reconcile "
            "--enqueue parked` continues it on another day.",
        )

    def _start_day(self, now: datetime) -> None:
        """Forget the counts if a new day has begun. Call it with the lock."""
        if now.date() != self._day:
            self._day, self._total, self._unshared = now.date(), 0, 0
            self._shared_at = now - SHARE_EVERY
            self._is_reached = False
