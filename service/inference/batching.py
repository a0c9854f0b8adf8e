"""Forms batches from concurrent callers. Knows nothing of pictures, stores or the web.

A caller is admitted, prepares its item on its own thread, submits it and waits:

    with batcher.admit() as ticket:      # QueueFullError when too many are admitted
        item = prepare()                 # "on its way": a forming batch waits for it
        outcome = ticket.submit(item).result()

One thread runs batches, one at a time. A batch holds items of one kind (`key`), the oldest item's,
so that none waits behind others for ever. It starts when it is full (by number or by `weight`),
when nobody is on the way any more, or when its first item has waited `max_delay_seconds`. An item
whose time to begin (`begin_by`) has passed meanwhile is given back instead. What a run returns is
handed to `finish` on another thread, so that the next batch runs meanwhile; callers get their
outcome after `finish` has returned.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Self, TypeVar

from service.errors import DetectorError, QueueFullError, ShuttingDownError, TooLateError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_PAUSE_SECONDS = 0.1  # after an error outside of any batch, which might come again at once
_FINISH_THREADS = 4  # finishing waits for the network; more than this only when the store is down


@dataclass
class _Entry(Generic[Item, Result]):
    item: Item
    key: Hashable
    weight: int
    begin_by: float
    submitted_at: float = field(default_factory=time.monotonic)
    future: "Future[Result]" = field(default_factory=Future)


class Batcher(Generic[Item, Result]):
    """Gathers items into batches for one runner."""

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        finish: Callable[[list[Result]], Sequence[Result | Exception]],
        *,
        max_batch_size: int,
        max_delay_seconds: float,
        max_admitted: int,
        key: Callable[[Item], Hashable] = lambda item: None,
        weight: Callable[[Item], int] = lambda item: 0,
        max_weight: int = 0,
    ) -> None:
        """Start the runner's thread.

        Args:
            run: a batch to its results, same length and order. When it raises, the batch is split
                until the culprit stands alone; the others get their results.
            finish: makes the results of one batch final, and returns one outcome for each: the
                result, or an error that only its caller gets. When it raises, all of them failed.
            max_batch_size: items in a batch at most.
            max_delay_seconds: how long an item waits for others that are on their way.
            max_admitted: callers admitted at once.
            key: items of equal keys may share a batch.
            weight: what an item adds to its batch.
            max_weight: of a batch; an item that is heavier runs alone.
        """
        self._key = key
        self._weight = weight
        self._max_weight = max_weight
        self._run = run
        self._finish = finish
        self._max_batch_size = max_batch_size
        self._max_delay = max_delay_seconds
        self._max_admitted = max_admitted
        self._changed = threading.Condition()
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._admitted = 0
        self._on_the_way = 0
        self._closed = False
        self._abandoned = False
        self._deliveries: set[Future[None]] = set()
        self._finisher = _started_threads(_FINISH_THREADS, "finish")
        self._runner = threading.Thread(target=self._loop, name="batcher", daemon=True)
        self._runner.start()

    def admit(self, *, patience_seconds: float = 0.0) -> "Ticket[Item, Result]":
        """Reserve a place.

        Args:
            patience_seconds: how long to wait for one.

        Raises:
            QueueFullError: `max_admitted` callers are admitted already.
            ShuttingDownError: the batcher is closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._admitted < self._max_admitted, patience_seconds
            )
            if self._closed:
                raise ShuttingDownError("The service is shutting down.")
            if self._admitted >= self._max_admitted:
                raise QueueFullError("The queue is full.")
            self._admitted += 1
            self._on_the_way += 1
        return Ticket(self)

    def stop_admitting(self) -> None:
        """Let those that are admitted finish; later calls to `admit` raise."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self, *, timeout_seconds: float) -> None:
        """Stop admitting, and wait until everything admitted is answered.

        When the time is up, what was not run is answered with a ShuttingDownError.
        """
        deadline = time.monotonic() + timeout_seconds
        self.stop_admitting()
        self._runner.join(timeout_seconds)
        with self._changed:
            self._abandoned = True
            deliveries, unrun = list(self._deliveries), list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        _give_back(unrun)
        wait(deliveries, max(0.0, deadline - time.monotonic()))
        self._finisher.shutdown(wait=False)

    def _submit(
        self, item: Item, begin_by: float, ticket: "Ticket[Item, Result]"
    ) -> "Future[Result]":
        entry: _Entry[Item, Result] = _Entry(item, self._key(item), self._weight(item), begin_by)
        with self._changed:
            if self._abandoned:
                _give_back([entry])
            else:
                self._waiting.append(entry)
            self._on_the_way -= 1
            ticket._submitted = True
            self._changed.notify_all()
        return entry.future

    def _leave(self, *, submitted: bool) -> None:
        with self._changed:
            self._admitted -= 1
            if not submitted:
                self._on_the_way -= 1
            self._changed.notify_all()

    def _loop(self) -> None:
        while True:
            taken: list[_Entry[Item, Result]] = []
            try:
                taken = self._take()
                if not taken:
                    return
                if batch := _in_time(taken):
                    results = _run_isolating(self._run, [entry.item for entry in batch])
                    self._hand_over(batch, results)
            except BaseException as exc:  # noqa: BLE001 - out of memory, a panic: keep the thread
                _fail(taken, _as_exception(exc))
                with suppress(MemoryError):
                    logger.error("A batch could not be run", exc_info=exc)
                time.sleep(_PAUSE_SECONDS)

    def _hand_over(
        self, batch: "list[_Entry[Item, Result]]", results: "list[Result | Exception]"
    ) -> None:
        with self._changed:
            if not self._abandoned:
                delivery = self._finisher.submit(self._deliver, batch, results)
                self._deliveries.add(delivery)
                delivery.add_done_callback(self._deliveries.discard)
                return
        _give_back(batch)

    def _take(self) -> "list[_Entry[Item, Result]]":
        """Wait for a batch; empty when closed and nobody is left."""
        with self._changed:
            while not self._waiting:
                if self._abandoned or (self._closed and not self._on_the_way):
                    return []
                self._changed.wait()
            oldest = self._waiting[0]
            deadline = oldest.submitted_at + self._max_delay
            batch, is_full = self._fitting()
            while not is_full and self._on_the_way:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
                if not self._waiting or self._waiting[0] is not oldest:
                    return self._take()  # given back meanwhile
                batch, is_full = self._fitting()
            taken = set(map(id, batch))
            self._waiting = deque(entry for entry in self._waiting if id(entry) not in taken)
            return batch

    def _fitting(self) -> "tuple[list[_Entry[Item, Result]], bool]":
        """What could run with the oldest item now, and whether more would not fit."""
        key = self._waiting[0].key
        batch: list[_Entry[Item, Result]] = []
        weight = 0
        for entry in self._waiting:
            if entry.key != key:
                continue
            weight += entry.weight
            if batch and weight > self._max_weight:
                return batch, True
            batch.append(entry)
            if len(batch) == self._max_batch_size:
                return batch, True
        return batch, False

    def _deliver(
        self, batch: "list[_Entry[Item, Result]]", results: "list[Result | Exception]"
    ) -> None:
        """Finish the good results together, then answer everybody."""
        try:
            finished: Iterator[Result | Exception] = iter(())
            if good := [result for result in results if not isinstance(result, Exception)]:
                outcomes = self._finish(good)
                if len(outcomes) != len(good):
                    raise DetectorError(f"{len(good)} results were finished as {len(outcomes)}")
                finished = iter(outcomes)
            for entry, result in zip(batch, results, strict=True):
                outcome = result if isinstance(result, Exception) else next(finished)
                if not isinstance(outcome, Exception):
                    entry.future.set_result(outcome)
                else:
                    entry.future.set_exception(outcome)
        except BaseException as exc:  # noqa: BLE001 - each caller raises it, on its own thread
            for entry, result in zip(batch, results, strict=True):
                _fail([entry], result if isinstance(result, Exception) else _as_exception(exc))


class Ticket(Generic[Item, Result]):
    """A place in the queue, held until the caller has its outcome."""

    def __init__(self, batcher: Batcher[Item, Result]) -> None:
        """Made by `Batcher.admit`."""
        self._batcher = batcher
        self._submitted = False

    def submit(self, item: Item, *, begin_by: float = math.inf) -> "Future[Result]":
        """Put the prepared item into the next batch.

        Args:
            item: what to run.
            begin_by: until when its batch may begin, by the monotonic clock; after that, the
                outcome is a TooLateError.

        Raises:
            Exception: what `key` or `weight` raise; the item is then not in a batch.
        """
        return self._batcher._submit(item, begin_by, self)

    def __enter__(self) -> Self:
        """Hold the place."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the place back, prepared or not."""
        self._batcher._leave(submitted=self._submitted)


