"""Logs a fault that affects every message: when it starts, every 30 minutes, and when it ends.

Otherwise a bucket that the service may not read would log one line for every delivery.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_QUIET_SECONDS = 60.0  # an outage that recurs within this time is not logged again
_REPEAT_SECONDS = 1800.0  # an outage that lasts this long is logged again
_MAX_SUBJECTS = 1000  # above this number, the oldest subject is dropped
_MAX_REASONS = 20  # per subject. Above this number, the oldest reason is dropped.


@dataclass
class _Outage:
    logged_at: float  # seconds of the clock
    rejected: int = 0  # number of messages rejected since `logged_at`
    is_over: bool = False


class Outages:
    """The outages of one service. Safe to use from many threads."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without outages. `clock` returns seconds."""
        self._clock = clock
        self._outages: dict[str, dict[str, _Outage]] = {}  # by subject and reason
        self._lock = threading.Lock()

    def report(self, subject: str, reason: str, cause: str = "") -> None:
        """Log that a subject refuses every request, unless this was logged a short time ago.

        Args:
            subject: the bucket or the database.
            reason: why, and what to do, in sentences.
            cause: Google's own message, which may differ from request to request.
        """
        now = self._clock()
        with self._lock:
            reasons = _get_or_add(self._outages, subject, {}, _MAX_SUBJECTS)
            outage = _get_or_add(reasons, reason, _Outage(-_REPEAT_SECONDS + now), _MAX_REASONS)
            outage.rejected += 1
            quiet_seconds = _QUIET_SECONDS if outage.is_over else _REPEAT_SECONDS
            if now - outage.logged_at < quiet_seconds:
                return
            rejected = outage.rejected
            reasons[reason] = _Outage(now)
        logger.error(
            "Messages are rejected until this is repaired",
            extra={"subject": subject, "reason": reason, "cause": cause, "rejected": rejected},
        )

    def clear(self, subject: str) -> None:
        """Note that a request to a subject succeeded. Log it if that ends an outage."""
        if not self._outages:  # the usual case, in which no lock is taken
            return
        with self._lock:
            reasons = self._outages.get(subject, {}).values()
            if all(outage.is_over for outage in reasons):
                return
            for outage in reasons:
                outage.is_over = True
        logger.warning("Messages are accepted again", extra={"subject": subject})


def _get_or_add(values: dict[str, Value], key: str, new: Value, max_size: int) -> Value:
    """Return the value of a key. If it has none, add `new`, and drop the oldest key if full."""
    value = values.setdefault(key, new)
    if len(values) > max_size:
        del values[next(iter(values))]
    return value
