"""The OpenAPI description of `POST /v1/detect`, from the code and the document's fields."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from devtools.docs.document import MEANINGS, field_types
from devtools.docs.markdown import code, table
from service.domain import ErrorCode
from service.server.detect_api import (
    CREATED_AT,
    FAILURES,
    OBJECT_FIELDS,
    OPENAPI,
    REASONS,
    UNREADABLE_DOCUMENT,
    ObjectToDetect,
)

_SCHEMAS = "#/components/schemas/"
_TYPES: Mapping[str, Mapping[str, Any]] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "string": {"type": "string"},
    "timestamp": {"type": "string", "format": "date-time"},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "geographical point": {
        "type": "object",
        "properties": {"latitude": {"type": "number"}, "longitude": {"type": "number"}},
        "required": ["latitude", "longitude"],
    },
    "array": {"type": "array"},
    "array of strings": {"type": "array", "items": {"type": "string"}},
    "array of numbers": {"type": "array", "items": {"type": "number"}},
}
# Maps whose keys are data, and the schema of their values.
_DATA: Mapping[str, Mapping[str, Any]] = {
    "metadata": {"type": "string"},
    "counts": {"type": "integer"},
    "counts_by_zone": {"type": "object", "additionalProperties": {"type": "integer"}},
    "best": {"type": "number"},
}
_URI = "^gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]/.+$"
_EXAMPLES = ["gs://uploads/cam1/07.jpg", "gs://uploads/cam1/07.jpg#1732832936756275"]
_LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")
# Errors that are neither of the image nor of its object.
_ERRORS = (
    (
        400,
        "unreadable_request",
        "The parameters or the JSON are not as described, or the chunks of the body are malformed.",
    ),
    (400, "bad_request", "The request's body ended early."),
    (401, "unauthenticated", "The call has no token, or its token is invalid."),
    (403, "forbidden", "The token is valid, but its service account is not allowed."),
    (413, "request_entity_too_large", "The body has more than MAX_IMAGE_BYTES bytes."),
    (415, "unsupported_media_type", "The body has a Content-Encoding."),
    (429, "try_again", "Too many images are in flight."),
    (500, "internal_error", "The model failed on this image, or there is a defect. See the log."),
    (500, *UNREADABLE_DOCUMENT),
    (503, "try_again", "Time is short, a dependency is unavailable, or the instance stops."),
)
_DESCRIPTION = (
    "Detects objects in one image and returns the result. The body is the image, or JSON that "
    "names an object of Cloud Storage. Its content type decides only between these two: the bytes "
    "decide which format an image has."
)


def files() -> dict[Path, str]:
    """Return the description's file and its text."""
    return {OPENAPI: json.dumps(description(), indent=2) + "\n"}


def description() -> dict[str, Any]:
    """Return the OpenAPI description."""
    _, components = msgspec.json.schema_components(
        [ObjectToDetect], ref_template=_SCHEMAS + "{name}"
    )
    components["ObjectToDetect"]["properties"]["uri"] |= {"pattern": _URI, "examples": _EXAMPLES}
    image = {"schema": {"type": "string", "format": "binary"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "yolo-batch detect",
            "version": "1.0.0",
            "license": {"name": "AGPL-3.0", "identifier": "AGPL-3.0-only"},
        },
        "paths": {
            "/v1/detect": {
                "post": {
                    "operationId": "detect",
                    "summary": "Detect objects in an image",
                    "description": _DESCRIPTION,
                    "security": [{"token": []}],
                    "parameters": [
                        {
                            "name": "store",
                            "in": "query",
                            "description": "Whether the result is stored, as that of an upload. "
                            "Only for an object of Cloud Storage.",
                            "schema": {"type": "boolean", "default": False},
                        }
                    ],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {"schema": {"$ref": _SCHEMAS + "ObjectToDetect"}},
                            "application/octet-stream": image,
                            "image/*": image,
                        },
                    },
                    "responses": _responses(),
                }
            }
        },
        "components": {
            "schemas": components | {"Document": _document(), "Error": _error()},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An identity token of Google.",
                }
            },
        },
    }


def statuses() -> str:
    """Return a table of the responses other than 200."""
    rows = [
        (status, code(name), meaning)
        for status, errors in sorted(errors_by_status().items())
        for name, meaning in errors.items()
    ]
    return table(("status", "`error.code`", "meaning"), rows)


def errors_by_status() -> dict[int, dict[str, str]]:
    """Return by status the error codes and what each means."""
    errors: dict[int, dict[str, str]] = defaultdict(dict)
    for status, name, meaning in _ERRORS:
        errors[status][name] = meaning
    for failure, status in FAILURES.items():
        errors[status][failure] = failure.description
    errors[429][ErrorCode.DAILY_IMAGE_LIMIT] = "The day's limit of images is reached."
    for outcome, (status, sentence) in REASONS.items():
        errors[status][outcome] = sentence
    return errors


def _responses() -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {
            "description": "The image was processed. The body has the document's fields.",
            "content": {"application/json": {"schema": {"$ref": _SCHEMAS + "Document"}}},
        }
    }
    for status, errors in sorted(errors_by_status().items()):
        schema = {
            "allOf": [
                {"$ref": _SCHEMAS + "Error"},
                {
                    "properties": {
                        "error": {"properties": {"code": {"enum": sorted(map(str, errors))}}}
                    }
                },
            ]
        }
        responses[str(status)] = {
            "description": " ".join(dict.fromkeys(errors.values())),
            "content": {"application/json": {"schema": schema}},
        }
    return responses


def _error() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {"code": text, "message": text},
                "required": ["code", "message"],
            }
        },
        "required": ["error"],
    }


def _document() -> dict[str, Any]:
    """Return the schema of a document, with the fields that are null if it is not stored."""
    types = field_types()
    root: dict[str, Any] = _object()
    nodes = {"": root}
    for path, meaning in MEANINGS.items():
        parent, _, name = path.rpartition(".")
        kind = types[path]
        if path in _DATA:
            schema: dict[str, Any] = {"type": "object", "additionalProperties": _DATA[path]}
        elif kind == "map":
            schema = nodes[path] = _object()
        elif kind == "array of maps":
            nodes[f"{path}[]"] = _object()
            schema = {"type": "array", "items": nodes[f"{path}[]"]}
        else:
            schema = dict(_TYPES[kind])
        if "null" in meaning.null or path in (*OBJECT_FIELDS, CREATED_AT):
            schema["type"] = [schema["type"], "null"]
        schema["description"] = _LINK.sub(r"\1", meaning.text)
        nodes[parent]["properties"][name] = schema
        if "absent" not in meaning.null:
            nodes[parent]["required"].append(name)
    return root


def _object() -> dict[str, Any]:
    return {"type": "object", "properties": {}, "required": []}
