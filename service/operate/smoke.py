"""Smoke-tests a deployment: uploads an image, waits for its document, deletes the image."""

import time
import uuid
from typing import Any, Protocol

import cv2
import numpy as np

from service.document import STATUS_DONE, STATUS_PARKED
from service.domain import ImageRef
from service.errors import FirestoreUnavailableError, SmokeError

_FOLDER = "smoke"


class Results(Protocol):
    """Reads documents. `service.gcp.result_reader.ResultReader` implements it."""

    def document(self, document_id: str) -> dict[str, Any] | None:
        """Return one document by its id, or None if there is none."""


def draw_sample() -> bytes:
    """Return a JPEG file of 320x240 pixels: a disc and a square on grey."""
    image = np.full((240, 320, 3), 114, np.uint8)
    cv2.circle(image, (100, 120), 60, (40, 160, 240), cv2.FILLED)
    cv2.rectangle(image, (190, 70), (280, 160), (180, 60, 20), cv2.FILLED)
    return bytes(cv2.imencode(".jpg", image)[1])


def sample_name(prefix: str = "") -> str:
    """Return the name of a sample object, below `prefix`. Each call returns another name."""
    folder = f"{prefix.rstrip('/')}/{_FOLDER}" if prefix else _FOLDER
    return f"{folder}/{uuid.uuid4().hex}.jpg"


def wait_for_result(
    ref: ImageRef, store: Results, *, timeout_seconds: float, poll_seconds: float = 1.0
) -> dict[str, Any]:
    """Wait for the document of exactly this generation, and return it.

    While Firestore is unavailable, it keeps waiting.

    Raises:
        SmokeError: there is no document after `timeout_seconds`, or it is failed or parked.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        last_error = ""
        try:
            if document := store.document(ref.document_id):
                return _check_done(document)
        except FirestoreUnavailableError as exc:
            last_error = f" The last error of Firestore: {exc}"
        if time.monotonic() >= deadline:
            raise SmokeError(
                f"{ref.uri} (generation {ref.generation}) has no document after "
                f"{timeout_seconds:g} s.{last_error} Search the service's log for this name. If it "
                "is not there, check the uploads' subscription: its push errors, its oldest "
                "unacknowledged message and its dead letters. A trigger that was just created "
                "may need some minutes before it delivers"
            )
        time.sleep(poll_seconds)


def _check_done(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document if its status is done.

    Raises:
        SmokeError: it is failed or parked.
    """
    if document["status"] == STATUS_PARKED:
        raise SmokeError(
            f"The sample was parked, so the model was not tested. {document['error']['message']}"
        )
    if document["status"] != STATUS_DONE:
        error = document["error"]
        raise SmokeError(
            f"The sample's document has status {document['status']}: "
            f"{error['code']}: {error['message']}"
        )
    return document
