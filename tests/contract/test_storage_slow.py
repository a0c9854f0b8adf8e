"""Silent, slow and endless peers. Without our own limits, most of these tests would hang."""

import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from google.cloud import storage

from service.deadline import NO_DEADLINE, Deadline
from service.domain import ErrorCode, ImageRef
from service.errors import BadImageError, StorageUnavailableError, TooLateError
from service.gcp.storage import ImageStorage
from tests.contract.conftest import fetched
from tests.fakes import PATIENCE_SECONDS
from tests.refusing_storage import crc32c

REF = ImageRef("uploads", "a.jpg", 1)
DATA = b"image" * 100
FOR_EVER = 10.0**6


class Peer:
    """A Cloud Storage whose responses a test writes. `respond` gets the request's number."""

    def __init__(self, respond: "Callable[[Peer, BaseHTTPRequestHandler, int], None]") -> None:
        self.respond = respond
        self.requests: list[str] = []
        self.connections = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()

    def head(self, handler: BaseHTTPRequestHandler, status: int = 200, **headers: str) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.flush()

    def send(self, handler: BaseHTTPRequestHandler, data: bytes, **headers: str) -> None:
        """Send a complete response with its checksum."""
        headers = {"X_Goog_Hash": f"crc32c={crc32c(data)}"} | headers
        self.head(handler, 200, Content_Length=str(len(data)), **headers)
        handler.wfile.write(data)

    def drip(self, handler: BaseHTTPRequestHandler, piece: bytes = b"x") -> None:
        """Send a piece repeatedly, until the test ends or the client disconnects."""
        handler.close_connection = True
        try:
            while not self.closing.wait(0.02):
                handler.wfile.write(piece)
                handler.wfile.flush()
        except OSError:
            handler.wfile = io.BytesIO()  # the remaining output must not be flushed


Responder = Callable[[Peer, BaseHTTPRequestHandler, int], None]


@contextmanager
def peer(respond: Responder) -> Iterator[tuple[Peer, str]]:
    running = Peer(respond)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def setup(self) -> None:
            super().setup()
            with running.lock:
                running.connections += 1

        def do_GET(self) -> None:
            with running.lock:
                running.requests.append(self.path)
                number = len(running.requests)
            running.respond(running, self, number)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield running, f"http://127.0.0.1:{server.server_port}"
    finally:
        running.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def storage_of(
    respond: Responder,
    monkeypatch: pytest.MonkeyPatch,
    *,
    timeout_seconds: float = PATIENCE_SECONDS,
) -> Iterator[tuple[ImageStorage, Peer]]:
    with peer(respond) as (running, url):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        with storage.Client() as client:
            yield (
                ImageStorage(
                    client, timeout_seconds=timeout_seconds, max_bytes=1000, connections=4
                ),
                running,
            )


