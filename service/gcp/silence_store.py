"""The alert documents of silent sources."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from google.api_core import exceptions
from google.cloud import firestore

from service.deadline import NO_DEADLINE, Deadline
from service.domain import StoredAlert
from service.errors import FirestoreUnavailableError
from service.gcp.alert_store import AlertStore


class SilenceStore(AlertStore):
    """Creates alert documents that belong to no image. Safe to use from many threads."""

    def create(
        self, alert_id: str, fields: Mapping[str, Any], deadline: Deadline = NO_DEADLINE
    ) -> StoredAlert:
        """Create the document of an alert, unless there is one. Return what is stored.

        Args:
            alert_id: the alert.
            fields: the fields of its document, without `created_at`.
            deadline: ends the requests.

        Raises:
            StoredResultError: a person has edited the document.
            FirestoreUnavailableError: Firestore did not confirm in time.
            TooLateError: the deadline has passed.
        """
        if stored := self.read(alert_id, deadline):
            return stored
        # If it exists now, another run was first, or our own first response was lost.
        with self._report_outage(self._writes), suppress(exceptions.AlreadyExists):
            self._collection.document(alert_id).create(
                {**fields, "created_at": firestore.SERVER_TIMESTAMP},
                **self._budget(deadline).limits,
            )
        if stored := self.read(alert_id, deadline):
            return stored
        raise FirestoreUnavailableError("The alert was removed while it was created.")
