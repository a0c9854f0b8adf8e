"""A proxy in front of the Cloud Storage emulator that corrupts or loses some of its responses.

Only the service uses it. Cloud Storage or the network can cause all of these faults.
"""

import http.client
import json
import os
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from devtools.chaos.armed import Armed
from devtools.chaos.plan import FaultKind

_STATUS = {
    FaultKind.STORAGE_429: 429,
    FaultKind.STORAGE_500: 500,
    FaultKind.STORAGE_503: 503,
}
_UPSTREAM_SECONDS = 60
_IDLE_SECONDS = 120
_DOWNLOAD = "alt=media"
_NOT_COPIED = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})


class StorageProxy:
    """The proxy, on a free port."""

    def __init__(self, upstream: str) -> None:
        """Listen, and forward requests to `upstream` (host:port)."""
        self.armed = Armed()
        self._server = _Server(upstream, self.armed)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="storage-proxy"
        )

    @property
    def url(self) -> str:
        """The proxy's base URL, for the service."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        """Start serving."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # the service keeps its connections open
    request_queue_size = 128

    def __init__(self, upstream: str, armed: Armed) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.armed = armed

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: this proxy breaks connections on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        """Create an object. Its response may be lost."""
        fault = self.server.armed.take((*_STATUS, FaultKind.STORAGE_RESPONSE_LOST))
        self._answer_write(fault)

    def do_DELETE(self) -> None:
        self._answer_write(self.server.armed.take(tuple(_STATUS)))

    def _answer_write(self, fault: FaultKind | None) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if fault in _STATUS:
            self._refuse(_STATUS[fault])
            return
        response = self._fetch(body)
        if fault is FaultKind.STORAGE_RESPONSE_LOST:
            self._break_connection()
        else:
            self._send(*response)

    def do_GET(self) -> None:
        fault = self.server.armed.take(self._possible())
        if fault in _STATUS:
            self._refuse(_STATUS[fault])
            return
        status, headers, body = self._fetch()
        corrupt = _CORRUPTIONS.get(fault) if fault and status < http.client.BAD_REQUEST else None
        if corrupt is None:
            self._send(status, headers, body)
        else:
            corrupt(self, status, headers, body)

    def _possible(self) -> tuple[FaultKind, ...]:
        return (*_STATUS, *_CORRUPTIONS) if _DOWNLOAD in self.path else tuple(_STATUS)

    def _fetch(self, sent: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=_UPSTREAM_SECONDS)
        try:
            headers = _copied(self.headers.items())
            upstream.request(self.command, self.path, body=sent, headers=headers)
            response = upstream.getresponse()
            return response.status, _copied(response.getheaders()), response.read()
        finally:
            upstream.close()

    def _refuse(self, status: int) -> None:
        body = json.dumps({"error": {"code": status, "message": "chaos"}}).encode()
        self._send(status, {"content-type": "application/json"}, body)

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, *, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _cut(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._send(status, headers, body[: len(body) // 2], length=len(body))
        self.close_connection = True

    def _reset(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._cut(status, headers, body)
        self._break_connection()

    def _break_connection(self) -> None:
        self.close_connection = True
        # Closed without lingering, the socket sends RST. The server itself would send FIN first.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(self.connection.detach())

    def _shorten(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._send(status, headers, body[: len(body) // 2])

    def _flip(self, status: int, headers: dict[str, str], body: bytes) -> None:
        middle = len(body) // 2
        flipped = bytes(byte ^ 0xFF for byte in body[middle : middle + 8])
        self._send(status, headers, body[:middle] + flipped + body[middle + 8 :])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the service logs the faults."""


_CORRUPTIONS = {
    FaultKind.STORAGE_CUT: _Handler._cut,
    FaultKind.STORAGE_RESET: _Handler._reset,
    FaultKind.STORAGE_SHORT: _Handler._shorten,
    FaultKind.STORAGE_FLIPPED: _Handler._flip,
}


def _copied(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in _NOT_COPIED}
