"""The reference of the HTTP contract.

The responses are the application's own. Its pipeline is replaced by one that raises each error.
"""

import base64
import json
from pathlib import Path
from typing import Any, cast

from flask import Blueprint, Flask
from werkzeug.test import TestResponse

from devtools.docs.error_codes import request_errors
from devtools.docs.markdown import code, codes, fence, first_paragraph, table
from service.domain import Event
from service.events import parse_event
from service.pipeline import Pipeline
from service.server.app import create_app
from service.server.detect_api import DetectLimits, detect_blueprint
from service.settings import DETECT
from service.settings import EVENTS as EVENT_ENDPOINTS

EVENTS = Path(__file__).parents[2] / "tests" / "data" / "events"
EXAMPLES = {  # sample in tests/data/events: its title
    "storage-finalized-binary": "A Cloud Storage event as Eventarc sends it (binary mode)",
    "push-notification-data": "A Pub/Sub push of a Cloud Storage notification",
    "push-job-uri": "A Pub/Sub push of a job",
    "push-job-replace": "A job that permits a replacement",
    "unwrapped-job": "A job, with payload unwrapping",
}
_JOB = {"uri": "gs://uploads/cam1/07.jpg"}
_LIMIT_BYTES = 1024
_INVALID_REQUESTS = (  # method, path, bytes of the body, meaning
    ("POST", "/", _LIMIT_BYTES + 1, "The request has more than `MAX_REQUEST_BYTES`."),
    ("GET", "/", 0, "The method is not `POST`."),
    ("POST", "/unknown", 0, "There is no such path."),
)
_STATES: tuple[tuple[tuple[str, str | None], str], ...] = (
    (("ready", None), "The service takes messages."),
    (("stopping", None), "The process received SIGTERM and finishes what is in flight."),
    (("failed", "Work has hung."), "The platform should replace the process."),
)


class _Pipeline:
    """A pipeline that raises an error, and reports a state."""

    def __init__(self, error: BaseException | None, status: tuple[str, str | None]) -> None:
        self._error = error
        self._status = status

    def handle(self, *_: object) -> None:
        """Raise the error, if there is one."""
        if self._error:
            raise self._error

    def status(self) -> tuple[str, str | None]:
        """Return the state and its reason."""
        return self._status


def respond(error: type[BaseException] | None) -> TestResponse:
    """Return the application's response to a job whose handling raises an error."""
    # Without the constructor, because its parameters differ between the classes.
    raised = error.__new__(error, "The reason.") if error else None
    return _app(raised).test_client().post("/", json=_JOB)


def routes() -> str:
    """Return a table of the paths, and of the value of ENDPOINTS that each needs."""
    meanings = {
        "/": "Receives one event or one job.",
        "/v1/detect": "Detects objects in one image, and returns the result.",
        "/openapi.json": "The description of `/v1/detect` (OpenAPI 3.1).",
        "/health/live": "Liveness: whether the platform should keep the process.",
        "/health/ready": "Readiness: whether the process takes messages.",
    }
    requests: dict[str, dict[str, str]] = {
        EVENT_ENDPOINTS: _requests(None),
        DETECT: _requests(_detect()),
    }
    paths = sorted(set().union(*requests.values()))
    rows = []
    for path in paths:
        served = [value for value, found in requests.items() if path in found]
        request = requests[served[0]][path]
        rows.append((code(request), codes(served), meanings[path]))
    return table(("request", "`ENDPOINTS`", "purpose"), rows)


def statuses() -> str:
    """Return a table of all responses of `POST /`, by status."""
    rows = [
        (204, "", "", "The image has a final document, or the message names no image to process.")
    ]
    rows += [_row(respond(error), first_paragraph(error.__doc__)) for error in request_errors()]
    rows.append(_row(respond(RuntimeError), "A defect. The log has the trace."))
    client = _app(None).test_client()
    for method, path, size, meaning in _INVALID_REQUESTS:
        response = client.open(path, method=method, data=b"." * size)
        rows.append(_row(response, meaning))
    headers = ("status", "`error.code`", "`Retry-After`, seconds", "meaning")
    rows.sort(key=lambda row: row[0])
    return table(headers, rows)


def probes() -> str:
    """Return a table of the responses of both probes in each state."""
    rows = []
    for status, meaning in _STATES:
        client = _app(None, status).test_client()
        live, ready = (client.get(f"/health/{name}") for name in ("live", "ready"))
        rows.append((code(status[0]), live.status_code, ready.status_code, meaning))
    return table(("`status`", "`/health/live`", "`/health/ready`", "meaning"), rows)


def examples() -> str:
    """Return sample requests, each with its decoded message and the image that it names.

    Raises:
        EnvelopeError: the service does not accept a sample.
    """
    return "\n\n".join(_example(name, title) for name, title in EXAMPLES.items())


def _example(name: str, title: str) -> str:
    sample = json.loads((EVENTS / f"{name}-input.json").read_text(encoding="utf-8"))
    body = sample["body"]
    event = parse_event(sample["headers"], json.dumps(body).encode())
    headers = "\n".join(f"{key}: {value}" for key, value in sample["headers"].items())
    parts = [f"### {title}", fence("http", f"POST / HTTP/1.1\n{headers}"), _json(body)]
    if "message" in body:
        data = json.loads(base64.b64decode(body["message"]["data"]))
        parts += ["`message.data`, decoded:", _json(data)]
    return "\n\n".join([*parts, _named(event)])


def _named(event: Event) -> str:
    assert event.ref
    generation = event.ref.generation
    which = f"generation {generation}" if generation else "its live generation"
    return f"The request names the image `{event.ref.uri}`, {which}."


def _json(value: object) -> str:
    return fence("json", json.dumps(value, indent=2, ensure_ascii=False))


def _row(response: TestResponse, meaning: str) -> tuple[int, str, str, str]:
    body: Any = response.get_json()
    retry_after = response.headers.get("Retry-After", "")
    return response.status_code, code(body["error"]["code"]), retry_after, meaning


def _requests(detect: Blueprint | None) -> dict[str, str]:
    """Return the requests of an application, by path."""
    app = _app(None, detect=detect)
    return {
        rule.rule: f"{'POST' if 'POST' in (rule.methods or ()) else 'GET'} {rule.rule}"
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
    }


def _detect() -> Blueprint:
    pipeline = cast(Pipeline, _Pipeline(None, ("ready", None)))
    limits = DetectLimits(_LIMIT_BYTES, _LIMIT_BYTES, seconds=1, commit_seconds=0)
    return detect_blueprint(pipeline, lambda document_id, deadline: None, limits)


def _app(
    error: BaseException | None,
    status: tuple[str, str | None] = ("ready", None),
    detect: Blueprint | None = None,
) -> Flask:
    pipeline = cast(Pipeline, _Pipeline(error, status))
    return create_app(pipeline, max_request_bytes=_LIMIT_BYTES, detect=detect)
