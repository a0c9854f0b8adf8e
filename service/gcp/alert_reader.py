"""Reads the documents of alerts, for an operator's commands."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

from service.gcp.collection import ALERTS
from service.gcp.document_pages import PAGE_SIZE, DocumentPages


class AlertReader(DocumentPages):
    """Reads alert documents. Safe to use from many threads."""

    def __init__(
        self, client: firestore.Client, *, collection: str, timeout_seconds: float
    ) -> None:
        """Take the client, the name of the results' collection, and the time of one call."""
        super().__init__(client, collection=collection + ALERTS, timeout_seconds=timeout_seconds)

    def since(
        self, created_after: datetime, source_id: str | None = None, *, page_size: int = PAGE_SIZE
    ) -> Iterator[dict[str, Any]]:
        """Yield the alerts that were created since a time, the newest first, with their `id`.

        Args:
            created_after: the time.
            source_id: only the alerts of this source. None: of all sources.
            page_size: how many documents are read at a time.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        query = self._newest_first().where(filter=FieldFilter("created_at", ">=", created_after))
        if source_id is not None:
            query = query.where(filter=FieldFilter("source_id", "==", source_id))
        for page in self._pages(query, page_size):
            for snapshot in page:
                yield {"id": snapshot.id} | (snapshot.to_dict() or {})

    def with_ids(self, alert_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the alerts that exist, by their id. Each id is one read.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        if not alert_ids:
            return {}
        refs = [self._collection.document(alert_id) for alert_id in alert_ids]
        with self._reading():
            snapshots = list(self._client.get_all(refs, **self._one_attempt().limits))
        return {each.id: each.to_dict() or {} for each in snapshots if each.exists}
