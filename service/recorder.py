"""Commits results in groups, and counts and logs how images ended."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from service.concurrency.group_commit import GroupCommit
from service.deadline import Deadline
from service.domain import (
    CommittedResult,
    ImageRef,
    ImageResult,
    Outcome,
    PreparedResult,
    Replace,
)
from service.errors import DocumentKeptError, ObjectGoneError, YoloBatchError
from service.health import Health

logger = logging.getLogger(__name__)


class Store(Protocol):
    """Where documents are written. `service.gcp.firestore.ResultStore` implements it."""

    def is_final(self, document_id: str, permission: Replace | None, deadline: Deadline) -> bool:
        """Return whether there is a document that `permission` does not allow to replace."""

    def commit(
        self, results: Sequence[ImageResult], deadline: Deadline
    ) -> Sequence[CommittedResult | Exception]:
        """Write the results' documents. Return one outcome for each result, in order."""


class Uploads(Protocol):
    """Uploads results' objects. `service.gcp.result_uploads.ResultUploads` implements it."""

    def prepare(self, result: ImageResult, deadline: Deadline) -> PreparedResult:
        """Create a result's objects. Return the result as its document can have it."""

    def settle(
        self, prepared: PreparedResult, committed: CommittedResult, deadline: Deadline
    ) -> None:
        """Remove the objects that a commit made useless, and restore the result's own."""

    def remove_all(self, document_id: str, deadline: Deadline) -> None:
        """Remove all objects of a document."""


class Recorder:
    """Commits results, and counts how images ended."""

    def __init__(
        self,
        store: Store,
        health: Health,
        uploads: Uploads | None = None,
        is_deleted: Callable[[str, Deadline], bool] = lambda document_id, deadline: False,
    ) -> None:
        """Start the threads that commit to `store`.

        Args:
            store: writes the documents.
            health: watches each commit.
            uploads: creates the objects that a result has beside its document. None: no result
                has any.
            is_deleted: returns whether the document with an id was removed with its object.
        """
        self._store = store
        self._uploads = uploads
        self._is_deleted = is_deleted
        self._commits: GroupCommit[ImageResult, CommittedResult] = GroupCommit(
            self._commit, watch=health.work
        )
        self._lock = threading.Lock()
        self._counts: Counter[Outcome] = Counter()  # since the last log line

    def is_final(self, ref: ImageRef, deadline: Deadline) -> bool:
        """Return whether the image has a final document that this reference may not replace.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        return self._store.is_final(ref.document_id, ref.replace, deadline)

    def record(self, result: ImageResult, deadline: Deadline) -> CommittedResult:
        """Commit a result, together with other results that are ready at the same time.

        Raises:
            TransientError: it is not committed. A later delivery can succeed.
            DocumentKeptError: a replacement failed for a reason outside the image's bytes.
        """
        committed = self._commit_one(result, deadline)
        failure = committed.result.failure
        if failure and committed.outcome is Outcome.FAILED:
            logger.warning(
                "An image failed",
                extra={
                    "uri": result.ref.uri,
                    "generation": result.ref.generation,
                    "code": str(failure.code),
                    "reason": failure.message,
                },
            )
        return committed

    def count(self, outcome: Outcome) -> None:
        """Count how an image ended, for the next log line of a commit."""
        with self._lock:
            self._counts[outcome] += 1

    def close(self, *, timeout_seconds: float) -> None:
        """Commit the waiting results, for at most this long. Log the remaining counts."""
        self._commits.close(timeout_seconds=timeout_seconds)
        if counts := self._take_counts():
            logger.info("Outcomes", extra=counts)

    def _commit_one(self, result: ImageResult, deadline: Deadline) -> CommittedResult:
        uploads = self._uploads
        if not uploads:
            return self._commits.commit(result, deadline)
        # In the request's own thread, so that an upload delays no other image.
        prepared = uploads.prepare(result, deadline)
        try:
            committed = self._commits.commit(prepared.result, deadline)
        except ObjectGoneError:  # the image was deleted meanwhile: its objects must not stay
            if prepared.result.object_uris:
                self._remove_all(result.ref, uploads, deadline.for_commit())
            raise
        except DocumentKeptError:
            unused = prepared.result.object_uris
            kept = CommittedResult(prepared.result, is_superseded=True, unused_uris=unused)
            uploads.settle(prepared, kept, deadline.for_commit())
            raise
        if prepared.found or committed.unused_uris:
            uploads.settle(prepared, committed, deadline.for_commit())
        if prepared.found and not committed.is_superseded:
            self._remove_if_deleted(result.ref, uploads, deadline.for_commit())
        return committed

    def _remove_if_deleted(self, ref: ImageRef, uploads: Uploads, deadline: Deadline) -> None:
        """Remove the objects of an image that was deleted since its commit.

        The removal may have listed its objects before `settle` created one of them again. If there
        is no tombstone now, a later removal finds the object.
        """
        try:
            is_deleted = self._is_deleted(ref.document_id, deadline)
        except YoloBatchError as exc:
            _warn_of_objects(ref, exc)
            return
        if is_deleted:
            self._remove_all(ref, uploads, deadline)

    def _remove_all(self, ref: ImageRef, uploads: Uploads, deadline: Deadline) -> None:
        try:
            uploads.remove_all(ref.document_id, deadline)
        except YoloBatchError as exc:
            _warn_of_objects(ref, exc)

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
        """Return how often each outcome was counted since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return {str(outcome): count for outcome, count in sorted(counts.items())}


def _warn_of_objects(ref: ImageRef, error: YoloBatchError) -> None:
    logger.warning(
        "An object of a deleted image may be left in RESULTS_BUCKET",
        extra={"uri": ref.uri, "document_id": ref.document_id, "reason": str(error)},
    )
