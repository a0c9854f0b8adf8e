"""Uploads the smoke test's image to Cloud Storage, and deletes it afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.exceptions import NotFound
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import RequestException

from service.domain import ImageRef, ObjectMetadata
from service.errors import CredentialsError, SmokeError, StorageUnavailableError

_CALL_SECONDS = 30.0  # for one call with all its attempts
_RETRY: retry.Retry = DEFAULT_RETRY.with_timeout(_CALL_SECONDS)  # default: two minutes


class CloudSamples:
    """Sample images in Cloud Storage."""

    def __init__(self, client: storage.Client) -> None:
        """Take the vendor's client."""
        self._client = client

    def upload(self, bucket: str, name: str, data: bytes) -> ImageRef:
        """Upload a JPEG file. Return its reference, with its generation.

        Raises:
            SmokeError: there is no such bucket, or you have no access.
            StorageUnavailableError: Cloud Storage did not respond.
        """
        with _translated(f"upload gs://{bucket}/{name}"):
            blob = self._client.bucket(bucket).blob(name)
            blob.upload_from_string(
                data, content_type="image/jpeg", timeout=_CALL_SECONDS, retry=_RETRY
            )
            return ImageRef(bucket, name, blob.generation, ObjectMetadata(size=len(data)))

    def remove(self, ref: ImageRef) -> None:
        """Delete the object, if it still exists.

        Raises:
            SmokeError: there is no such bucket, or you have no access.
            StorageUnavailableError: Cloud Storage did not respond.
        """
        with _translated(f"delete {ref.uri}"):
            try:
                blob = self._client.bucket(ref.bucket).blob(ref.name)
                blob.delete(timeout=_CALL_SECONDS, retry=_RETRY)
            except NotFound:
                return


def connect(project: str | None) -> CloudSamples:
    """Return the sample images of a project.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    try:
        return CloudSamples(storage.Client(project=project))
    except (GoogleAuthError, OSError) as exc:  # OSError: no project
        raise CredentialsError from exc


@contextmanager
def _translated(action: str) -> Iterator[None]:
    """Raise the vendor's errors as ours. `action` completes "Cannot ..."."""
    try:
        yield
    except NotFound as exc:
        raise SmokeError(f"Cannot {action}: there is no such bucket") from exc
    except (exceptions.Forbidden, exceptions.Unauthorized) as exc:
        raise SmokeError(
            f"Cannot {action}: access refused. You need roles/storage.objectUser on the bucket"
        ) from exc
    except (exceptions.GoogleAPIError, GoogleAuthError, RequestException) as exc:
        raise StorageUnavailableError(f"Cannot {action}: Cloud Storage is unavailable.") from exc
