"""The HTTP edge: one endpoint for events, two for health. Decides each answer's status.

Pub/Sub and Eventarc deliver a message again unless the answer is 102, 200, 201, 202 or 204
(https://cloud.google.com/pubsub/docs/push), so the question is always: can another delivery help?

| situation                                              | status |
|---|---|
| the image is final, was final before, or is not ours    | 204 |
| the request cannot be read                             | 400, and the dead letter in the end |
| the push's token is missing, not valid, not allowed    | 401 or 403, likewise |
| the body is over the limit                             | 413, likewise |
| too many images in flight                              | 429 |
| a dependency is down or busy, too late, stopping       | 503 |
| anything else                                          | 500, with the trace in the log |
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
from service.pipeline import Pipeline
from service.server.logs import set_trace

logger = logging.getLogger(__name__)

_OPEN = ("live", "ready")  # endpoints that need no token: probes have none


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
        max_request_bytes: larger requests are answered 413, unread.
        start_deadline: called when a request arrives; returns when it must be answered.
        project: the project whose traces the log names.
        model_health: what the health answers add to the status.
        verify: checks the `Authorization` header of every request but those for health.
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
            raise RequestEntityTooLarge  # Flask cuts a chunked body at the limit, silently
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
        logger.warning("Refused a request", extra={"reason": str(error)})
        return _error(400, "unreadable_request", str(error))

    @app.errorhandler(UnauthenticatedError)
    def unauthenticated(error: UnauthenticatedError) -> Response:
        logger.warning("Refused a caller", extra={"status": 401, "reason": str(error)})
        response = _error(401, "unauthenticated", str(error))
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    @app.errorhandler(ForbiddenError)
    def forbidden(error: ForbiddenError) -> Response:
        logger.warning("Refused a caller", extra={"status": 403, "reason": str(error)})
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
        headers = error.get_headers(request.environ)  # a 405 names the methods that are allowed
        response.headers.extend([h for h in headers if h[0].lower() not in response.headers])
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.error("Failed to handle a message", exc_info=error)
        return _error(500, "internal_error", "The message could not be handled; the log says why.")

    return app


def _body() -> bytes:
    """Read the body, up to the limit.

    Raises:
        EnvelopeError: its chunks are broken; the server's own errors say so, and quote them.
        HTTPException: it is over the limit, or ends early.
    """
    try:
        return request.get_data()
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001 - of the server's library, which only gunicorn_conf knows
        raise EnvelopeError("The request's body cannot be read.") from None


def _health(
    code: int, status: str, reason: str | None, model: Mapping[str, str] | None = None
) -> Response:
    fields = {"status": status} | ({"reason": reason} if reason else {}) | dict(model or {})
    response = jsonify(fields)
    response.status_code = code
    return response


def _error(status: int, code: str, sentence: str) -> Response:
    """Answer with one public sentence; never with anything of the request."""
    response = jsonify(error={"code": code, "message": sentence})
    response.status_code = status
    return response
