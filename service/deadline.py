"""The deadline of a delivery. Every wait inside the service ends when it passes."""

import math
import time
from dataclasses import dataclass
from typing import Self

from service.errors import TooLateError


@dataclass(frozen=True)
class Deadline:
    """When the response to a delivery is due. The last seconds are reserved for the commit.

    Pub/Sub redelivers a message when its ack deadline has passed, even if the first delivery is
    still being processed. So each delivery stops before its ack deadline.
    """

    ends_at: float  # seconds of the monotonic clock
    commit_seconds: float = 0.0

    @classmethod
    def after(cls, seconds: float, *, commit_seconds: float = 0.0) -> Self:
        """Return the deadline that ends this many seconds from now.

        Args:
            seconds: time from now to the deadline.
            commit_seconds: how many of them are reserved for the commit.
        """
        return cls(time.monotonic() + seconds, commit_seconds)

    def seconds_left(self) -> float:
        """Return the seconds until the time reserved for the commit. Negative: it has begun."""
        return self.ends_at - self.commit_seconds - time.monotonic()

    def wait_seconds(self, limit: float = math.inf) -> float:
        """Return how many seconds the next step may take: at most `limit`.

        Raises:
            TooLateError: no time is left.
        """
        seconds_left = self.seconds_left()
        if seconds_left <= 0:
            raise TooLateError
        return min(limit, seconds_left)

    def for_commit(self) -> "Deadline":
        """Return the same deadline without the reserve, for the commit itself."""
        return Deadline(self.ends_at)


NO_DEADLINE = Deadline(math.inf)
