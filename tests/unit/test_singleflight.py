"""One run for all who ask for the same thing at once."""

import threading
from concurrent.futures import Future
from functools import partial

import pytest

from service.singleflight import SingleFlight
from tests.fakes import PATIENCE_SECONDS, Gate, in_thread


class WatchedKey(str):
    """A key that tells when it is looked up: from then on its owner follows the flight."""

    seen: threading.Event

    def __hash__(self) -> int:
        self.seen.set()
        return super().__hash__()


def watched(text: str) -> WatchedKey:
    key = WatchedKey(text)
    key.seen = threading.Event()
    return key


class Call:
    """A call that waits at a gate and counts."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.gate = Gate()
        self.gate.close()
        self.count = 0
        self._error = error

    def __call__(self) -> str:
        self.count += 1
        self.gate.enter()
        if self._error:
            raise self._error
        return f"value {self.count}"


def start_three(flights: SingleFlight[str, str], call: Call) -> "list[Future[str]]":
    """A leader inside the call, and two that follow it for certain."""
    futures = [in_thread(lambda: flights.do("key", call))]
    call.gate.wait_for_arrivals()
    for key in (watched("key"), watched("key")):
        futures.append(in_thread(partial(flights.do, key, call)))
        assert key.seen.wait(PATIENCE_SECONDS)
    return futures


def test_do_with_the_same_key_at_once_calls_once() -> None:
    call = Call()
    futures = start_three(SingleFlight(), call)
    call.gate.open()
    assert [future.result(PATIENCE_SECONDS) for future in futures] == ["value 1"] * 3
    assert call.count == 1


def test_do_that_raises_raises_for_all_who_wait() -> None:
    error = ValueError("no")
    call = Call(error=error)
    futures = start_three(SingleFlight(), call)
    call.gate.open()
    assert [future.exception(PATIENCE_SECONDS) for future in futures] == [error] * 3
    assert call.count == 1


def test_do_after_a_flight_calls_again() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    assert flights.do("key", lambda: 1) == 1
    assert flights.do("key", lambda: 2) == 2


def test_do_after_a_failed_flight_calls_again() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    with pytest.raises(ZeroDivisionError):
        flights.do("key", lambda: 1 // 0)
    assert flights.do("key", lambda: 2) == 2


def test_do_with_other_keys_runs_beside_each_other() -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    one, two = Call(), Call()
    futures = [in_thread(lambda: flights.do("one", one)), in_thread(lambda: flights.do("two", two))]
    one.gate.wait_for_arrivals()
    two.gate.wait_for_arrivals()  # both are inside at once
    one.gate.open()
    two.gate.open()
    assert [future.result(PATIENCE_SECONDS) for future in futures] == ["value 1", "value 1"]


def test_do_that_asks_for_another_key_inside_does_not_lock_itself() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    future = in_thread(lambda: flights.do("outer", lambda: flights.do("inner", lambda: 3)))
    assert future.result(PATIENCE_SECONDS) == 3
