"""The fair semaphore: never more than the limit is acquired, and no thread waits for ever."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from service.concurrency.semaphore import FairSemaphore
from service.deadline import NO_DEADLINE, Deadline
from service.errors import TooLateError
from tests.fakes import PATIENCE_SECONDS, in_thread


def soon() -> Deadline:
    return Deadline.after(PATIENCE_SECONDS)


def most_held(limit: int, counts: list[int]) -> int:
    """Let many threads acquire. Return the largest amount at one time."""
    semaphore, lock, held, most = FairSemaphore(limit), threading.Lock(), 0, 0

    def work(count: int) -> None:
        nonlocal held, most
        with semaphore.acquire(count, soon()):
            with lock:
                held += count
                most = max(most, held)
            threading.Event().wait(0.001)
            with lock:
                held -= count

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, counts))
    return most


def waiting(semaphore: FairSemaphore, count: int, order: list[int]) -> "Future[None]":
    """Start a thread that acquires. Return when it waits."""
    before = len(semaphore._waiting)

    def acquire() -> None:
        with semaphore.acquire(count, soon()):
            order.append(count)

    future = in_thread(acquire)
    while len(semaphore._waiting) == before:
        threading.Event().wait(0.001)
    return future


def test_no_more_is_held_than_the_limit() -> None:
    assert most_held(100, [30] * 60) <= 100


def test_a_request_above_the_limit_is_the_only_holder() -> None:
    assert most_held(100, [500, 1, 500, 1] * 5) == 500


def test_what_fits_is_held_together() -> None:
    semaphore = FairSemaphore(100)
    with semaphore.acquire(50, soon()), semaphore.acquire(50, NO_DEADLINE):
        pass


def test_small_requests_do_not_overtake_a_large_one() -> None:
    semaphore, order = FairSemaphore(100), list[int]()
    with semaphore.acquire(60, soon()):
        large = waiting(semaphore, 80, order)
        small = waiting(semaphore, 30, order)  # there is enough left for it
        assert order == []
    large.result(PATIENCE_SECONDS)
    small.result(PATIENCE_SECONDS)
    assert order == [80, 30]


def test_a_wait_ends_with_the_deadline_and_holds_up_nobody() -> None:
    semaphore = FairSemaphore(100)
    with semaphore.acquire(60, soon()):
        with pytest.raises(TooLateError), semaphore.acquire(80, Deadline.after(0.01)):
            pass
        with semaphore.acquire(40, soon()):
            pass
    with semaphore.acquire(100, soon()):
        pass


def test_a_part_of_an_amount_can_be_released() -> None:
    semaphore = FairSemaphore(100)
    with semaphore.acquire(100, soon()) as release_all_but:
        release_all_but(40)
        release_all_but(90)  # an amount never grows
        with semaphore.acquire(60, soon()):
            pass
        with pytest.raises(TooLateError), semaphore.acquire(61, Deadline.after(0.01)):
            pass
    with semaphore.acquire(100, soon()):
        pass


def test_nothing_is_acquired_after_the_deadline() -> None:
    with pytest.raises(TooLateError), FairSemaphore(1).acquire(1, Deadline.after(0)):
        pass


def test_what_is_held_is_released_after_an_error() -> None:
    semaphore = FairSemaphore(1)
    for _ in range(2):
        with pytest.raises(ValueError), semaphore.acquire(1, soon()):
            raise ValueError


def test_a_wait_that_raises_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, without memory for the lock that the thread waits on."""
    semaphore = FairSemaphore(10)

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(semaphore._changed, "wait_for", no_memory)
        with pytest.raises(MemoryError), semaphore.acquire(5, soon()):
            pass
    with semaphore.acquire(10, soon()):
        pass
