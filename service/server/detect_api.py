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

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

OPENAPI = Path(__file__).with_name("openapi.json")
_JSON = "application/json"
_PIECE_BYTES = 2**16

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
    Outcome.IGNORED: (400, "The object is a folder marker or a part of a composite upload."),
    Outcome.BUCKET_NOT_ALLOWED: (403, "The object's bucket is not in ALLOWED_BUCKETS."),
    Outcome.GONE: (404, "The object does not exist, or this generation of it does not."),
    Outcome.DISABLED: (409, "The object's source is disabled."),
}
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
    commit_seconds: float


def detect_blueprint(
    pipeline: Pipeline,
    read: Callable[[str], Mapping[str, Any] | None],
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
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise UnsupportedMediaType("The request's body must not have a Content-Encoding.")
        if request.mimetype == _JSON:
            ref = _object(read_body(limits.max_request_bytes))
            return stored(ref) if is_stored else _response(pipeline.detect(ref, _deadline()))
        if is_stored:
            raise EnvelopeError("Only an object of Cloud Storage can be stored, not a body.")
        size = request.content_length
        if size is not None and size > limits.max_image_bytes:
            raise RequestEntityTooLarge
        reserved_bytes = limits.max_image_bytes if size is None else size
        result = pipeline.detect_bytes(
            lambda: read_body(limits.max_image_bytes), reserved_bytes, _deadline()
        )
        return _response(result)

    def stored(ref: ImageRef) -> Response:
        found = pipeline.store(ref, _deadline(commit_seconds=limits.commit_seconds))
        if isinstance(found, Outcome):
            return _response(found)
        document = read(found.document_id)
        if document is None:  # it was deleted meanwhile
            return _response(Outcome.GONE)
        if error := document["error"]:
            return _failed(ErrorCode(error["code"]), error["message"])
        return _json(document)

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        return Response(description, mimetype=_JSON)

    def _deadline(*, commit_seconds: float = 0.0) -> Deadline:
        return Deadline.after(limits.seconds, commit_seconds=commit_seconds)

    return blueprint
