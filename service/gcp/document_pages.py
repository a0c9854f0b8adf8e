"""Reads the documents of a collection page by page, for an operator's commands."""

from collections.abc import Iterator
from typing import Any

from google.api_core import exceptions
from google.cloud.firestore_v1.base_query import FieldFilter
from google.cloud.firestore_v1.query import Query

from service.document import SHARDS
from service.errors import FirestoreUnavailableError
from service.gcp.collection import Collection, RetryBudget

PAGE_SIZE = 300  # documents


class DocumentPages(Collection):
    """A collection whose documents have `shard` and `created_at`."""

    def _newest_first(self) -> Any:
        """Return the query for all documents, sorted by `created_at`."""
        query = self._collection.where(filter=FieldFilter("shard", "in", list(range(SHARDS))))
        return query.order_by("created_at", direction=Query.DESCENDING)

    def _pages(self, query: Any, page_size: int) -> Iterator[list[Any]]:
        """Yield the snapshots of a query, page by page."""
        query = query.limit(page_size)
        while page := self._page(query):
            yield page
            query = query.start_after(page[-1])

    def _page(self, query: Any) -> list[Any]:
        """Return all snapshots of a query: the time limit must not count the caller's work."""
        with self._reading():
            try:
                return list(query.stream(**self._one_attempt().limits))
            except exceptions.FailedPrecondition as exc:  # its message links to the missing index
                raise FirestoreUnavailableError(
                    f"Firestore refused the query: {exc.message}"
                ) from exc

    def _one_attempt(self) -> RetryBudget:
        """Return a budget for one attempt: an operator's large reads take long."""
        return RetryBudget(self._timeout_seconds, attempts=1)
