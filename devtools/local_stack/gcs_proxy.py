"""A loopback reverse proxy that gives `gcloud storage` and `gsutil` what fake-gcs-server does not.

Three things stand between them: `gcloud storage cp -r` asks for a bucket's `storageLayout`, which
the server does not know (fsouza/fake-gcs-server#2069); a DELETE is answered with 200 and `null`,
where both expect 204; and gsutil speaks https only. Programs talk to fake-gcs-server directly.
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

_STORAGE_LAYOUT = re.compile(r"(?P<bucket>(?:/storage/v1)?/b/[^/?]+)/storageLayout(?:\?|$)")
# These say how one connection is used, not what is sent (RFC 9110, 7.6.1).
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
    """The proxy, on one port for http and one for https."""

    def __init__(self, upstream: str, directory: Path) -> None:
        """Listen, in front of the server at `upstream` (host:port); keep the CA in `directory`."""
        self.ca_file = directory / "gcs-proxy-ca.pem"
        self._http = _Server(upstream, "http")
        self._https = _Server(upstream, "https")
        # The handshake is left to the connection's own thread.
        self._https.socket = _tls_context(self.ca_file).wrap_socket(
            self._https.socket, server_side=True, do_handshake_on_connect=False
        )
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.1,), name="gcs-proxy")
            for server in (self._http, self._https)
        ]

    @property
    def http_url(self) -> str:
        """Where `gcloud storage` sends its requests; the slash at the end is necessary."""
        return f"http://127.0.0.1:{self._http.server_port}/"

    @property
    def https_port(self) -> int:
        """Where gsutil sends its requests."""
        return self._https.server_port

    def start(self) -> Self:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Answer no more."""
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
        """Say nothing: a tool that breaks its connection has told its user why."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True  # head and body of an answer are two writes
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
            answer = upstream.getresponse()
            if target != self.path and answer.status == http.HTTPStatus.OK:
                self._send_storage_layout(json.load(answer))
            elif self.command == "DELETE" and answer.status == http.HTTPStatus.OK:
                self._send_deleted()
            else:
                self._send(answer)
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

    def _send(self, answer: http.client.HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() == "location":
                self.send_header(name, self._here(value))
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if answer.length is None and not answer.isclosed():
            self.send_header("connection", "close")  # the end of the body is the connection's
        self.end_headers()
        shutil.copyfileobj(answer, self.wfile, _CHUNK_BYTES)

    def _here(self, location: str) -> str:
        """Point an upload's next request to the host and scheme by which the client came."""
        parts = urlsplit(location)
        if parts.netloc != self.server.upstream:
            return location
        port = f"127.0.0.1:{self.server.server_port}"
        return parts._replace(
            scheme=self.server.scheme, netloc=self.headers.get("host", port)
        ).geturl()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the tools tell their user themselves."""


def _blocks(stream: BufferedIOBase, length: int) -> Iterator[bytes]:
    while length > 0:
        block = stream.read(min(length, _CHUNK_BYTES))
        if not block:
            raise ConnectionResetError("the client left in the middle of its body")
        length -= len(block)
        yield block


def _chunks(stream: BufferedIOBase) -> Iterator[bytes]:
    """Decode a chunked body; trailers are dropped."""
    while length := int(stream.readline().split(b";")[0], 16):
        yield from _blocks(stream, length)
        stream.readline()
    while stream.readline().strip():
        pass


def _tls_context(ca_file: Path) -> ssl.SSLContext:
    """Make a certificate for this run, and write its CA for gsutil to verify it by."""
    # Here, so that a missing trustme is named by `requirements` and does not stop the import.
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context
