"""Hostile clients, against the real server."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from devtools.local_stack.stack import Stack
from tests.fakes import PATIENCE_SECONDS
from tests.system import hooks
from tests.system.conftest import EVENT, Service, document, put_aside

StartService = Callable[..., Service]

SECRET = "secret7f3a"  # in requests, and never in a response or a log line
FEW_SLOTS = {"MAX_IN_FLIGHT": "2"}
THREADS = 2 + 8  # of the server


@pytest.fixture(scope="module")
def url(stack: Stack) -> str:
    """The stack's own service. No request may affect the next test."""
    return stack.service_url


@contextmanager
def connection(url: str, sent: bytes = b"") -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), PATIENCE_SECONDS) as client:
        client.sendall(sent)
        yield client


def receive_all(client: socket.socket) -> bytes:
    """Receive until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def status(raw: bytes) -> int:
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", raw)
    assert match, raw[:100]
    return int(match[1])


def post(headers: str, body: str = "") -> bytes:
    return f"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n{body}".encode()


def errors(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["severity"] in ("ERROR", "CRITICAL")]


NOT_HTTP = {
    "text": f"{SECRET}\r\n\r\n".encode(),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECRET.encode() + b"\r\n\r\n",
    "method": f"P{SECRET}@ / HTTP/1.1\r\n\r\n".encode(),
    "version": f"GET / HTTP/9.{SECRET}\r\n\r\n".encode(),
    "path-long": f"GET /{SECRET}{'a' * 9000} HTTP/1.1\r\n\r\n".encode(),
    "header-name": post(f"{SECRET} x: 1\r\n"),
    "header-without-colon": post(f"{SECRET}\r\n"),
    "header-folded": post(f"A: 1\r\n {SECRET}\r\n"),
    "header-with-nul": post(f"A: {SECRET}\0\r\n"),
    "header-long": post(f"A: {SECRET}{'a' * 9000}\r\n"),
    "headers-many": post("".join(f"A{i}: {SECRET}\r\n" for i in range(200))),
    "length-a-text": post(f"Content-Length: {SECRET}\r\n"),
    "length-negative": post("Content-Length: -1\r\n"),
    "lengths-two": post("Content-Length: 1\r\nContent-Length: 2\r\n", SECRET),
    "length-and-chunks": post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", SECRET),
    "coding-unknown": post(f"Transfer-Encoding: {SECRET}\r\n"),
    "chunk-size-a-text": post("Transfer-Encoding: chunked\r\n", f"{SECRET}\r\n"),
    "chunk-without-end": post("Transfer-Encoding: chunked\r\n", f"1\r\n{SECRET}\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP)
def test_invalid_http_gets_400_and_is_not_echoed_or_logged(
    url: str, stack: Stack, sent: bytes
) -> None:
    log = stack.directory / "logs" / "service.log"
    size_before = log.stat().st_size  # errors of earlier tests are in it
    with connection(url, sent) as client:
        raw = receive_all(client)
    assert status(raw) == 400
    for shown in (raw, log.read_bytes()[size_before:]):
        assert SECRET.encode() not in shown
        assert b"Traceback" not in shown


@pytest.mark.parametrize(
    "framing",
    ["Content-Length: 99999999999", "Transfer-Encoding: chunked"],
    ids=["length", "chunked"],
)
def test_body_over_the_limit_gets_413_before_it_is_sent(url: str, framing: str) -> None:
    """A chunked body has no length: it gets 413 as soon as it exceeds the limit."""
    with connection(url, post(framing + "\r\n")) as client:
        if "chunked" in framing:
            chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
            with suppress(ConnectionError):  # the server may close before the last chunk
                for _ in range(5):
                    client.sendall(chunk)
        assert status(client.recv(65536)) == 413


@pytest.mark.parametrize("sent", ["", '{"uri": "gs://uploads'], ids=["no-body", "half-a-body"])
def test_half_a_request_gets_400(url: str, sent: str) -> None:
    with connection(url, post("Content-Length: 1000\r\n", sent)) as client:
        client.shutdown(socket.SHUT_WR)
        assert status(receive_all(client)) == 400


def test_image_of_a_client_that_disconnects_is_recorded(
    start_service: StartService, stack: Stack
) -> None:
    """The response cannot be delivered, but the image gets its document."""
    ref = put_aside(stack, "closed.jpg", b"no image")
    service = start_service()
    body = json.dumps({"bucket": ref.bucket, "name": ref.name, "generation": ref.generation})
    headers = f"ce-type: {EVENT['ce-type']}\r\nContent-Length: {len(body)}\r\n"
    with connection(service.url, post(headers, body)):
        pass
    service.child.wait_until(lambda: document(ref) is not None, timeout_seconds=PATIENCE_SECONDS)
    assert requests.get(service.url + "/health/live", timeout=PATIENCE_SECONDS).ok
    assert errors(service.log()) == []


HALVES = {
    "head": b"POST / HTTP/1.1\r\nHost: a\r\n",
    "body": post("Content-Length: 1000\r\n", "{"),
    "chunks": post("Transfer-Encoding: chunked\r\n", "5\r\na"),
}


def test_more_slow_clients_than_threads_do_not_stop_the_service(
    start_service: StartService,
) -> None:
    """Without a limit on the time to read, each client would occupy a thread for ever."""
    service = start_service(**FEW_SLOTS, **hooks.settings(hooks.ShortReadTimeoutWorker))
    with ExitStack() as clients:
        slow = [
            clients.enter_context(connection(service.url, half))
            for half in [*HALVES.values()] * THREADS
        ]
        assert requests.get(service.url + "/health/live", timeout=PATIENCE_SECONDS).ok
        for client in slow:
            assert status(receive_all(client) or b"HTTP/1.1 400 ") == 400
    assert errors(service.log()) == []


def test_lingering_invalid_clients_do_not_stop_the_service(start_service: StartService) -> None:
    """gunicorn waits 2 s for each client to close. It must not wait in the accepting thread."""
    service = start_service()
    lingering = int(PATIENCE_SECONDS)  # one after the other, they would take twice the time limit
    with ExitStack() as clients:
        rejected = [
            clients.enter_context(connection(service.url, NOT_HTTP["text"]))
            for _ in range(lingering)
        ]
        assert status(rejected[0].recv(65536)) == 400
        assert requests.get(service.url + "/health/live", timeout=PATIENCE_SECONDS).ok


@pytest.mark.parametrize(
    "method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO"]
)
def test_other_methods_and_paths_get_an_error(url: str, method: str) -> None:
    path = f"/{SECRET}/../../etc/passwd" if method != "CONNECT" else f"{SECRET}:80"
    sent = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with connection(url, sent.encode()) as client:
        raw = receive_all(client)
    assert status(raw) in (400, 404, 405)
    assert SECRET.encode() not in raw
