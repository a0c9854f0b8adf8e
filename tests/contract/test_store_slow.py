"""A Firestore that does not respond: each attempt gets a part of the time, and all end in time."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.cloud import firestore

from devtools.chaos.grpc_proxy import FIRESTORE, GrpcProxy
from devtools.chaos.plan import FaultKind
from service.deadline import NO_DEADLINE, Deadline
from service.domain import CommittedResult, ImageRef, ImageResult, Timings
from service.errors import FirestoreUnavailableError, TooLateError
from service.gcp.firestore import ResultStore
from tests.fakes import PATIENCE_SECONDS

A, B = (
    ImageResult(ImageRef("uploads", name, 1), timings=Timings(queue_ms=index))
    for index, name in enumerate(("a.jpg", "b.jpg"))
)
FOR_EVER = 10.0**6


class SilentProxy(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """A proxy that does not respond to the first requests, and records their timeouts."""

    def __init__(self, upstream: Any, swallowed: float) -> None:
        self._upstream = upstream
        self._swallowed = swallowed
        self._lock = threading.Lock()
        self.seconds: list[float] = []  # timeout of each attempt
        self.closing = threading.Event()

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        return grpc.unary_stream_rpc_method_handler(
            lambda request, context: self._respond(method, request, context)
        )

    def _respond(self, method: str, request: bytes, context: Any) -> Iterator[bytes]:
        with self._lock:
            self.seconds.append(context.time_remaining())
            is_swallowed = len(self.seconds) <= self._swallowed
        if is_swallowed:
            over = threading.Event()
            if context.add_callback(over.set):
                while not (over.wait(0.05) or self.closing.is_set()):
                    pass
            return
        yield from self._upstream.unary_stream(method)(request, timeout=PATIENCE_SECONDS)


@contextmanager
def silent_firestore(
    swallowed: float, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[SilentProxy, Callable[[float], ResultStore]]]:
    local = [("grpc.enable_http_proxy", 0)]
    with (
        grpc.insecure_channel(os.environ["FIRESTORE_EMULATOR_HOST"], options=local) as upstream,
        ThreadPoolExecutor(8) as threads,
    ):
        proxy = SilentProxy(upstream, swallowed)
        server = grpc.server(threads, handlers=[proxy])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{port}")
        try:
            yield (
                proxy,
                lambda seconds: ResultStore(
                    firestore.Client(), collection="silent", timeout_seconds=seconds
                ),
            )
        finally:
            proxy.closing.set()
            server.stop(grace=None).wait()


def is_final(store: ResultStore, deadline: Deadline = NO_DEADLINE) -> object:
    return store.is_final("nothing", deadline=deadline)


def commit(store: ResultStore, deadline: Deadline = NO_DEADLINE) -> object:
    [outcome] = store.commit([A], deadline)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


CALLS = [is_final, commit]


@pytest.mark.parametrize("call", CALLS)
def test_silent_attempt_is_followed_by_another(
    call: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_firestore(1, monkeypatch) as (proxy, connect):
        call(connect(9))
        assert len(proxy.seconds) > 1
        assert max(proxy.seconds) <= 3.1  # gRPC rounds


@pytest.mark.parametrize("call", CALLS)
def test_silent_firestore_is_retried_until_the_time_is_up(
    call: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_firestore(FOR_EVER, monkeypatch) as (proxy, connect):
        with pytest.raises(FirestoreUnavailableError):
            call(connect(2))
        assert len(proxy.seconds) > 1
        assert max(proxy.seconds) <= 2 / 3 + 0.1
        # If one attempt is short, so is the whole time.
        assert sum(proxy.seconds) <= 2 + len(proxy.seconds) * 0.1


@pytest.mark.parametrize("call", CALLS)
def test_silent_firestore_is_abandoned_at_the_deadline(
    call: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_firestore(FOR_EVER, monkeypatch) as (proxy, connect):
        with pytest.raises(FirestoreUnavailableError):
            call(connect(FOR_EVER), Deadline.after(1))
        assert max(proxy.seconds) <= 1 / 3 + 0.1


@pytest.mark.parametrize("call", CALLS)
def test_call_after_the_deadline_sends_nothing(
    call: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_firestore(FOR_EVER, monkeypatch) as (proxy, connect):
        with pytest.raises(TooLateError):
            call(connect(PATIENCE_SECONDS), Deadline.after(-1))
        assert proxy.seconds == []


def test_commit_with_a_lost_response_is_our_own(
    collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GrpcProxy(os.environ["FIRESTORE_EMULATOR_HOST"], FIRESTORE) as proxy:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", proxy.host)
        store = ResultStore(
            firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS
        )
        proxy.armed.arm(FaultKind.FIRESTORE_RESPONSE_LOST, 1)
        assert store.commit([A, B]) == [CommittedResult(A), CommittedResult(B)]
        assert proxy.armed.struck == {FaultKind.FIRESTORE_RESPONSE_LOST: 1}
