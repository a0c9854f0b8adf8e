"""Reads the documents of results, for an operator's commands."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.api_core import exceptions
from google.cloud.firestore_v1.base_query import FieldFilter
from google.cloud.firestore_v1.query import Query

from service.document import SHARDS, STATUS_PARKED
from service.domain import ImageRef, StoredDocuments, StoredImage
from service.errors import FirestoreUnavailableError, StoredResultError
from service.gcp.collection import Collection, RetryBudget, documents_by_id, fields_of

_PAGE_SIZE = 300  # documents


@dataclass(frozen=True)
class DocumentVersion:
    """A document as it was read. `update_time` is when it had last been changed."""

    id: str
    fields: dict[str, Any]
    update_time: datetime


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
        for page in self._pages(self._by_name(bucket, prefix), page_size):
            yield from map(fields_of, page)

    def versions(
        self, bucket: str, prefix: str, *, page_size: int = _PAGE_SIZE
    ) -> Iterator[DocumentVersion]:
        """Yield the same documents as `results`, with what `ResultRewriter` needs.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        for page in self._pages(self._by_name(bucket, prefix), page_size):
            yield from map(_version, page)

    def version(self, document_id: str) -> DocumentVersion | None:
        """Return one document by its id, or None if there is none.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        with self._reading():
            snapshot = self._collection.document(document_id).get(**self._one_attempt().limits)
            return _version(snapshot) if snapshot.exists else None

    def images(
        self, bucket: str, prefix: str, *, page_size: int = _PAGE_SIZE
    ) -> Iterator[Sequence[StoredImage]]:
        """Yield pages of the images that have a document, sorted by name.

        Documents may be removed meanwhile. Only the fields that `StoredImage` needs are read.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        fields = ["bucket", "name", "generation", "created_at", "detections_uri"]
        for page in self._pages(self._by_name(bucket, prefix).select(fields), page_size):
            yield [image for snapshot in page if (image := _stored_image(snapshot))]

    def parked(self, *, page_size: int = _PAGE_SIZE) -> Iterator[tuple[datetime, ImageRef]]:
        """Yield every parked image, and when it was parked, the newest first.

        Only the documents of parked images are read.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        query = self._collection.where(filter=FieldFilter("status", "==", STATUS_PARKED))
        query = query.where(filter=FieldFilter("shard", "in", list(range(SHARDS))))
        query = query.order_by("created_at", direction=Query.DESCENDING)
        query = query.select(["bucket", "name", "generation", "created_at"])
        for page in self._pages(query, page_size):
            for snapshot in page:
                image = _stored_image(snapshot)
                if image and image.ref.generation is not None:
                    yield image.created_at, image.ref

    def document(self, document_id: str) -> dict[str, Any] | None:
        """Return one document by its id, or None if there is none.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        version = self.version(document_id)
        return version.fields if version else None

    def _by_name(self, bucket: str, prefix: str) -> Any:
        """Return the query for the documents of a prefix, sorted by name."""
        query = self._collection.where(filter=FieldFilter("bucket", "==", bucket))
        if prefix:
            query = query.where(filter=FieldFilter("name", ">=", prefix))
        if end := _after(prefix):
            query = query.where(filter=FieldFilter("name", "<", end))
        return query.order_by("name")

    def _pages(self, query: Any, page_size: int) -> Iterator[list[Any]]:
        """Yield the snapshots of a query, page by page."""
        query = query.limit(page_size)
        while page := self._page(query):
            yield page
            query = query.start_after(page[-1])

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


def _after(prefix: str) -> str | None:
    """Return the first text that sorts after all texts with a prefix, or None if there is none.

    Firestore sorts texts by their code points. There are no surrogates in UTF-8.
    """
    start = prefix.rstrip(chr(sys.maxunicode))
    if not start:
        return None
    following = ord(start[-1]) + 1
    return start[:-1] + chr(0xE000 if following == 0xD800 else following)


def _version(snapshot: Any) -> DocumentVersion:
    return DocumentVersion(snapshot.id, fields_of(snapshot), snapshot.update_time)


def _stored_image(snapshot: Any) -> StoredImage | None:
    """Return the image of a document, or None if the service did not write the document."""
    fields = snapshot.to_dict() or {}
    bucket, name, generation = (fields.get(key) for key in ("bucket", "name", "generation"))
    if not (isinstance(bucket, str) and isinstance(name, str) and name):
        return None
    created_at = fields.get("created_at")
    if not isinstance(created_at, datetime):
        created_at = snapshot.create_time
    # 0 means that the generation was not known (service.pipeline).
    is_known = isinstance(generation, int) and generation > 0
    ref = ImageRef(bucket, name, generation if is_known else None)
    detections_uri = fields.get("detections_uri")
    return StoredImage(snapshot.id, ref, created_at, detections_uri and str(detections_uri))


class ResultRewriter(ResultReader):
    """Changes fields of documents. Safe to use from many threads."""

    def rewrite(self, version: DocumentVersion, fields: Mapping[str, Any]) -> bool:
        """Change fields of a document. Return False if the document was changed meanwhile.

        Other fields, for example `created_at`, keep their values.

        Raises:
            StoredResultError: Firestore refuses the changed document, for example its size.
            FirestoreUnavailableError: Firestore did not confirm.
        """
        with self._report_outage(self._writes):
            try:
                self._collection.document(version.id).update(
                    dict(fields),
                    option=self._client.write_option(last_update_time=version.update_time),
                    **self._one_attempt().limits,
                )
            except (exceptions.FailedPrecondition, exceptions.NotFound):
                return False
            except exceptions.InvalidArgument as exc:
                raise StoredResultError(f"Firestore refuses the document: {exc.message}") from exc
        return True
