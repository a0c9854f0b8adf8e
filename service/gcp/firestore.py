"""Writes the documents of results to Firestore, many in one commit.

A document is created once. Its id stands for one generation of one object. If two processes detect
the same image at the same time, the second `create` finds the document of the first, and the second
result is dropped. Only a message with a permission (`Replace`) replaces a document, if the document
is old enough. A done document is kept if its replacement failed for a reason outside the image's
bytes.

If results are removed with their objects, a commit never writes a document with a tombstone
(`service.gcp.deletions`). So a detection that runs while its object is deleted leaves nothing.

The document of a parked image is not final. Any later result replaces it, without a permission. But
parking an image never replaces a document.

The alerts of a result are created in the same atomic commit as its document. So an alert is never
created without its result, and never twice. If a result replaces another one of the same image, the
alerts that exist already stay as they are, and the new document lists them too.

One image's fault never fails its neighbours. If Firestore permanently refuses the document of a
result, the other results are committed without it. The image is recorded as `unstorable_result`, in
a small document without the refused content. Any other error is returned, and the image is retried.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from google.api_core import exceptions
from google.cloud import firestore

from service.deadline import NO_DEADLINE, Deadline
from service.document import STATUS_DONE, STATUS_PARKED, to_document
from service.domain import (
    CommittedResult,
    ErrorCode,
    Failure,
    GeoPoint,
    ImageResult,
    ListedAlert,
    ObjectMetadata,
    Replace,
    StoredDocument,
)
from service.errors import (
    DocumentKeptError,
    FirestoreRefusedError,
    FirestoreUnavailableError,
    ObjectGoneError,
    TransientError,
)
from service.gcp.collection import (
    ALERTS,
    MAX_COMMIT_WRITES,
    REFUSES_DOCUMENTS,
    TOMBSTONES,
    Collection,
    RetryBudget,
    fields_of,
    server_time,
)
from service.gcp.document_size import MAX_DOCUMENT_BYTES, document_bytes
from service.gcp.one_line import one_line
from service.gcp.outages import Outages

# A commit fails only if another process wrote one of its documents meanwhile. Even two such
# failures in a row are rare.
_MAX_COMMITS = 10
_PAUSE_SECONDS = 0.1  # before a result that failed alone is retried
# Limits: https://firebase.google.com/docs/firestore/quotas. They are checked here because some
# servers respond to a commit that is too large as if they were busy, which causes endless retries.
_MAX_COMMIT_BYTES = 5 * 2**19  # size of all documents, which become up to 4 MiB on the wire
# What the client raises for a document that can never be written.
_BUILD_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_LIMIT_REACHED = "The day's limit (DAILY_IMAGE_LIMIT) is reached. Publish the job on another day."
_DELETED = "The object was deleted, and so was its result."
_MAX_REASON = 300  # how many characters of an error's message a document quotes


class _DocumentRefusedError(Exception):
    """Firestore permanently refuses this document."""


class ResultStore(Collection):
    """Writes documents. Safe to use from many threads."""

    def __init__(
        self,
        client: firestore.Client,
        *,
        collection: str,
        timeout_seconds: float,
        outages: Outages | None = None,
        with_tombstones: bool = False,
    ) -> None:
        """Take the client and the limits. See `Collection`.

        Args:
            client: the vendor's client.
            collection: name of the collection.
            timeout_seconds: time of one call, with all its attempts.
            outages: logs outages. None: a new object.
            with_tombstones: whether documents with a tombstone are never written. It costs one
                more operation a document.
        """
        super().__init__(
            client, collection=collection, timeout_seconds=timeout_seconds, outages=outages
        )
        self._tombstones = client.collection(collection + TOMBSTONES) if with_tombstones else None

    def is_final(
        self, document_id: str, permission: Replace | None = None, deadline: Deadline = NO_DEADLINE
    ) -> bool:
        """Return whether there is a document that `permission` does not allow to replace.

        The document of a parked image may always be replaced.

        Raises:
            FirestoreUnavailableError: Firestore did not respond in time.
            TooLateError: the deadline has passed.
        """
        budget = self._budget(deadline)
        with self._reading():
            return _is_final(self._read([document_id], budget).get(document_id), permission)

    def is_deleted(self, document_id: str, deadline: Deadline = NO_DEADLINE) -> bool:
        """Return whether there is a tombstone. Without `with_tombstones`, there is none.

        Raises:
            FirestoreUnavailableError: Firestore did not respond in time.
            TooLateError: the deadline has passed.
        """
        if not self._tombstones:
            return False
        with self._reading():
            return bool(self._with_tombstone([document_id], self._budget(deadline)))

    def read_document(
        self, document_id: str, deadline: Deadline = NO_DEADLINE
    ) -> dict[str, Any] | None:
        """Return the fields of a document, or None if there is none.

        Raises:
            FirestoreUnavailableError: Firestore did not respond in time.
            TooLateError: the deadline has passed.
        """
        budget = self._budget(deadline)
        with self._reading():
            snapshot = self._collection.document(document_id).get(**budget.limits)
        return fields_of(snapshot) if snapshot.exists else None

    def commit(
        self, results: Sequence[ImageResult], deadline: Deadline = NO_DEADLINE
    ) -> list[CommittedResult | Exception]:
        """Write the documents of results, if possible in one commit. Safe to repeat.

        If several results are of one image, the first one is written.

        Returns:
            One outcome for each result, in order: how it is recorded, or an error.

            - FirestoreUnavailableError: Firestore did not confirm in time, or refuses everything.
            - TooLateError: the deadline has passed.
            - DocumentKeptError: a done document is kept, because its replacement failed, or a
              final document, because its replacement was parked.
            - ObjectGoneError: the object was deleted, and its document has a tombstone.
            - Any other error of the client, for this result alone.
        """
        outcomes: dict[int, CommittedResult | Exception] = {}
        entries: list[_Entry] = []
        refused: list[tuple[int, Exception]] = []
        for index, result in enumerate(results):
            try:
                entries.append(_Entry.of(index, result))
            except MemoryError:
                raise
            except Exception as exc:  # noqa: BLE001 - only the result can be the cause
                refused.append((index, exc))
        try:
            budget = self._budget(deadline)
            for group in _groups(entries):
                self._commit_isolating(group, outcomes, budget)
            for index, error in refused:
                outcomes[index] = self._record_refusal(index, results[index], error, budget)
        except TransientError as exc:  # the remaining results would wait in vain
            outcomes = dict.fromkeys(range(len(results)), exc) | outcomes
        return [outcomes[index] for index in range(len(results))]

    def _commit_isolating(
        self,
        entries: "list[_Entry]",
        outcomes: dict[int, CommittedResult | Exception],
        budget: RetryBudget,
    ) -> None:
        """Commit results together. If that fails because of one result, commit them one by one.

        Raises:
            FirestoreUnavailableError: Firestore did not respond. It is unknown whether results
                without an outcome were written.
        """
        try:
            outcomes |= self._write(entries, budget)
            return
        except (FirestoreUnavailableError, MemoryError):
            raise
        except Exception:  # noqa: BLE001 - recurs below, for the result that causes it
            if len(entries) == 1:
                time.sleep(_PAUSE_SECONDS)
        for entry in entries:
            try:
                outcomes |= self._write([entry], budget)
            except _DocumentRefusedError as exc:
                refusal = self._record_refusal(entry.index, entry.result, exc, budget)
                outcomes[entry.index] = refusal
            except (FirestoreUnavailableError, MemoryError):
                raise
            except Exception as exc:  # noqa: BLE001 - no error may fail the other results
                outcomes[entry.index] = exc

    def _record_refusal(
        self, index: int, result: ImageResult, error: Exception, budget: RetryBudget
    ) -> CommittedResult | Exception:
        """Write a failed document for a result whose own document was refused.

        Returns:
            How the failed result is recorded, or the error that prevented it.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        # Without the metadata, because they may be what Firestore refuses.
        failed = ImageResult(
            replace(result.ref, metadata=ObjectMetadata()),
            failure=Failure(
                ErrorCode.UNSTORABLE_RESULT,
                f"Firestore cannot store the result of this image: {_reason(error)}",
            ),
        )
        try:
            outcome = self._write([_Entry.of(index, failed)], budget)[index]
            if isinstance(outcome, CommittedResult):
                outcome = replace(outcome, unused_uris=outcome.unused_uris | result.object_uris)
            return outcome
        except (FirestoreUnavailableError, MemoryError):
            raise
        except _DocumentRefusedError as exc:
            # This document has no content from the image, so no document can be written.
            self._outages.report(self._writes, REFUSES_DOCUMENTS, str(exc))
            return FirestoreRefusedError(REFUSES_DOCUMENTS)
        except Exception:  # noqa: BLE001 - the first error has the cause
            return error

    def _write(
        self, entries: "list[_Entry]", budget: RetryBudget
    ) -> dict[int, CommittedResult | Exception]:
        """Create or replace the documents that are not final, in one commit.

        Returns:
            By index, how each result is recorded, or a DocumentKeptError or ObjectGoneError.

        Raises:
            _DocumentRefusedError: Firestore permanently refuses one of the documents.
            FirestoreUnavailableError: Firestore did not respond. The documents may have been
                written.
        """
        with self._report_outage(self._writes):
            return self._write_pending(entries, budget)

    def _write_pending(
        self, entries: "list[_Entry]", budget: RetryBudget
    ) -> dict[int, CommittedResult | Exception]:
        outcomes: dict[int, CommittedResult | Exception] = {}
        may_replace = any(entry.result.ref.replace for entry in entries)
        stored = self._read([entry.id for entry in entries], budget) if may_replace else {}
        deleted: set[str] = set()
        existing: set[str] = set()  # ids of alerts that are known to have documents
        attempt = 0
        while True:
            attempt += 1
            pending = []
            for entry in entries:
                if entry.id in deleted:
                    outcomes[entry.index] = ObjectGoneError(_DELETED)
                elif outcome := _outcome_if_kept(entry, stored.get(entry.id)):
                    outcomes[entry.index] = outcome
                else:
                    pending.append(entry.with_earlier_alerts(stored.get(entry.id), existing))
            entries = pending
            if not entries:
                return outcomes
            try:
                created = self._commit_batch(entries, stored, budget)
                return outcomes | {
                    entry.index: _committed(entry, stored.get(entry.id), created_at)
                    for entry, created_at in zip(entries, created, strict=True)
                }
            except (exceptions.AlreadyExists, exceptions.FailedPrecondition, exceptions.NotFound):
                # Another process was first, or the object was deleted. Or our own commit succeeded,
                # but its response was lost, and the client retried it.
                if attempt == _MAX_COMMITS:
                    raise
                ids = [entry.id for entry in entries]
                stored, deleted = self._read(ids, budget), self._with_tombstone(ids, budget)
                existing = self._existing_alerts(entries, budget)
            except (exceptions.InvalidArgument, exceptions.OutOfRange) as exc:
                raise _DocumentRefusedError(exc.message) from exc

    def _commit_batch(
        self,
        entries: "Sequence[_Entry]",
        stored: Mapping[str, StoredDocument],
        budget: RetryBudget,
    ) -> list[datetime]:
        """Replace the documents that are stored, if they are unchanged. Create missing documents.

        Returns:
            For each entry, in order, the document's `created_at`.

        Raises:
            _DocumentRefusedError: the client cannot encode one of the documents.
        """
        # Not BulkWriter: it loses writes without an error when the call itself fails.
        # https://github.com/googleapis/python-firestore/issues/633
        batch = self._client.batch()
        writes: list[str] = []  # ids of the written results, and "" for other writes
        try:
            for entry in entries:
                writes.append(entry.id)
                reference = self._collection.document(entry.id)
                document = entry.document | {
                    "location": _geo_point(entry.result.location),
                    "created_at": firestore.SERVER_TIMESTAMP,
                }
                if known := stored.get(entry.id):
                    # Not `set`, which has no precondition. `update` replaces every field, because
                    # all documents have the same fields.
                    unchanged = self._client.write_option(last_update_time=known.update_time)
                    batch.update(reference, document, option=unchanged)
                else:
                    batch.create(reference, document)
                for alert_id, alert in entry.alerts.items():
                    alert |= {"created_at": firestore.SERVER_TIMESTAMP}
                    batch.create(self._alerts.document(alert_id), alert)
                    writes.append("")
                if self._tombstones:
                    # Deletes nothing: it fails the commit if there is a tombstone.
                    missing = self._client.write_option(exists=False)
                    batch.delete(self._tombstones.document(entry.id), option=missing)
                    writes.append("")
        except _BUILD_ERRORS as exc:
            raise _DocumentRefusedError(_reason(exc)) from exc
        results = batch.commit(**budget.limits)
        self._outages.clear(self._writes)
        return [server_time(result) for name, result in zip(writes, results, strict=True) if name]

    @property
    def _alerts(self) -> firestore.CollectionReference:
        return self._client.collection(self._collection.id + ALERTS)

    def _existing_alerts(self, entries: "Iterable[_Entry]", budget: RetryBudget) -> set[str]:
        """Return the ids of the entries' alerts that have documents."""
        references = [self._alerts.document(alert) for entry in entries for alert in entry.alerts]
        if not references:
            return set()
        snapshots = self._client.get_all(references, field_paths=["rule"], **budget.limits)
        return {snapshot.id for snapshot in snapshots if snapshot.exists}

    def _with_tombstone(self, document_ids: Sequence[str], budget: RetryBudget) -> set[str]:
        """Return the ids that have a tombstone."""
        if not self._tombstones:
            return set()
        references = [self._tombstones.document(document_id) for document_id in document_ids]
        snapshots = self._client.get_all(references, field_paths=["deleted_at"], **budget.limits)
        return {snapshot.id for snapshot in snapshots if snapshot.exists}


