"""Removes the results of images whose objects no longer exist.

    page of results ─▶ old enough? ─▶ look up each object ─▶ remove the results of deleted objects

Memory use does not depend on the number of results. A run that stops has removed the results that
it counted, so the next run continues.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Protocol

from service.deadline import NO_DEADLINE
from service.deletion import Objects, ObjectState, state_of
from service.domain import StoredImage
from service.errors import YoloBatchError
from service.operate.reconcile import parse_since
from service.publish.result_message import deletion_message
from service.publish.results_step import Topic

LOOKUPS = 32  # objects looked up at once
_REMOVED_AT_ONCE = 25  # results in one commit. Several commits run at once.


class Deleter(Protocol):
    """Removes results. `service.gcp.deletions.ResultDeleter` implements it."""

    def write_tombstones(self, document_ids: Sequence[str]) -> datetime:
        """Keep every later commit from writing these documents. Return the store's time."""

    def remove(self, document_ids: Sequence[str]) -> None:
        """Remove documents that have tombstones, and their objects."""


class Remover:
    """Removes the results of images, and publishes that. Safe to use from many threads."""

    def __init__(self, deleter: Deleter, topic: Topic | None = None) -> None:
        """Take what removes results, and the results topic. None: nothing is published."""
        self._deleter = deleter
        self._topic = topic

    def remove(self, images: Sequence[StoredImage]) -> None:
        """Remove results. It is safe to repeat.

        A message is published before its document is removed: a later run would not find an image
        without a document, so it could not publish the message.

        Raises:
            TransientError: a service did not respond.
        """
        ids = [image.document_id for image in images]
        deleted_at = self._deleter.write_tombstones(ids)
        if self._topic:
            for image in images:
                message = deletion_message(image.document_id, image.ref, deleted_at)
                self._topic.publish(message.data, message.attributes, NO_DEADLINE)
        self._deleter.remove(ids)


class OtherBucketError(YoloBatchError):
    """An object of a result is not in RESULTS_BUCKET, so it cannot be removed."""


@dataclass
class Tally:
    """The counts of a run."""

    existing: int = 0  # the object exists, so the result stays
    overwritten: int = 0  # a newer generation overwrote the object
    deleted: int = 0  # the object was deleted
    newer: int = 0  # the result is too new, so its object was not looked up
    selected: int = 0  # results to remove

    @property
    def results(self) -> int:
        """How many results were read."""
        return self.existing + self.overwritten + self.deleted + self.newer


def purge(
    pages: Iterable[Sequence[StoredImage]],
    objects: Objects,
    *,
    before: datetime,
    with_overwritten: bool = False,
    results_bucket: str | None = None,
    remove: Callable[[Sequence[StoredImage]], None] | None = None,
    progressed: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Remove the results of images whose objects no longer exist.

    Args:
        pages: the images that have a result.
        objects: looks objects up. Called from several threads.
        before: results that were created then or later stay.
        with_overwritten: whether the results of overwritten objects are removed too.
        results_bucket: where `remove` removes the objects of results.
        remove: removes the results of images. Called from several threads. None: they are only
            counted.
        progressed: called after each page.

    Raises:
        OtherBucketError: a result has its object in another bucket than `results_bucket`.
        YoloBatchError: a service did not respond. What was removed stays removed.
    """
    tally = Tally()
    wanted = {ObjectState.DELETED} | ({ObjectState.OVERWRITTEN} if with_overwritten else set())
    with ThreadPoolExecutor(LOOKUPS) as threads:
        for page in pages:
            old = [image for image in page if image.created_at < before]
            states = list(threads.map(lambda image: state_of(image.ref, objects), old))
            chosen = [image for image, state in zip(old, states, strict=True) if state in wanted]
            if remove:
                _check_buckets(chosen, results_bucket)
                starts = range(0, len(chosen), _REMOVED_AT_ONCE)
                groups = [chosen[start : start + _REMOVED_AT_ONCE] for start in starts]
                list(threads.map(remove, groups))
            tally.existing += states.count(ObjectState.EXISTS)
            tally.overwritten += states.count(ObjectState.OVERWRITTEN)
            tally.deleted += states.count(ObjectState.DELETED)
            tally.newer += len(page) - len(old)
            tally.selected += len(chosen)
            progressed(tally)
    return tally


def _check_buckets(images: Iterable[StoredImage], results_bucket: str | None) -> None:
    """Check that the objects of all results can be removed with their documents.

    Raises:
        OtherBucketError: an object is in another bucket.
    """
    for image in images:
        for uri in sorted(image.object_uris):
            if not uri.startswith(f"gs://{results_bucket}/"):
                raise OtherBucketError(
                    f"The result of {image.ref.uri} has the object {uri}, which would not be "
                    "removed: set RESULTS_BUCKET to the bucket of this object"
                )


def parse_before(text: str, now: datetime) -> datetime:
    """Parse a date (UTC), a time with a time zone (RFC 3339), or an age (`90d`, `12h`).

    Raises:
        ValueError: it is none of them.
    """
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        parsed = parse_since(text)
    return now - parsed if isinstance(parsed, timedelta) else parsed
