"""A reverse proxy on loopback, with which `gcloud storage` and `gsutil` can use fake-gcs-server.

It bridges three differences:
- `gcloud storage cp -r` requests a bucket's `storageLayout`, which fake-gcs-server does not have
  (fsouza/fake-gcs-server#2069).
- The response to DELETE is 200 with `null`. Both tools expect 204.
- gsutil uses HTTPS only.

Client libraries use fake-gcs-server directly.
"""

import http.client
import json
import re
import shutil
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import trustme

_STORAGE_LAYOUT = re.compile(r"(?P<bucket>(?:/storage/v1)?/b/[^/?]+)/storageLayout(?:\?|$)")
# Headers that concern one connection only (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_CHUNK_BYTES = 256 * 1024
_IDLE_SECONDS = 120
_UPSTREAM_SECONDS = 120


class GcsProxy:
    """The proxy, with one port for HTTP and one for HTTPS."""

    def __init__(self, upstream: str, directory: Path) -> None:
        """Listen on both ports. `upstream` is `host:port`. The CA's file goes to `directory`."""
        self.ca_file = directory / "gcs-proxy-ca.pem"
        self._http = _Server(upstream, "http")
        self._https = _Server(upstream, "https")
        # The thread of each connection does the handshake.
        self._https.socket = _tls_context(self.ca_file).wrap_socket(
            self._https.socket, server_side=True, do_handshake_on_connect=False
        )
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.1,), name="gcs-proxy")
            for server in (self._http, self._https)
        ]

    @property
    def http_url(self) -> str:
        """The URL for `gcloud storage`, which requires the slash at the end."""
        return f"http://127.0.0.1:{self._http.server_port}/"

    @property
    def https_port(self) -> int:
        """The port for gsutil."""
        return self._https.server_port

    def start(self) -> Self:
        """Start serving. Return this object."""
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Stop serving, and close both ports."""
        for server, thread in zip((self._http, self._https), self._threads, strict=True):
            if thread.is_alive():
                server.shutdown()
                thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a tool may keep its connection open
    request_queue_size = 128

    def __init__(self, upstream: str, scheme: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.scheme = scheme

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: the tool that broke its connection has printed the reason."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True  # head and body of a response are two writes
    server: _Server

    def _forward(self) -> None:
        layout = _STORAGE_LAYOUT.match(self.path)
        target = layout["bucket"] if layout and self.command == "GET" else self.path
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=_UPSTREAM_SECONDS)
        try:
            upstream.request(
                self.command, target, body=self._body(), headers=self._request_headers(),
                encode_chunked=self._is_chunked(),
            )  # fmt: skip
            response = upstream.getresponse()
            if target != self.path and response.status == http.HTTPStatus.OK:
                self._send_storage_layout(json.load(response))
            elif self.command == "DELETE" and response.status == http.HTTPStatus.OK:
                self._send_deleted()
            else:
                self._send(response)
        finally:
            upstream.close()

    do_DELETE = do_GET = do_HEAD = do_PATCH = do_POST = do_PUT = _forward

    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    def _body(self) -> Iterator[bytes] | None:
        if self._is_chunked():
            return _chunks(self.rfile)
        length = int(self.headers.get("content-length") or 0)
        return _blocks(self.rfile, length) if length else None

    def _request_headers(self) -> dict[str, str]:
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in _HOP_BY_HOP | {"host", "expect"}
        }
        if self._is_chunked():
            headers["transfer-encoding"] = "chunked"
        return headers

    def _send_storage_layout(self, bucket: dict[str, Any]) -> None:
        layout = {
            "kind": "storage#storageLayout",
            "bucket": bucket["name"],
            "location": bucket.get("location", "US"),
            "locationType": bucket.get("locationType", "region"),
            "hierarchicalNamespace": {"enabled": False},
        }
        body = json.dumps(layout).encode()
        self.send_response(http.HTTPStatus.OK)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_deleted(self) -> None:
        self.send_response(http.HTTPStatus.NO_CONTENT)
        self.end_headers()

    def _send(self, response: http.client.HTTPResponse) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() == "location":
                self.send_header(name, self._local_url(value))
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if response.length is None and not response.isclosed():
            self.send_header("connection", "close")  # the connection's end is the body's end
        self.end_headers()
        shutil.copyfileobj(response, self.wfile, _CHUNK_BYTES)

    def _local_url(self, location: str) -> str:
        """Return the URL of an upload's next request, with the client's own host and scheme."""
        parts = urlsplit(location)
        if parts.netloc != self.server.upstream:
            return location
        port = f"127.0.0.1:{self.server.server_port}"
        return parts._replace(
            scheme=self.server.scheme, netloc=self.headers.get("host", port)
        ).geturl()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the tools report errors themselves."""


def _blocks(stream: BufferedIOBase, length: int) -> Iterator[bytes]:
    while length > 0:
        block = stream.read(min(length, _CHUNK_BYTES))
        if not block:
            raise ConnectionResetError("the client closed the connection in the middle of its body")
        length -= len(block)
        yield block


def _chunks(stream: BufferedIOBase) -> Iterator[bytes]:
    """Decode a chunked body. Trailers are dropped."""
    while length := int(stream.readline().split(b";")[0], 16):
        yield from _blocks(stream, length)
        stream.readline()
    while stream.readline().strip():
        pass


def _tls_context(ca_file: Path) -> ssl.SSLContext:
    """Create a certificate for this run. Write its CA to `ca_file`, for gsutil to verify it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context
