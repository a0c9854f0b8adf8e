"""Reads the documents of results, for an operator's commands."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from google.api_core import exceptions
from google.cloud.firestore_v1.base_query import FieldFilter
from google.cloud.firestore_v1.query import Query

from service.document import SHARDS, STATUS_PARKED
from service.domain import ImageRef, StoredDocuments
from service.errors import FirestoreUnavailableError
from service.gcp.collection import Collection, RetryBudget, documents_by_id

_AFTER_EVERY_NAME = "\U0010ffff"  # after a prefix, it sorts after every name with that prefix
_PAGE_SIZE = 300  # documents


class ResultReader(Collection):
    """Reads documents. Safe to use from many threads."""

    def stored_documents(self, refs: Sequence[ImageRef]) -> StoredDocuments:
        """Return the documents that exist for one or more images.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        with self._reading():
            ids = [ref.document_id for ref in refs]
            snapshots = self._snapshots(ids, self._one_attempt())
            return StoredDocuments(
                documents_by_id(snapshots), min(snapshot.read_time for snapshot in snapshots)
            )

    def results(
        self, bucket: str, prefix: str, *, page_size: int = _PAGE_SIZE
    ) -> Iterator[dict[str, Any]]:
        """Yield the documents of the objects whose names start with `prefix`, sorted by name.

        Each page has its own time limit, so any number of documents can be read, at any pace.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        query = self._collection.where(filter=FieldFilter("bucket", "==", bucket))
        if prefix:
            query = query.where(filter=FieldFilter("name", ">=", prefix)).where(
                filter=FieldFilter("name", "<", prefix + _AFTER_EVERY_NAME)
            )
        query = query.order_by("name").limit(page_size)
        while page := self._page(query):
            yield from (snapshot.to_dict() or {} for snapshot in page)
            query = query.start_after(page[-1])

    def parked(self, *, page_size: int = _PAGE_SIZE) -> Iterator[tuple[datetime, ImageRef]]:
        """Yield every parked image, and when it was parked, the newest first.

        Only the documents of parked images are read.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        query = self._collection.where(filter=FieldFilter("status", "==", STATUS_PARKED))
        query = query.where(filter=FieldFilter("shard", "in", list(range(SHARDS))))
        query = query.order_by("created_at", direction=Query.DESCENDING)
        query = query.select(["bucket", "name", "generation", "created_at"]).limit(page_size)
        while page := self._page(query):
            for snapshot in page:
                fields = snapshot.to_dict() or {}
                ref = ImageRef(fields["bucket"], fields["name"], fields["generation"])
                yield fields["created_at"], ref
            query = query.start_after(page[-1])

    def document(self, document_id: str) -> dict[str, Any] | None:
        """Return one document by its id, or None if there is none.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        with self._reading():
            snapshot = self._collection.document(document_id).get(**self._one_attempt().limits)
            return snapshot.to_dict() if snapshot.exists else None

    def _page(self, query: Any) -> list[Any]:
        """Return all snapshots of a query: the time limit must not count the caller's work."""
        with self._reading():
            try:
                return list(query.stream(**self._one_attempt().limits))
            except exceptions.FailedPrecondition as exc:  # its message links to the missing index
                raise FirestoreUnavailableError(
                    f"Firestore refused the query: {exc.message}"
                ) from exc

    def _one_attempt(self) -> RetryBudget:
        """Return a budget for one attempt: an operator's large reads take long."""
        return RetryBudget(self._timeout_seconds, attempts=1)
