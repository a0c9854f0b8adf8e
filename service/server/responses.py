"""Reads the bodies of requests, and writes errors, for every endpoint."""

import io

from flask import Response, jsonify, request
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge

from service.errors import EnvelopeError

_PIECE_BYTES = 2**16


def read_body(max_bytes: int) -> bytes:
    """Return the request's body, read piece by piece.

    The application's own limit, MAX_CONTENT_LENGTH, must be greater. Otherwise Flask may silently
    truncate a chunked body.

    Args:
        max_bytes: the largest body.

    Raises:
        EnvelopeError: its chunks are malformed. The server's own error would quote them.
        HTTPException: it is too large, or ends early.
    """
    length, body = request.content_length, io.BytesIO()
    if length is not None and length > max_bytes:
        raise RequestEntityTooLarge
    try:
        while piece := request.stream.read(_PIECE_BYTES):
            body.write(piece)
            if body.tell() > max_bytes:
                raise RequestEntityTooLarge
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001 - an error of gunicorn, which this module does not import
        raise EnvelopeError("The request's body cannot be read.") from None
    if length is not None and body.tell() != length:
        raise ClientDisconnected
    return body.getvalue()


def error_response(status: int, code: str, sentence: str) -> Response:
    """Return an error response. The sentence must not repeat anything from the request."""
    response = jsonify(error={"code": code, "message": sentence})
    response.status_code = status
    return response
