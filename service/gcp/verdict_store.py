"""What people judge about results: documents of a database of their own.

A verdict's id is that of its result. It has the verdict before it in `earlier`, so that it can be
undone.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from google.api_core import exceptions
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter
from google.cloud.firestore_v1.query import Query

from service.edited import maps_of
from service.errors import FirestoreRefusedError
from service.gcp.collection import RetryBudget, server_time
from service.gcp.document_pages import DocumentPages
from service.gcp.document_size import document_bytes
from service.gcp.result_pages import Usage, counting
from service.verdicts import MAX_EARLIER, VerdictChangedError

COLLECTION = "verdicts"
_MAX_BYTES = 900_000  # of a document. Firestore's own limit is 1 MiB.
_PAGE_SIZE = 300
_READ = ["image", "missed", "detections", "model", "source", "order", "reviewed_at"]
_CHANGED = "Somebody else has judged this image meanwhile, so nothing was undone. Load it again."

Verdict = dict[str, Any]


class VerdictsDatabaseError(FirestoreRefusedError):
    """The database of the verdicts does not exist. The message says how to create it."""

    def __init__(self, database: str) -> None:
        """Take the database's name."""
        super().__init__(
            f"The Firestore database {database} for verdicts does not exist. Create it with "
            f"`gcloud firestore databases create --database={database} --location=LOCATION`, with "
            "the location of your results. With Terraform, set gallery to true."
        )


