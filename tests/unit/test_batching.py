"""Forming batches from concurrent callers. No clock is asserted: gates and events order things."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from service.errors import DetectorError, QueueFullError, ShuttingDownError, TooLateError
from service.inference.batching import Batcher, Ticket
from tests.fakes import PATIENCE_SECONDS, Gate, in_thread

FOR_EVER = 3600.0  # a delay that no test could wait out
A_MOMENT = 0.1  # for what must not happen


class Work:
    """The two functions of a batcher: `run` multiplies by ten, `finish` records."""

    def __init__(self) -> None:
        self.run_gate = Gate()
        self.finish_gate = Gate()
        self.batches: list[list[int]] = []
        self.finished: list[list[str]] = []
        self.culprits: set[int] = set()
        self.missing_results = 0
        self.finish_error: Exception | None = None
        self.unfinished: dict[str, Exception] = {}

    def run(self, items: list[int]) -> list[str]:
        self.batches.append(items)
        self.run_gate.enter()
        if bad := self.culprits.intersection(items):
            raise ValueError(f"cannot run {sorted(bad)}")
        return [f"result of {item}" for item in items][: len(items) - self.missing_results]

    def finish(self, results: list[str]) -> list[str | Exception]:
        self.finish_gate.enter()
        if error := self.finish_error:
            self.finish_error = None
            raise error
        self.finished.append(results)
        return [self.unfinished.get(result, result) for result in results]


Make = Callable[..., Batcher[int, str]]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def make(work: Work) -> Iterator[Make]:
    """Make batchers that are closed in the end."""
    made: list[Batcher[int, str]] = []

    def make_one(
        *, size: int = 8, delay: float = FOR_EVER, admitted: int = 100, **options: Any
    ) -> Batcher[int, str]:
        batcher = Batcher(
            work.run,
            work.finish,
            max_batch_size=size,
            max_delay_seconds=delay,
            max_admitted=admitted,
            **options,
        )
        made.append(batcher)
        return batcher

    yield make_one
    work.run_gate.open()
    work.finish_gate.open()
    for batcher in made:
        batcher.close(timeout_seconds=PATIENCE_SECONDS)


def answer(future: "Future[str]") -> str:
    return future.result(timeout=PATIENCE_SECONDS)


def error_of(future: "Future[str]") -> BaseException | None:
    return future.exception(timeout=PATIENCE_SECONDS)


def submit(batcher: Batcher[int, str], item: int) -> "Future[str]":
    """Submit from a place that is given back at once."""
    with batcher.admit() as ticket:
        return ticket.submit(item)


def submit_behind(
    batcher: Batcher[int, str], work: Work, items: list[int]
) -> "tuple[Future[str], list[Future[str]]]":
    """Submit items while a batch of the item 0 is held in `run`; the caller opens the gate."""
    work.run_gate.close()
    first = submit(batcher, 0)
    work.run_gate.wait_for_arrivals()
    return first, [submit(batcher, item) for item in items]


def test_batcher_when_idle_runs_an_item_at_once(make: Make, work: Work) -> None:
    batcher = make(delay=FOR_EVER)
    assert answer(submit(batcher, 7)) == "result of 7"
    assert answer(submit(batcher, 8)) == "result of 8"
    assert work.batches == [[7], [8]]


def test_batcher_under_load_runs_full_batches_in_order(make: Make, work: Work) -> None:
    first, rest = submit_behind(make(size=4), work, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    work.run_gate.open()
    assert [answer(future) for future in rest] == [f"result of {i}" for i in range(1, 10)]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert answer(first) == "result of 0"


def test_batch_holds_items_of_one_kind_the_oldest_first(make: Make, work: Work) -> None:
    batcher = make(key=lambda item: item % 2)
    first, others = submit_behind(batcher, work, [1, 2, 3, 4, 5, 6])
    work.run_gate.open()
    assert [answer(one) for one in others] == [f"result of {item}" for item in range(1, 7)]
    assert work.batches == [[0], [1, 3, 5], [2, 4, 6]]
    assert answer(first) == "result of 0"


def test_batch_is_full_for_the_oldest_items_kind_alone(make: Make, work: Work) -> None:
    batcher = make(size=2, key=lambda item: item % 2)
    with batcher.admit():  # somebody is on the way, for whom only what is not full waits
        futures = [submit(batcher, item) for item in (1, 2, 3)]
        assert answer(futures[0]) == "result of 1"
        assert work.batches == [[1, 3]]
        assert not futures[1].done()
    assert answer(futures[1]) == "result of 2"


@pytest.mark.parametrize(
    ("items", "batches"),
    [
        ([4, 4, 4], [[4, 4], [4]]),
        ([9, 8, 3], [[9], [8], [3]]),  # 9 is over the limit by itself
        ([1, 9, 1, 8], [[1], [9], [1], [8]]),
        ([4, 6, 1], [[4], [6, 1]]),
    ],
)
def test_batch_weighs_no_more_than_allowed(
    make: Make, work: Work, items: list[int], batches: list[list[int]]
) -> None:
    batcher = make(weight=lambda item: item, max_weight=8)
    _, others = submit_behind(batcher, work, items)
    work.run_gate.open()
    assert [answer(one) for one in others] == [f"result of {item}" for item in items]
    assert work.batches == [[0], *batches]


def test_batch_that_cannot_be_handed_on_fails_and_the_next_runs(
    make: Make, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory is short: no caller waits for ever."""
    batcher = make()

    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    work.run_gate.open()
    with monkeypatch.context() as patch, batcher.admit() as ticket:
        patch.setattr(batcher._finisher, "submit", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            ticket.submit(1).result(PATIENCE_SECONDS)
    with batcher.admit() as ticket:
        assert answer(ticket.submit(2)) == "result of 2"


def test_batcher_goes_on_after_an_answer_that_cannot_be_given(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory is short; for this caller's sake the watchdog ends the process."""
    tried = threading.Event()

    def no_memory(*_: object) -> None:
        tried.set()
        raise MemoryError

    batcher = make()
    with monkeypatch.context() as patch, batcher.admit() as ticket:
        patch.setattr(batcher._finisher, "submit", no_memory)
        patch.setattr(Future, "set_exception", no_memory)
        ticket.submit(1)
        assert tried.wait(PATIENCE_SECONDS)
    with batcher.admit() as ticket:
        assert answer(ticket.submit(2)) == "result of 2"


def test_item_that_cannot_be_queued_keeps_no_batch_waiting(make: Make) -> None:
    class Full(deque[Any]):
        def append(self, item: Any) -> None:
            raise MemoryError

    batcher = make()
    batcher._waiting = Full()
    with pytest.raises(MemoryError), batcher.admit() as ticket:
        ticket.submit(1)
    batcher._waiting = deque()
    with batcher.admit() as ticket:
        assert answer(ticket.submit(2)) == "result of 2"
    assert batcher._on_the_way == 0


def test_item_whose_kind_cannot_be_told_fails_alone(make: Make, work: Work) -> None:
    batcher = make(size=4, key=lambda item: 1 // item)
    with pytest.raises(ZeroDivisionError), batcher.admit() as ticket:
        ticket.submit(0)
    with batcher.admit() as ticket:
        future = ticket.submit(1)
        work.run_gate.open()
        assert answer(future) == "result of 1"


def test_batcher_finishes_once_a_batch(make: Make, work: Work) -> None:
    first, rest = submit_behind(make(size=4), work, [1, 2, 3, 4])
    work.run_gate.open()
    assert [answer(future) for future in rest] == [f"result of {i}" for i in (1, 2, 3, 4)]
    assert answer(first) == "result of 0"  # finished on another thread, later perhaps
    assert sorted(map(len, work.finished)) == [1, 4]


def test_batcher_waits_for_those_on_the_way(make: Make, work: Work) -> None:
    batcher = make(delay=FOR_EVER)
    with batcher.admit() as early, batcher.admit() as late:
        waiting = early.submit(1)
        time.sleep(A_MOMENT)
        assert work.batches == []
        late.submit(2)
        assert answer(waiting) == "result of 1"
    assert work.batches == [[1, 2]]


def test_batcher_when_full_does_not_wait_for_those_on_the_way(make: Make, work: Work) -> None:
    batcher = make(size=2, delay=FOR_EVER)
    with batcher.admit() as one, batcher.admit() as two, batcher.admit():
        futures = [one.submit(1), two.submit(2)]
        assert [answer(future) for future in futures] == ["result of 1", "result of 2"]
    assert work.batches == [[1, 2]]


def test_batcher_waits_for_those_on_the_way_no_longer_than_the_delay(make: Make) -> None:
    batcher = make(delay=0.01)
    with batcher.admit() as early, batcher.admit() as late:
        assert answer(early.submit(1)) == "result of 1"
        assert answer(late.submit(2)) == "result of 2"


def test_batcher_with_a_delay_of_zero_runs_at_once(make: Make) -> None:
    batcher = make(delay=0.0)
    with batcher.admit() as early, batcher.admit():
        assert answer(early.submit(1)) == "result of 1"


def test_batcher_stops_waiting_for_one_that_turns_back(make: Make, work: Work) -> None:
    batcher = make(delay=FOR_EVER)
    with batcher.admit() as early:
        with batcher.admit():
            waiting = early.submit(1)
        assert answer(waiting) == "result of 1"
    assert work.batches == [[1]]


def test_item_too_late_to_begin_is_given_back_and_the_others_run(make: Make, work: Work) -> None:
    batcher = make(size=3)
    first, [second] = submit_behind(batcher, work, [1])
    with batcher.admit() as ticket:
        late = ticket.submit(2, begin_by=time.monotonic())
    with batcher.admit() as ticket:
        third = ticket.submit(3, begin_by=time.monotonic() + PATIENCE_SECONDS)
    work.run_gate.open()
    assert isinstance(error_of(late), TooLateError)
    assert [answer(one) for one in (first, second, third)] == [f"result of {i}" for i in (0, 1, 3)]
    assert work.batches == [[0], [1, 3]]


def test_batcher_goes_on_after_a_batch_that_was_too_late(make: Make, work: Work) -> None:
    batcher = make()
    with batcher.admit() as ticket:
        late = ticket.submit(1, begin_by=0.0)
    assert isinstance(error_of(late), TooLateError)
    assert answer(submit(batcher, 2)) == "result of 2"
    assert work.batches == [[2]]


def test_admit_beyond_the_limit_raises_until_a_place_is_given_back(make: Make) -> None:
    batcher = make(admitted=2, delay=0.0)
    with batcher.admit() as ticket, batcher.admit():
        answer(ticket.submit(1))
        with pytest.raises(QueueFullError):  # answered, but not left yet
            batcher.admit()
    with batcher.admit(), batcher.admit(), pytest.raises(QueueFullError):
        batcher.admit()


def test_admit_after_preparation_raised_has_its_place_again(make: Make) -> None:
    batcher = make(admitted=1)
    for _ in range(3):
        with pytest.raises(KeyError), batcher.admit():
            raise KeyError("not prepared")
    assert answer(submit(batcher, 1)) == "result of 1"


def test_admit_after_a_failed_batch_has_its_place_again(make: Make, work: Work) -> None:
    batcher = make(admitted=1)
    work.culprits = {1}
    for _ in range(3):
        with pytest.raises(ValueError, match="cannot run"), batcher.admit() as ticket:
            answer(ticket.submit(1))
    assert answer(submit(batcher, 2)) == "result of 2"


def test_batcher_with_many_threads_crosses_nothing(make: Make, work: Work) -> None:
    batcher = make(size=5, delay=0.001, admitted=8)
    start = threading.Barrier(8)

    def caller(number: int) -> list[str]:
        start.wait(PATIENCE_SECONDS)
        got = []
        for item in range(number * 200, number * 200 + 200):
            with batcher.admit() as ticket:
                got.append(answer(ticket.submit(item)))
        return got

    callers = [in_thread(partial(caller, number)) for number in range(8)]
    for number, future in enumerate(callers):
        items = range(number * 200, number * 200 + 200)
        assert future.result(timeout=PATIENCE_SECONDS) == [f"result of {item}" for item in items]
    assert sorted(sum(work.batches, [])) == list(range(1600))
    assert sorted(sum(work.finished, [])) == sorted(f"result of {i}" for i in range(1600))
    assert max(map(len, work.batches)) <= 5


def test_culprit_alone_fails(make: Make, work: Work) -> None:
    first, rest = submit_behind(make(size=8), work, [1, 2, 3, 4, 5, 6, 7, 8])
    work.culprits = {4}
    work.run_gate.open()
    assert answer(first) == "result of 0"
    assert str(error_of(rest[3])) == "cannot run [4]"
    others = rest[:3] + rest[4:]
    assert [answer(f) for f in others] == [f"result of {i}" for i in (1, 2, 3, 5, 6, 7, 8)]
    assert [len(batch) for batch in work.batches] == [1, 8, 4, 2, 2, 1, 1, 4]
    assert sorted(map(len, work.finished)) == [1, 7]


def test_batch_of_culprits_fails_each_with_its_own_error(make: Make, work: Work) -> None:
    first, rest = submit_behind(make(size=3), work, [1, 2, 3])
    work.culprits = {1, 2, 3}
    work.run_gate.open()
    assert answer(first) == "result of 0"
    errors = [str(error_of(future)) for future in rest]
    assert errors == ["cannot run [1]", "cannot run [2]", "cannot run [3]"]
    assert work.finished == [["result of 0"]]


def test_batcher_goes_on_after_a_batch_of_culprits(make: Make, work: Work) -> None:
    batcher = make()
    work.culprits = {1}
    assert isinstance(error_of(submit(batcher, 1)), ValueError)
    assert answer(submit(batcher, 2)) == "result of 2"


@pytest.mark.parametrize("missing", [1, -1], ids=["too-few", "too-many"])
def test_run_of_the_wrong_length_is_an_error_for_all(missing: int) -> None:
    def run(items: list[int]) -> list[str]:
        return ["result"] * (len(items) - missing)

    finished: list[list[str]] = []
    batcher: Batcher[int, str] = Batcher(
        run,
        lambda results: finished.append(results) or results,
        max_batch_size=4,
        max_delay_seconds=FOR_EVER,
        max_admitted=4,
    )
    with batcher.admit() as one, batcher.admit() as two:
        errors = [error_of(future) for future in (one.submit(1), two.submit(2))]
    batcher.close(timeout_seconds=PATIENCE_SECONDS)
    assert [type(error) for error in errors] == [DetectorError, DetectorError]
    assert str(errors[0]) == f"1 items went in and {1 - missing} results came out"
    assert finished == []


def test_finish_that_raises_fails_its_whole_batch_and_no_other(make: Make, work: Work) -> None:
    batcher = make(size=3)
    work.finish_error = OSError("the store is down")
    with batcher.admit() as one, batcher.admit() as two, batcher.admit() as three:
        work.culprits = {3}
        failed = [one.submit(1), two.submit(2), three.submit(3)]
        kinds = [type(error_of(future)) for future in failed]
    assert kinds == [OSError, OSError, ValueError]
    assert answer(submit(batcher, 4)) == "result of 4"
    assert work.finished == [["result of 4"]]


class Panic(BaseException):
    """As pyo3's PanicException."""


@pytest.mark.parametrize("place", ["run", "finish"])
def test_panic_fails_its_batch_and_the_next_runs(place: str) -> None:
    panics = [Panic("rust"), Panic("rust")]

    def maybe(here: str, items: list[int]) -> list[int]:
        if here == place and panics:
            raise panics.pop()
        return items

    batcher: Batcher[int, int] = Batcher(
        partial(maybe, "run"),
        partial(maybe, "finish"),
        max_batch_size=4,
        max_delay_seconds=FOR_EVER,
        max_admitted=4,
    )
    for _ in range(2):
        with batcher.admit() as ticket, pytest.raises(DetectorError, match="Panic: rust"):
            ticket.submit(1).result(PATIENCE_SECONDS)
    with batcher.admit() as ticket:
        assert ticket.submit(2).result(PATIENCE_SECONDS) == 2
    batcher.close(timeout_seconds=PATIENCE_SECONDS)


def test_finish_may_fail_one_of_its_batch(make: Make, work: Work) -> None:
    batcher = make(size=3)
    work.culprits = {1}
    work.unfinished = {"result of 2": OSError("this one is refused")}
    with batcher.admit() as one, batcher.admit() as two, batcher.admit() as three:
        futures = [one.submit(1), two.submit(2), three.submit(3)]
        assert isinstance(error_of(futures[0]), ValueError)
        assert isinstance(error_of(futures[1]), OSError)
        assert answer(futures[2]) == "result of 3"


def test_batcher_answers_only_after_finish_and_runs_the_next_meanwhile(
    make: Make, work: Work
) -> None:
    batcher = make()
    work.finish_gate.close()
    first = submit(batcher, 1)
    work.finish_gate.wait_for_arrivals()
    second = submit(batcher, 2)
    work.run_gate.wait_for_arrivals(2)  # the second batch runs while the first one is finished
    assert not first.done() and not second.done()
    work.finish_gate.open()
    assert [answer(first), answer(second)] == ["result of 1", "result of 2"]


def test_close_answers_those_admitted_and_refuses_new_ones(make: Make) -> None:
    batcher = make()
    with batcher.admit() as ticket:
        batcher.stop_admitting()
        with pytest.raises(ShuttingDownError):
            batcher.admit()
        assert answer(ticket.submit(1)) == "result of 1"
    batcher.close(timeout_seconds=PATIENCE_SECONDS)
    with pytest.raises(ShuttingDownError):
        batcher.admit()


def test_close_answers_those_that_wait_behind_a_batch(make: Make, work: Work) -> None:
    batcher = make(size=2)
    first, rest = submit_behind(batcher, work, [1, 2, 3])
    closing = in_thread(lambda: batcher.close(timeout_seconds=PATIENCE_SECONDS))
    work.run_gate.open()
    assert [answer(f) for f in rest] == ["result of 1", "result of 2", "result of 3"]
    assert answer(first) == "result of 0"
    closing.result(timeout=PATIENCE_SECONDS)


def test_close_twice_is_safe(make: Make) -> None:
    batcher = make()
    batcher.close(timeout_seconds=PATIENCE_SECONDS)
    batcher.close(timeout_seconds=PATIENCE_SECONDS)


def test_close_waits_until_finish_has_returned(make: Make, work: Work) -> None:
    batcher = make()
    work.finish_gate.close()
    future = submit(batcher, 1)
    work.finish_gate.wait_for_arrivals()
    closing = in_thread(lambda: batcher.close(timeout_seconds=PATIENCE_SECONDS))
    time.sleep(A_MOMENT)
    was_closed_early = closing.done()
    work.finish_gate.open()
    closing.result(timeout=PATIENCE_SECONDS)
    assert future.done() and not was_closed_early


def test_close_that_ran_out_of_time_leaves_nobody_without_an_answer(make: Make, work: Work) -> None:
    batcher = make()
    work.run_gate.close()
    future = submit(batcher, 1)
    work.run_gate.wait_for_arrivals()
    batcher.close(timeout_seconds=0.01)
    work.run_gate.open()
    try:
        outcome: object = future.result(timeout=PATIENCE_SECONDS)
    except TimeoutError:
        outcome = "no answer"
    except Exception as exc:  # noqa: BLE001 - any answer is one
        outcome = exc
    assert outcome != "no answer"


def test_close_that_ran_out_of_time_commits_nothing_afterwards(make: Make, work: Work) -> None:
    batcher = make(size=1)
    first, rest = submit_behind(batcher, work, [1, 2])
    batcher.close(timeout_seconds=0.01)
    work.run_gate.open()
    kinds = [type(error_of(future)) for future in (first, *rest)]
    assert kinds == [ShuttingDownError] * 3
    assert work.finished == []


def test_ticket_is_a_place_until_its_block_ends(make: Make) -> None:
    batcher = make(admitted=1)
    ticket = batcher.admit()
    assert isinstance(ticket, Ticket)
    with pytest.raises(QueueFullError):
        batcher.admit()
    with ticket:
        pass
    with batcher.admit():
        pass


def test_admit_with_patience_gets_the_next_place(make: Make) -> None:
    batcher = make(admitted=1)
    ticket = batcher.admit()
    patient = in_thread(lambda: batcher.admit(patience_seconds=PATIENCE_SECONDS))
    time.sleep(A_MOMENT)
    assert not patient.done()
    with ticket:
        pass
    with patient.result(timeout=PATIENCE_SECONDS):
        pass


def test_admit_with_patience_ends_when_it_runs_out(make: Make) -> None:
    batcher = make(admitted=1)
    with batcher.admit(), pytest.raises(QueueFullError):
        batcher.admit(patience_seconds=0.01)
