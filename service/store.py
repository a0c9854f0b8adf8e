"""Documents in Firestore: which exist, the commit of a batch, and reading them back.

A document is created once: its id names one generation of one object, and a final record stays as
it is. Two processes that detect the same picture at once lose nothing: the second one's `create`
finds the document and drops its own. Only a rerun replaces a document, and only the one that it
saw: a document written since is younger than the rerun, and stays.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

from service.document import to_document
from service.domain import ImageRef, ImageResult, Record, Records, Rerun
from service.errors import StoreUnavailableError

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


class ResultStore:
    """The results' collection; safe to use from many threads."""

    def __init__(
        self, client: firestore.Client, *, collection: str, timeout_seconds: float
    ) -> None:
        """Take a client, and how long one call is retried."""
        self._client = client
        self._collection = client.collection(collection)
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

    def is_final(self, document_id: str, rerun: Rerun | None = None) -> bool:
        """Say whether the picture has its document already, and no rerun may replace it.

        Raises:
            StoreUnavailableError: Firestore did not answer.
        """
        with _translated():
            document = self._collection.document(document_id)
            if rerun:
                return _is_final(self._read([document_id]).get(document_id), rerun)
            return bool(document.get(field_paths=["status"], **self._call).exists)

    def records(self, refs: Sequence[ImageRef]) -> Records:
        """Read which pictures (one or more) are recorded, and how.

        Raises:
            StoreUnavailableError: Firestore did not answer.
        """
        with _translated():
            snapshots = self._snapshots(ref.document_id for ref in refs)
            return Records(_records(snapshots), min(found.read_time for found in snapshots))

    def commit(self, results: Sequence[ImageResult]) -> None:
        """Make results final, all in one commit. Safe to call twice.

        A document that is there stays, unless its result is a rerun's that may replace it.

        Raises:
            StoreUnavailableError: Firestore did not confirm, or refused one of them; call again,
                what was written stays as it is.
        """
        pending = {result.ref.document_id: result for result in results}
        with _translated():
            try:
                self._write(pending)
            except exceptions.InvalidArgument:
                if len(pending) == 1:
                    raise
                self._commit_one_by_one(results)

    def _write(self, results: dict[str, ImageResult]) -> None:
        """Create or replace those documents that are not final; all or, on an error, none."""
        has_reruns = any(result.ref.rerun for result in results.values())
        records = self._read(results) if has_reruns else {}
        for attempt in range(1, _MAX_COMMITS + 1):
            results = {
                document_id: result
                for document_id, result in results.items()
                if not _is_final(records.get(document_id), result.ref.rerun)
            }
            if not results:
                return
            try:
                self._commit_batch(results, records)
                return
            except (exceptions.AlreadyExists, exceptions.FailedPrecondition, exceptions.NotFound):
                # Another process was first, or our own answer was lost on its way and the
                # client called again.
                if attempt == _MAX_COMMITS:
                    raise
                records = self._read(results)

    def _commit_batch(
        self, results: Mapping[str, ImageResult], records: Mapping[str, Record]
    ) -> None:
        """Replace the documents that have a record, as long as it stands, and create the others."""
        # BulkWriter would lose writes without an error when the call itself fails:
        # https://github.com/googleapis/python-firestore/issues/633
        batch = self._client.batch()
        for document_id, result in results.items():
            reference = self._collection.document(document_id)
            document = to_document(result) | {"created_at": firestore.SERVER_TIMESTAMP}
            if record := records.get(document_id):
                # `set` takes no precondition; every document has the same fields.
                unchanged = self._client.write_option(last_update_time=record.update_time)
                batch.update(reference, document, option=unchanged)
            else:
                batch.create(reference, document)
        batch.commit(**self._call)

    def _commit_one_by_one(self, results: Sequence[ImageResult]) -> None:
        """Make final what can be, when Firestore refuses some document of a batch for good."""
        refusals = []
        for result in results:
            try:
                self.commit([result])
            except StoreUnavailableError as exc:
                refusals.append(exc)
        if refusals:
            raise refusals[0]

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
        with _translated():
            for snapshot in query.order_by("name").stream(**self._call):
                yield snapshot.to_dict() or {}


def _is_final(record: Record | None, rerun: Rerun | None) -> bool:
    if record is None:
        return False
    return rerun is None or not rerun.replaces(record.created_at, record.model)


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


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the vendor's errors into ours."""
    try:
        yield
    except exceptions.PermissionDenied as exc:
        raise StoreUnavailableError(
            "Firestore refused access: the service account needs roles/datastore.user."
        ) from exc
    except exceptions.InvalidArgument as exc:
        raise StoreUnavailableError("Firestore refused a document; the log says why.") from exc
    except exceptions.NotFound as exc:
        raise StoreUnavailableError(
            "Firestore has no such database: create it, or set FIRESTORE_DATABASE."
        ) from exc
    except (exceptions.GoogleAPIError, GoogleAuthError) as exc:
        raise StoreUnavailableError("Firestore is unavailable.") from exc
