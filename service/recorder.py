"""Results to documents: group commits, counted and logged."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from service.concurrency.group_commit import GroupCommit
from service.deadline import Deadline
from service.domain import CommittedResult, ImageRef, ImageResult, Outcome, Replace
from service.health import Health

logger = logging.getLogger(__name__)


class Store(Protocol):
    """Where documents are; see `service.gcp.firestore.ResultStore`."""

    def is_final(self, document_id: str, wanted: Replace | None, deadline: Deadline) -> bool:
        """Return whether the image has a document that must not be replaced."""

    def commit(
        self, results: Sequence[ImageResult], deadline: Deadline
    ) -> Sequence[CommittedResult | Exception]:
        """Make results final; return for each how it is recorded, or why it is not."""


class Recorder:
    """Makes results final, and counts how images ended."""

    def __init__(self, store: Store, health: Health) -> None:
        """Take the store, and the health that watches each commit."""
        self._store = store
        self._commits: GroupCommit[ImageResult, CommittedResult] = GroupCommit(
            self._commit, watch=health.work
        )
        self._lock = threading.Lock()
        self._counts: Counter[Outcome] = Counter()  # since the last log line

    def is_final(self, ref: ImageRef, deadline: Deadline) -> bool:
        """Return whether the image has a document that must not be replaced.

        Raises:
            FirestoreUnavailableError: Firestore did not answer.
        """
        return self._store.is_final(ref.document_id, ref.replace, deadline)

    def record(self, result: ImageResult, deadline: Deadline) -> Outcome:
        """Make a result final, together with those that are ready at the same time.

        Raises:
            FirestoreUnavailableError: it is not final; a later delivery can succeed.
            DocumentKeptError: a replacement failed for a reason outside the image's bytes.
        """
        recorded = self._commits.commit(result, deadline)
        failure = recorded.result.failure
        if failure and recorded.outcome is Outcome.FAILED:
            logger.warning(
                "An image failed",
                extra={
                    "uri": result.ref.uri,
                    "generation": result.ref.generation,
                    "code": str(failure.code),
                    "reason": failure.message,
                },
            )
        return recorded.outcome

    def count(self, outcome: Outcome) -> None:
        """Count how an image ended; the next log line carries it."""
        with self._lock:
            self._counts[outcome] += 1

    def close(self, *, timeout_seconds: float) -> None:
        """Commit what waits, but no longer than this; log what was counted since the last line."""
        self._commits.close(timeout_seconds=timeout_seconds)
        if counts := self._take_counts():
            logger.info("Outcomes", extra=counts)

    def _commit(
        self, results: Sequence[ImageResult], deadline: Deadline
    ) -> Sequence[CommittedResult | Exception]:
        started = time.monotonic()
        outcomes = self._store.commit(results, deadline)
        logger.info(
            "Committed",
            extra={
                "images": sum(isinstance(outcome, CommittedResult) for outcome in outcomes),
                "commit_ms": round((time.monotonic() - started) * 1000, 1),
                **self._take_counts(),
            },
        )
        return outcomes

    def _take_counts(self) -> dict[str, int]:
        """Return the outcomes that were counted since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return {str(outcome): count for outcome, count in sorted(counts.items())}
