"""Pages of reports that a command has made: `yolo-batch compare` and `yolo-batch evaluate`.

A report is in memory, and its page is served on this machine until Ctrl-C. The page names an image
by its index in the report. So no path or address comes from the browser.
"""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from flask import Flask, Response, abort, current_app, render_template
from werkzeug.serving import WSGIRequestHandler, make_server

from service.gallery.access import LocalAccess, refuse_foreign_writes
from service.gallery.app import SECURITY_HEADERS, handle_errors

_HOST = "127.0.0.1"
_LARGE, _THUMBNAIL = "large", "thumbnail"
_GONE = "The image does not exist any more, or it cannot be read."


class ReportImages(Protocol):
    """Reads the images of a report. Safe to use from many threads."""

    def read(self, index: int, *, is_large: bool) -> bytes | None:
        """Return an image as JPEG, or None if it does not exist any more."""


@dataclass(frozen=True)
class ReportParts:
    """What a page of a report shows.

    Attributes:
        kind: `compare` or `evaluate`. It is the name of the command and of the template.
        report: the report, as the command writes it as JSON.
        access: who may see the page.
        images: the images of the report. None: it shows none.
    """

    kind: str
    report: Mapping[str, Any]
    access: LocalAccess
    images: ReportImages | None = None


def create_report_app(parts: ReportParts) -> Flask:
    """Return the application that serves one report."""
    app = Flask(__name__)
    app.extensions["report"] = parts
    app.add_url_rule("/", "page", _page)
    app.add_url_rule("/images/<int:index>/<view>", "image", _image)
    app.before_request(_admit)
    app.after_request(_complete)
    app.context_processor(lambda: {"csrf_token": parts.access.csrf_token(), "navigation": ()})
    handle_errors(app)
    return app


def serve_report(
    kind: str,
    report: Mapping[str, Any],
    *,
    port: int,
    announce: Callable[[str], None],
    images: ReportImages | None = None,
) -> None:
    """Serve a report on this machine until KeyboardInterrupt.

    Args:
        kind: the name of the command.
        report: the report, as the command writes it as JSON.
        port: the port. 0: a free one.
        announce: called with the URL when the server listens.
        images: the images of the report.

    Raises:
        OSError: the port is in use, or this user may not use it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
        listener.listen()
        port = listener.getsockname()[1]
        access = LocalAccess(port, command=f"yolo-batch {kind}")
        app = create_report_app(ReportParts(kind, report, access, images))
        server = make_server(
            _HOST, port, app, threaded=True, request_handler=_Quiet, fd=listener.fileno()
        )
        announce(f"http://{_HOST}:{port}{access.first_path}")
        try:
            server.serve_forever()
        finally:
            server.server_close()


class _Quiet(WSGIRequestHandler):
    """Writes no log lines: the first address has the token."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Write nothing."""


def _parts() -> ReportParts:
    return cast(ReportParts, current_app.extensions["report"])


def _admit() -> Response | None:
    access = _parts().access
    response = access.check()
    if response is None:
        refuse_foreign_writes(access)
    return response


def _complete(response: Response) -> Response:
    response.headers.update(SECURITY_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _page() -> str:
    parts = _parts()
    return render_template(f"{parts.kind}.html", report=parts.report)


def _image(index: int, view: str) -> Response:
    images = _parts().images
    if images is None or view not in (_LARGE, _THUMBNAIL):
        abort(404, _GONE)
    data = images.read(index, is_large=view == _LARGE)
    if data is None:
        abort(404, _GONE)
    return Response(data, content_type="image/jpeg")
