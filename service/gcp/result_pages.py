"""Reads pages of results by a filter, for the gallery and for exports."""

import base64
import json
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter
from google.cloud.firestore_v1.field_path import parse_field_path
from google.cloud.firestore_v1.query import Query

from service.document import SHARDS, STATUS_FAILED, STATUS_PARKED
from service.gcp.collection import fields_of
from service.gcp.document_pages import DocumentPages
from service.gcp.result_reader import after_prefix
from service.result_filter import FilterError, Order, ResultFilter, Shown

_ID = "__name__"  # Firestore's name for the document's id in a query
_MAX_ID_BYTES = 1500
_DAMAGED = "The page's address is damaged. Begin at the first page."


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


@contextmanager
def counting(usage: Usage) -> Iterator[Usage]:
    """Add a request, and the time in the block, to a usage."""
    usage.queries += 1
    started = time.perf_counter()
    try:
        yield usage
    finally:
        usage.seconds += time.perf_counter() - started


@dataclass(frozen=True)
class _Plan:
    """A query, and the field that it sorts by. Equal values are sorted by the documents' ids."""

    query: Any
    path: str
    direction: str

    @property
    def sorted(self) -> Any:
        """The query with its order."""
        query = self.query
        if self.path != _ID:
            query = query.order_by(self.path, direction=self.direction)
        return query.order_by(_ID, direction=self.direction)


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

    def neighbours(self, result: StoredResult) -> tuple[StoredResult | None, StoredResult | None]:
        """Return the next newer and the next older result of the same source.

        It costs two queries, and reads two documents.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        source = _at(result.document, "source.id")
        is_source = source is None or isinstance(source, str)  # a person may have edited it
        if not is_source or not isinstance(result.document.get("created_at"), datetime):
            return None, None
        query = self._of_source(source)
        newer, older = (
            _Plan(query, "created_at", direction)
            for direction in (Query.ASCENDING, Query.DESCENDING)
        )
        pages = [
            self._counted_page(_after(plan, _cursor(plan, result)).limit(1))
            for plan in (newer, older)
        ]
        first, second = (_result(page[0]) if page else None for page in pages)
        return first, second

    def count(self, chosen: ResultFilter) -> int:
        """Return how many results a filter has. One read is charged for 1,000 of them.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        query = self._plan(chosen).sorted  # its order makes Firestore use the same index
        with self._counting() as usage:
            with self._reading():
                [[found]] = query.count().get(**self._one_attempt().limits)
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
        with counting(self.usage()) as usage:
            yield usage

    def _counted_page(self, query: Any) -> list[Any]:
        with self._counting() as usage:
            snapshots = self._page(query)
            usage.documents += max(len(snapshots), 1)  # a query without documents is one read
        return snapshots

    def _of_source(self, source: str | None) -> Any:
        query = self._collection.where(filter=FieldFilter("source.id", "==", source))
        return query.where(filter=FieldFilter("shard", "in", list(range(SHARDS))))

    def _plan(self, chosen: ResultFilter) -> _Plan:
        """Return the query of a filter.

        Raises:
            FilterError: Firestore has no index for this combination.
        """
        if conflicts := chosen.conflicts():
            raise FilterError(next(iter(conflicts.values())))
        query: Any = self._collection
        for path, operator, value in _conditions(chosen):
            query = query.where(filter=FieldFilter(path, operator, value))
        return _Plan(query, *_sort(chosen))


def _sort(chosen: ResultFilter) -> tuple[str, str]:
    """Return the field that a filter's order sorts by, and the direction."""
    match chosen.order:
        case Order.NEWEST:
            return "created_at", Query.DESCENDING
        case Order.NAME:
            return "name", Query.ASCENDING
        case Order.CONFIDENT:
            return _best(chosen) or "max_confidence", Query.DESCENDING
        case Order.UNCERTAIN:
            return _best(chosen) or "uncertain_confidence", Query.ASCENDING
        case Order.RANDOM:
            return _ID, Query.ASCENDING


def _best(chosen: ResultFilter) -> str | None:
    """Return the path of the label's highest confidence, or None without a label."""
    return str(firestore.Client.field_path("best", chosen.label)) if chosen.label else None


def _conditions(chosen: ResultFilter) -> Iterator[tuple[str, str, Any]]:
    """Yield the conditions: path, operator and value."""
    match chosen.order:
        case Order.NEWEST:
            yield "shard", "in", list(range(SHARDS))
            if chosen.until:
                yield "created_at", "<", chosen.until
        case Order.NAME:
            yield "bucket", "==", chosen.bucket
            if chosen.prefix:
                yield "name", ">=", chosen.prefix
            if chosen.prefix and (end := after_prefix(chosen.prefix)):
                yield "name", "<", end
        case Order.CONFIDENT | Order.UNCERTAIN:
            yield _sort(chosen)[0], ">=", 0  # not the results without a confidence, whose is null
    is_by_best = chosen.order in (Order.CONFIDENT, Order.UNCERTAIN)
    if chosen.zone:
        key = f"{chosen.zone}/{chosen.label}" if chosen.label else chosen.zone
        yield "zone_labels", "array_contains", key
    elif chosen.label and not is_by_best:  # `best` has the label
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
    value = _at(result.document, plan.path)
    text = json.dumps([_plain(value), result.id], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _after(plan: _Plan, cursor: str) -> Any:
    """Return the query for what follows a cursor.

    Raises:
        FilterError: it is not a cursor.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        value, document_id = json.loads(text)
        if not (isinstance(document_id, str) and is_document_id(document_id)):
            raise ValueError("not the id of a document")
        position = {plan.path: _typed(value), _ID: document_id}
    except (ValueError, TypeError, OverflowError, RecursionError) as exc:
        raise FilterError(_DAMAGED) from exc
    return plan.sorted.start_after(position)


def is_document_id(text: str) -> bool:
    """Return whether Firestore allows this id.

    https://firebase.google.com/docs/firestore/quotas
    """
    is_reserved = text in ("", ".", "..") or re.fullmatch("__.*__", text, re.DOTALL)
    is_text = not any(0xD800 <= ord(character) <= 0xDFFF for character in text)
    return is_text and "/" not in text and not is_reserved and len(text.encode()) <= _MAX_ID_BYTES


def _plain(value: Any) -> Any:
    """Return a value as JSON. A person may have edited it, so that it has another type."""
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    return value if isinstance(value, str | int | float | None) else None


def _typed(value: Any) -> Any:
    """Return the value of `_plain`.

    Raises:
        ValueError: it is none. A time can also raise OverflowError.
    """
    match value:
        case {"time": str(text)}:
            return datetime.fromisoformat(text).astimezone(UTC)
        case float() if math.isfinite(value):
            return value
        case int() if abs(value) < 2**63:
            return value
        case str() if len(value.encode()) <= _MAX_ID_BYTES:
            return value
        case None:
            return value
    raise ValueError("not a value")


def _at(document: dict[str, Any], path: str) -> Any:
    value: Any = document
    for key in parse_field_path(path):
        value = value.get(key) if isinstance(value, dict) else None
    return value
