"""Removes documents and the objects derived from them, and leaves tombstones.

A tombstone is a small document with the id of the removed document, in a collection of its own. It
is written first. From then on, no commit writes a document with this id: each commit requires in
the same atomic step that there is no tombstone (`service.gcp.firestore`). So what is read after it
is final, and a removal that stops halfway is completed by repeating it.

Firestore removes a tombstone when it expires (the TTL policy of `expires_at`).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.cloud import firestore

from service.deadline import NO_DEADLINE, Deadline
from service.gcp.collection import TOMBSTONES, Collection

# Pub/Sub keeps a message for at most 31 days: https://cloud.google.com/pubsub/quotas
_LIFETIME = timedelta(days=31)
_OBJECT_FIELDS = ["derived", "detections_uri"]  # name the objects that belong to a document


class ResultDeleter(Collection):
    """Removes results. Safe to use from many threads, and safe to repeat."""

    def __init__(
        self,
        client: firestore.Client,
        *,
        collection: str,
        timeout_seconds: float,
        remove_object: Callable[[str, Deadline], None] = lambda uri, deadline: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take the client and the limits.

        Args:
            client: the vendor's client.
            collection: name of the collection of the results.
            timeout_seconds: time of one request to Firestore, with all its attempts.
            remove_object: removes the object that a document names, if it exists. It must refuse
                objects that do not belong to results, because documents are untrusted.
            now: the clock, for the tombstones' expiry.
        """
        super().__init__(client, collection=collection, timeout_seconds=timeout_seconds)
        self._tombstones = client.collection(collection + TOMBSTONES)
        self._remove_object = remove_object
        self._now = now

    def delete(self, document_ids: Sequence[str], deadline: Deadline = NO_DEADLINE) -> None:
        """Remove documents and their derived objects, and leave a tombstone for each id.

        Args:
            document_ids: at most 100, whether there are documents or not.
            deadline: the delivery's. The seconds reserved for the commit are used too.

        Raises:
            FirestoreUnavailableError: Firestore did not confirm in time, or refuses it.
            StorageUnavailableError: a derived object could not be removed. Its document stays.
            TooLateError: the deadline has passed.
        """
        deadline = deadline.for_commit()
        self._bury(document_ids, deadline)
        with self._reading():
            references = [self._collection.document(id_) for id_ in document_ids]
            snapshots = list(
                self._client.get_all(
                    references, field_paths=_OBJECT_FIELDS, **self._budget(deadline).limits
                )
            )
        stored = [snapshot for snapshot in snapshots if snapshot.exists]
        for snapshot in stored:
            for uri in _object_uris(snapshot.to_dict() or {}):
                self._remove_object(uri, deadline)
        if stored:
            batch = self._client.batch()
            for snapshot in stored:
                batch.delete(snapshot.reference)
            self._commit(batch, deadline)

    def _bury(self, document_ids: Sequence[str], deadline: Deadline) -> None:
        """Write the tombstones. One that exists already gets a new lifetime."""
        batch = self._client.batch()
        expires_at = self._now() + _LIFETIME
        for document_id in document_ids:
            batch.set(
                self._tombstones.document(document_id),
                {"deleted_at": firestore.SERVER_TIMESTAMP, "expires_at": expires_at},
            )
        self._commit(batch, deadline)

    def _commit(self, batch: Any, deadline: Deadline) -> None:
        with self._report_outage(self._writes):
            batch.commit(**self._budget(deadline).limits)
        self._outages.clear(self._writes)


def _object_uris(document: Mapping[str, Any]) -> list[str]:
    """Return the URIs of the objects that belong to a document. A person may have edited it."""
    derived = document.get("derived")
    named = [
        item.get("uri") if isinstance(item, dict) else item
        for item in (derived if isinstance(derived, list) else [])
    ]
    return [uri for uri in (*named, document.get("detections_uri")) if isinstance(uri, str)]
