"""Reads pages of results by a filter, for the gallery and for exports."""

import base64
import hashlib
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
_MAX_TEXT_BYTES = 1500  # of a name in an index
_FIRST_TIME = datetime.min.replace(tzinfo=UTC)
_LAST_TIME = datetime.max.replace(tzinfo=UTC)
_FOREIGN = (
    "The address of the page is damaged, or belongs to another filter. Begin at the first page."
)


@dataclass(frozen=True)
class StoredResult:
    """A document of a result, and its id."""

    id: str
    document: dict[str, Any]


@dataclass(frozen=True)
class ResultPage:
    """Some results, in order. `following` is the cursor of the next page. None: this is the last.

    A cursor is a text that is safe in a URL. It has a hash of the filter, the value that the order
    sorts by, and the document's id. It is untrusted: a person can change it.
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
    """The query of a filter, and the field that it sorts by.

    Attributes:
        chosen: the filter.
        query: its conditions and its order. Equal values are sorted by the documents' ids.
        path: the field.
        key: what only cursors of this filter have.
    """

    chosen: ResultFilter
    query: Any
    path: str
    key: str

    def after(self, cursor: str | None) -> Any:
        """Return the query for what follows a cursor, or for everything.

        Raises:
            FilterError: it is not a cursor of this filter.
        """
        if cursor is None:
            return _limited(self.chosen, self.query)
        value, document_id = self._position(cursor)
        query = _limited(self.chosen, self.query)
        return query.start_after({self.path: value, _ID: document_id})

    def cursor(self, result: StoredResult) -> str:
        """Return the cursor for what follows a result."""
        value = _at(result.document, self.path)
        plain = value.isoformat() if isinstance(value, datetime) else value
        parts = [self.key, plain, result.id]
        text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def _position(self, cursor: str) -> tuple[Any, str]:
        """Return the value and the document's id of a cursor.

        Raises:
            FilterError: it is not a cursor of this filter.
        """
        try:
            text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            key, plain, document_id = json.loads(text)
            value = _value(self.chosen.order, plain)
            is_own = key == self.key and _is_in(self.chosen, value)
            is_id = isinstance(document_id, str) and is_document_id(document_id)
        except (ValueError, TypeError, OverflowError, RecursionError) as exc:
            raise FilterError(_FOREIGN) from exc
        if not (is_own and is_id):
            raise FilterError(_FOREIGN)
        return value, document_id


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
        query = plan.after(cursor).limit(size + 1)
        results = [_result(snapshot) for snapshot in self._counted_page(query)]
        following = plan.cursor(results[size - 1]) if len(results) > size else None
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
            query = plan.after(cursor).limit(page_size)
            results = [_result(snapshot) for snapshot in self._counted_page(query)]
            for result in results:
                cursor = plan.cursor(result)
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
        created_at = result.document.get("created_at")
        is_known = source is None or _is_comparable(source)  # a person may have edited it
        if not is_known or not isinstance(created_at, datetime):
            return None, None
        position = {"created_at": created_at, _ID: result.id}
        query = self._of_source(source)
        newer, older = (
            self._counted_page(
                _sorted(query, "created_at", direction).start_after(position).limit(1)
            )
            for direction in (Query.ASCENDING, Query.DESCENDING)
        )
        return _first(newer), _first(older)

    def count(self, chosen: ResultFilter) -> int:
        """Return how many results a filter has. One read is charged for 1,000 of them.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        query = self._plan(chosen).after(None)  # its order makes Firestore use the same indexes
        with self._counting() as usage:
            with self._reading():
                [[found]] = query.count().get(**self._one_attempt().limits)
            usage.documents += max(1, math.ceil(int(found.value) / 1000))
        return int(found.value)

    def generations(self, uri: str, limit: int = 20) -> Sequence[StoredResult]:
        """Return the results of an object's generations, the newest first.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        if not _is_comparable(uri):
            return []
        query = self._collection.where(filter=FieldFilter("uri", "==", uri))
        query = query.order_by("generation", direction=Query.DESCENDING).limit(limit)
        return [_result(snapshot) for snapshot in self._counted_page(query)]

    def result(self, document_id: str) -> StoredResult | None:
        """Return one result by its document's id, or None if there is none.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        if not is_document_id(document_id):
            return None
        with self._counting() as usage, self._reading():
            usage.documents += 1
            snapshot = self._collection.document(document_id).get(**self._one_attempt().limits)
        return _result(snapshot) if snapshot.exists else None

    def recorded(self, document_ids: Sequence[str]) -> frozenset[str]:
        """Return those of the ids that have a document. Each id is one read.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        if not document_ids:
            return frozenset()
        refs = [self._collection.document(document_id) for document_id in document_ids]
        with self._counting() as usage, self._reading():
            usage.documents += len(refs)
            limits = self._one_attempt().limits
            snapshots = list(self._client.get_all(refs, field_paths=["status"], **limits))
        return frozenset(snapshot.id for snapshot in snapshots if snapshot.exists)

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
        path, direction = _sort(chosen)
        return _Plan(chosen, _sorted(query, path, direction), path, _hash(chosen))


def _sorted(query: Any, path: str, direction: str) -> Any:
    query = query if path == _ID else query.order_by(path, direction=direction)
    return query.order_by(_ID, direction=direction)


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
        case Order.NAME:
            yield "bucket", "==", chosen.bucket
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


def _limited(chosen: ResultFilter, query: Any) -> Any:
    """Return the query for the part of its order that a filter has.

    A time and a prefix are where the query begins and ends. They are no conditions, because
    Firestore's documentation allows merged indexes only for conditions of equality. Documents whose
    value has another type, because a person has edited it, are not in this part.
    """
    match chosen.order:
        case Order.NEWEST if chosen.until:
            return query.start_after([chosen.until]).end_at([_FIRST_TIME])
        case Order.NEWEST:
            return query.start_at([_LAST_TIME]).end_at([_FIRST_TIME])
        case Order.NAME:
            prefix = chosen.prefix or ""
            after_texts = b""  # Firestore sorts bytes after texts
            return query.start_at([prefix]).end_before([after_prefix(prefix) or after_texts])
    return query  # by confidence, it has a condition of a range


def _value(order: Order, plain: Any) -> Any:
    """Return the value of a cursor, whose JSON a person may have changed.

    Raises:
        ValueError: the order does not sort by such a value. It can also be TypeError or
            OverflowError.
    """
    match order, plain:
        case Order.NEWEST, str():
            return datetime.fromisoformat(plain).astimezone(UTC)
        case Order.NAME, str() if len(plain.encode()) <= _MAX_TEXT_BYTES:
            return plain
        case Order.CONFIDENT | Order.UNCERTAIN, int() if 0 <= plain < 2**63:
            return plain
        case Order.CONFIDENT | Order.UNCERTAIN, float() if plain >= 0:
            return plain
        case Order.RANDOM, None:  # the document's id is enough
            return None
    raise ValueError("not a value of this order")


def _is_in(chosen: ResultFilter, value: Any) -> bool:
    """Return whether a value is in the part of the order that a filter has."""
    match chosen.order:
        case Order.NEWEST:
            return chosen.until is None or value < chosen.until
        case Order.NAME:
            return str(value).startswith(chosen.prefix or "")
    return True


def _hash(chosen: ResultFilter) -> str:
    text = json.dumps(chosen.arguments(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _is_comparable(value: Any) -> bool:
    """Return whether Firestore compares with this value of a document, which may be edited."""
    return isinstance(value, str) and len(value.encode()) < _MAX_TEXT_BYTES


def _result(snapshot: Any) -> StoredResult:
    return StoredResult(snapshot.id, fields_of(snapshot))


def _first(snapshots: Sequence[Any]) -> StoredResult | None:
    return _result(snapshots[0]) if snapshots else None


def is_document_id(text: str) -> bool:
    """Return whether Firestore allows this id.

    https://firebase.google.com/docs/firestore/quotas
    """
    is_reserved = text in ("", ".", "..") or re.fullmatch("__.*__", text, re.DOTALL)
    is_text = not any(0xD800 <= ord(character) <= 0xDFFF for character in text)
    return is_text and "/" not in text and not is_reserved and len(text.encode()) <= _MAX_ID_BYTES


def _at(document: dict[str, Any], path: str) -> Any:
    value: Any = document
    for key in parse_field_path(path):
        value = value.get(key) if isinstance(value, dict) else None
    return value
