"""A queue of items whose callers wait, and threads that process them in batches."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.deadline import Deadline
from service.errors import ShuttingDownError, TooLateError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_PAUSE_SECONDS = 0.1  # after an error in a worker itself, for example a MemoryError


@dataclass(eq=False)
class Waiting(Generic[Item, Result]):
    """An item whose caller waits for its result. Only the first outcome counts.

    When the deadline passes, the caller itself fails the item.
    """

    item: Item
    deadline: Deadline
    since: float = field(default_factory=time.monotonic)  # on the monotonic clock, in seconds
    _future: "Future[Result]" = field(default_factory=Future)

    def is_settled(self) -> bool:
        """Return whether the item has an outcome."""
        return self._future.done()

    def succeed(self, result: Result) -> None:
        """Return this result to the caller."""
        with suppress(InvalidStateError):
            self._future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Raise this error in the caller's thread."""
        with suppress(InvalidStateError):
            self._future.set_exception(error)

    def outcome(self, timeout_seconds: float) -> Result:
        """Wait for the result, and return it.

        Raises:
            TooLateError: the item has no outcome in time.
            Exception: the outcome, if it is an error.
        """
        try:
            self._future.exception(timeout_seconds)
        except TimeoutError:
            self.fail(TooLateError())
        return self._future.result()


def in_time(batch: Sequence[Waiting[Item, Result]]) -> list[Waiting[Item, Result]]:
    """Fail the items whose deadline has passed. Return the items without an outcome."""
    for waiting in batch:
        if waiting.deadline.seconds_left() <= 0:
            waiting.fail(TooLateError())
    return [waiting for waiting in batch if not waiting.is_settled()]


class Workers(Generic[Item, Result]):
    """A queue, and threads that take a batch from it whenever they are free."""

    def __init__(
        self,
        process: Callable[[list[Waiting[Item, Result]]], None],
        *,
        take: Callable[[Sequence[Waiting[Item, Result]]], list[Waiting[Item, Result]]],
        count: int,
        name: str,
        watch: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Start the threads.

        Args:
            process: sets the outcome of every item of a batch. An item without an outcome fails.
            take: chooses a batch of at least one item from the waiting items, oldest first.
            count: how many threads.
            name: prefix of the threads' names.
            watch: entered for each batch, to detect a batch that hangs. Callers stop waiting at
                their deadlines, but the batch would occupy its thread for ever.
        """
        self._watch = watch
        self._process = process
        self._take = take
        self._changed = threading.Condition()
        self._waiting: deque[Waiting[Item, Result]] = deque()
        self._unsettled: set[Waiting[Item, Result]] = set()  # waiting, or in a batch
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def call(self, item: Item, deadline: Deadline) -> Result:
        """Queue an item, and wait for its result.

        Raises:
            TooLateError: the deadline passed first. An item that is in no batch yet is dropped.
            ShuttingDownError: the workers are closed.
            Exception: the item's outcome, if it is an error.
        """
        timeout_seconds = deadline.wait_seconds(threading.TIMEOUT_MAX)
        waiting: Waiting[Item, Result] = Waiting(item, deadline)
        with self._changed:
            if self._is_closed:
                raise _shutting_down()
            self._unsettled.add(waiting)
            self._waiting.append(waiting)
            self._changed.notify()
        try:
            return waiting.outcome(timeout_seconds)
        finally:
            with self._changed:
                self._unsettled.discard(waiting)
                with suppress(ValueError):  # already in a batch
                    self._waiting.remove(waiting)

    def close(self, *, timeout_seconds: float) -> None:
        """Accept no more items. Process the waiting items, and after the timeout fail the rest."""
        deadline = Deadline.after(timeout_seconds)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline.seconds_left()))
        with self._changed:
            self._waiting.clear()
            for waiting in self._unsettled:
                waiting.fail(_shutting_down())

    def _work(self) -> None:
        while True:
            batch: list[Waiting[Item, Result]] = []
            try:
                batch = self._next_batch()
                if not batch:
                    return
                with self._watch():
                    self._process(batch)
            except BaseException as exc:  # noqa: BLE001 - whatever it is, keep the thread
                _fail_unsettled(batch, exc)
                with suppress(MemoryError):
                    logger.error("A worker failed", exc_info=exc)
                time.sleep(_PAUSE_SECONDS)
            else:
                _fail_unsettled(batch, None)

    def _next_batch(self) -> list[Waiting[Item, Result]]:
        """Wait for a batch, and return it. Empty: the workers are closed, and no item waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return []
            batch = self._take(self._waiting)
            taken = set(batch)
            self._waiting = deque(item for item in self._waiting if item not in taken)
            return batch


def _fail_unsettled(batch: list[Waiting[Item, Result]], cause: BaseException | None) -> None:
    for waiting in batch:
        if not waiting.is_settled():
            with suppress(MemoryError):  # the caller then waits until its deadline
                error = RuntimeError(
                    "A worker failed. See the log." if cause else "The batch has no result."
                )
                error.__cause__ = cause
                waiting.fail(error)


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("The service is shutting down.")