def is_silent(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
    running.closing.wait(PATIENCE_SECONDS)
    handler.close_connection = True


def drips_its_body(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
    running.head(handler, Content_Length="1000")
    running.drip(handler)


def drips_an_error(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
    running.head(handler, 403, Content_Length="10000")
    running.drip(handler)


Call = Callable[..., object]
CALLS = [fetched, ImageStorage.resolve]
SLOW = [is_silent, drips_its_body, drips_an_error]


@pytest.mark.parametrize("respond", SLOW)
@pytest.mark.parametrize("call", CALLS)
def test_slow_peer_is_abandoned_when_the_time_is_up(
    call: Call, respond: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        storage_of(respond, monkeypatch, timeout_seconds=0.5) as (service, _),
        pytest.raises(StorageUnavailableError),
    ):
        call(service, REF, NO_DEADLINE)


@pytest.mark.parametrize("respond", [drips_its_body, drips_an_error])
@pytest.mark.parametrize("call", CALLS)
def test_slow_peer_is_abandoned_at_the_deadline(
    call: Call, respond: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        storage_of(respond, monkeypatch, timeout_seconds=FOR_EVER) as (service, _),
        pytest.raises(StorageUnavailableError),
    ):
        call(service, REF, Deadline.after(0.5))


@pytest.mark.parametrize("call", CALLS)
def test_call_after_the_deadline_sends_nothing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with storage_of(is_silent, monkeypatch) as (service, running):
        with pytest.raises(TooLateError):
            call(service, REF, Deadline.after(-1))
        assert running.requests == []


def test_silent_attempt_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent_at_first(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
        if number == 1:
            is_silent(running, handler, number)
        else:
            running.send(handler, DATA)

    with storage_of(silent_at_first, monkeypatch) as (service, running):
        assert fetched(service, REF).data == DATA
        assert len(running.requests) > 1


def test_damaged_bytes_are_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged_at_first(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
        flipped = bytes([DATA[0] ^ 1]) + DATA[1:]
        whole = f"crc32c={crc32c(DATA)}"
        running.send(handler, flipped if number == 1 else DATA, X_Goog_Hash=whole)

    with storage_of(damaged_at_first, monkeypatch) as (service, running):
        assert fetched(service, REF).data == DATA
        assert len(running.requests) == 2


def test_bytes_without_a_checksum_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
        running.send(handler, DATA, X_Goog_Hash="")

    with (
        storage_of(bare, monkeypatch, timeout_seconds=0.5) as (service, _),
        pytest.raises(StorageUnavailableError),
    ):
        fetched(service, REF)


def test_request_names_the_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    with storage_of(lambda running, handler, _: running.send(handler, DATA), monkeypatch) as (
        service,
        running,
    ):
        fetched(service, ImageRef("uploads", "dir/a b?#.jpg", 17))
        [path] = running.requests
    assert path.startswith("/download/storage/v1/b/uploads/o/dir%2Fa%20b%3F%23.jpg?")
    assert "generation=17" in path


def announces_too_much(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
    running.head(handler, Content_Length="1001")
    is_silent(running, handler, number)


def sends_too_much(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
    running.head(handler, Transfer_Encoding="chunked")
    running.drip(handler, b"fa\r\n" + b"x" * 250 + b"\r\n")


@pytest.mark.parametrize("respond", [announces_too_much, sends_too_much])
def test_body_that_is_too_large_is_not_read(
    respond: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with storage_of(respond, monkeypatch) as (service, running):
        with pytest.raises(BadImageError) as refused:
            fetched(service, REF)
        assert refused.value.code == ErrorCode.IMAGE_TOO_LARGE
        assert len(running.requests) == 1


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, gzip"])
def test_compressed_object_is_fetched_as_it_is_stored(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = gzip.compress(bytes(10**5))  # decompressed, it is over the limit

    def respond(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
        running.send(handler, bomb, Content_Encoding=encoding)

    with storage_of(respond, monkeypatch) as (service, _):
        download = fetched(service, REF)
    assert (download.data, download.content_encoding) == (bomb, encoding)
    assert download.metadata.size == len(bomb)


def test_endless_metadata_are_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
        running.head(handler, Transfer_Encoding="chunked")
        running.drip(handler, b"4000\r\n" + b" " * 0x4000 + b"\r\n")

    with (
        storage_of(endless, monkeypatch) as (service, _),
        pytest.raises(StorageUnavailableError),
    ):
        service.resolve(REF)


@pytest.mark.parametrize("metadata", [[], {}, {"generation": "x", "size": "1"}, "text"])
def test_metadata_of_another_form_are_unavailable(
    metadata: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
        running.send(handler, json.dumps(metadata).encode())

    with (
        storage_of(respond, monkeypatch) as (service, _),
        pytest.raises(StorageUnavailableError),
    ):
        service.resolve(REF)


def test_downloads_share_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with storage_of(lambda running, handler, _: running.send(handler, DATA), monkeypatch) as (
        service,
        running,
    ):
        for _ in range(3):
            fetched(service, REF)
        assert (len(running.requests), running.connections) == (3, 1)


def test_object_of_unknown_size_waits_without_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the wait, the request's time would be up. So it is sent again, with new time."""
    asked: list[int] = []

    @contextmanager
    def full_at_first(count: int, deadline: Deadline) -> Iterator[None]:
        asked.append(count)
        if len(asked) == 1:
            raise TooLateError
        yield

    with storage_of(lambda running, handler, _: running.send(handler, DATA), monkeypatch) as (
        service,
        running,
    ):
        with service.download(REF, NO_DEADLINE, full_at_first) as download:
            assert download.data == DATA
        assert asked == [len(DATA)] * 2
        assert len(running.requests) == 2


def test_wait_for_memory_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(count: int, deadline: Deadline) -> AbstractContextManager[None]:
        raise TooLateError

    respond: Responder = lambda running, handler, _: running.send(handler, DATA)  # noqa: E731
    with (
        storage_of(respond, monkeypatch) as (service, _),
        pytest.raises(TooLateError),
        service.download(REF, NO_DEADLINE, never),
    ):
        pytest.fail("there is no memory")
