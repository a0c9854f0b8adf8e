"""Removes the results of images whose objects were deleted from Cloud Storage.

    deletion → does the generation exist? → was it overwritten? → tombstone → result → message

Events can be forged. So a result is removed only after Cloud Storage itself has responded that the
generation does not exist.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from service.deadline import NO_DEADLINE, Deadline
from service.domain import Event, ImageRef, Outcome
from service.publish.after_commit import AfterCommit

logger = logging.getLogger(__name__)


class Objects(Protocol):
    """Looks objects up. `service.gcp.storage.ImageStorage` implements it."""

    def exists(self, ref: ImageRef, deadline: Deadline) -> bool:
        """Return whether an object exists. Without a generation: whether it has a live one."""


class Results(Protocol):
    """Removes results. `service.gcp.deletions.ResultDeleter` implements it."""

    def delete(self, document_ids: Sequence[str], deadline: Deadline) -> datetime:
        """Remove documents and their objects. Keep a later commit from writing them again.

        Return the time, by the store's clock.
        """


class ObjectState(StrEnum):
    """What happened to an image's object, which is one generation."""

    EXISTS = "exists"  # live or noncurrent
    OVERWRITTEN = "overwritten"  # it is gone, and a newer generation has its name
    DELETED = "deleted"  # it is gone, and no generation has its name


def state_of(
    ref: ImageRef,
    objects: Objects,
    deadline: Deadline = NO_DEADLINE,
    *,
    is_overwritten: bool | None = None,
) -> ObjectState:
    """Return what happened to an image's object, as Cloud Storage responds now.

    Args:
        ref: the image. Without a generation, it means any generation.
        objects: looks up the object, and the live one of its name if necessary.
        deadline: ends the wait.
        is_overwritten: whether a newer generation overwrote it, if it is gone. None: not known.
            Then it counts as overwritten if its name has a live generation.

    Raises:
        TransientError: Cloud Storage did not say whether the object exists.
    """
    if objects.exists(ref, deadline):
        return ObjectState.EXISTS
    if is_overwritten is None and ref.generation is not None:
        is_overwritten = objects.exists(replace(ref, generation=None), deadline)
    return ObjectState.OVERWRITTEN if is_overwritten else ObjectState.DELETED


class Deletion:
    """Handles the events of deleted objects. Safe to use from many threads."""

    def __init__(
        self,
        objects: Objects,
        results: Results,
        *,
        with_overwritten: bool,
        after_commit: AfterCommit | None = None,
    ) -> None:
        """Take the parts that look objects up and remove results.

        Args:
            objects: looks objects up.
            results: removes results.
            with_overwritten: whether the results of overwritten objects are removed too.
            after_commit: publishes that a result was removed. None: nothing is published.
        """
        self._objects = objects
        self._results = results
        self._with_overwritten = with_overwritten
        self._after_commit = after_commit

    def is_wanted(self, event: Event) -> bool:
        """Return whether the settings allow the removal of the deleted object's result."""
        return self._with_overwritten or not event.is_overwritten

    def handle(self, ref: ImageRef, event: Event, deadline: Deadline) -> Outcome:
        """Remove an image's result, if Cloud Storage confirms that its object was deleted.

        It is safe to repeat. If the deletion arrives before the upload, the image gets no result.

        Raises:
            TransientError: it is not known whether the object exists, or the result could not be
                removed, or its removal could not be published.
        """
        # If the results of overwritten objects are removed too, only the deletion matters.
        is_overwritten = False if self._with_overwritten else event.is_overwritten
        state = state_of(ref, self._objects, deadline, is_overwritten=is_overwritten)
        extra = {"uri": ref.uri, "generation": ref.generation, "state": str(state)}
        if state is not ObjectState.DELETED:
            logger.info("Kept the result of an image: its object was not deleted", extra=extra)
            return Outcome.IGNORED
        deleted_at = self._results.delete([ref.document_id], deadline)
        if self._after_commit:
            self._after_commit.deleted(ref, deleted_at, deadline)
        logger.info("Removed the result of an image: its object was deleted", extra=extra)
        return Outcome.DELETED
