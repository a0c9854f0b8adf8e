"""gunicorn's threaded worker, for clients that mean harm: repeats nothing, waits for nobody long.

Found in gunicorn 27: its own answer and log line to what is not HTTP quote the bytes; reading a
request has no time limit, so that as many clients as threads, stopping in mid-request, stop the
service; and a refused client that keeps its end open holds the accepting thread for 2 s.
"""

import errno
import socket
import time
from typing import Any

from gunicorn import util
from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import ThreadWorker


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn is published without types
    """The `worker_class` of the service."""

    read_seconds = 30.0  # for a request's head and body together

    def enqueue_req(self, conn: Any) -> None:
        """Hand a connection to a thread, with a limit on the time to read its request."""
        if not isinstance(conn.sock, DeadlineSocket):
            conn.sock = DeadlineSocket(conn.sock, self.read_seconds)
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """Serve one request; close here, where a client that lingers holds this thread alone."""
        keep = super().handle(conn)
        if keep is False:
            conn.close(graceful=True)
        return keep

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is not HTTP with 400, repeating nothing of it."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        self.log.warning("Refused what is not HTTP: %s", type(exc).__name__)
        try:
            util.write_error(client, 400, "Bad Request", "")
        except OSError:
            self.log.debug("The client went before its answer.")


class DeadlineSocket(socket.socket):
    """A connection on which reading one request takes so long at most."""

    def __init__(self, connection: socket.socket, read_seconds: float) -> None:
        """Take over a connection; the time begins when gunicorn makes it blocking."""
        blocking = connection.getblocking()
        super().__init__(fileno=connection.detach())
        self._read_seconds = read_seconds
        self.setblocking(blocking)

    def setblocking(self, flag: bool) -> None:
        """Begin a request's time: gunicorn calls this when a thread takes the connection for it."""
        if self.fileno() < 0:  # gunicorn closes it once more
            return
        super().setblocking(flag)
        self._deadline = time.monotonic() + self._read_seconds

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Read what there is.

        Raises:
            ConnectionResetError: the time is over; to gunicorn, the client went away.
        """
        before = self.gettimeout()
        remaining = max(self._deadline - time.monotonic(), 0.001)
        self.settimeout(remaining if before is None else min(before, remaining))
        try:
            return super().recv(bufsize, flags)
        except TimeoutError:
            raise ConnectionResetError(errno.ECONNRESET, "The client took too long.") from None
        finally:
            self.settimeout(before)
