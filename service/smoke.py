"""One picture through a deployed system: uploaded, waited for in Firestore, removed."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import cv2
import numpy as np
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage  # type: ignore[attr-defined]  # published without types
from google.cloud.exceptions import NotFound
from requests.exceptions import RequestException

from service.document import STATUS_DONE
from service.domain import ImageRef, ObjectMetadata
from service.errors import CredentialsError, StoreUnavailableError, YoloBatchError

_FOLDER = "smoke"
_CALL_SECONDS = 30.0  # for one call to Cloud Storage, retries included


class SmokeError(YoloBatchError):
    """The sample did not become a result; the message says where to look."""


class Results(Protocol):
    """What is read of the store."""

    def document(self, document_id: str) -> dict[str, Any] | None:
        """Read one document by its id; None if there is none."""


class Samples(Protocol):
    """Where the sample is put, and taken away again."""

    def upload(self, bucket: str, name: str, data: bytes) -> ImageRef:
        """Upload a JPEG, and name the generation that it became."""

    def remove(self, ref: ImageRef) -> None:
        """Delete the object."""


class CloudSamples:
    """Samples in Cloud Storage."""

    def __init__(self, client: storage.Client) -> None:
        """Take the vendor's client."""
        self._client = client

    def upload(self, bucket: str, name: str, data: bytes) -> ImageRef:
        """Upload a JPEG; see `Samples.upload`.

        Raises:
            SmokeError: Cloud Storage did not take it.
        """
        with _translated(f"upload gs://{bucket}/{name}"):
            blob = self._client.bucket(bucket).blob(name)
            blob.upload_from_string(data, content_type="image/jpeg", timeout=_CALL_SECONDS)
            return ImageRef(bucket, name, blob.generation, ObjectMetadata(size=len(data)))

    def remove(self, ref: ImageRef) -> None:
        """Delete the object; one that is gone already is no error.

        Raises:
            SmokeError: Cloud Storage did not delete it.
        """
        with _translated(f"delete {ref.uri}"):
            try:
                self._client.bucket(ref.bucket).blob(ref.name).delete(timeout=_CALL_SECONDS)
            except NotFound:
                return


def connect(project: str | None) -> CloudSamples:
    """Connect to Cloud Storage.

    Raises:
        CredentialsError: there are none.
    """
    try:
        return CloudSamples(storage.Client(project=project))
    except (GoogleAuthError, OSError) as exc:  # OSError: no project is known
        raise CredentialsError from exc


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
        except StoreUnavailableError as exc:
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


@contextmanager
def _translated(action: str) -> Iterator[None]:
    """Turn the vendor's errors into ours."""
    try:
        yield
    except NotFound as exc:
        raise SmokeError(f"Cannot {action}: there is no such bucket") from exc
    except (exceptions.Forbidden, exceptions.Unauthorized) as exc:
        raise SmokeError(
            f"Cannot {action}: access refused; the caller needs roles/storage.objectUser on the "
            "bucket"
        ) from exc
    except (exceptions.GoogleAPIError, GoogleAuthError, RequestException) as exc:
        raise SmokeError(f"Cannot {action}: Cloud Storage is unavailable") from exc
