"""What is kept of the last successful run: one small object in Cloud Storage."""

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
    """Cloud Storage did not give or take what is kept of the last run."""


class LastRun:
    """One object, read at the beginning of a run and written at its successful end."""

    def __init__(self, client: storage.Client, ref: ImageRef) -> None:
        """Take a client and the object's name."""
        self._blob = client.bucket(ref.bucket).blob(ref.name)
        self._uri = ref.uri

    def read(self) -> bytes | None:
        """Return the object's bytes; None where there is no object yet.

        Raises:
            LastRunError: Cloud Storage did not answer.
        """
        with self._translated():
            try:
                return bytes(self._blob.download_as_bytes(timeout=_CALL_SECONDS))
            except exceptions.NotFound:  # of a bucket too: then `write` will fail
                return None

    def write(self, data: bytes) -> None:
        """Replace the object.

        Raises:
            LastRunError: there is no bucket, or Cloud Storage did not take it.
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
            raise LastRunError(f"Cloud Storage did not give or take {self._uri}: {exc}") from exc


def connect(ref: ImageRef, project: str | None) -> LastRun:
    """Connect to the object of the last run.

    Raises:
        CredentialsError: there are none.
    """
    try:
        return LastRun(storage.Client(project=project), ref)
    except (GoogleAuthError, OSError) as exc:  # OSError: no project is known
        raise CredentialsError from exc
