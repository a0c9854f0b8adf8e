"""Reads pages of results by a filter, for the gallery and for exports."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from service.gcp.document_pages import DocumentPages
from service.result_filter import ResultFilter


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


class ResultPages(DocumentPages):
    """Reads results by a filter. Safe to use from many threads."""

    def page(self, chosen: ResultFilter, size: int, cursor: str | None = None) -> ResultPage:
        """Return one page. It costs one query and reads at most `size` + 1 documents.

        Raises:
            FilterError: the cursor is not one of this filter.
            FirestoreUnavailableError: Firestore did not respond, or lacks the index. The message
                has Firestore's link that creates the index.
        """
        raise NotImplementedError

    def stream(
        self, chosen: ResultFilter, cursor: str | None = None, *, page_size: int = 300
    ) -> Iterator[tuple[StoredResult, str]]:
        """Yield all results of a filter, each with the cursor that continues behind it.

        Raises:
            FilterError: the cursor is not one of this filter.
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        raise NotImplementedError

    def neighbours(
        self, chosen: ResultFilter, result: StoredResult
    ) -> tuple[StoredResult | None, StoredResult | None]:
        """Return the results before and after a result in a filter's order. It costs two queries.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        raise NotImplementedError

    def count(self, chosen: ResultFilter) -> int:
        """Return how many results a filter has. One read is charged for 1,000 of them.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        raise NotImplementedError

    def generations(self, uri: str, limit: int = 20) -> Sequence[StoredResult]:
        """Return the results of an object's generations, the newest first.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or lacks the index.
        """
        raise NotImplementedError

    def result(self, document_id: str) -> StoredResult | None:
        """Return one result by its document's id, or None if there is none.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        raise NotImplementedError

    def usage(self) -> Usage:
        """Return what this thread's calls cost since its last `reset_usage`."""
        raise NotImplementedError

    def reset_usage(self) -> None:
        """Begin to count this thread's calls again."""
        raise NotImplementedError
