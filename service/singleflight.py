"""One run for callers that ask for the same thing at the same time."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SingleFlight(Generic[Key, Value]):
    """Shares the outcome of a call with everybody who asks for its key while it runs."""

    def __init__(self) -> None:
        """Start with nothing in flight."""
        self._lock = threading.Lock()
        self._flights: dict[Key, Future[Value]] = {}

    def do(self, key: Key, call: Callable[[], Value]) -> Value:
        """Return what `call` returns, or raise what it raises; for all that wait on `key` alike."""
        with self._lock:
            flight = self._flights.get(key)
            is_leader = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if is_leader:
            try:
                flight.set_result(call())
            except BaseException as exc:  # noqa: BLE001 - raised below, for the leader too
                flight.set_exception(exc)
            finally:
                with self._lock:
                    del self._flights[key]
        return flight.result()
