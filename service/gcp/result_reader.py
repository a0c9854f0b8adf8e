"""Reads the documents of results, for an operator's commands."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.api_core import exceptions
from google.cloud.firestore_v1.base_query import FieldFilter

from service.document import STATUS_PARKED
from service.domain import ImageRef, StoredDocuments, StoredImage
from service.errors import StoredResultError
from service.gcp.collection import documents_by_id, fields_of, object_uris
from service.gcp.document_pages import PAGE_SIZE, DocumentPages


@dataclass(frozen=True)
class DocumentVersion:
    """A document as it was read. `update_time` is when it had last been changed."""

    id: str
    fields: dict[str, Any]
    update_time: datetime


class ResultReader(DocumentPages):
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
        self, bucket: str, prefix: str, *, page_size: int = PAGE_SIZE
    ) -> Iterator[dict[str, Any]]:
        """Yield the documents of the objects whose names start with `prefix`, sorted by name.

        Each page has its own time limit, so any number of documents can be read, at any pace.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        for page in self._pages(self._by_name(bucket, prefix), page_size):
            yield from map(fields_of, page)

    def versions(
        self, bucket: str, prefix: str, *, page_size: int = PAGE_SIZE
    ) -> Iterator[DocumentVersion]:
        """Yield the same documents as `results`, with what `ResultRewriter` needs.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        for page in self._pages(self._by_name(bucket, prefix), page_size):
            yield from map(_version, page)

    def since(
        self, created_after: datetime, *, page_size: int = PAGE_SIZE
    ) -> Iterator[dict[str, Any]]:
        """Yield the documents that were created since a time, the newest first.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        query = self._newest_first().where(filter=FieldFilter("created_at", ">=", created_after))
        for page in self._pages(query, page_size):
            yield from map(fields_of, page)

    def newest_of_source(self, source_id: str) -> datetime | None:
        """Return when the newest document of a source was created, or None if it has none.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        query = self._newest_first().where(filter=FieldFilter("source.id", "==", source_id))
        for snapshot in self._page(query.select(["created_at"]).limit(1)):
            created_at = snapshot.get("created_at")
            # A person may have edited it.
            return created_at if isinstance(created_at, datetime) else snapshot.create_time
        return None

    def version(self, document_id: str) -> DocumentVersion | None:
        """Return one document by its id, or None if there is none.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        with self._reading():
            snapshot = self._collection.document(document_id).get(**self._one_attempt().limits)
            return _version(snapshot) if snapshot.exists else None

    def images(
        self, bucket: str, prefix: str, *, page_size: int = PAGE_SIZE
    ) -> Iterator[Sequence[StoredImage]]:
        """Yield pages of the images that have a document, sorted by name.

        Documents may be removed meanwhile. Only the fields that `StoredImage` needs are read.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        fields = ["bucket", "name", "generation", "created_at", "detections_uri", "derived"]
        for page in self._pages(self._by_name(bucket, prefix).select(fields), page_size):
            yield [image for snapshot in page if (image := _stored_image(snapshot))]

    def parked(self, *, page_size: int = PAGE_SIZE) -> Iterator[tuple[datetime, ImageRef]]:
        """Yield every parked image, and when it was parked, the newest first.

        Only the documents of parked images are read.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        query = self._newest_first().where(filter=FieldFilter("status", "==", STATUS_PARKED))
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
        if end := after_prefix(prefix):
            query = query.where(filter=FieldFilter("name", "<", end))
        return query.order_by("name")


def after_prefix(prefix: str) -> str | None:
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
    return StoredImage(snapshot.id, ref, created_at, object_uris(fields))


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
