"""The names of what a bucket holds, for an operator's commands."""

from collections.abc import Iterator, Sequence

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from service.domain import ImageRef, ObjectMetadata
from service.errors import CredentialsError, StorageRefusedError, YoloBatchError
from service.gcp.storage import GONE, REFUSALS, read_refusal, translate_errors, widen

_PAGE_SIZE = 1000  # the most that Cloud Storage gives
# What the listing asks for of each object: names are long enough.
_LISTED_FIELDS = "items(name,generation,size,timeCreated),nextPageToken"


class NoBucketError(YoloBatchError):
    """The bucket does not exist."""


class ObjectLister:
    """Lists buckets; see `connect_lister`."""

    def __init__(self, client: storage.Client, *, timeout_seconds: float = 60.0) -> None:
        """Take a client, and how long one call is retried."""
        self._client = client
        self._timeout = timeout_seconds
        self._retry: retry.Retry = DEFAULT_RETRY.with_timeout(timeout_seconds)

    def exists(self, ref: ImageRef) -> bool:
        """Say whether an object is there; its generation, if the reference names one.

        Raises:
            StorageUnavailableError: Cloud Storage did not answer, or refuses to say.
        """
        with translate_errors():
            blob = self._client.bucket(ref.bucket).blob(ref.name, generation=ref.generation)
            try:
                return bool(blob.exists(timeout=self._timeout, retry=self._retry))
            except exceptions.GoogleAPICallError as exc:
                if exc.code in GONE:
                    return False
                if exc.code not in REFUSALS:
                    raise
                refusal = read_refusal(exc)
                raise StorageRefusedError(
                    f"Cloud Storage does not say whether {ref.uri} exists: "
                    f"{refusal.code} {refusal.text} (`submit --no-check` does "
                    "not ask)"
                ) from exc

    def pages(self, bucket: str, prefix: str, *, after: str = "") -> Iterator[Sequence[ImageRef]]:
        """List the live objects with a prefix, up to 1000 at a time, by the bytes of their names.

        Args:
            bucket: the bucket's name.
            prefix: beginning of the names.
            after: the name that a listing before this one ended with.

        Raises:
            NoBucketError: there is no such bucket.
            StorageUnavailableError: Cloud Storage did not answer, or refuses the bucket.
        """
        with translate_errors():
            listing = self._client.list_blobs(
                bucket,
                prefix=prefix or None,
                start_offset=after or None,  # the first name that is listed
                page_size=_PAGE_SIZE,
                fields=_LISTED_FIELDS,
                timeout=self._timeout,
                retry=self._retry,
            )
            try:
                for page in listing.pages:
                    found = [_listed(bucket, blob) for blob in page if blob.name != after]
                    if found:
                        yield found
            except exceptions.GoogleAPICallError as exc:
                if exc.code in GONE:
                    raise NoBucketError(f"There is no bucket gs://{bucket}") from exc
                if exc.code not in REFUSALS:
                    raise
                refusal = read_refusal(exc)
                raise StorageRefusedError(
                    f"Cloud Storage refuses to list gs://{bucket} (roles/storage.objectViewer is "
                    f"needed): {refusal.code} {refusal.text}".rstrip()
                ) from exc


def connect_lister(project: str | None, *, connections: int = 1) -> ObjectLister:
    """Connect to Cloud Storage.

    Args:
        project: the caller's project.
        connections: how many threads will call at once.

    Raises:
        CredentialsError: there are none.
    """
    try:
        client = storage.Client(project=project)
        widen(client, connections)
        return ObjectLister(client)
    except (GoogleAuthError, OSError) as exc:  # OSError: no project is known
        raise CredentialsError from exc


def _listed(bucket: str, blob: storage.Blob) -> ImageRef:
    metadata = ObjectMetadata(size=blob.size, created_at=blob.time_created)
    return ImageRef(bucket, blob.name, blob.generation, metadata)
