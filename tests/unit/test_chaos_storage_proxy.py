"""Responses of Cloud Storage through the proxy, with each fault."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from devtools.chaos.plan import FaultKind
from devtools.chaos.storage_proxy import StorageProxy

BODY = bytes(range(256)) * 400
DOWNLOAD = "/download/b/uploads/o/a%2Fb%231.jpg?alt=media&generation=1"
METADATA = "/b/uploads/o/a.jpg"


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        exists = "missing" not in self.path
        self.send_response(200 if exists else 404)
        self.send_header("content-length", str(len(BODY)))
        self.send_header("x-goog-hash", "md5=AAAA")
        self.send_header("x-path", self.path)
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[StorageProxy]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as upstream:
        upstream.daemon_threads = True
        thread = threading.Thread(target=upstream.serve_forever, args=(0.05,))
        thread.start()
        with StorageProxy(f"127.0.0.1:{upstream.server_port}") as running:
            yield running
        upstream.shutdown()
        thread.join()


def get(proxy: StorageProxy, path: str = DOWNLOAD) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(proxy.url + path, timeout=30)


def test_responses_pass_unchanged(proxy: StorageProxy) -> None:
    response = get(proxy)
    assert (response.status_code, response.content) == (200, BODY)
    assert response.headers["x-goog-hash"] == "md5=AAAA"
    assert response.headers["x-path"] == DOWNLOAD


@pytest.mark.parametrize("path", [DOWNLOAD, METADATA], ids=["download", "metadata"])
@pytest.mark.parametrize(
    ("kind", "status"),
    [(FaultKind.STORAGE_429, 429), (FaultKind.STORAGE_500, 500), (FaultKind.STORAGE_503, 503)],
)
def test_status_fault_affects_the_armed_number_of_calls(
    proxy: StorageProxy, kind: FaultKind, status: int, path: str
) -> None:
    proxy.armed.arm(kind, 2)
    assert [get(proxy, path).status_code for _ in range(3)] == [status, status, 200]
    assert proxy.armed.struck == {kind: 2}


@pytest.mark.parametrize("kind", [FaultKind.STORAGE_CUT, FaultKind.STORAGE_RESET])
def test_body_that_ends_early_breaks_the_connection(proxy: StorageProxy, kind: FaultKind) -> None:
    proxy.armed.arm(kind, 1)
    with pytest.raises(requests.RequestException):
        get(proxy)
    assert get(proxy).content == BODY


def test_short_body_has_a_matching_content_length(proxy: StorageProxy) -> None:
    proxy.armed.arm(FaultKind.STORAGE_SHORT, 1)
    assert get(proxy).content == BODY[: len(BODY) // 2]


def test_corrupted_body_keeps_its_length_and_checksum_header(proxy: StorageProxy) -> None:
    proxy.armed.arm(FaultKind.STORAGE_FLIPPED, 1)
    response = get(proxy)
    assert len(response.content) == len(BODY)
    assert response.content != BODY
    assert response.headers["x-goog-hash"] == "md5=AAAA"


def test_only_bodies_of_existing_downloads_are_corrupted(proxy: StorageProxy) -> None:
    proxy.armed.arm(FaultKind.STORAGE_FLIPPED, 1)
    assert get(proxy, METADATA).content == BODY
    assert get(proxy, DOWNLOAD.replace("a%2F", "missing")).content == BODY
