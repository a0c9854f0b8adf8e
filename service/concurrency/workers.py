"""Threads that take batches of what callers wait for. Knows nothing of images, models or stores."""

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

_PAUSE_SECONDS = 0.1  # after an error of a worker itself, such as no memory


@dataclass(eq=False)
class Waiting(Generic[Item, Result]):
    """An item whose caller waits for the result. The first outcome counts, later ones do nothing.

    The caller itself fails it when its deadline passes.
    """

    item: Item
    deadline: Deadline
    since: float = field(default_factory=time.monotonic)  # seconds of the monotonic clock
    _future: "Future[Result]" = field(default_factory=Future)

    def is_settled(self) -> bool:
        """Return whether there is an outcome."""
        return self._future.done()

    def succeed(self, result: Result) -> None:
        """Return a result to the caller."""
        with suppress(InvalidStateError):
            self._future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Raise an error in the caller's thread."""
        with suppress(InvalidStateError):
            self._future.set_exception(error)

    def outcome(self, timeout_seconds: float) -> Result:
        """Wait for the outcome.

        Raises:
            TooLateError: there is none in time.
            Exception: the outcome, if it is an error.
        """
        try:
            self._future.exception(timeout_seconds)
        except TimeoutError:
            self.fail(TooLateError())
        return self._future.result()


def in_time(batch: Sequence[Waiting[Item, Result]]) -> list[Waiting[Item, Result]]:
    """Fail what has become too late to begin; return what is still waited for."""
    for waiting in batch:
        if waiting.deadline.seconds_left() <= 0:
            waiting.fail(TooLateError())
    return [waiting for waiting in batch if not waiting.is_settled()]


class Workers(Generic[Item, Result]):
    """A queue, and threads that take batches from it as soon as they are free."""

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
            process: settles every item of a batch. What it leaves unsettled fails.
            take: chooses a batch, at least one item, from what waits (at least one, oldest first).
            count: of threads.
            name: of the threads.
            watch: entered for each batch. Callers leave at their deadlines, but a batch that hangs
                keeps its thread for ever: this must see it.
        """
        self._watch = watch
        self._process = process
        self._take = take
        self._changed = threading.Condition()
        self._waiting: deque[Waiting[Item, Result]] = deque()
        self._unsettled: set[Waiting[Item, Result]] = set()  # those in a batch, too
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
            TooLateError: the deadline passed first. An item that is not in a batch yet never runs.
            ShuttingDownError: the workers are closed.
            Exception: the item's own error.
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
                with suppress(ValueError):  # a worker has taken it
                    self._waiting.remove(waiting)

    def close(self, *, timeout_seconds: float) -> None:
        """Refuse new items, and finish what waits. What is left when the time is up fails."""
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
            except BaseException as exc:  # noqa: BLE001 - no memory, a Rust panic: keep the thread
                _fail_unsettled(batch, exc)
                with suppress(MemoryError):
                    logger.error("A worker failed", exc_info=exc)
                time.sleep(_PAUSE_SECONDS)
            else:
                _fail_unsettled(batch, None)

    def _next_batch(self) -> list[Waiting[Item, Result]]:
        """Wait for a batch; empty when closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return []
            batch = self._take(self._waiting)
            taken = set(batch)
            self._waiting = deque(w for w in self._waiting if w not in taken)
            return batch


def _fail_unsettled(batch: list[Waiting[Item, Result]], cause: BaseException | None) -> None:
    for waiting in batch:
        if not waiting.is_settled():
            with suppress(MemoryError):  # the caller waits until its deadline then
                why = "A worker failed; the log says why." if cause else "The batch has no result."
                error = RuntimeError(why)
                error.__cause__ = cause
                waiting.fail(error)


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("The service is shutting down.")
