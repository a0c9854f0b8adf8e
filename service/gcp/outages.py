"""Log a fault that affects every message: when it begins, every 30 minutes, and at its end.

Without this, a bucket that the service may not read would write one line for each delivery of each
message, and the line that says what to do would be lost among them.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_QUIET_SECONDS = 60.0  # a reason that recurs within this time is not logged again
_REPEAT_SECONDS = 1800.0  # a lasting reason is logged again after this time
_MAX_SUBJECTS = 1000  # the oldest is forgotten
_MAX_REASONS = 20  # per subject; the oldest is forgotten


@dataclass
class _Outage:
    logged_at: float
    rejected: int = 0  # messages since then
    is_over: bool = False


class Outages:
    """The outages of one service; safe to use from many threads."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without outages, by a clock in seconds."""
        self._clock = clock
        self._outages: dict[str, dict[str, _Outage]] = {}  # by subject and reason
        self._lock = threading.Lock()

    def report(self, subject: str, reason: str, cause: str = "") -> None:
        """Log that a subject (a bucket, a database) refuses everything, unless the log has it.

        Args:
            subject: what is out of reach.
            reason: why, and what to do, in sentences.
            cause: what the cloud wrote; it may differ from message to message.
        """
        now = self._clock()
        with self._lock:
            reasons = _slot(self._outages, subject, {}, _MAX_SUBJECTS)
            outage = _slot(reasons, reason, _Outage(-_REPEAT_SECONDS + now), _MAX_REASONS)
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
        """Note that a subject answers; log it if it did not before."""
        if not self._outages:  # nearly always
            return
        with self._lock:
            reasons = self._outages.get(subject, {}).values()
            if all(outage.is_over for outage in reasons):
                return
            for outage in reasons:
                outage.is_over = True
        logger.warning("Messages are accepted again", extra={"subject": subject})


def _slot(known: dict[str, Value], key: str, new: Value, size: int) -> Value:
    """Return the value of a key, or store a new one; drop the oldest key beyond the size."""
    found = known.setdefault(key, new)
    if len(known) > size:
        del known[next(iter(known))]
    return found
