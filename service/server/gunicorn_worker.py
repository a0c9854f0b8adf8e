"""gunicorn's threaded worker, hardened against hostile clients.

It fixes three faults of gunicorn 27:

- Its response and its log line for malformed HTTP quote the received bytes.
- Reading a request has no time limit. So one slow client for each thread can block the service.
- A client that keeps its connection open after an error blocks the accepting thread for 2 s.
"""

import errno
import socket
import time
from typing import Any

from gunicorn import util
from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import ThreadWorker


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn is published without types
    """The `worker_class` in `gunicorn_conf`."""

    read_seconds = 30.0  # for reading one request, headers and body

    def enqueue_req(self, conn: Any) -> None:
        """Pass a connection to a thread, with a time limit for reading its request."""
        if not isinstance(conn.sock, DeadlineSocket):
            conn.sock = DeadlineSocket(conn.sock, self.read_seconds)
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """Serve one request. Close its connection here, so that only this thread can block."""
        is_kept = super().handle(conn)
        if is_kept is False:
            conn.close(graceful=True)
        return is_kept

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Respond to malformed HTTP with 400, without repeating any of it."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        self.log.warning("Received malformed HTTP: %s", type(exc).__name__)
        try:
            util.write_error(client, 400, "Bad Request", "")
        except OSError:
            self.log.debug("The client disconnected before the response.")


class DeadlineSocket(socket.socket):
    """A connection with a time limit for reading each request."""

    def __init__(self, connection: socket.socket, read_seconds: float) -> None:
        """Take over a connection. The time limit starts when gunicorn makes it blocking."""
        blocking = connection.getblocking()
        super().__init__(fileno=connection.detach())
        self._read_seconds = read_seconds
        self.setblocking(blocking)

    def setblocking(self, flag: bool) -> None:
        """Start the time limit of a request. gunicorn calls this before it reads the request."""
        if self.fileno() < 0:  # already closed, because gunicorn closes it twice
            return
        super().setblocking(flag)
        self._deadline = time.monotonic() + self._read_seconds

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive at most `bufsize` bytes.

        Raises:
            ConnectionResetError: the time is up. gunicorn treats that as a disconnected client.
        """
        timeout = self.gettimeout()
        seconds_left = max(self._deadline - time.monotonic(), 0.001)
        self.settimeout(seconds_left if timeout is None else min(timeout, seconds_left))
        try:
            return super().recv(bufsize, flags)
        except TimeoutError:
            raise ConnectionResetError(errno.ECONNRESET, "The client took too long.") from None
        finally:
            self.settimeout(timeout)