def _is_final(stored: StoredDocument | None, permission: Replace | None) -> bool:
    if stored is None or stored.status == STATUS_PARKED:
        return False
    return permission is None or not permission.replaces(
        stored.created_at, stored.model, stored.schema
    )


def _committed(
    entry: "_Entry", replaced: StoredDocument | None, created_at: datetime | None
) -> CommittedResult:
    """Return the outcome of a result that was written, perhaps in place of a document."""
    old: frozenset[str] = replaced.object_uris if replaced else frozenset()
    unused = old - entry.result.object_uris
    return CommittedResult(entry.result, unused_uris=unused, created_at=created_at)


def _superseded(result: ImageResult, stored: StoredDocument | None) -> CommittedResult:
    """Return the outcome of a result that was not written, because there is a document."""
    used: frozenset[str] = stored.object_uris if stored else frozenset()
    return CommittedResult(result, is_superseded=True, unused_uris=result.object_uris - used)


def _outcome_if_kept(
    entry: "_Entry", stored: StoredDocument | None
) -> CommittedResult | DocumentKeptError | None:
    """Return a result's outcome if the stored document is kept, or None to write the result."""
    result = entry.result
    if _is_final(stored, result.ref.replace):
        # Equal status and timings: an earlier attempt of this delivery wrote it.
        is_own = stored and (stored.status, stored.timings) == (
            entry.document["status"],
            entry.document["timings"],
        )
        return CommittedResult(result) if is_own else _superseded(result, stored)
    if stored and result.failure and result.failure.is_parked:
        if stored.status == STATUS_PARKED:
            return CommittedResult(result)
        return DocumentKeptError(_LIMIT_REACHED)
    is_done = stored and stored.status == STATUS_DONE
    if is_done and result.failure and not result.failure.code.is_caused_by_bytes:
        return DocumentKeptError(result.failure.message)
    return None


