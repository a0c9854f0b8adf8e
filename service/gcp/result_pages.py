"""Reads pages of results by a filter, for the gallery and for exports."""

import base64
import binascii
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter
from google.cloud.firestore_v1.query import Query

from service.document import SHARDS, STATUS_FAILED, STATUS_PARKED
from service.gcp.collection import fields_of
from service.gcp.document_pages import DocumentPages
from service.result_filter import FilterError, Order, ResultFilter, Shown


@dataclass(frozen=True)
class StoredResult:
    """A document of a result, and its id."""

    id: str
    document: dict[str, Any]


@dataclass(frozen=True)
class ResultPage:
    """Some results, in order. `following` is the cursor of the next page. None: this is the last.

    A cursor is a short text that is safe in a URL. It has the values that the order sorts by, and
    the document's id. It is untrusted: a person can change it.
    """

    results: tuple[StoredResult, ...]
    following: str | None


@dataclass
class Usage:
    """What requests to Firestore cost so far: counted by the thread that made them."""

    queries: int = 0
    documents: int = 0
    seconds: float = 0.0  # wall time of the calls


@dataclass(frozen=True)
class _Plan:
    """A query, and the fields that it sorts by, each with its direction."""

    query: Any
    sort: tuple[tuple[str, str], ...]

    @property
    def sorted(self) -> Any:
        """The query with its order. Equal values are sorted by the documents' ids."""
        query = self.query
        for path, direction in self.sort:
            query = query.order_by(path, direction=direction)
        return query.order_by("__name__", direction=self.sort[-1][1])


class ResultPages(DocumentPages):
    """Reads results by a filter. Safe to use from many threads."""

    def __init__(self, client: firestore.Client, **limits: Any) -> None:
        """Take the arguments of `Collection`."""
        super().__init__(client, **limits)
        self._local = threading.local()

    def page(self, chosen: ResultFilter, size: int, cursor: str | None = None) -> ResultPage:
        """Return one page. It costs one query and reads at most `size` + 1 documents.

        Raises:
            FilterError: the cursor is not one of this filter.
            FirestoreUnavailableError: Firestore did not respond, or lacks the index. The message
                has Firestore's link that creates the index.
        """
        plan = self._plan(chosen)
        query = plan.sorted if cursor is None else _after(plan, cursor)
        results = [_result(snapshot) for snapshot in self._counted_page(query.limit(size + 1))]
        following = _cursor(plan, results[size - 1]) if len(results) > size else None
        return ResultPage(tuple(results[:size]), following)

    def stream(
        self, chosen: ResultFilter, cursor: str | None = None, *, page_size: int = 300
    ) -> Iterator[tuple[StoredResult, str]]:
        """Yield all results of a filter, each with the cursor that continues behind it.

        Raises:
            FilterError: the cursor is not one of this filter.
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        plan = self._plan(chosen)
        while True:
            query = plan.sorted if cursor is None else _after(plan, cursor)
            results = [_result(snapshot) for snapshot in self._counted_page(query.limit(page_size))]
            for result in results:
                cursor = _cursor(plan, result)
                yield result, cursor
            if len(results) < page_size:
                return

    def neighbours(
        self, chosen: ResultFilter, result: StoredResult
    ) -> tuple[StoredResult | None, StoredResult | None]:
        """Return the results before and after a result in a filter's order. It costs two queries.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        plan = self._plan(chosen)
        cursor = _cursor(plan, result)
        before = self._counted_page(_before(plan, cursor).limit_to_last(1))
        after = self._counted_page(_after(plan, cursor).limit(1))
        first, second = ([_result(snapshot) for snapshot in page] for page in (before, after))
        return (first[0] if first else None), (second[0] if second else None)

    def count(self, chosen: ResultFilter) -> int:
        """Return how many results a filter has. One read is charged for 1,000 of them.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        with self._counting() as usage:
            with self._reading():
                [[found]] = self._plan(chosen).query.count().get(**self._one_attempt().limits)
            usage.documents += 1 + int(found.value) // 1000
        return int(found.value)

    def generations(self, uri: str, limit: int = 20) -> Sequence[StoredResult]:
        """Return the results of an object's generations, the newest first.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        query = self._collection.where(filter=FieldFilter("uri", "==", uri))
        query = query.order_by("generation", direction=Query.DESCENDING).limit(limit)
        return [_result(snapshot) for snapshot in self._counted_page(query)]

    def result(self, document_id: str) -> StoredResult | None:
        """Return one result by its document's id, or None if there is none.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        with self._counting() as usage, self._reading():
            usage.documents += 1
            snapshot = self._collection.document(document_id).get(**self._one_attempt().limits)
        return _result(snapshot) if snapshot.exists else None

    def usage(self) -> Usage:
        """Return what this thread's calls cost since its last `reset_usage`."""
        if not hasattr(self._local, "usage"):
            self._local.usage = Usage()
        usage: Usage = self._local.usage
        return usage

    def reset_usage(self) -> None:
        """Begin to count this thread's calls again."""
        self._local.usage = Usage()

    @contextmanager
    def _counting(self) -> Iterator[Usage]:
        usage = self.usage()
        usage.queries += 1
        started = time.perf_counter()
        try:
            yield usage
        finally:
            usage.seconds += time.perf_counter() - started

    def _counted_page(self, query: Any) -> list[Any]:
        with self._counting() as usage:
            snapshots = self._page(query)
            usage.documents += max(len(snapshots), 1)  # a query without documents is one read
        return snapshots

    def _plan(self, chosen: ResultFilter) -> _Plan:
        """Return the query of a filter."""
        query: Any = self._collection
        for path, operator, value in _conditions(chosen):
            query = query.where(filter=FieldFilter(path, operator, value))
        match chosen.order:
            case Order.NEWEST:
                query = query.where(filter=FieldFilter("shard", "in", list(range(SHARDS))))
                if chosen.until:
                    query = query.where(filter=FieldFilter("created_at", "<", chosen.until))
                return _Plan(query, (("created_at", Query.DESCENDING),))
            case _:
                raise FilterError(f"The order {chosen.order} is not possible.")


