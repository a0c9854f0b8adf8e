"""The proxy before fake-gcs-server: what it changes, and what it passes on unchanged."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from devtools.local_stack.gcs_proxy import GcsProxy
from tests.fakes import PATIENCE_SECONDS

BIG = bytes(range(256)) * 8192  # 2 MiB, several of the proxy's blocks


class Upstream(BaseHTTPRequestHandler):
    """Responds like fake-gcs-server where it matters, and echoes uploads."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/storage/v1/b/uploads":
            self.respond(200, b'{"name": "uploads", "location": "US-CENTRAL1"}')
        elif self.path == "/download/big":
            self.respond(200, gzip.compress(BIG), **{"content-encoding": "gzip"})
        else:
            self.respond(404, b"Not Found")

    def do_DELETE(self) -> None:
        self.respond(404 if "none" in self.path else 200, b"null")

    def do_POST(self) -> None:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["content-length"]))
        host = self.headers["host"]
        self.respond(200, body, location=f"http://{host}/upload?id=1", path=self.path)

    def respond(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsProxy]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as upstream:
        thread = threading.Thread(target=upstream.serve_forever, args=(0.05,))
        thread.start()
        running = GcsProxy(f"127.0.0.1:{upstream.server_port}", tmp_path_factory.mktemp("proxy"))
        running.start()
        yield running
        running.stop()
        upstream.shutdown()
        thread.join()


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as new:
        new.trust_env = False
        yield new


def test_storage_layout_is_served(proxy: GcsProxy, session: requests.Session) -> None:
    url = proxy.http_url + "storage/v1/b/uploads/storageLayout?alt=json"
    response = session.get(url, timeout=PATIENCE_SECONDS)
    assert response.json() == {
        "kind": "storage#storageLayout",
        "bucket": "uploads",
        "location": "US-CENTRAL1",
        "locationType": "region",
        "hierarchicalNamespace": {"enabled": False},
    }


def test_storage_layout_of_a_missing_bucket_is_404(
    proxy: GcsProxy, session: requests.Session
) -> None:
    response = session.get(
        proxy.http_url + "storage/v1/b/none/storageLayout", timeout=PATIENCE_SECONDS
    )
    assert response.status_code == 404


def test_delete_has_no_content(proxy: GcsProxy, session: requests.Session) -> None:
    response = session.delete(
        proxy.http_url + "storage/v1/b/uploads/o/a%2Fb.jpg", timeout=PATIENCE_SECONDS
    )
    assert (response.status_code, response.content) == (204, b"")


def test_delete_of_a_missing_object_is_404(proxy: GcsProxy, session: requests.Session) -> None:
    assert (
        session.delete(
            proxy.http_url + "storage/v1/b/u/o/none", timeout=PATIENCE_SECONDS
        ).status_code
        == 404
    )


def test_upload_continues_at_the_proxy(proxy: GcsProxy, session: requests.Session) -> None:
    response = session.post(
        proxy.http_url + "upload/a%2Fb%20%C3%A9?x=1", data=BIG, timeout=PATIENCE_SECONDS
    )
    assert response.content == BIG
    assert response.headers["path"] == "/upload/a%2Fb%20%C3%A9?x=1"
    assert response.headers["location"] == proxy.http_url + "upload?id=1"


def test_chunked_upload_is_passed_on(proxy: GcsProxy, session: requests.Session) -> None:
    parts = (BIG[start : start + 100_000] for start in range(0, len(BIG), 100_000))
    assert (
        session.post(proxy.http_url + "upload", data=parts, timeout=PATIENCE_SECONDS).content == BIG
    )


def test_download_is_passed_on_unchanged(proxy: GcsProxy, session: requests.Session) -> None:
    response = session.get(proxy.http_url + "download/big", timeout=PATIENCE_SECONDS)
    assert response.headers["content-encoding"] == "gzip"
    assert response.content == BIG


def test_https_certificate_is_signed_by_the_written_ca(
    proxy: GcsProxy, session: requests.Session
) -> None:
    url = f"https://127.0.0.1:{proxy.https_port}/"
    response = session.post(
        url + "upload", data=b"x", timeout=PATIENCE_SECONDS, verify=str(proxy.ca_file)
    )
    assert response.headers["location"] == url + "upload?id=1"
    with pytest.raises(requests.exceptions.SSLError):
        session.get(url, timeout=PATIENCE_SECONDS)


def test_ca_file_is_a_certificate(proxy: GcsProxy) -> None:
    assert Path(proxy.ca_file).read_text().startswith("-----BEGIN CERTIFICATE-----")
