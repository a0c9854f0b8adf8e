"""The queue in front of the model. Knows nothing of images, stores or the web.

A GPU has one runner, a CPU one a core. Each takes its share of what waits as soon as it is free: no
runner waits for another one, and no timer runs. Under light load nothing waits; under heavy load
batches are full.
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
    """A result, and how it came about."""

    result: Result
    batch_size: int  # items that the runner took together
    queue_ms: float  # until the model began with it
    inference_ms: float  # its own, or its share of a true batch's time


@dataclass(frozen=True)
class _Shaped(Generic[Item]):
    item: Item
    shape: Hashable


_Waiting = Waiting[_Shaped[Item], Inferred[Result]]


class InferenceQueue(Generic[Item, Result]):
    """Runs a model on items from many threads, in batches of one shape."""

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
            run: a batch to its results, in order: a list after one true batch, or an iterator that
                infers one item for each step. Called by each runner at the same time.
            runners: batches at once.
            max_batch_size: items in one batch at most.
            shape: items of equal shapes may share a batch.
            watch: entered for each batch, to see one that hangs.
        """
        self._run = run
        self._runners = runners
        self._max_batch_size = max_batch_size
        self._shape = shape
        self._workers: Workers[_Shaped[Item], Inferred[Result]] = Workers(
            self._run_isolating, take=self._share, count=runners, name="runner", watch=watch
        )

    def infer(self, item: Item, deadline: Deadline) -> Inferred[Result]:
        """Queue an item, and wait for its result.

        Raises:
            DetectorError: the model failed on this item alone.
            TooLateError: the deadline passed first.
            ShuttingDownError: the queue is closed.
        """
        return self._workers.call(_Shaped(item, self._shape(item)), deadline)

    def close(self, *, timeout_seconds: float) -> None:
        """Refuse new items, and finish what waits. What is left when the time is up fails."""
        self._workers.close(timeout_seconds=timeout_seconds)

    def _share(self, queue: Sequence[_Waiting[Item, Result]]) -> list[_Waiting[Item, Result]]:
        """Return one runner's share of what waits, of the oldest item's shape."""
        count = min(self._max_batch_size, math.ceil(len(queue) / self._runners))
        shape = queue[0].item.shape
        return list(islice((w for w in queue if w.item.shape == shape), count))

    def _run_isolating(self, batch: list[_Waiting[Item, Result]]) -> None:
        """Run a batch. If it raises, run halves of what has no result: an item fails alone.

        One faulty item among n costs about 2 log2(n) more runs.
        """
        batch = in_time(batch)
        if not batch:
            return
        try:
            self._run_batch(batch)
            return
        except BaseException as exc:  # noqa: BLE001 - a Rust panic is no Exception
            is_alone = len(batch) == 1
            logger.exception("A batch of %d failed%s", len(batch), "" if is_alone else "; split")
            if is_alone:
                batch[0].fail(_detector_error(exc))
        remaining = [waiting for waiting in batch if not waiting.is_settled()]
        half = len(remaining) // 2
        for part in (remaining[:half], remaining[half:]):
            self._run_isolating(part)

    def _run_batch(self, batch: list[_Waiting[Item, Result]]) -> None:
        """Run a batch; each caller gets its result as soon as it is there.

        Raises:
            BaseException: whatever the model raises.
            DetectorError: there are fewer or more results than items.
        """
        results = self._timed([waiting.item.item for waiting in batch])
        for waiting, (result, began, seconds) in zip(batch, results, strict=True):
            queue_ms = (began - waiting.since) * 1000
            waiting.succeed(Inferred(result, len(batch), queue_ms, seconds * 1000))

    def _timed(self, items: list[Item]) -> Iterator[tuple[Result, float, float]]:
        """Yield each result with when the model began with it, and its share of seconds."""
        began = time.monotonic()
        results = self._run(items)
        if isinstance(results, Sized):
            if len(results) != len(items):  # nobody could say whose results they are
                raise _wrong_number(len(items))
            seconds = (time.monotonic() - began) / len(items)
            yield from ((result, began, seconds) for result in results)
            return
        for result in _exactly(len(items), results):
            ended = time.monotonic()
            yield result, began, ended - began
            began = ended


def _exactly(count: int, results: Iterable[Result]) -> Iterator[Result]:
    """Yield `count` results. The last one waits until it is clear that no other follows.

    Raises:
        DetectorError: there are fewer or more.
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
