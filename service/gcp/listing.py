"""Lists the objects of a bucket, for an operator's commands."""

from collections.abc import Iterator, Sequence

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from service.domain import ImageRef, ObjectMetadata
from service.errors import CredentialsError, StorageRefusedError, YoloBatchError
from service.gcp.storage import GONE, REFUSALS, read_refusal, translate_errors, widen
from service.object_metadata import read_custom

_PAGE_SIZE = 1000  # Cloud Storage's maximum
# Only these fields are requested, to keep a page small.
_LISTED_FIELDS = "items(name,generation,size,timeCreated,metadata),nextPageToken"


class NoBucketError(YoloBatchError):
    """The bucket does not exist."""


class ObjectLister:
    """Lists the objects of buckets. Use `connect_lister` to create it."""

    def __init__(self, client: storage.Client, *, timeout_seconds: float = 60.0) -> None:
        """Take the vendor's client, and how long one call may take with all its attempts."""
        self._client = client
        self._timeout = timeout_seconds
        self._retry: retry.Retry = DEFAULT_RETRY.with_timeout(timeout_seconds)

    def exists(self, ref: ImageRef) -> bool:
        """Return whether an object exists. A reference with a generation means that generation.

        Raises:
            StorageUnavailableError: Cloud Storage did not respond, or refuses access.
        """
        return self.find(ref) is not None

    def find(self, ref: ImageRef) -> ImageRef | None:
        """Return an object with its generation, or None if it does not exist.

        Args:
            ref: the object. With a generation: exactly this generation.

        Raises:
            StorageUnavailableError: Cloud Storage did not respond, or refuses access.
        """
        with translate_errors():
            bucket = self._client.bucket(ref.bucket)
            try:
                blob = bucket.get_blob(
                    ref.name, generation=ref.generation, timeout=self._timeout, retry=self._retry
                )
                return blob and _ref(ref.bucket, blob)
            except exceptions.GoogleAPICallError as exc:
                if exc.code in GONE:
                    return None
                if exc.code not in REFUSALS:
                    raise
                refusal = read_refusal(exc)
                raise StorageRefusedError(
                    f"Cloud Storage refuses to look up {ref.uri}: "
                    f"{refusal.code} {refusal.text} (`submit --no-check` submits it unchecked)"
                ) from exc

    def pages(
        self, bucket: str, prefix: str, *, after: str = "", page_size: int = _PAGE_SIZE
    ) -> Iterator[Sequence[ImageRef]]:
        """List the live objects with a prefix, sorted by the bytes of their names.

        Args:
            bucket: the bucket's name.
            prefix: prefix of the names.
            after: list only names that sort after this name.
            page_size: the most objects of a page.

        Yields:
            Pages of 1 to `page_size` objects.

        Raises:
            NoBucketError: there is no such bucket.
            StorageUnavailableError: Cloud Storage did not respond, or refuses access.
        """
        with translate_errors():
            listing = self._client.list_blobs(
                bucket,
                prefix=prefix or None,
                start_offset=after or None,  # this name is listed too
                page_size=page_size,
                fields=_LISTED_FIELDS,
                timeout=self._timeout,
                retry=self._retry,
            )
            try:
                for page in listing.pages:
                    refs = [_ref(bucket, blob) for blob in page if blob.name != after]
                    if refs:
                        yield refs
            except exceptions.GoogleAPICallError as exc:
                if exc.code in GONE:
                    raise NoBucketError(f"There is no bucket gs://{bucket}") from exc
                if exc.code not in REFUSALS:
                    raise
                refusal = read_refusal(exc)
                raise StorageRefusedError(
                    f"Cloud Storage refuses to list gs://{bucket} (you need "
                    f"roles/storage.objectViewer): {refusal.code} {refusal.text}".rstrip()
                ) from exc


def connect_lister(project: str | None, *, connections: int = 1) -> ObjectLister:
    """Return a lister of buckets.

    Args:
        project: the caller's project.
        connections: how many threads will use it at once.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    try:
        client = storage.Client(project=project)
        widen(client, connections)
        return ObjectLister(client)
    except (GoogleAuthError, OSError) as exc:  # OSError: no project
        raise CredentialsError from exc


def _ref(bucket: str, blob: storage.Blob) -> ImageRef:
    custom, is_custom_cut = read_custom(blob.metadata)
    metadata = ObjectMetadata(
        size=blob.size,
        created_at=blob.time_created,
        custom=custom,
        is_custom_cut=is_custom_cut,
    )
    return ImageRef(bucket, blob.name, blob.generation, metadata)
