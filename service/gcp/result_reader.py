"""Documents of the results, read back for the operator's commands."""

from collections.abc import Iterator, Sequence
from typing import Any

from google.api_core import exceptions
from google.cloud.firestore_v1.base_query import FieldFilter

from service.domain import ImageRef, StoredDocuments
from service.errors import FirestoreUnavailableError
from service.gcp.collection import Collection, RetryBudget, records_of

_AFTER_EVERY_NAME = "\U0010ffff"  # sorts after every object name with the prefix before it


class ResultReader(Collection):
    """Reads documents; safe to use from many threads."""

    def records(self, refs: Sequence[ImageRef]) -> StoredDocuments:
        """Read which images (one or more) are recorded, and how.

        Raises:
            FirestoreUnavailableError: Firestore did not answer.
        """
        with self._reading():
            ids = [ref.document_id for ref in refs]
            snapshots = self._snapshots(ids, self._one_attempt())
            return StoredDocuments(
                records_of(snapshots), min(found.read_time for found in snapshots)
            )

    def results(self, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
        """Read the documents of a bucket whose names begin with `prefix`, by name.

        Raises:
            FirestoreUnavailableError: Firestore did not answer.
        """
        query = self._collection.where(filter=FieldFilter("bucket", "==", bucket))
        if prefix:
            query = query.where(filter=FieldFilter("name", ">=", prefix)).where(
                filter=FieldFilter("name", "<", prefix + _AFTER_EVERY_NAME)
            )
        with self._reading():
            try:
                for snapshot in query.order_by("name").stream(**self._one_attempt().limits):
                    yield snapshot.to_dict() or {}
            except exceptions.FailedPrecondition as exc:  # it has the link that makes the index
                raise FirestoreUnavailableError(
                    f"Firestore refused the query: {exc.message}"
                ) from exc

    def document(self, document_id: str) -> dict[str, Any] | None:
        """Read one document by its id; None if there is none.

        Raises:
            FirestoreUnavailableError: Firestore did not answer.
        """
        with self._reading():
            found = self._collection.document(document_id).get(**self._one_attempt().limits)
            return found.to_dict() if found.exists else None

    def _one_attempt(self) -> RetryBudget:
        """Return a call for an operator, who reads much at once."""
        return RetryBudget(self._timeout_seconds, attempts=1)
