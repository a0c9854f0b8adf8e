"""What concerns every message, in the log once: when it begins, changes, and is over.

Without this, a bucket that the service may not read would write one line for each delivery of each
message, and the line that says what to do would be lost among them.
"""

import logging
import threading
import time
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_QUIET_SECONDS = 60.0  # the same reason is not logged again so soon, if it comes and goes
_MAX_KNOWN = 1000  # subjects; the oldest is forgotten


@dataclass
class _Outage:
    reason: str
    logged_at: float
    is_over: bool = False


class Outages:
    """The outages of one service; safe to use from many threads."""

    def __init__(self, *, quiet_seconds: float = _QUIET_SECONDS) -> None:
        """Start without any.

        Args:
            quiet_seconds: how long a reason that comes back soon is not logged again.
        """
        self._quiet_seconds = quiet_seconds
        self._outages: dict[str, _Outage] = {}
        self._lock = threading.Lock()

    def report(self, subject: str, reason: str, cause: str = "") -> None:
        """Log that a subject (a bucket, a database) refuses everything, unless the log has it.

        Args:
            subject: what is out of reach.
            reason: why, and what to do, in sentences.
            cause: what the cloud wrote; it may differ from message to message.
        """
        now = time.monotonic()
        with self._lock:
            known = self._outages.get(subject)
            if known and known.reason == reason:
                is_recent = now - known.logged_at < self._quiet_seconds
                if not known.is_over or is_recent:
                    return
            self._outages[subject] = _Outage(reason, now)
            if len(self._outages) > _MAX_KNOWN:
                del self._outages[next(iter(self._outages))]
        logger.error(
            "Messages are rejected until this is repaired",
            extra={"subject": subject, "reason": reason, "cause": cause},
        )

    def clear(self, subject: str) -> None:
        """Note that a subject answers; log it if it did not before."""
        if not self._outages:  # nearly always
            return
        with self._lock:
            known = self._outages.get(subject)
            if known is None or known.is_over:
                return
            known.is_over = True
        logger.warning("Messages are accepted again", extra={"subject": subject})