def _conditions(chosen: ResultFilter) -> Iterator[tuple[str, str, Any]]:
    """Yield the conditions of equality: path, operator and value."""
    if chosen.zone:
        key = f"{chosen.zone}/{chosen.label}" if chosen.label else chosen.zone
        yield "zone_labels", "array_contains", key
    elif chosen.label:
        yield "labels", "array_contains", chosen.label
    match chosen.shown:
        case Shown.FOUND | Shown.NOTHING_FOUND:
            yield "found", "==", chosen.shown is Shown.FOUND
        case Shown.FAILED:
            yield "status", "==", STATUS_FAILED
        case Shown.PARKED:
            yield "status", "==", STATUS_PARKED
    if chosen.error_code:
        yield "error.code", "==", chosen.error_code
    if chosen.source:
        yield "source.id", "==", chosen.source
    if chosen.day:
        yield "day", "==", chosen.day.isoformat()


def _result(snapshot: Any) -> StoredResult:
    return StoredResult(snapshot.id, fields_of(snapshot))


def _cursor(plan: _Plan, result: StoredResult) -> str:
    values = [_plain(_at(result.document, path)) for path, _ in plan.sort]
    text = json.dumps([*values, result.id], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _after(plan: _Plan, cursor: str) -> Any:
    return plan.sorted.start_after(_position(plan, cursor))


def _before(plan: _Plan, cursor: str) -> Any:
    return plan.sorted.end_before(_position(plan, cursor))


def _position(plan: _Plan, cursor: str) -> dict[str, Any]:
    """Return the values of a cursor, by path.

    Raises:
        FilterError: it is not a cursor of this order.
    """
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        *sorted_by, document_id = values
        paths = [path for path, _ in plan.sort]
        position = {path: _typed(value) for path, value in zip(paths, sorted_by, strict=True)}
    except (ValueError, TypeError, binascii.Error) as exc:
        raise FilterError("The page's address is damaged. Begin at the first page.") from exc
    if not isinstance(document_id, str) or not document_id or "/" in document_id:
        raise FilterError("The page's address is damaged. Begin at the first page.")
    return position | {"__name__": document_id}


def _plain(value: Any) -> Any:
    return {"time": value.isoformat()} if isinstance(value, datetime) else value


def _typed(value: Any) -> Any:
    return datetime.fromisoformat(value["time"]) if isinstance(value, dict) else value


def _at(document: dict[str, Any], path: str) -> Any:
    value: Any = document
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
