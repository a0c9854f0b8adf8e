"""Removes documents, their alerts and the objects that belong to them, and leaves tombstones.

A tombstone is a small document with the id of the removed document, in a collection of its own. It
is written first. From then on, no commit writes a document with this id: each commit requires in
the same atomic step that there is no tombstone (`service.gcp.firestore`). So a removal that stops
halfway is completed by repeating it, and nothing is written after it.

Firestore removes a tombstone when it expires (the TTL policy of `expires_at`).
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.cloud import firestore

from service.deadline import NO_DEADLINE, Deadline
from service.gcp.collection import (
    ALERTS,
    MAX_COMMIT_WRITES,
    TOMBSTONES,
    Collection,
    server_time,
)
from service.stored_result import listed_alerts

# Pub/Sub keeps a message for at most 31 days: https://cloud.google.com/pubsub/quotas
_LIFETIME = timedelta(days=31)


class ResultDeleter(Collection):
    """Removes results. Safe to use from many threads, and safe to repeat."""

    def __init__(
        self,
        client: firestore.Client,
        *,
        collection: str,
        timeout_seconds: float,
        remove_objects: Callable[[str, Deadline], None] = lambda document_id, deadline: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take the client and the limits.

        Args:
            client: the vendor's client.
            collection: name of the collection of the results.
            timeout_seconds: time of one request to Firestore, with all its attempts.
            remove_objects: removes the objects that belong to the document with an id, whether the
                document names them or not.
            now: the clock, for the tombstones' expiry.
        """
        super().__init__(client, collection=collection, timeout_seconds=timeout_seconds)
        self._tombstones = client.collection(collection + TOMBSTONES)
        self._alerts = client.collection(collection + ALERTS)
        self._remove_objects = remove_objects
        self._now = now

    def delete(self, document_ids: Sequence[str], deadline: Deadline = NO_DEADLINE) -> datetime:
        """Remove documents, their alerts and objects, and leave a tombstone for each id.

        Args:
            document_ids: at most 100, whether there are documents or not.
            deadline: the delivery's. The seconds reserved for the commit are used too.

        Returns:
            When the tombstones were written, by Firestore's clock.

        Raises:
            FirestoreUnavailableError: Firestore did not confirm in time, or refuses it.
            StorageUnavailableError: an object could not be removed. No document was removed.
            TooLateError: the deadline has passed.
        """
        deleted_at = self.write_tombstones(document_ids, deadline)
        self.remove(document_ids, deadline)
        return deleted_at

    def write_tombstones(
        self, document_ids: Sequence[str], deadline: Deadline = NO_DEADLINE
    ) -> datetime:
        """Leave a tombstone for each id: from then on, no commit writes these documents.

        The arguments, the returned time and the errors are those of `delete`.
        """
        batch = self._client.batch()
        expires_at = self._now() + _LIFETIME
        for document_id in document_ids:
            batch.set(
                self._tombstones.document(document_id),
                {"deleted_at": firestore.SERVER_TIMESTAMP, "expires_at": expires_at},
            )
        first, *_ = self._commit(batch, deadline.for_commit())
        return server_time(first)

    def remove(self, document_ids: Sequence[str], deadline: Deadline = NO_DEADLINE) -> None:
        """Remove documents that have tombstones, their alerts and their objects.

        The arguments and the errors are those of `delete`.
        """
        deadline = deadline.for_commit()
        for document_id in document_ids:
            self._remove_objects(document_id, deadline)
        # No alert is created after the tombstones, so the documents list all alerts. They are
        # removed first, so that the documents still list them if this is repeated.
        alerts = [self._alerts.document(each) for each in self._alert_ids(document_ids, deadline)]
        for start in range(0, len(alerts), MAX_COMMIT_WRITES):
            self._delete(alerts[start : start + MAX_COMMIT_WRITES], deadline)
        self._delete([self._collection.document(each) for each in document_ids], deadline)

    def _delete(self, references: Sequence[Any], deadline: Deadline) -> None:
        batch = self._client.batch()
        for reference in references:
            batch.delete(reference)
        self._commit(batch, deadline)

    def _alert_ids(self, document_ids: Sequence[str], deadline: Deadline) -> list[str]:
        """Return the ids of all alerts of documents."""
        references = [self._collection.document(document_id) for document_id in document_ids]
        with self._reading():
            snapshots = self._client.get_all(
                references, field_paths=["alerts"], **self._budget(deadline).limits
            )
            return [
                alert.id
                for snapshot in snapshots
                for alert in listed_alerts(snapshot.id, snapshot.to_dict() or {})
            ]

    def _commit(self, batch: Any, deadline: Deadline) -> list[Any]:
        with self._report_outage(self._writes):
            results: list[Any] = batch.commit(**self._budget(deadline).limits)
        self._outages.clear(self._writes)
        return results
