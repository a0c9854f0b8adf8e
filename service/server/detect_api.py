"""`POST /v1/detect`: the caller of the request gets the result.

The request's body is an image, or JSON that names an object of Cloud Storage. Its content type
decides only between these two. The bytes decide which format an image has.

| situation                                                   | status |
|---|---|
| the image was processed                                     | 200, with the document |
| the request is unreadable                                   | 400 |
| the image failed: the error codes of failed documents       | `FAILURES` |
| there is no result, for a reason outside of the image       | `REASONS` |
| anything else: as `service.server.app` responds to events   | |

`devtools.docs.openapi` writes `openapi.json` from this module and from the document's fields.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from flask import Blueprint, Response, request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from service.deadline import Deadline
from service.document import to_document
from service.domain import ErrorCode, ImageRef, ImageResult, Outcome
from service.errors import EnvelopeError
from service.events import parse_uri
from service.pipeline import Pipeline
from service.server.responses import error_response, read_body

logger = logging.getLogger(__name__)

OPENAPI = Path(__file__).with_name("openapi.json")
_JSON = "application/json"
_LIMIT_REACHED = "The day's limit of images (DAILY_IMAGE_LIMIT) is reached."

FAILURES = {
    ErrorCode.EMPTY_OBJECT: 400,
    ErrorCode.UNREADABLE_OBJECT: 403,
    ErrorCode.IMAGE_TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED_MEDIA: 415,
    ErrorCode.CORRUPT_IMAGE: 422,
    ErrorCode.UNSTORABLE_RESULT: 422,
    ErrorCode.DAILY_IMAGE_LIMIT: 429,
}
REASONS = {
    Outcome.IGNORED: (
        400,
        "The object is a folder marker, a temporary part of an upload, or made by the service.",
    ),
    Outcome.BUCKET_NOT_ALLOWED: (403, "The object's bucket is not in ALLOWED_BUCKETS."),
    Outcome.GONE: (404, "The object does not exist, or this generation of it does not."),
    Outcome.DISABLED: (409, "The object's source is disabled."),
}
UNREADABLE_DOCUMENT = (
    "unreadable_document",
    "Another version of the service wrote the stored document, or somebody edited it. Delete it to "
    "process the image again.",
)
# Fields of a document that are about its object, or about the document itself.
OBJECT_FIELDS = ("uri", "bucket", "name", "generation", "shard")
CREATED_AT = "created_at"


class ObjectToDetect(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON form of a request: an object of Cloud Storage.

    `uri` is `gs://bucket/object` or `gs://bucket/object#generation`.
    """

    uri: str


@dataclass(frozen=True)
class DetectLimits:
    """Limits of one call. `service.settings.Settings` describes them."""

    max_image_bytes: int
    max_request_bytes: int
    seconds: float
    commit_seconds: float  # the part of them that is reserved for a commit


def detect_blueprint(
    pipeline: Pipeline,
    read: Callable[[str, Deadline], Mapping[str, Any] | None],
    limits: DetectLimits,
) -> Blueprint:
    """Build the endpoint of callers who wait for a result.

    Args:
        pipeline: detects the images.
        read: returns the fields of the document with an id, or None if there is none.
        limits: of one call.
    """
    blueprint = Blueprint("detect", __name__)
    description = OPENAPI.read_bytes()

    @blueprint.post("/v1/detect")
    def detect() -> Response:
        is_stored = _is_stored()
        commit_seconds = limits.commit_seconds if is_stored else 0.0
        deadline = Deadline.after(limits.seconds, commit_seconds=commit_seconds)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("The request's body must not have a Content-Encoding.")
        if request.mimetype == _JSON:
            ref = _object(read_body(limits.max_request_bytes))
            return stored(ref, deadline) if is_stored else _respond(pipeline.detect(ref, deadline))
        if is_stored:
            raise EnvelopeError("Only an object of Cloud Storage can be stored, not a body.")
        size = request.content_length
        if size is not None and size > limits.max_image_bytes:
            raise RequestEntityTooLarge  # before memory is reserved for it
        result = pipeline.detect_bytes(
            lambda: read_body(limits.max_image_bytes),
            limits.max_image_bytes if size is None else size,
            deadline,
        )
        return _respond(result)

    def stored(ref: ImageRef, deadline: Deadline) -> Response:
        found = pipeline.store(ref, deadline)
        if isinstance(found, Outcome):
            return _respond(found)
        document = read(found.document_id, deadline.for_commit())
        if document is None:  # it was removed meanwhile
            return _respond(Outcome.GONE)
        try:
            if error := document["error"]:
                return _failed(ErrorCode(error["code"]), error["message"])
            return _json(document)
        except (LookupError, TypeError, ValueError) as exc:  # a person may have edited the document
            logger.error(
                "A caller gets no result: its document has another form than the service writes",
                extra={"document_id": found.document_id, "reason": repr(exc)},
            )
            return error_response(500, *UNREADABLE_DOCUMENT)

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        return Response(description, mimetype=_JSON)

    return blueprint


def answer_of(result: ImageResult) -> dict[str, Any]:
    """Return the document of a result that is not recorded. Fields that do not apply are null."""
    document = to_document(result) | {CREATED_AT: None}
    is_body = not result.ref.bucket
    return document | dict.fromkeys(OBJECT_FIELDS) if is_body else document


def _is_stored() -> bool:
    """Return the value of the parameter `store`.

    Raises:
        EnvelopeError: there are other parameters, or it is neither true nor false.
    """
    values = request.args.to_dict(flat=False)
    store = values.pop("store", ["false"])
    if values or store not in (["true"], ["false"]):
        raise EnvelopeError("The only parameter is store. It is true or false.")
    return store == ["true"]


def _object(body: bytes) -> ImageRef:
    """Return the object that a JSON body names.

    Raises:
        EnvelopeError: it has another form, or another scheme than gs.
    """
    try:
        uri = msgspec.json.decode(body, type=ObjectToDetect).uri
    except (msgspec.MsgspecError, RecursionError):
        raise EnvelopeError('The JSON must be {"uri": "gs://bucket/object"}.') from None
    return parse_uri(uri)


def _respond(result: ImageResult | Outcome) -> Response:
    if isinstance(result, Outcome):
        status, sentence = REASONS[result]
        return error_response(status, result, sentence)
    if result.failure:
        return _failed(result.failure.code, result.failure.message)
    return _json(answer_of(result))


def _failed(code: ErrorCode, message: str) -> Response:
    is_over_limit = code is ErrorCode.DAILY_IMAGE_LIMIT
    return error_response(FAILURES[code], code, _LIMIT_REACHED if is_over_limit else message)


def _json(document: Mapping[str, Any]) -> Response:
    """Return a document as JSON. Times are RFC 3339, bytes are base64."""
    return Response(msgspec.json.encode(document, enc_hook=_plain), mimetype=_JSON)


def _plain(value: object) -> str:
    """Return a time of Firestore, which is no plain `datetime`, as text."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} has no form in JSON")
