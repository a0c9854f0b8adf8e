"""The HTTP endpoints: one for events or one for callers who wait, and two for health.

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

from flask import Blueprint, Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

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
from service.server.responses import error_response, read_body

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
    detect: Blueprint | None = None,
) -> Flask:
    """Build the web application around a pipeline.

    Args:
        pipeline: handles the events.
        max_request_bytes: larger requests are rejected with 413.
        start_deadline: returns the deadline of a request. Called when the request arrives.
        project: the project of the traces in log lines.
        model_health: fields that /health/ready adds to its status.
        verify: checks the `Authorization` header of every request except health probes.
        detect: the endpoints of `service.server.detect_api`. Then there is none for events.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = max_request_bytes + 1  # see `read_body`

    @app.before_request
    def trace() -> None:
        set_trace(request.headers.get("X-Cloud-Trace-Context"), project)

    if verify:

        @app.before_request
        def authenticate() -> None:
            if request.endpoint not in _OPEN:
                verify(request.headers.get("Authorization"))

    def receive() -> Response:
        deadline = start_deadline()
        body = read_body(max_request_bytes)
        pipeline.handle(parse_event(dict(request.headers), body), deadline)
        return Response(status=204)

    if detect:
        app.register_blueprint(detect)
    else:
        app.post("/")(receive)

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
        return error_response(400, "unreadable_request", str(error))

    @app.errorhandler(UnauthenticatedError)
    def unauthenticated(error: UnauthenticatedError) -> Response:
        _log_unauthorized(401, error)
        response = error_response(401, "unauthenticated", str(error))
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    @app.errorhandler(ForbiddenError)
    def forbidden(error: ForbiddenError) -> Response:
        _log_unauthorized(403, error)
        return error_response(403, "forbidden", str(error))

    @app.errorhandler(TransientError)
    def transient(error: TransientError) -> Response:
        status = 429 if isinstance(error, NoFreeSlotError) else 503
        logger.log(
            logging.DEBUG if error.is_logged else logging.WARNING,
            "Rejected a message",
            extra={"status": status, "reason": str(error)},
            exc_info=error.__cause__,
        )
        response = error_response(status, "try_again", str(error))
        response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        status = error.code or 500
        code = error.name.lower().replace(" ", "_")
        response = error_response(status, code, error.description or error.name)
        headers = error.get_headers(request.environ)  # a 405 lists the allowed methods
        response.headers.extend([h for h in headers if h[0].lower() not in response.headers])
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.error("Failed to handle a message", exc_info=error)
        return error_response(
            500, "internal_error", "The request could not be handled. See the log."
        )

    return app


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