@dataclass(frozen=True)
class _Entry:
    """A result and its documents."""

    index: int  # position of the result in the commit
    result: ImageResult
    document: dict[str, Any]
    size_bytes: int  # of all documents
    alerts: dict[str, dict[str, Any]]  # the documents of its alerts, by id

    @property
    def id(self) -> str:
        """The document's id."""
        return self.result.ref.document_id

    @classmethod
    def of(cls, index: int, result: ImageResult) -> "_Entry":
        """Build the document of a result.

        Raises:
            ValueError: the document is larger than Firestore allows.
        """
        document = to_document(result)
        size = document_bytes(document)
        if size > MAX_DOCUMENT_BYTES:
            raise ValueError(f"its document has {size:,} bytes, more than {MAX_DOCUMENT_BYTES:,}")
        alerts = _alert_documents(result)
        size += sum(map(document_bytes, alerts.values()))
        return cls(index, result, document, size, alerts)

    @property
    def max_writes(self) -> int:
        """How many writes the entry is, with a tombstone that is checked."""
        return 2 + len(self.alerts)

    def with_earlier_alerts(self, stored: StoredDocument | None, existing: set[str]) -> "_Entry":
        """Return the entry without the alerts that have documents. Its document lists them.

        Args:
            stored: the document that it replaces. Its alerts have documents.
            existing: ids of further alerts that have documents.
        """
        earlier = {alert.id: alert for alert in (*self.result.earlier_alerts, *_alerts_of(stored))}
        for alert in self.result.alerts:
            if alert.id in existing and alert.id not in earlier:
                earlier[alert.id] = ListedAlert(alert.id, alert.rule, str(alert.severity))
        if tuple(earlier.values()) == self.result.earlier_alerts:
            return self
        result = replace(
            self.result,
            alerts=tuple(alert for alert in self.result.alerts if alert.id not in earlier),
            earlier_alerts=tuple(earlier.values()),
        )
        document = self.document | {"alerts": to_document(result)["alerts"]}
        return replace(self, result=result, document=document, alerts=_alert_documents(result))


