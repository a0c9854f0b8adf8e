"""The inference queue. Gates and events order the steps, so that no test depends on the clock."""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.deadline import Deadline
from service.errors import DetectorError, ShuttingDownError, TooLateError
from service.inference.queue import InferenceQueue, Inferred
from tests.fakes import PATIENCE_SECONDS, Gate, in_thread


class Panic(BaseException):
    """An error like the PanicException of pyo3, which is not an Exception."""


class Model:
    """Multiplies a batch by ten, after passing a gate."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.batches: list[list[int]] = []
        self.failures: dict[int, BaseException] = {}
        self.results: Callable[[list[int]], Iterable[int]] = lambda batch: [10 * i for i in batch]

    def __call__(self, batch: list[int]) -> Iterable[int]:
        self.batches.append(batch)
        self.gate.enter()
        for item in batch:
            if item in self.failures:
                raise self.failures[item]
        return self.results(batch)


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.gate.open()


def soon() -> Deadline:
    return Deadline.after(PATIENCE_SECONDS)


def queue_of(
    model: Callable[[list[int]], Iterable[int]],
    *,
    runners: int = 1,
    max_batch_size: int = 8,
    shape: Callable[[int], Hashable] = lambda item: None,
) -> InferenceQueue[int, int]:
    return InferenceQueue(model, runners=runners, max_batch_size=max_batch_size, shape=shape)


def start(
    queue: InferenceQueue[int, int], item: int, deadline: Deadline | None = None
) -> "Future[Inferred[int]]":
    """Call `infer` in a thread. Return once the item is queued or in a batch."""
    before = len(queue._workers._unsettled)
    future = in_thread(lambda: queue.infer(item, deadline or soon()))
    while not future.done() and len(queue._workers._unsettled) == before:
        threading.Event().wait(0.001)
    return future


def behind(
    model: Model, queue: InferenceQueue[int, int], items: Iterable[int]
) -> "list[Future[Inferred[int]]]":
    """Queue items in this order while a runner is busy with item 0. The caller opens the gate."""
    model.gate.close()
    first = start(queue, 0)
    model.gate.wait_for_arrivals()
    return [first, *(start(queue, item) for item in items)]


def result(future: "Future[Inferred[int]]") -> int:
    return future.result(PATIENCE_SECONDS).result


def error(future: "Future[Inferred[int]]") -> BaseException | None:
    return future.exception(PATIENCE_SECONDS)


def test_an_item_alone_runs_at_once(model: Model) -> None:
    queue = queue_of(model)
    assert [queue.infer(item, soon()).result for item in (1, 2)] == [10, 20]
    assert model.batches == [[1], [2]]


def test_what_waits_for_one_runner_shares_full_batches(model: Model) -> None:
    futures = behind(model, queue_of(model, max_batch_size=4), range(1, 10))
    model.gate.open()
    assert [result(future) for future in futures] == [10 * item for item in range(10)]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_a_runner_takes_its_share_of_what_waits(model: Model) -> None:
    queue = queue_of(model, runners=2)
    model.gate.close()
    running = [start(queue, item) for item in (0, 1)]
    model.gate.wait_for_arrivals(2)
    waiting = [start(queue, item) for item in range(2, 7)]
    model.gate.open()
    assert [result(future) for future in running + waiting] == [10 * i for i in range(7)]
    assert model.batches[2] == [2, 3, 4]  # of five, for two runners


def test_a_free_runner_does_not_wait_for_a_busy_one(model: Model) -> None:
    queue = queue_of(model, runners=2)
    model.gate.close()
    busy = start(queue, 1)
    model.gate.wait_for_arrivals()
    model.gate.close(after=2)  # the busy one stays
    assert [queue.infer(item, soon()).result for item in (2, 3)] == [20, 30]
    assert not busy.done()
    model.gate.open()
    assert result(busy) == 10


def test_a_batch_has_the_shape_of_the_oldest_item(model: Model) -> None:
    queue = queue_of(model, shape=lambda item: item % 2)
    futures = behind(model, queue, [1, 2, 3, 4, 5])
    model.gate.open()
    wait_for_futures(futures, PATIENCE_SECONDS)
    assert model.batches == [[0], [1, 3, 5], [2, 4]]


def test_an_item_without_a_shape_fails_before_it_waits(model: Model) -> None:
    queue = queue_of(model, shape=lambda item: 1 // item)
    with pytest.raises(ZeroDivisionError):
        queue.infer(0, soon())
    assert queue.infer(1, soon()).result == 10


def test_the_caller_learns_the_batch_size_and_times(model: Model) -> None:
    futures = behind(model, queue_of(model), [1, 2])
    model.gate.open()
    inferred = [future.result(PATIENCE_SECONDS) for future in futures]
    assert [each.batch_size for each in inferred] == [1, 2, 2]
    assert all(each.queue_ms >= 0 and each.inference_ms >= 0 for each in inferred)
    assert inferred[1].inference_ms == inferred[2].inference_ms  # a true batch's equal shares


def test_a_result_is_handed_on_before_the_next_is_ready(model: Model) -> None:
    may_go_on = threading.Event()

    def one_by_one(batch: list[int]) -> Iterator[int]:
        for item in batch:
            if item == 2:
                assert may_go_on.wait(PATIENCE_SECONDS)
            yield 10 * item

    model.results = one_by_one
    futures = behind(model, queue_of(model), [1, 2])
    model.gate.open()
    assert result(futures[1]) == 10  # item 2 is in the same batch, and not inferred yet
    assert not futures[2].done()
    may_go_on.set()
    assert result(futures[2]) == 20
    assert model.batches == [[0], [1, 2]]


@pytest.mark.parametrize("raised", [ValueError("bad"), MemoryError(), Panic("rust")])
def test_only_the_failing_image_of_a_batch_fails(model: Model, raised: BaseException) -> None:
    model.failures = {3: raised}
    queue = queue_of(model)
    futures = behind(model, queue, range(1, 6))
    model.gate.open()
    failed = error(futures.pop(3))
    assert isinstance(failed, DetectorError)
    assert failed.__cause__ is raised
    assert [result(future) for future in futures] == [0, 10, 20, 40, 50]
    assert queue.infer(6, soon()).result == 60  # the runner goes on


def test_results_before_a_failure_are_kept(model: Model) -> None:
    def one_by_one(batch: list[int]) -> Iterator[int]:
        for item in batch:
            if item == 3:
                raise ValueError
            yield 10 * item

    model.results = one_by_one
    futures = behind(model, queue_of(model), range(1, 5))
    model.gate.open()
    assert isinstance(error(futures.pop(3)), DetectorError)
    assert [result(future) for future in futures] == [0, 10, 20, 40]
    assert [len(batch) for batch in model.batches if 1 in batch] == [4]  # never run again


@pytest.mark.parametrize("extra", [-1, 1])
@pytest.mark.parametrize("kind", [list, iter])
def test_a_wrong_number_of_results_is_an_error(
    model: Model, extra: int, kind: Callable[[list[int]], Iterable[int]]
) -> None:
    queue = queue_of(model)
    model.results = lambda batch: kind(batch + batch if extra > 0 else batch[:-1])
    with pytest.raises(DetectorError, match="too few or too many"):
        queue.infer(1, soon())


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_list_of_a_wrong_length_gives_nobody_a_result(model: Model, extra: int) -> None:
    """It is unknown which result belongs to which item."""
    model.results = lambda batch: [99] * (len(batch) + extra * (len(batch) > 1))
    futures = behind(model, queue_of(model), [1, 2])
    model.gate.open()
    wait_for_futures(futures, PATIENCE_SECONDS)
    assert model.batches == [[0], [1, 2], [1], [2]]


def test_an_item_whose_deadline_passed_is_not_run(model: Model) -> None:
    queue = queue_of(model)
    with pytest.raises(TooLateError):
        queue.infer(1, Deadline.after(0))
    assert model.batches == []


def test_a_caller_leaves_the_queue_at_its_deadline(model: Model) -> None:
    queue = queue_of(model)
    [first] = behind(model, queue, [])
    late = start(queue, 1, Deadline.after(0.01))
    assert isinstance(error(late), TooLateError)
    assert not queue._workers._waiting
    model.gate.open()
    assert result(first) == 0
    assert queue.infer(2, soon()).result == 20
    assert model.batches == [[0], [2]]


def test_a_caller_leaves_a_batch_under_way_at_its_deadline(model: Model) -> None:
    model.gate.close()
    queue = queue_of(model)
    assert isinstance(error(start(queue, 1, Deadline.after(0.01))), TooLateError)
    model.gate.open()
    assert queue.infer(2, soon()).result == 20


def test_a_batch_is_watched_while_it_is_under_way(model: Model) -> None:
    watched: list[str] = []
    has_ended = threading.Event()

    @contextmanager
    def watch() -> Iterator[None]:
        watched.append("began")
        yield
        watched.append("ended")
        has_ended.set()

    queue: InferenceQueue[int, int] = InferenceQueue(
        model, runners=1, max_batch_size=8, shape=lambda item: None, watch=watch
    )
    model.gate.close()
    future = start(queue, 1)
    model.gate.wait_for_arrivals()
    assert watched == ["began"]
    model.gate.open()
    assert result(future) == 10
    assert has_ended.wait(PATIENCE_SECONDS)
    assert watched == ["began", "ended"]


def test_what_became_late_in_a_failed_batch_is_not_run_again(model: Model) -> None:
    has_left = threading.Event()

    def fail_together(batch: list[int]) -> list[int]:
        if len(batch) > 1:
            assert has_left.wait(PATIENCE_SECONDS)
            raise ValueError
        return [10 * item for item in batch]

    model.results = fail_together
    queue = queue_of(model)
    futures = behind(model, queue, [1])
    late = start(queue, 2, Deadline.after(0.2))
    model.gate.open()
    assert isinstance(error(late), TooLateError)
    has_left.set()
    assert [result(future) for future in futures] == [0, 10]
    assert [2] not in model.batches


def test_close_finishes_what_waits_and_refuses_the_rest(model: Model) -> None:
    queue = queue_of(model)
    futures = behind(model, queue, [1, 2])
    closing = in_thread(lambda: queue.close(timeout_seconds=PATIENCE_SECONDS))
    while not queue._workers._is_closed:
        threading.Event().wait(0.001)
    with pytest.raises(ShuttingDownError):
        queue.infer(3, soon())
    model.gate.open()
    assert [result(future) for future in futures] == [0, 10, 20]
    closing.result(PATIENCE_SECONDS)


def test_close_without_time_leaves_nobody_waiting(model: Model) -> None:
    queue = queue_of(model)
    futures = behind(model, queue, [1, 2])
    queue.close(timeout_seconds=0)
    assert [type(error(future)) for future in futures] == [ShuttingDownError] * 3
    model.gate.open()
    queue.close(timeout_seconds=PATIENCE_SECONDS)
    assert model.batches == [[0]]


def test_queue_forgets_items_whose_callers_left(model: Model) -> None:
    model.failures = {1: ValueError()}
    queue = queue_of(model)
    queue.infer(0, soon())
    with pytest.raises(DetectorError):
        queue.infer(1, soon())
    model.gate.close()
    with pytest.raises(TooLateError):
        queue.infer(2, Deadline.after(0.01))
    assert queue._workers._unsettled == set()


def test_a_batch_that_hangs_does_not_keep_the_process(model: Model) -> None:
    queue = queue_of(model, runners=2)
    assert [thread.daemon for thread in queue._workers._threads] == [True, True]


def test_a_runner_survives_its_own_errors(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example if there is no memory to write the log."""

    def no_memory(*_: object) -> None:
        raise MemoryError

    model.failures = {1: ValueError()}
    queue = queue_of(model)
    with monkeypatch.context() as patch:
        patch.setattr("service.inference.queue.logger.exception", no_memory)
        with pytest.raises(RuntimeError, match="worker failed"):
            queue.infer(1, soon())
    assert queue.infer(2, soon()).result == 20


