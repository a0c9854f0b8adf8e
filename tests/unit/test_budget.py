"""Bytes held at once stay within the limit, and nobody waits for ever."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.budget import Budget
from service.errors import TooLateError
from tests.fakes import PATIENCE_SECONDS, in_thread


def test_waiting_that_raises_keeps_nobody_waiting_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where memory is short: a lock to wait on cannot be made."""
    budget = Budget(10)

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(budget._changed, "wait_for", no_memory)
        with pytest.raises(MemoryError), budget.hold(5):
            pass
    with ThreadPoolExecutor(1) as other:
        assert other.submit(hold_once, budget, 10).result(PATIENCE_SECONDS)


def hold_once(budget: Budget, count: int) -> bool:
    with budget.hold(count):
        return True


def held_by_many(limit: int, counts: list[int]) -> int:
    """Let many threads hold at once; return the most bytes that were held together."""
    budget, lock, held, most = Budget(limit), threading.Lock(), 0, 0

    def work(count: int) -> None:
        nonlocal held, most
        with budget.hold(count):
            with lock:
                held += count
                most = max(most, held)
            threading.Event().wait(0.001)
            with lock:
                held -= count

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, counts))
    return most


def test_no_more_is_held_than_allowed() -> None:
    assert held_by_many(100, [30] * 60) <= 100


def test_what_fits_is_held_together() -> None:
    budget = Budget(100)
    with budget.hold(50), budget.hold(50):
        pass  # a budget that let one in at a time would hang here


def test_more_than_the_limit_is_held_alone() -> None:
    assert held_by_many(100, [500, 1, 500, 1] * 5) == 500


def test_a_large_one_is_not_overtaken_by_small_ones() -> None:
    budget = Budget(100)
    order: list[str] = []

    def hold(name: str, count: int) -> None:
        with budget.hold(count):
            order.append(name)

    with budget.hold(60):
        large = in_thread(lambda: hold("large", 80))
        while len(budget._waiting) < 1:
            threading.Event().wait(0.001)
        small = in_thread(lambda: hold("small", 10))
        while len(budget._waiting) < 2:
            threading.Event().wait(0.001)
        assert not order
    large.result(timeout=PATIENCE_SECONDS)
    small.result(timeout=PATIENCE_SECONDS)
    assert order[0] == "large"


def test_bytes_come_back_when_the_holder_raises() -> None:
    budget = Budget(1)
    for _ in range(2):
        try:
            with budget.hold(1):
                raise ValueError
        except ValueError:
            pass


def test_what_cannot_be_held_in_time_is_too_late_and_keeps_nobody_waiting() -> None:
    budget = Budget(10)
    with budget.hold(6):
        with pytest.raises(TooLateError), budget.hold(6, begin_by=time.monotonic() - 1):
            pass
        with budget.hold(4, begin_by=time.monotonic() + PATIENCE_SECONDS):
            pass


def test_what_is_free_is_held_however_late() -> None:
    with Budget(10).hold(10, begin_by=time.monotonic() - 1):
        pass


def test_all_is_held_when_nobody_holds_anything() -> None:
    budget = Budget(2)
    entered = threading.Event()

    def hold_all() -> bool:
        with budget.hold_all():
            entered.set()
            return first_left.is_set()

    first_left = threading.Event()
    with budget.hold(1):
        other = in_thread(hold_all)
        while not budget._waiting:
            threading.Event().wait(0.001)
        assert not entered.is_set()
        first_left.set()
    assert other.result(PATIENCE_SECONDS)