def _alerts_of(stored: StoredDocument | None) -> tuple[ListedAlert, ...]:
    return stored.alerts if stored else ()


def _alert_documents(result: ImageResult) -> dict[str, dict[str, Any]]:
    if not result.alerts:
        return {}
    from service.alerts.matching import (
        to_document as alert_document,  # only needed with alert rules
    )

    return {alert.id: alert_document(result, alert) for alert in result.alerts}


def _groups(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    """Split documents into commits that are small enough and have no id twice."""
    group: dict[str, _Entry] = {}
    size = writes = 0
    for entry in entries:
        is_full = (
            size + entry.size_bytes > _MAX_COMMIT_BYTES
            or writes + entry.max_writes > MAX_COMMIT_WRITES
        )
        if group and (is_full or entry.id in group):
            yield list(group.values())
            group, size, writes = {}, 0, 0
        group[entry.id] = entry
        size += entry.size_bytes
        writes += entry.max_writes
    if group:
        yield list(group.values())


def _geo_point(place: GeoPoint | None) -> firestore.GeoPoint | None:
    return firestore.GeoPoint(place.latitude, place.longitude) if place else None


def _reason(error: Exception) -> str:
    """Return an error's message as one line, or its type if the message is empty."""
    return one_line(str(error) or type(error).__name__, _MAX_REASON)
