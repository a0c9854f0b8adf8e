"""Serves pages to one person on this machine, until Ctrl-C."""

import socket
from typing import Any

from flask import Flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from service.errors import YoloBatchError

HOST = "127.0.0.1"


class PortError(YoloBatchError):
    """Another program has the port."""


class _Quiet(WSGIRequestHandler):
    """Logs no requests: the first one has the token."""

    protocol_version = "HTTP/1.1"  # a page has many small requests

    def log_request(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def log_error(self, *_: Any, **__: Any) -> None:
        """Do nothing: a browser that closes a connection is no error."""


def bind(port: int) -> socket.socket:
    """Return a socket that listens on a port of this machine only. 0: a free port.

    Raises:
        PortError: another program has the port.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as exc:
        listener.close()
        raise PortError(f"Port {port} is not free ({exc.strerror}). Choose another --port") from exc
    return listener


def serve(app: Flask, listener: socket.socket) -> BaseWSGIServer:
    """Return a server of an application, with a thread for each request.

    Its `serve_forever` runs until another thread calls `shutdown`, or until Ctrl-C.
    """
    port = listener.getsockname()[1]
    return make_server(HOST, port, app, threaded=True, request_handler=_Quiet, fd=listener.detach())
