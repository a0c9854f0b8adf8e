"""The queue in front of a model. It does not know what the items are.

A GPU has one runner. A CPU has one runner for each core. As soon as a runner is free, it takes its
share of the queue. It does not wait for other runners or for a timer. So under light load no item
waits, and under heavy load the batches are full.
"""

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from service.concurrency.workers import Waiting, Workers, in_time
from service.deadline import Deadline
from service.errors import DetectorError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Inferred(Generic[Result]):
    """A result, its batch and its times."""

    result: Result
    batch_size: int  # items that the runner took together
    queue_ms: float  # from the call of `infer` until the model began with this item
    inference_ms: float  # time for this item, or its equal share of the batch's time


@dataclass(frozen=True)
class _Shaped(Generic[Item]):
    item: Item
    shape: Hashable


_Waiting = Waiting[_Shaped[Item], Inferred[Result]]


class InferenceQueue(Generic[Item, Result]):
    """Runs a model on items from many threads, in batches of equal input shape."""

    def __init__(
        self,
        run: Callable[[list[Item]], Iterable[Result]],
        *,
        runners: int,
        max_batch_size: int,
        shape: Callable[[Item], Hashable],
        watch: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Start the runners' threads.

        Args:
            run: runs a batch and returns its results in order: a list, or an iterator that runs
                one item at each step. Several runners call it at once.
            runners: number of threads. Each runs one batch at a time.
            max_batch_size: the most items in one batch.
            shape: returns an item's input shape. Items of equal shapes may share a batch.
            watch: context that is entered while a batch runs, to detect a batch that hangs.
        """
        self._run = run
        self._runners = runners
        self._max_batch_size = max_batch_size
        self._shape = shape
        self._workers: Workers[_Shaped[Item], Inferred[Result]] = Workers(
            self._run_isolating, take=self._take_share, count=runners, name="runner", watch=watch
        )

    def infer(self, item: Item, deadline: Deadline) -> Inferred[Result]:
        """Queue an item and wait for its result.

        Raises:
            DetectorError: the model failed on a batch of only this item.
            TooLateError: the deadline passed first.
            ShuttingDownError: the queue is closed.
        """
        return self._workers.call(_Shaped(item, self._shape(item)), deadline)

    def close(self, *, timeout_seconds: float) -> None:
        """Reject new items and finish the queued items.

        Callers of items that are left after `timeout_seconds` get a ShuttingDownError.
        """
        self._workers.close(timeout_seconds=timeout_seconds)

    def _take_share(self, queue: Sequence[_Waiting[Item, Result]]) -> list[_Waiting[Item, Result]]:
        """Return one runner's share of the queue: items with the input shape of the oldest item."""
        count = min(self._max_batch_size, math.ceil(len(queue) / self._runners))
        shape = queue[0].item.shape
        return list(islice((w for w in queue if w.item.shape == shape), count))

    def _run_isolating(self, batch: list[_Waiting[Item, Result]]) -> None:
        """Run a batch. If it raises an error, run the items without a result again, in two halves.

        So only the item that causes the error fails. One such item among n costs about 2 log2(n)
        more runs.
        """
        batch = in_time(batch)
        if not batch:
            return
        try:
            self._run_batch(batch)
            return
        except BaseException as exc:  # noqa: BLE001 - a Rust panic is no Exception
            is_alone = len(batch) == 1
            retry = "" if is_alone else ", so its halves are run again"
            logger.exception("A batch of %d failed%s", len(batch), retry)
            if is_alone:
                batch[0].fail(_detector_error(exc))
        remaining = [waiting for waiting in batch if not waiting.is_settled()]
        half = len(remaining) // 2
        for part in (remaining[:half], remaining[half:]):
            self._run_isolating(part)

    def _run_batch(self, batch: list[_Waiting[Item, Result]]) -> None:
        """Run a batch, and pass each result to its caller as soon as it is ready.

        Raises:
            BaseException: the model raised it.
            DetectorError: the model returned fewer or more results than there are items.
        """
        results = self._run_timed([waiting.item.item for waiting in batch])
        for waiting, (result, began, seconds) in zip(batch, results, strict=True):
            queue_ms = (began - waiting.since) * 1000
            waiting.succeed(Inferred(result, len(batch), queue_ms, seconds * 1000))

    def _run_timed(self, items: list[Item]) -> Iterator[tuple[Result, float, float]]:
        """Yield each result, its start on the monotonic clock, and its duration, in seconds."""
        began = time.monotonic()
        results = self._run(items)
        if isinstance(results, Sized):
            if len(results) != len(items):  # it is unknown which result belongs to which item
                raise _wrong_number(len(items))
            seconds = (time.monotonic() - began) / len(items)
            yield from ((result, began, seconds) for result in results)
            return
        for result in _exactly(len(items), results):
            ended = time.monotonic()
            yield result, began, ended - began
            began = ended


def _exactly(count: int, results: Iterable[Result]) -> Iterator[Result]:
    """Yield `count` results. Before the last result, check that no further result follows.

    Raises:
        DetectorError: there are fewer or more results.
    """
    iterator = iter(results)
    yield from islice(iterator, count - 1)
    last = list(islice(iterator, 2))
    if len(last) != 1:
        raise _wrong_number(count)
    yield last[0]


def _wrong_number(count: int) -> DetectorError:
    return DetectorError(f"The model returned too few or too many results for {count} images.")


def _detector_error(error: BaseException) -> DetectorError:
    if isinstance(error, DetectorError):
        return error
    wrapped = DetectorError(f"The model failed on an image: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
