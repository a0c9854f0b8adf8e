"""A gRPC proxy in front of an emulator that makes some calls fail.

It forwards raw bytes. On the wire, a unary response is a stream of one message.
"""

import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import grpc

from devtools.chaos.armed import Armed
from devtools.chaos.plan import FaultKind
from devtools.local_stack.errors import StartError


@dataclass(frozen=True)
class GrpcFaults:
    """The faults of one API."""

    #: Codes with which a call fails before it is made.
    codes: Mapping[FaultKind, grpc.StatusCode]
    #: The call of this method is made, but its response is lost.
    lost: FaultKind
    method: str

    def of(self, method: str) -> tuple[FaultKind, ...]:
        """Return the faults that a method's call can have."""
        return (*self.codes, self.lost) if method == self.method else tuple(self.codes)


FIRESTORE = GrpcFaults(
    {
        FaultKind.FIRESTORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
        FaultKind.FIRESTORE_DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
        FaultKind.FIRESTORE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    },
    FaultKind.FIRESTORE_RESPONSE_LOST,
    "/google.firestore.v1.Firestore/Commit",
)
PUBSUB = GrpcFaults(
    {
        FaultKind.PUBSUB_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
        FaultKind.PUBSUB_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    },
    FaultKind.PUBSUB_RESPONSE_LOST,
    "/google.pubsub.v1.Publisher/Publish",
)
_THREADS = 64  # more than the services' concurrent calls
_UNLIMITED = ("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)
# gRPC sets these itself.
_NOT_FORWARDED = ("grpc-", "user-agent", "te", "content-type")


class GrpcProxy:
    """The proxy. Its port stays the same across restarts."""

    def __init__(self, upstream: str, faults: GrpcFaults) -> None:
        """Listen, and forward calls to `upstream` (host:port)."""
        self.armed = Armed()
        self._faults = faults
        self._channel = grpc.insecure_channel(upstream, options=_UNLIMITED)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc-proxy")
        self._lock = threading.Lock()
        self._port = 0
        self.restarts = 0
        self._server = self._listen()

    @property
    def host(self) -> str:
        """The proxy's host:port, for the service."""
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        """Return the proxy, which listens already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._server.stop(grace=None).wait()
        self._channel.close()
        self._pool.shutdown()

    def restart(self, pause: threading.Event, seconds: float) -> None:
        """Break every connection, refuse new ones for a while, and listen again.

        Args:
            pause: an event that ends the pause early.
            seconds: length of the pause.
        """
        with self._lock:
            self._server.stop(grace=None).wait()
            with _reserved(self._port):
                pause.wait(seconds)
            self._server = self._listen()
            self.restarts += 1

    def _listen(self) -> Any:
        server = grpc.server(
            self._pool, handlers=[_Forwarder(self._channel, self._faults, self.armed)],
            options=[*_UNLIMITED, ("grpc.so_reuseport", 0)],
        )  # fmt: skip
        self._port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        if not self._port:
            raise StartError("A proxy cannot listen: its port is in use")
        server.start()
        return server


class _Forwarder(grpc.GenericRpcHandler):  # type: ignore[misc]  # published without types
    def __init__(self, channel: Any, faults: GrpcFaults, armed: Armed) -> None:
        self._channel = channel
        self._faults = faults
        self._armed = armed

    def service(self, handler_call_details: Any) -> Any:
        respond = partial(self._respond, handler_call_details.method)
        return grpc.unary_stream_rpc_method_handler(respond)  # without serializers: bytes

    def _respond(self, method: str, request: bytes, context: Any) -> Iterator[bytes]:
        fault = self._armed.take(self._faults.of(method))
        if fault and fault in self._faults.codes:
            context.abort(self._faults.codes[fault], "chaos")
        messages = self._forward(method, request, context)
        if fault is self._faults.lost:
            context.abort(grpc.StatusCode.UNAVAILABLE, "chaos")
        yield from messages

    def _forward(self, method: str, request: bytes, context: Any) -> list[bytes]:
        metadata = [
            (key, value)
            for key, value in context.invocation_metadata()
            if not key.startswith(_NOT_FORWARDED)
        ]
        call = self._channel.unary_stream(method)
        try:
            return list(call(request, metadata=metadata, timeout=context.time_remaining()))
        except grpc.RpcError as exc:
            context.set_trailing_metadata(exc.trailing_metadata() or ())
            context.abort(exc.code(), exc.details())
            raise  # for the type checker: abort raises


@contextmanager
def _reserved(port: int) -> Iterator[None]:
    """Reserve a port without listening, so that connections to it are refused."""
    with socket.socket() as reserving:
        reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # gRPC still has the port, so no other process can take it
            reserving.bind(("127.0.0.1", port))
        yield