def _as_exception(error: BaseException) -> Exception:
    """Return an error that a caller's thread survives."""
    if isinstance(error, Exception):
        return error
    wrapped = DetectorError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _fail(entries: list[_Entry[Item, Result]], error: Exception) -> None:
    """Answer those that have no answer yet."""
    for entry in entries:
        with suppress(MemoryError):  # this caller waits on, until the watchdog ends the process
            if not entry.future.done():
                entry.future.set_exception(error)


def _give_back(entries: list[_Entry[Item, Result]]) -> None:
    for entry in entries:
        entry.future.set_exception(ShuttingDownError("The service is shutting down."))


def _started_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Start all threads at once: later, where memory is short, none might start."""
    threads = ThreadPoolExecutor(count, thread_name_prefix=name)
    all_started = threading.Barrier(count + 1)
    for _ in range(count):
        threads.submit(all_started.wait)
    all_started.wait()
    return threads


def _in_time(batch: list[_Entry[Item, Result]]) -> list[_Entry[Item, Result]]:
    """Give back what it is too late for; return the others."""
    now = time.monotonic()
    for entry in batch:
        if entry.begin_by < now:
            entry.future.set_exception(TooLateError())
    return [entry for entry in batch if entry.begin_by >= now]


def _run_isolating(
    run: Callable[[list[Item]], Sequence[Result]], items: list[Item]
) -> list[Result | Exception]:
    """Run a batch; where it raises, run its halves, so that only the culprit fails.

    A batch of n with one culprit costs about 2 log2(n) more runs.
    """
    try:
        results = run(items)
        if len(results) != len(items):
            raise DetectorError(f"{len(items)} items went in and {len(results)} results came out")
        return list(results)
    except BaseException as exc:  # noqa: BLE001 - a panic of Rust code is no Exception
        logger.exception("A batch of %d raised%s", len(items), "; splitting" * (len(items) > 1))
        if len(items) == 1:
            return [_as_exception(exc)]
    half = len(items) // 2
    return _run_isolating(run, items[:half]) + _run_isolating(run, items[half:])
