"""Documents in Firestore: which exist, and the commit of a batch.

A document is created once: its id names one generation of one object, and a final record stays as
it is. Two processes that detect the same image at once lose nothing: the second one's `create`
finds the document and drops its own. Only a message that asks for it replaces a document, and only
one that was created before the time that the message names. So a younger document stays. So does a
done document whose replacement failed for a reason that is not in the image's bytes.

An image whose document cannot be written fails alone: its neighbours are committed without it, and
it is recorded as `unstorable_result`, by a small document that holds nothing of what was refused.
Only a refusal of the document itself is recorded. Any other error is handed on, to be tried again.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from google.api_core import exceptions
from google.cloud import firestore

from service.deadline import NO_DEADLINE, Deadline
from service.document import STATUS_DONE, to_document
from service.domain import (
    CommittedResult,
    ErrorCode,
    Failure,
    ImageResult,
    ObjectMetadata,
    Replace,
    StoredDocument,
)
from service.errors import (
    DocumentKeptError,
    FirestoreRefusedError,
    FirestoreUnavailableError,
    TransientError,
)
from service.gcp.collection import REFUSES_DOCUMENTS, Collection, RetryBudget
from service.gcp.one_line import one_line

# Each failed commit means that somebody else wrote meanwhile, so that even two are rare.
_MAX_COMMITS = 10
_PAUSE_SECONDS = 0.1  # before an image is tried again alone
# https://firebase.google.com/docs/firestore/quotas. A larger one would not be refused but tried
# again and again: where a whole commit is too large, some servers answer as if they were busy.
_MAX_DOCUMENT_BYTES = 2**20
_MAX_COMMIT_BYTES = 5 * 2**19  # of documents; up to 4 MiB when they are sent
_NAME_BYTES = 2048  # the document's own name and the bytes that Firestore adds, at most
# What a document raises that cannot be written at all, while it is built.
_BUILD_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_MAX_REASON = 300  # characters of the client's message


class _DocumentRefusedError(Exception):
    """Firestore refuses this document at every attempt."""


class ResultStore(Collection):
    """Writes documents; safe to use from many threads."""

    def is_final(
        self, document_id: str, wanted: Replace | None = None, deadline: Deadline = NO_DEADLINE
    ) -> bool:
        """Say whether the image has its document already, which must not be replaced.

        Raises:
            FirestoreUnavailableError: Firestore did not answer in time.
            TooLateError: the deadline has passed.
        """
        budget = self._budget(deadline)
        with self._reading():
            return _is_final(self._read([document_id], budget).get(document_id), wanted)

    def commit(
        self, results: Sequence[ImageResult], deadline: Deadline = NO_DEADLINE
    ) -> list[CommittedResult | Exception]:
        """Make results final, if possible in one commit. Safe to call twice.

        A document that is there stays, unless its message asks to replace it. Where
        several results are of one image, the first one is written.

        Returns:
            For each result, how it is recorded, or the error because of which it is not: a
            FirestoreUnavailableError if Firestore did not confirm in time or refuses everything, a
            TooLateError, a DocumentKeptError if a done document stays instead of a failure, or
            any other error of the client. Safe to repeat: written documents stay as they are.
        """
        outcomes: dict[int, CommittedResult | Exception] = {}
        entries: list[_Entry] = []
        refused: list[tuple[int, Exception]] = []
        for place, result in enumerate(results):
            try:
                entries.append(_Entry.of(place, result))
            except MemoryError:
                raise
            except Exception as exc:  # noqa: BLE001 - nothing but the result decides about it
                refused.append((place, exc))
        try:
            budget = self._budget(deadline)
            for group in _groups(entries):
                self._commit_isolating(group, outcomes, budget)
            for place, error in refused:
                outcomes[place] = self._record_refusal(place, results[place], error, budget)
        except TransientError as exc:  # nobody else need wait for it
            outcomes = dict.fromkeys(range(len(results)), exc) | outcomes
        return [outcomes[place] for place in range(len(results))]

    def _commit_isolating(
        self,
        entries: "list[_Entry]",
        outcomes: dict[int, CommittedResult | Exception],
        budget: RetryBudget,
    ) -> None:
        """Commit results together; if that fails because of one of them, one by one.

        Raises:
            FirestoreUnavailableError: Firestore did not answer; results without an outcome were not
                written.
        """
        try:
            outcomes |= self._write(entries, budget)
            return
        except (FirestoreUnavailableError, MemoryError):
            raise
        except Exception:  # noqa: BLE001 - seen again below, by the image that causes it
            if len(entries) == 1:
                time.sleep(_PAUSE_SECONDS)
        for entry in entries:
            try:
                outcomes |= self._write([entry], budget)
            except _DocumentRefusedError as exc:
                refusal = self._record_refusal(entry.place, entry.result, exc, budget)
                outcomes[entry.place] = refusal
            except (FirestoreUnavailableError, MemoryError):
                raise
            except Exception as exc:  # noqa: BLE001 - whatever it is, it must not fail the others
                outcomes[entry.place] = exc

    def _record_refusal(
        self, place: int, result: ImageResult, error: Exception, budget: RetryBudget
    ) -> CommittedResult | Exception:
        """Record that the document of a result cannot be written, and why.

        Returns:
            The failed result, or why nothing is recorded.

        Raises:
            FirestoreUnavailableError: Firestore did not answer.
        """
        # Without the metadata: they may be what Firestore refuses.
        failed = ImageResult(
            replace(result.ref, metadata=ObjectMetadata()),
            failure=Failure(
                ErrorCode.UNSTORABLE_RESULT,
                f"Firestore cannot store the result of this image: {_reason(error)}",
            ),
        )
        try:
            return self._write([_Entry.of(place, failed)], budget)[place]
        except (FirestoreUnavailableError, MemoryError):
            raise
        except _DocumentRefusedError as exc:
            # There is nothing of the image in it: no document can be written at all.
            self._outages.report(self._writes, REFUSES_DOCUMENTS, str(exc))
            return FirestoreRefusedError(REFUSES_DOCUMENTS)
        except Exception:  # noqa: BLE001 - the first error says more
            return error

    def _write(
        self, entries: "list[_Entry]", budget: RetryBudget
    ) -> dict[int, CommittedResult | Exception]:
        """Create or replace those documents that are not final, all in one commit.

        Returns:
            By place, how each result is recorded, or a DocumentKeptError where a done document
            stays instead.

        Raises:
            _DocumentRefusedError: Firestore refuses some document for good.
            FirestoreUnavailableError: Firestore did not answer. They may be written all the same.
        """
        with self._report_outage(self._writes):
            return self._write_waiting(entries, budget)

    def _write_waiting(
        self, entries: "list[_Entry]", budget: RetryBudget
    ) -> dict[int, CommittedResult | Exception]:
        outcomes: dict[int, CommittedResult | Exception] = {}
        may_replace = any(entry.result.ref.replace for entry in entries)
        records = self._read([entry.id for entry in entries], budget) if may_replace else {}
        attempt = 0
        while True:
            attempt += 1
            waiting = []
            for entry in entries:
                if outcome := _settled(entry, records.get(entry.id)):
                    outcomes[entry.place] = outcome
                else:
                    waiting.append(entry)
            entries = waiting
            if not entries:
                return outcomes
            try:
                self._commit_batch(entries, records, budget)
                return outcomes | {entry.place: CommittedResult(entry.result) for entry in entries}
            except (exceptions.AlreadyExists, exceptions.FailedPrecondition, exceptions.NotFound):
                # Another process was first, or our own answer was lost on its way and the
                # client called again.
                if attempt == _MAX_COMMITS:
                    raise
                records = self._read([entry.id for entry in entries], budget)
            except (exceptions.InvalidArgument, exceptions.OutOfRange) as exc:
                raise _DocumentRefusedError(exc.message) from exc

    def _commit_batch(
        self,
        entries: "Sequence[_Entry]",
        records: Mapping[str, StoredDocument],
        budget: RetryBudget,
    ) -> None:
        """Replace the documents that have a record, as long as it stands, and create the others.

        Raises:
            _DocumentRefusedError: the client cannot write some document.
        """
        # BulkWriter would lose writes without an error when the call itself fails:
        # https://github.com/googleapis/python-firestore/issues/633
        batch = self._client.batch()
        try:
            for entry in entries:
                reference = self._collection.document(entry.id)
                document = entry.document | {"created_at": firestore.SERVER_TIMESTAMP}
                if record := records.get(entry.id):
                    # `set` takes no precondition; every document has the same fields.
                    unchanged = self._client.write_option(last_update_time=record.update_time)
                    batch.update(reference, document, option=unchanged)
                else:
                    batch.create(reference, document)
        except _BUILD_ERRORS as exc:
            raise _DocumentRefusedError(_reason(exc)) from exc
        batch.commit(**budget.limits)
        self._outages.clear(self._writes)


def _is_final(record: StoredDocument | None, wanted: Replace | None) -> bool:
    if record is None:
        return False
    return wanted is None or not wanted.replaces(record.created_at, record.model)


def _settled(
    entry: "_Entry", record: StoredDocument | None
) -> CommittedResult | DocumentKeptError | None:
    """Return the outcome of a result whose document stays; None if it is to be written."""
    result = entry.result
    if _is_final(record, result.ref.replace):
        # Equal times: an earlier attempt of our own wrote it.
        is_own = record and record.timings == entry.document["timings"]
        return CommittedResult(result, is_superseded=not is_own)
    is_done = record and record.status == STATUS_DONE
    if is_done and result.failure and not result.failure.code.is_caused_by_bytes:
        return DocumentKeptError(result.failure.message)
    return None


@dataclass(frozen=True)
class _Entry:
    """A result and its document."""

    place: int  # of the result among those of the commit
    result: ImageResult
    document: dict[str, Any]
    size: int  # bytes

    @property
    def id(self) -> str:
        """The document's id."""
        return self.result.ref.document_id

    @classmethod
    def of(cls, place: int, result: ImageResult) -> "_Entry":
        """Write a result as a document.

        Raises:
            ValueError: it is larger than Firestore takes.
        """
        document = to_document(result)
        size = _size(document) + _NAME_BYTES
        if size > _MAX_DOCUMENT_BYTES:
            raise ValueError(f"its document has {size:,} bytes, more than {_MAX_DOCUMENT_BYTES:,}")
        return cls(place, result, document, size)


def _size(value: Any) -> int:
    """Count the bytes of a value as Firestore does.

    https://firebase.google.com/docs/firestore/storage-size
    """
    if isinstance(value, str):
        return len(value.encode()) + 1
    if isinstance(value, Mapping):
        return sum(_size(key) + _size(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(_size, value))
    return 8 if isinstance(value, int | float | datetime) else 1


def _groups(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    """Divide documents into commits, none too large or with two of one id; nearly always one."""
    group: dict[str, _Entry] = {}
    size = 0
    for entry in entries:
        if group and (size + entry.size > _MAX_COMMIT_BYTES or entry.id in group):
            yield list(group.values())
            group, size = {}, 0
        group[entry.id] = entry
        size += entry.size
    if group:
        yield list(group.values())


def _reason(error: Exception) -> str:
    """Return in one line what an error says."""
    return one_line(str(error) or type(error).__name__, _MAX_REASON)
