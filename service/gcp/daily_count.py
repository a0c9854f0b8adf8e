"""Counts the images of a day in Firestore, over all instances of the service.

One document a day, in a collection of its own, so that no query for results finds it.
"""

import math
from datetime import date
from typing import Any

from google.cloud import firestore

from service.deadline import NO_DEADLINE, Deadline
from service.gcp.collection import Collection, translate_errors

_SUFFIX = "-images-per-day"
_FIELD = "images"


class DailyCount(Collection):
    """The documents with the counts. Safe to use from many threads."""

    def __init__(
        self, client: firestore.Client, *, collection: str, timeout_seconds: float
    ) -> None:
        """Take the client, the name of the results' collection, and the time of one call."""
        super().__init__(client, collection=collection + _SUFFIX, timeout_seconds=timeout_seconds)

    def add(self, day: date, images: int, deadline: Deadline = NO_DEADLINE) -> int:
        """Add images to a day's count, atomically. Return the new count of all instances.

        It is attempted once. If the response is lost, the images may be counted although an error
        is raised.

        Raises:
            FirestoreUnavailableError: Firestore did not confirm in time, or refuses the write.
            TooLateError: the deadline has passed.
        """
        seconds = deadline.wait_seconds(self._timeout_seconds)
        batch = self._client.batch()
        batch.set(self._document(day), {_FIELD: firestore.Increment(images)}, merge=True)
        with translate_errors():
            # The response contains the incremented value, so no read is needed:
            # https://cloud.google.com/firestore/docs/reference/rpc/google.firestore.v1#writeresult
            [result] = batch.commit(retry=None, timeout=seconds)
            total = result.transform_results[0]
            return _count(total.double_value or total.integer_value)

    def read(self, day: date) -> int:
        """Return the count of a day.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
        """
        with translate_errors():
            snapshot = self._document(day).get(**self._budget(NO_DEADLINE).limits)
            return _count((snapshot.to_dict() or {}).get(_FIELD))

    def _document(self, day: date) -> firestore.DocumentReference:
        return self._collection.document(day.isoformat())


def _count(value: Any) -> int:
    """Return a field's value as a count. A person may have edited it, so it may be anything.

    Anything but a number counts as 0, as for Firestore's increment.
    """
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
