"""The one deadline of a delivery: every wait ends with it, so that no limits have to agree."""

import math
import time
from dataclasses import dataclass
from typing import Self

from service.errors import TooLateError


@dataclass(frozen=True)
class Deadline:
    """When a delivery must be answered. The last seconds are reserved for the commit.

    Pub/Sub delivers a message again when the ack deadline has passed, even while the first
    delivery is still being processed. So each delivery stops before its ack deadline.
    """

    ends_at: float  # seconds of the monotonic clock
    commit_seconds: float = 0.0

    @classmethod
    def after(cls, seconds: float, *, commit_seconds: float = 0.0) -> Self:
        """Return the deadline that ends this many seconds from now.

        Args:
            seconds: from now to the end.
            commit_seconds: reserved at the end, for the commit.
        """
        return cls(time.monotonic() + seconds, commit_seconds)

    def seconds_left(self) -> float:
        """Return the seconds that are left before the reserved ones; negative when it is late."""
        return self.ends_at - self.commit_seconds - time.monotonic()

    def wait_seconds(self, limit: float = math.inf) -> float:
        """Return how long the next step may take, in seconds: `limit`, or less if less is left.

        Raises:
            TooLateError: nothing is left.
        """
        left = self.seconds_left()
        if left <= 0:
            raise TooLateError
        return min(limit, left)

    def for_commit(self) -> "Deadline":
        """Return the same deadline with the reserved seconds released, for the commit itself."""
        return Deadline(self.ends_at)


NO_DEADLINE = Deadline(math.inf)
