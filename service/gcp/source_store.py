"""The documents of the sources: the sources, and the last good ones.

The version of the sources is the time at which Firestore last changed their document.
"""

from datetime import datetime
from typing import Any

from google.api_core import exceptions
from google.cloud import firestore

from service.deadline import NO_DEADLINE, Deadline
from service.errors import SourcesError
from service.gcp.collection import Collection, RetryBudget
from service.gcp.document_size import document_bytes
from service.sources.current import StoredSources
from service.sources.schema import MAX_BYTES, Sources, to_document

COLLECTION = "config"
_SOURCES = "sources"
_LAST_GOOD = "sources_last_good"
_VERSION = "version"


class SourceStore(Collection):
    """Reads and writes the two documents. Safe to use from many threads."""

    def __init__(
        self, client: firestore.Client, *, timeout_seconds: float, collection: str = COLLECTION
    ) -> None:
        """Take the client, the time of one call, and the collection of the documents."""
        super().__init__(client, collection=collection, timeout_seconds=timeout_seconds)

    def read(self, deadline: Deadline = NO_DEADLINE) -> StoredSources | None:
        """Return the sources, or None if there is no document.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
            TooLateError: the deadline has passed.
        """
        snapshot = self._get(_SOURCES, self._budget(deadline))
        return snapshot and StoredSources(snapshot.to_dict(), snapshot.update_time)

    def last_good(self, deadline: Deadline = NO_DEADLINE) -> StoredSources | None:
        """Return the last good sources, or None if there is no document.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
            TooLateError: the deadline has passed.
        """
        snapshot = self._get(_LAST_GOOD, self._budget(deadline))
        if not snapshot:
            return None
        data = snapshot.to_dict()
        return StoredSources(
            {key: value for key, value in data.items() if key != _VERSION},
            _version(snapshot) or snapshot.update_time,
        )

    def remember(self, good: StoredSources, deadline: Deadline = NO_DEADLINE) -> None:
        """Store the last good sources, unless the same or newer ones are stored.

        Raises:
            FirestoreUnavailableError: Firestore did not confirm in time.
            TooLateError: the deadline has passed.
        """
        budget = self._budget(deadline)
        document = {**good.data, _VERSION: good.version}
        while True:  # until it is stored, or another instance stored the same or a newer version
            snapshot = self._get(_LAST_GOOD, budget)
            if snapshot:
                version = _version(snapshot)
                is_newer = version is not None and version > good.version
                if is_newer or snapshot.to_dict() == document:
                    return
            if self._put(_LAST_GOOD, document, snapshot and snapshot.update_time, budget):
                return

    def write(
        self,
        sources: Sources,
        unless_changed_since: datetime | None,
        deadline: Deadline = NO_DEADLINE,
    ) -> datetime:
        """Replace all sources. Return their new version.

        Args:
            sources: the new sources.
            unless_changed_since: version of the document that they replace. None: there was none.
            deadline: ends the requests.

        Raises:
            SourcesError: the document was changed meanwhile, or the sources are too large.
            FirestoreUnavailableError: Firestore did not confirm in time.
            TooLateError: the deadline has passed.
        """
        document = to_document(sources)
        if (size := document_bytes(document)) > MAX_BYTES:
            raise SourcesError(
                f"The sources have {size:,} bytes, but at most {MAX_BYTES:,} can be stored: remove "
                "sources, zones or points of zones"
            )
        version = self._put(_SOURCES, document, unless_changed_since, self._budget(deadline))
        if version is None:
            raise SourcesError(
                "The sources were changed meanwhile, so nothing was written: run the command again"
            )
        self.remember(StoredSources(document, version), deadline)
        return version

    def _get(self, name: str, budget: RetryBudget) -> Any:
        """Return the snapshot of a document, or None if it does not exist."""
        with self._reading():
            snapshot = self._collection.document(name).get(**budget.limits)
            return snapshot if snapshot.exists else None

    def _put(
        self, name: str, document: dict[str, Any], known: datetime | None, budget: RetryBudget
    ) -> datetime | None:
        """Replace a document that was last changed at `known`, or create it.

        Return when it was changed now, or None if another process was first.
        """
        reference = self._collection.document(name)
        batch = self._client.batch()
        if known is None:
            batch.create(reference, document)
        else:  # `set` has no precondition, and `update` would keep other fields
            batch.delete(reference, option=self._client.write_option(last_update_time=known))
            batch.set(reference, document)
        with self._report_outage(self._writes):
            try:
                written = batch.commit(**budget.limits)[-1]
            except (
                exceptions.AlreadyExists,
                exceptions.FailedPrecondition,
                exceptions.NotFound,
            ):
                return None
            return written.update_time  # type: ignore[no-any-return]


def _version(snapshot: Any) -> datetime | None:
    """Return the version of the last good sources, or None if it cannot be true."""
    version = snapshot.to_dict().get(_VERSION)
    is_possible = isinstance(version, datetime) and version <= snapshot.update_time
    return version if is_possible else None
