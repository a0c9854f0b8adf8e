"""Responses of Firestore and Pub/Sub through the proxy, with each fault."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from devtools.chaos.grpc_proxy import FIRESTORE, PUBSUB, GrpcProxy
from devtools.chaos.plan import FaultKind

COMMIT = "/google.firestore.v1.Firestore/Commit"
READ = "/google.firestore.v1.Firestore/BatchGetDocuments"
PUBLISH = "/google.pubsub.v1.Publisher/Publish"
PATIENCE_SECONDS = 30
LOOPBACK = [("grpc.enable_http_proxy", 0)]


class Upstream(grpc.GenericRpcHandler):  # type: ignore[misc]  # published without types
    """A server that records commits, and streams three messages for a read."""

    def __init__(self) -> None:
        self.commits: list[bytes] = []
        self.metadata: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        self.metadata = dict(handler_call_details.invocation_metadata)
        if handler_call_details.method in (COMMIT, PUBLISH):
            return grpc.unary_unary_rpc_method_handler(self._commit)
        return grpc.unary_stream_rpc_method_handler(lambda request, context: iter([request] * 3))

    def _commit(self, request: bytes, context: Any) -> bytes:
        if request == b"twice":
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "it exists")
        self.commits.append(request)
        return b"committed"


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[GrpcProxy]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=[upstream])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with GrpcProxy(f"127.0.0.1:{port}", FIRESTORE) as running:
            yield running
        server.stop(grace=None).wait()


@pytest.fixture
def channel(proxy: GrpcProxy) -> Iterator[Any]:
    with grpc.insecure_channel(proxy.host, options=LOOPBACK) as opened:
        yield opened


def commit(channel: Any, request: bytes = b"writes") -> bytes:
    metadata = [("google-cloud-resource-prefix", "projects/p")]
    response = channel.unary_unary(COMMIT)(request, timeout=PATIENCE_SECONDS, metadata=metadata)
    return bytes(response)


def code_of(channel: Any, request: bytes = b"writes") -> Any:
    with pytest.raises(grpc.RpcError) as error:
        commit(channel, request)
    return error.value.code()


def test_calls_of_both_kinds_pass_unchanged(channel: Any, upstream: Upstream) -> None:
    assert commit(channel) == b"committed"
    assert upstream.metadata["google-cloud-resource-prefix"] == "projects/p"
    assert list(channel.unary_stream(READ)(b"ids", timeout=PATIENCE_SECONDS)) == [b"ids"] * 3


def test_errors_of_the_emulator_pass_unchanged(channel: Any) -> None:
    assert code_of(channel, b"twice") is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (FaultKind.FIRESTORE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
        (FaultKind.FIRESTORE_DEADLINE, grpc.StatusCode.DEADLINE_EXCEEDED),
        (FaultKind.FIRESTORE_EXHAUSTED, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_failed_call_is_not_forwarded(
    channel: Any, proxy: GrpcProxy, upstream: Upstream, kind: FaultKind, code: Any
) -> None:
    proxy.armed.arm(kind, 1)
    assert code_of(channel) is code
    assert not upstream.commits
    assert commit(channel) == b"committed"


def test_commit_with_a_lost_response_is_done(
    channel: Any, proxy: GrpcProxy, upstream: Upstream
) -> None:
    proxy.armed.arm(FaultKind.FIRESTORE_RESPONSE_LOST, 1)
    assert list(channel.unary_stream(READ)(b"ids", timeout=PATIENCE_SECONDS)) == [b"ids"] * 3
    assert code_of(channel) is grpc.StatusCode.UNAVAILABLE
    assert upstream.commits == [b"writes"]


def test_restarted_proxy_listens_on_the_same_port_again(channel: Any, proxy: GrpcProxy) -> None:
    listen_again, host = threading.Event(), proxy.host
    with ThreadPoolExecutor(1) as thread:
        restart = thread.submit(proxy.restart, listen_again, PATIENCE_SECONDS)
        while not restart.done():
            try:
                commit(channel)
            except grpc.RpcError:
                listen_again.set()
        restart.result()
    assert proxy.host == host
    assert listen_again.is_set()
    assert proxy.restarts == 1
    response = channel.unary_unary(COMMIT)(b"", timeout=PATIENCE_SECONDS, wait_for_ready=True)
    assert response == b"committed"


def test_publish_is_refused_or_its_response_is_lost(upstream: Upstream) -> None:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=[upstream])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with (
            GrpcProxy(f"127.0.0.1:{port}", PUBSUB) as proxy,
            grpc.insecure_channel(proxy.host, options=LOOPBACK) as channel,
        ):
            publish = channel.unary_unary(PUBLISH)
            for kind, published in (
                (FaultKind.PUBSUB_UNAVAILABLE, 0),
                (FaultKind.PUBSUB_EXHAUSTED, 0),
                (FaultKind.PUBSUB_RESPONSE_LOST, 1),
            ):
                proxy.armed.arm(kind, 1)
                with pytest.raises(grpc.RpcError):
                    publish(b"message", timeout=PATIENCE_SECONDS)
                assert len(upstream.commits) == published
            assert publish(b"message", timeout=PATIENCE_SECONDS) == b"committed"
        server.stop(grace=None).wait()
