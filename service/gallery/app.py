"""The Flask application of the gallery."""

import logging
import time
from typing import Any

from flask import Flask, Response, g, jsonify, make_response, render_template, request
from werkzeug.exceptions import HTTPException

from service.errors import TransientError
from service.gallery import download, grid, image, images, not_run, problems, review
from service.gallery.access import refuse_foreign_writes
from service.gallery.counts import EXTENSION, Counts
from service.gallery.parts import GalleryParts, parts
from service.result_filter import FilterError

_LOGGER = logging.getLogger(__name__)
_API = "/api/"  # paths whose responses are JSON
_HEALTH = "/health/ready"
_NAVIGATION = (
    ("grid.page", "Results"),
    ("problems.page", "Problems"),
    ("review.page", "Review"),
)
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
SECURITY_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def create_app(gallery: GalleryParts) -> Flask:
    """Return the application. Each page has a module with a blueprint of its own."""
    app = Flask(__name__)
    app.extensions["gallery"] = gallery
    app.extensions[EXTENSION] = Counts()
    for page in (grid, image, images, problems, not_run, review, download):
        app.register_blueprint(page.blueprint)
    app.add_url_rule(_HEALTH, "ready", lambda: Response(status=204))
    app.before_request(_admit)
    app.after_request(_complete)
    app.context_processor(_context)
    handle_errors(app)
    return app


def handle_errors(app: Flask) -> None:
    """Turn errors into pages for a person, or into JSON."""
    app.register_error_handler(HTTPException, _refused)
    app.register_error_handler(FilterError, _wrong_filter)
    app.register_error_handler(TransientError, _unavailable)
    app.register_error_handler(Exception, _defect)


def _admit() -> Response | None:
    g.started = time.perf_counter()
    parts().results.reset_usage()
    if request.path == _HEALTH:
        return None
    access = parts().access
    response = access.check()
    if response is None:
        g.csrf_token = access.csrf_token()
        refuse_foreign_writes(access)
    return response


def _complete(response: Response) -> Response:
    """Add the headers that every response has."""
    response.headers.update(SECURITY_HEADERS)
    # A new browser loads style, script and images at once. Only the page sets its cookie.
    if response.mimetype == "text/html":
        parts().access.complete(response)
    response.headers.setdefault("Cache-Control", "no-store")
    usage = parts().results.usage()
    total = time.perf_counter() - g.get("started", time.perf_counter())
    response.headers["Server-Timing"] = (
        f"firestore;dur={1000 * usage.seconds:.1f}, total;dur={1000 * total:.1f}"
    )
    response.headers["X-Firestore-Usage"] = f"queries={usage.queries}, documents={usage.documents}"
    return response


def _context() -> dict[str, Any]:
    """Return what every template can use."""
    token = g.get("csrf_token", "")  # a page that refuses a visitor has none
    return {"csrf_token": token, "navigation": _NAVIGATION if token else ()}


def _refused(error: HTTPException) -> Response:
    return _error(error.code or 500, error.description or error.name)


def _wrong_filter(error: FilterError) -> Response:
    return _error(400, str(error))


def _unavailable(error: TransientError) -> Response:
    return _error(503, str(error))


def _defect(error: Exception) -> Response:
    _LOGGER.error("A page of the gallery failed", exc_info=error)
    return _error(500, "The page failed. The log of the gallery has the reason.")


def _error(status: int, text: str) -> Response:
    """Return an error for a person, as a page or as JSON."""
    if request.path.startswith(_API):
        response = jsonify(error=text)
    else:
        response = make_response(render_template("error.html", status=status, text=text))
    response.status_code = status
    return response