class VerdictStore(DocumentPages):
    """Reads and writes verdicts. Safe to use from many threads."""

    def __init__(
        self,
        client: firestore.Client,
        *,
        timeout_seconds: float,
        usage: Callable[[], Usage] = Usage,
        collection: str = COLLECTION,
    ) -> None:
        """Take the client of the verdicts' database.

        Args:
            client: the vendor's client.
            timeout_seconds: time of one call, with all its attempts.
            usage: returns what the current thread's requests are counted in.
            collection: name of the collection.
        """
        super().__init__(client, collection=collection, timeout_seconds=timeout_seconds)
        self._usage = usage

    def read(self, document_ids: Sequence[str]) -> dict[str, Verdict]:
        """Return the verdicts of some results, by id. A result without a verdict costs a read, too.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or there is no database.
        """
        if not document_ids:
            return {}
        with self._counting(len(document_ids)), self._reading():
            refs = [self._collection.document(document_id) for document_id in document_ids]
            found = list(self._client.get_all(refs, **self._one_attempt().limits))
        return {snapshot.id: snapshot.to_dict() or {} for snapshot in found if snapshot.exists}

    def write(self, document_id: str, verdict: Mapping[str, Any]) -> Verdict:
        """Store a verdict. Return it with its time and revision.

        The last one counts. The same verdict of the same reviewer again changes nothing.

        Raises:
            FirestoreUnavailableError: Firestore did not confirm, or there is no database.
        """
        budget = RetryBudget(self._timeout_seconds)
        while True:  # until no other reviewer writes between the read and the write
            snapshot = self._get(document_id, budget)
            stored: Verdict = (snapshot.to_dict() or {}) if snapshot.exists else {}
            if stored.items() >= dict(verdict).items():
                return stored
            earlier = _earlier(stored)
            new = {**verdict, "revision": secrets.token_hex(8)}
            fields = {**new, "reviewed_at": firestore.SERVER_TIMESTAMP}
            written = self._put(snapshot, fields | {"earlier": _fitting(new, earlier)}, budget)
            if written is not None:
                return new | {"reviewed_at": server_time(written)}

    def undo(self, document_id: str, revision: str, reviewer: str) -> Verdict | None:
        """Restore the verdict before this one, or remove it. Return what is stored now.

        Only its own reviewer can undo a verdict: an undone verdict leaves no trace.

        Raises:
            VerdictChangedError: the stored verdict is another one, or another reviewer's.
            FirestoreUnavailableError: Firestore did not confirm, or there is no database.
        """
        budget = RetryBudget(self._timeout_seconds)
        snapshot = self._get(document_id, budget)
        stored: Verdict = (snapshot.to_dict() or {}) if snapshot.exists else {}
        is_own = stored.get("revision") == revision and stored.get("reviewer") == reviewer
        if not revision or not is_own:
            raise VerdictChangedError(_CHANGED)
        earlier = maps_of(stored.get("earlier"))
        restored = {**earlier[-1]} if earlier else None
        fields = restored and restored | {"earlier": earlier[:-1]}
        if self._put(snapshot, fields, budget) is None:
            raise VerdictChangedError(_CHANGED)
        return restored

    def newest(self, limit: int) -> Iterator[Verdict]:
        """Yield the newest verdicts, without the verdicts before them. Each costs a read.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or there is no database.
        """
        query: Any = self._collection.order_by("reviewed_at", direction=Query.DESCENDING)
        query = query.select(_READ)
        while limit > 0:
            size = min(limit, _PAGE_SIZE)
            with self._counting() as usage:
                page = self._page(query.limit(size))
                usage.documents += max(len(page), 1)
            yield from (snapshot.to_dict() for snapshot in page)
            if len(page) < size:
                return
            limit -= size
            query = query.start_after(page[-1])

    def count(self, conditions: Mapping[str, Any]) -> int:
        """Return how many verdicts have these values. An array must have the value.

        One read is charged for 1,000 of them.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or there is no database.
        """
        query: Any = self._collection
        for path, value in conditions.items():
            operator = "array_contains" if path in ("labels", "zone_labels") else "=="
            query = query.where(filter=FieldFilter(path, operator, value))
        with self._counting() as usage:
            with self._reading():
                [[found]] = query.count().get(**self._one_attempt().limits)
            usage.documents += 1 + int(found.value) // 1000
        return int(found.value)

    def _get(self, document_id: str, budget: RetryBudget) -> Any:
        with self._counting(1), self._reading():
            return self._collection.document(document_id).get(**budget.limits)

    def _put(self, known: Any, fields: Verdict | None, budget: RetryBudget) -> Any:
        """Replace a document that was read, or remove it if there are no fields.

        Return the result of the write, or None if somebody else has changed the document.
        """
        batch = self._client.batch()
        if not known.exists:
            batch.create(known.reference, fields or {})
        else:  # `set` has no precondition, and `update` would keep other fields
            option = self._client.write_option(last_update_time=known.update_time)
            batch.delete(known.reference, option=option)
            if fields is not None:
                batch.set(known.reference, fields)
        with self._counting(), self._writing():
            try:
                return batch.commit(**budget.limits)[-1]
            except (
                exceptions.AlreadyExists,
                exceptions.FailedPrecondition,
                exceptions.NotFound,
            ):
                return None

    @contextmanager
    def _counting(self, documents: int = 0) -> Iterator[Usage]:
        with counting(self._usage()) as usage:
            usage.documents += documents
            yield usage

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._named(), super()._reading():
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._named(), self._report_outage(self._writes):
            yield

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say how to create the database, if it does not exist."""
        try:
            yield
        except FirestoreRefusedError as exc:
            if isinstance(exc.__cause__, exceptions.NotFound):
                raise VerdictsDatabaseError(str(self._client._database)) from exc
            raise


def _earlier(stored: Verdict) -> list[Verdict]:
    """Return the verdicts before the next one: those of the stored one, and itself."""
    if not stored:
        return []
    own = {key: value for key, value in stored.items() if key != "earlier"}
    return [*maps_of(stored.get("earlier")), own]


def _fitting(verdict: Verdict, earlier: list[Verdict]) -> list[Verdict]:
    """Return the newest of the earlier verdicts: as many as a document has space for."""
    earlier = earlier[-MAX_EARLIER:]
    while earlier and document_bytes(verdict | {"earlier": earlier}) > _MAX_BYTES:
        earlier = earlier[1:]
    return earlier