@dataclass(frozen=True)
class Request:
    """One caller of the property-based test."""

    number: int
    shape: int
    fails: bool
    is_late: bool


requests = st.lists(
    st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), min_size=1, max_size=24
).map(lambda rows: [Request(number, *row) for number, row in enumerate(rows)])


@settings(max_examples=60, deadline=None)
@given(
    requests=requests,
    runners=st.integers(1, 3),
    max_batch_size=st.integers(1, 5),
    streams=st.booleans(),
)
def test_every_caller_gets_exactly_its_own_outcome(
    requests: list[Request], runners: int, max_batch_size: int, streams: bool
) -> None:
    batches: list[list[Request]] = []

    def stream(batch: list[Request]) -> Iterator[str]:
        for request in batch:
            if request.fails:
                raise ValueError(f"cannot run {request.number}")
            yield f"result of {request.number}"

    def run(batch: list[Request]) -> Iterable[str]:
        batches.append(batch)
        return stream(batch) if streams else list(stream(batch))

    queue: InferenceQueue[Request, str] = InferenceQueue(
        run, runners=runners, max_batch_size=max_batch_size, shape=lambda request: request.shape
    )
    together = threading.Barrier(len(requests))

    def call(request: Request) -> str:
        together.wait(PATIENCE_SECONDS)
        deadline = Deadline.after(0 if request.is_late else PATIENCE_SECONDS)
        try:
            return queue.infer(request, deadline).result
        except TooLateError:
            return "too late"
        except DetectorError as exc:
            return str(exc.__cause__)

    def expected(request: Request) -> str:
        if request.is_late:
            return "too late"
        return f"{'cannot run' if request.fails else 'result of'} {request.number}"

    with ThreadPoolExecutor(len(requests)) as callers:
        outcomes = list(callers.map(call, requests))
    queue.close(timeout_seconds=PATIENCE_SECONDS)
    assert outcomes == [expected(request) for request in requests]
    assert all(len({request.shape for request in batch}) == 1 for batch in batches)
    assert all(len(batch) <= max_batch_size for batch in batches)
    assert not any(request.is_late for batch in batches for request in batch)
