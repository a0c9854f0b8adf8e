"""The state of the last successful reconcile run: one small object in Cloud Storage."""

from collections.abc import Iterator
from contextlib import contextmanager

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import RequestException

from service.domain import ImageRef
from service.errors import CredentialsError, YoloBatchError

_CALL_SECONDS = 60.0


class LastRunError(YoloBatchError):
    """The state of the last run could not be read or written."""


class LastRun:
    """One object. A run reads it when it starts, and writes it when it succeeds."""

    def __init__(self, client: storage.Client, ref: ImageRef) -> None:
        """Take the vendor's client, and the object's bucket and name."""
        self._blob = client.bucket(ref.bucket).blob(ref.name)
        self._uri = ref.uri

    def read(self) -> bytes | None:
        """Return the object's bytes, or None if there is no object yet.

        Raises:
            LastRunError: Cloud Storage did not respond, or refuses access.
        """
        with self._translated():
            try:
                return bytes(self._blob.download_as_bytes(timeout=_CALL_SECONDS))
            except exceptions.NotFound:  # or no bucket: then `write` will fail
                return None

    def write(self, data: bytes) -> None:
        """Replace the object.

        Raises:
            LastRunError: there is no bucket, or Cloud Storage did not write it.
        """
        with self._translated():
            self._blob.upload_from_string(
                data, content_type="application/json", timeout=_CALL_SECONDS, retry=DEFAULT_RETRY
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.GoogleAPIError, GoogleAuthError, RequestException) as exc:
            raise LastRunError(f"Cloud Storage cannot read or write {self._uri}: {exc}") from exc


def connect(ref: ImageRef, project: str | None) -> LastRun:
    """Return the state of the last run.

    Args:
        ref: the object that contains it.
        project: the caller's project.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    try:
        return LastRun(storage.Client(project=project), ref)
    except (GoogleAuthError, OSError) as exc:  # OSError: no project
        raise CredentialsError from exc
