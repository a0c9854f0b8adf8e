"""Documents in Firestore: which exist, the commit of a batch, and reading them back.

A document is created once: its id names one generation of one object, and a final record stays as
it is. Two processes that detect the same picture at once lose nothing: the second one's `create`
finds the document and drops its own. Only a rerun replaces a document, and only the one that it
saw: a document written since is younger than the rerun, and stays. So does a done document whose
rerun failed for a reason that is not in the image's bytes.

An image whose document cannot be written fails alone: its neighbours are committed without it, and
it is recorded as `unstorable_result`, by a small document that holds nothing of what was refused.
Only a refusal of the document itself is recorded. Any other error is handed on, to be tried again.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

from service.document import STATUS_DONE, to_document
from service.domain import (
    ErrorCode,
    Failure,
    ImageRef,
    ImageResult,
    ObjectMetadata,
    Record,
    Records,
    Replace,
)
from service.errors import DocumentKeptError, StoreRefusedError, StoreUnavailableError
from service.gcp.outages import Outages

_TRANSIENT = retry.if_exception_type(
    exceptions.Aborted,
    exceptions.DeadlineExceeded,
    exceptions.InternalServerError,
    exceptions.ResourceExhausted,
    exceptions.ServiceUnavailable,
)
_AFTER_EVERY_NAME = "\U0010ffff"  # sorts after every object name with the prefix before it
_RECORD_FIELDS = ["status", "model.sha256", "created_at"]
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
_NO_ACCESS = (
    "Firestore refused access: grant the service account roles/datastore.user, and check that the "
    "project has billing and the Firestore API enabled."
)
_NO_DATABASE = "Firestore has no such database: create it, or set FIRESTORE_DATABASE."
_NO_CREDENTIALS = "Google rejected the service account's credentials, or issued no token for it."
_NO_NATIVE = "Firestore refuses the call: the database must be in Native mode. The log says more."
_REFUSES_DOCUMENTS = "Firestore refuses every document: check FIRESTORE_COLLECTION."


class _DocumentRefusedError(Exception):
    """Firestore refuses this document at every attempt."""


class ResultStore:
    """The results' collection; safe to use from many threads."""

    def __init__(
        self,
        client: firestore.Client,
        *,
        collection: str,
        timeout_seconds: float,
        outages: Outages | None = None,
    ) -> None:
        """Take a client, how long one call is retried, and what logs a refused database."""
        self._client = client
        self._outages = outages or Outages()
        self._collection = client.collection(collection)
        # Separate subjects: an account may have read access only.
        self._reads = f"Firestore database {client._database}, reading"
        self._writes = f"Firestore database {client._database}, writing"
        # Both are needed: `timeout` bounds one attempt, the retry's own timeout bounds them all.
        self._call: dict[str, Any] = {
            "retry": retry.Retry(
                predicate=_TRANSIENT, initial=0.1, maximum=2.0, timeout=timeout_seconds
            ),
            "timeout": timeout_seconds,
        }

    @property
    def project(self) -> str:
        """The project that the database is in."""
        return str(self._client.project)

    def is_final(self, document_id: str, rerun: Replace | None = None) -> bool:
        """Say whether the picture has its document already, and no rerun may replace it.

        Raises:
            StoreUnavailableError: Firestore did not answer.
        """
        with self._reading():
            document = self._collection.document(document_id)
            if rerun:
                return _is_final(self._read([document_id]).get(document_id), rerun)
            return bool(document.get(field_paths=["status"], **self._call).exists)

    def records(self, refs: Sequence[ImageRef]) -> Records:
        """Read which pictures (one or more) are recorded, and how.

        Raises:
            StoreUnavailableError: Firestore did not answer.
        """
        with self._reading():
            snapshots = self._snapshots(ref.document_id for ref in refs)
            return Records(_records(snapshots), min(found.read_time for found in snapshots))

    def commit(self, results: Sequence[ImageResult]) -> list[ImageResult | Exception]:
        """Make results final, if possible in one commit. Safe to call twice.

        A document that is there stays, unless its result is a rerun's that may replace it.

        Returns:
            For each result, the outcome: the result itself, a failed result if Firestore refuses
            its document permanently, or the error because of which nothing was recorded.

        Raises:
            StoreUnavailableError: Firestore did not confirm, or refuses everything; call again,
                what was written stays as it is.
        """
        entries: dict[str, _Entry] = {}
        refused: dict[str, tuple[ImageResult, Exception]] = {}
        outcomes: dict[str, ImageResult | Exception] = {}
        for result in results:
            try:
                entries[result.ref.document_id] = _Entry.of(result)
            except MemoryError:
                raise
            except Exception as exc:  # noqa: BLE001 - nothing but the result decides about it
                refused[result.ref.document_id] = (result, exc)
        try:
            for group in _groups(entries):
                self._commit_isolating(group, outcomes)
            for document_id, (result, error) in refused.items():
                outcomes[document_id] = self._record_refusal(result, error)
        except StoreUnavailableError as exc:  # nobody else need wait for it
            outcomes = dict.fromkeys([*entries, *refused], exc) | outcomes
        if all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes.values()):
            for outcome in outcomes.values():
                raise outcome  # type: ignore[misc]  # one of these errors
        return [outcomes[result.ref.document_id] for result in results]

    def _commit_isolating(
        self, entries: "dict[str, _Entry]", outcomes: dict[str, ImageResult | Exception]
    ) -> None:
        """Commit results together; if that fails because of one of them, one by one.

        Raises:
            StoreUnavailableError: Firestore did not answer; results without an outcome were not
                written.
        """
        try:
            outcomes |= self._write(entries)
            return
        except (StoreUnavailableError, MemoryError):
            raise
        except Exception:  # noqa: BLE001 - seen again below, by the image that causes it
            if len(entries) == 1:
                time.sleep(_PAUSE_SECONDS)
        for document_id, entry in entries.items():
            try:
                outcomes |= self._write({document_id: entry})
            except _DocumentRefusedError as exc:
                outcomes[document_id] = self._record_refusal(entry.result, exc)
            except (StoreUnavailableError, MemoryError):
                raise
            except Exception as exc:  # noqa: BLE001 - whatever it is, it must not fail the others
                outcomes[document_id] = exc

    def _record_refusal(self, result: ImageResult, error: Exception) -> ImageResult | Exception:
        """Record that the document of a result cannot be written, and why.

        Returns:
            The failed result, or why nothing is recorded.

        Raises:
            StoreUnavailableError: Firestore did not answer.
        """
        # What an event or Cloud Storage says of the object may be what is refused, too.
        failed = ImageResult(
            replace(result.ref, metadata=ObjectMetadata()),
            failure=Failure(
                ErrorCode.UNSTORABLE_RESULT,
                f"Firestore cannot store the result of this image: {_line(error)}",
            ),
        )
        document_id = result.ref.document_id
        try:
            return self._write({document_id: _Entry.of(failed)})[document_id]
        except (StoreUnavailableError, MemoryError):
            raise
        except _DocumentRefusedError as exc:
            # There is nothing of the image in it: no document can be written at all.
            self._outages.report(self._writes, _REFUSES_DOCUMENTS, str(exc))
            return StoreRefusedError(_REFUSES_DOCUMENTS)
        except Exception:  # noqa: BLE001 - the first error says more
            return error

    def _write(self, entries: "dict[str, _Entry]") -> dict[str, ImageResult | Exception]:
        """Create or replace those documents that are not final; all or, on an error, none.

        Returns:
            The results; a DocumentKeptError where a done document stays instead.

        Raises:
            _DocumentRefusedError: Firestore refuses some document for good.
            StoreUnavailableError: Firestore did not answer.
        """
        with self._answering(self._writes):
            return self._write_translated(entries)

    def _write_translated(self, entries: "dict[str, _Entry]") -> dict[str, ImageResult | Exception]:
        outcomes: dict[str, ImageResult | Exception] = {
            document_id: entry.result for document_id, entry in entries.items()
        }
        has_reruns = any(entry.result.ref.rerun for entry in entries.values())
        records = self._read(entries) if has_reruns else {}
        attempt = 0
        while True:
            attempt += 1
            entries = {
                document_id: entry
                for document_id, entry in entries.items()
                if not _is_final(records.get(document_id), entry.result.ref.rerun)
            }
            for document_id in _kept(entries, records):
                failure = entries.pop(document_id).result.failure
                outcomes[document_id] = DocumentKeptError(failure.message if failure else "")
            if not entries:
                return outcomes
            try:
                self._commit_batch(entries, records)
                return outcomes
            except (exceptions.AlreadyExists, exceptions.FailedPrecondition, exceptions.NotFound):
                # Another process was first, or our own answer was lost on its way and the
                # client called again.
                if attempt == _MAX_COMMITS:
                    raise
                records = self._read(entries)
            except (exceptions.InvalidArgument, exceptions.OutOfRange) as exc:
                raise _DocumentRefusedError(exc.message) from exc

    def _commit_batch(self, entries: "Mapping[str, _Entry]", records: Mapping[str, Record]) -> None:
        """Replace the documents that have a record, as long as it stands, and create the others.

        Raises:
            _DocumentRefusedError: the client cannot write some document.
        """
        # BulkWriter would lose writes without an error when the call itself fails:
        # https://github.com/googleapis/python-firestore/issues/633
        batch = self._client.batch()
        try:
            for document_id, entry in entries.items():
                reference = self._collection.document(document_id)
                document = entry.document | {"created_at": firestore.SERVER_TIMESTAMP}
                if record := records.get(document_id):
                    # `set` takes no precondition; every document has the same fields.
                    unchanged = self._client.write_option(last_update_time=record.update_time)
                    batch.update(reference, document, option=unchanged)
                else:
                    batch.create(reference, document)
        except _BUILD_ERRORS as exc:
            raise _DocumentRefusedError(_line(exc)) from exc
        batch.commit(**self._call)
        self._outages.clear(self._writes)

    def _read(self, document_ids: Iterable[str]) -> dict[str, Record]:
        return _records(self._snapshots(document_ids))

    def _snapshots(self, document_ids: Iterable[str]) -> list[Any]:
        refs = [self._collection.document(document_id) for document_id in document_ids]
        return list(self._client.get_all(refs, field_paths=_RECORD_FIELDS, **self._call))

    def results(self, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
        """Read the documents of a bucket whose names begin with `prefix`, by name.

        Raises:
            StoreUnavailableError: Firestore did not answer.
        """
        query = self._collection.where(filter=FieldFilter("bucket", "==", bucket))
        if prefix:
            query = query.where(filter=FieldFilter("name", ">=", prefix)).where(
                filter=FieldFilter("name", "<", prefix + _AFTER_EVERY_NAME)
            )
        with self._reading():
            try:
                for snapshot in query.order_by("name").stream(**self._call):
                    yield snapshot.to_dict() or {}
            except exceptions.FailedPrecondition as exc:  # it has the link that makes the index
                raise StoreUnavailableError(f"Firestore refused the query: {exc.message}") from exc

    def document(self, document_id: str) -> dict[str, Any] | None:
        """Read one document by its id; None if there is none.

        Raises:
            StoreUnavailableError: Firestore did not answer.
        """
        with self._reading():
            found = self._collection.document(document_id).get(**self._call)
            return found.to_dict() if found.exists else None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._answering(self._reads):
            yield
        self._outages.clear(self._reads)

    @contextmanager
    def _answering(self, subject: str) -> Iterator[None]:
        """Turn the vendor's errors into ours, and log once what concerns every message."""
        try:
            with _translated():
                yield
        except StoreRefusedError as exc:
            self._outages.report(subject, str(exc), str(exc.__cause__ or ""))
            raise


def _is_final(record: Record | None, rerun: Replace | None) -> bool:
    if record is None:
        return False
    return rerun is None or not rerun.replaces(record.created_at, record.model)


def _kept(entries: "Mapping[str, _Entry]", records: Mapping[str, Record]) -> list[str]:
    """Return the documents that must stay: done, and the new failure is not about the bytes."""
    return [
        document_id
        for document_id, entry in entries.items()
        if (record := records.get(document_id)) and record.status == STATUS_DONE
        if (failure := entry.result.failure) and not failure.code.is_of_the_bytes
    ]


def _records(snapshots: Iterable[Any]) -> dict[str, Record]:
    """Read what exists among snapshots of `_RECORD_FIELDS`."""
    records = {}
    for snapshot in snapshots:
        if snapshot.exists:
            document = snapshot.to_dict()
            records[snapshot.id] = Record(
                status=document.get("status", ""),
                model=(document.get("model") or {}).get("sha256"),
                created_at=document.get("created_at") or snapshot.create_time,
                update_time=snapshot.update_time,
            )
    return records


@dataclass(frozen=True)
class _Entry:
    """A result and its document."""

    result: ImageResult
    document: dict[str, Any]
    size: int  # bytes

    @classmethod
    def of(cls, result: ImageResult) -> "_Entry":
        """Write a result as a document.

        Raises:
            ValueError: it is larger than Firestore takes.
        """
        document = to_document(result)
        size = _size(document) + _NAME_BYTES
        if size > _MAX_DOCUMENT_BYTES:
            raise ValueError(f"its document has {size:,} bytes, more than {_MAX_DOCUMENT_BYTES:,}")
        return cls(result, document, size)


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


def _groups(entries: Mapping[str, _Entry]) -> Iterator[dict[str, _Entry]]:
    """Divide documents into commits that are not too large; nearly always one."""
    group: dict[str, _Entry] = {}
    size = 0
    for document_id, entry in entries.items():
        if group and size + entry.size > _MAX_COMMIT_BYTES:
            yield group
            group, size = {}, 0
        group[document_id] = entry
        size += entry.size
    if group:
        yield group


def _line(error: Exception) -> str:
    """Say in one line what an error says."""
    text = str(error) or type(error).__name__
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_MAX_REASON]


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the vendor's errors into ours."""
    try:
        yield
    except exceptions.PermissionDenied as exc:
        raise StoreRefusedError(_NO_ACCESS) from exc
    except exceptions.NotFound as exc:
        raise StoreRefusedError(_NO_DATABASE) from exc
    except (exceptions.Unauthenticated, GoogleAuthError) as exc:
        raise StoreRefusedError(_NO_CREDENTIALS) from exc
    except exceptions.FailedPrecondition as exc:
        raise StoreRefusedError(_NO_NATIVE) from exc
    except (exceptions.InvalidArgument, exceptions.OutOfRange) as exc:
        raise StoreRefusedError(_REFUSES_DOCUMENTS) from exc
    except (exceptions.GoogleAPIError, TimeoutError) as exc:
        raise StoreUnavailableError("Firestore is unavailable.") from exc
