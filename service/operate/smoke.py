"""One picture through a deployed system: uploaded, waited for in Firestore, removed."""

import time
import uuid
from typing import Any, Protocol

import cv2
import numpy as np

from service.document import STATUS_DONE
from service.domain import ImageRef
from service.errors import FirestoreUnavailableError, SmokeError

_FOLDER = "smoke"


class Results(Protocol):
    """What is read of the store."""

    def document(self, document_id: str) -> dict[str, Any] | None:
        """Read one document by its id; None if there is none."""


def draw_sample() -> bytes:
    """Draw a JPEG of 320x240 pixels: a disc and a square on grey."""
    image = np.full((240, 320, 3), 114, np.uint8)
    cv2.circle(image, (100, 120), 60, (40, 160, 240), cv2.FILLED)
    cv2.rectangle(image, (190, 70), (280, 160), (180, 60, 20), cv2.FILLED)
    return bytes(cv2.imencode(".jpg", image)[1])


def sample_name(prefix: str = "") -> str:
    """Name an object that no other run uses."""
    folder = f"{prefix.rstrip('/')}/{_FOLDER}" if prefix else _FOLDER
    return f"{folder}/{uuid.uuid4().hex}.jpg"


def wait_for_result(
    ref: ImageRef, store: Results, *, timeout_seconds: float, poll_seconds: float = 1.0
) -> dict[str, Any]:
    """Wait for the document of exactly this generation.

    Firestore being away meanwhile is waited out.

    Raises:
        SmokeError: there is none in time, or it records a failure.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        trouble = ""
        try:
            if document := store.document(ref.document_id):
                return _checked(document)
        except FirestoreUnavailableError as exc:
            trouble = f" The last look at Firestore: {exc}"
        if time.monotonic() >= deadline:
            raise SmokeError(
                f"{ref.uri} (generation {ref.generation}) has no document after "
                f"{timeout_seconds:g} s.{trouble} Look at the service's log for this name; if it "
                "is not there, at the subscription of the uploads: its push errors, its oldest "
                "unacknowledged message and its dead letters. A trigger made minutes ago may "
                "not deliver yet"
            )
        time.sleep(poll_seconds)


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document that says done.

    Raises:
        SmokeError: it records a failure.
    """
    if document["status"] != STATUS_DONE:
        error = document["error"]
        raise SmokeError(
            f"The sample's document says {document['status']}: {error['code']}: {error['message']}"
        )
    return document
