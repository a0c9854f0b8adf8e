"""Documents in Firestore: which exist, the commit of a batch, and reading them back.

A document is created once and never changed: its id names one generation of one object, and a
final record stays as it is. Two processes that detect the same picture at once lose nothing: the
second one's `create` finds the document and drops its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

from service.document import to_document
from service.domain import ImageResult
from service.errors import StoreUnavailableError

_TRANSIENT = retry.if_exception_type(
    exceptions.Aborted,
    exceptions.DeadlineExceeded,
    exceptions.InternalServerError,
    exceptions.ResourceExhausted,
    exceptions.ServiceUnavailable,
)
_AFTER_EVERY_NAME = "\U0010ffff"  # sorts after every object name with the prefix before it


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

    def is_final(self, document_id: str) -> bool:
        """Say whether the picture has its document already.

        Raises:
            StoreUnavailableError: Firestore did not answer.
        """
        with _translated():
            document = self._collection.document(document_id)
            return bool(document.get(field_paths=["status"], **self._call).exists)

    def commit(self, results: Sequence[ImageResult]) -> None:
        """Make results final, all in one commit. Safe to call twice.

        Raises:
            StoreUnavailableError: Firestore did not confirm, or refused one of them; call again,
                what was written stays as it is.
        """
        documents = {
            result.ref.document_id: to_document(result) | {"created_at": firestore.SERVER_TIMESTAMP}
            for result in results
        }
        with _translated():
            try:
                self._create_missing(documents)
            except exceptions.InvalidArgument:
                if len(documents) == 1:
                    raise
                self._commit_one_by_one(results)

    def _create_missing(self, documents: dict[str, dict[str, Any]]) -> None:
        """Create those documents that do not exist; all or, on an error, none of them."""
        while documents:
            # BulkWriter would lose writes without an error when the call itself fails:
            # https://github.com/googleapis/python-firestore/issues/633
            batch = self._client.batch()
            for document_id, document in documents.items():
                batch.create(self._collection.document(document_id), document)
            try:
                batch.commit(**self._call)
                return
            except exceptions.AlreadyExists:
                # Another process was first, or our own answer was lost on its way and the
                # client called again.
                existing = self._existing(documents)
                if not existing:
                    raise
                documents = {i: document for i, document in documents.items() if i not in existing}

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

    def _existing(self, document_ids: Iterable[str]) -> set[str]:
        refs = [self._collection.document(document_id) for document_id in document_ids]
        found = self._client.get_all(refs, field_paths=["status"], **self._call)
        return {snapshot.id for snapshot in found if snapshot.exists}

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
