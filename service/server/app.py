"""The HTTP endpoints: one for events, two for health.

Pub/Sub and Eventarc redeliver a message unless the status is 102, 200, 201, 202 or 204
(https://cloud.google.com/pubsub/docs/push). So 204 means that another delivery would not help.

| situation                                                     | status |
|---|---|
| the image has a final document, is gone or is out of scope    | 204 |
| the request is unreadable                                     | 400 |
| the push has no valid token                                   | 401 |
| the push's account is not allowed                             | 403 |
| the body is too large                                         | 413 |
| too many images are in flight                                 | 429 |
| a dependency is unavailable, time is short, the service stops | 503 |
| anything else                                                 | 500, with a traceback in the log |
"""

import logging
from collections.abc import Callable, Mapping

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from service.deadline import NO_DEADLINE, Deadline
from service.errors import (
    EnvelopeError,
    ForbiddenError,
    NoFreeSlotError,
    TransientError,
    UnauthenticatedError,
)
from service.events import parse_event
from service.logs import set_trace
from service.pipeline import Pipeline

logger = logging.getLogger(__name__)

_OPEN = ("live", "ready")  # endpoints without authentication, because probes have no token


def create_app(
    pipeline: Pipeline,
    *,
    max_request_bytes: int = 2**17,
    start_deadline: Callable[[], Deadline] = lambda: NO_DEADLINE,
    project: str | None = None,
    model_health: Mapping[str, str] | None = None,
    verify: Callable[[str | None], None] | None = None,
) -> Flask:
    """Build the web application around a pipeline.

    Args:
        pipeline: handles the events.
        max_request_bytes: larger requests are rejected with 413.
        start_deadline: returns the deadline of a request. Called when the request arrives.
        project: the project of the traces in log lines.
        model_health: fields that /health/ready adds to its status.
        verify: checks the `Authorization` header of every request except health probes.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = max_request_bytes
    app.config["MAX_FORM_MEMORY_SIZE"] = max_request_bytes

    @app.before_request
    def trace() -> None:
        set_trace(request.headers.get("X-Cloud-Trace-Context"), project)

    if verify:

        @app.before_request
        def authenticate() -> None:
            if request.endpoint not in _OPEN:
                verify(request.headers.get("Authorization"))

    @app.post("/")
    def receive() -> Response:
        deadline = start_deadline()
        body = _body()
        if request.content_length is None and len(body) >= max_request_bytes:
            raise RequestEntityTooLarge  # Flask silently truncates a chunked body at the limit
        pipeline.handle(parse_event(dict(request.headers), body), deadline)
        return Response(status=204)

    @app.get("/health/live")
    def live() -> Response:
        status, fault = pipeline.status()
        return _health(503 if fault else 200, status, fault)

    @app.get("/health/ready")
    def ready() -> Response:
        status, fault = pipeline.status()
        is_ready = status == "ready"
        return _health(200 if is_ready else 503, status, fault, model_health if is_ready else None)

    @app.errorhandler(EnvelopeError)
    def unreadable(error: EnvelopeError) -> Response:
        logger.warning("Received an unreadable request", extra={"reason": str(error)})
        return _error(400, "unreadable_request", str(error))

    @app.errorhandler(UnauthenticatedError)
    def unauthenticated(error: UnauthenticatedError) -> Response:
        _log_unauthorized(401, error)
        response = _error(401, "unauthenticated", str(error))
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    @app.errorhandler(ForbiddenError)
    def forbidden(error: ForbiddenError) -> Response:
        _log_unauthorized(403, error)
        return _error(403, "forbidden", str(error))

    @app.errorhandler(TransientError)
    def transient(error: TransientError) -> Response:
        status = 429 if isinstance(error, NoFreeSlotError) else 503
        logger.log(
            logging.DEBUG if error.is_logged else logging.WARNING,
            "Rejected a message",
            extra={"status": status, "reason": str(error)},
            exc_info=error.__cause__,
        )
        response = _error(status, "try_again", str(error))
        response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        status = error.code or 500
        code = error.name.lower().replace(" ", "_")
        response = _error(status, code, error.description or error.name)
        headers = error.get_headers(request.environ)  # a 405 lists the allowed methods
        response.headers.extend([h for h in headers if h[0].lower() not in response.headers])
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.error("Failed to handle a message", exc_info=error)
        return _error(500, "internal_error", "The message could not be handled. See the log.")

    return app


def _body() -> bytes:
    """Return the request's body.

    Raises:
        EnvelopeError: its chunks are malformed. The server's own error would quote them.
        HTTPException: it is too large, or ends early.
    """
    try:
        return request.get_data()
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001 - an error of gunicorn, which this module does not import
        raise EnvelopeError("The request's body cannot be read.") from None


def _health(
    code: int, status: str, reason: str | None, model: Mapping[str, str] | None = None
) -> Response:
    fields = {"status": status} | ({"reason": reason} if reason else {}) | dict(model or {})
    response = jsonify(fields)
    response.status_code = code
    return response


def _log_unauthorized(status: int, error: Exception) -> None:
    extra = {"status": status, "reason": str(error)}
    logger.warning("Received an unauthorized request", extra=extra)


def _error(status: int, code: str, sentence: str) -> Response:
    """Return an error response. The sentence must not repeat anything from the request."""
    response = jsonify(error={"code": code, "message": sentence})
    response.status_code = status
    return response
