"""The exact generation's bytes from Cloud Storage, and the names of what a bucket holds."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage  # type: ignore[attr-defined]  # published without types
from google.cloud.exceptions import NotFound
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter
from requests.exceptions import ContentDecodingError, RequestException

from service.domain import Download, ErrorCode, ImageRef, ObjectMetadata
from service.errors import (
    BadImageError,
    CredentialsError,
    ObjectGoneError,
    StorageUnavailableError,
    YoloBatchError,
)

_PAGE_SIZE = 1000  # the most that Cloud Storage gives
# What the listing asks for of each object: names are long enough.
_LISTED_FIELDS = "items(name,generation,size),nextPageToken"


class NoBucketError(YoloBatchError):
    """The bucket does not exist."""


class ImageStorage:
    """Reads pictures; safe to use from many threads."""

    def __init__(
        self, client: storage.Client, *, timeout_seconds: float, max_bytes: int, connections: int
    ) -> None:
        """Take a client and the limits.

        Args:
            client: the vendor's client.
            timeout_seconds: how long one call is retried, and how long it may be silent.
            max_bytes: larger objects are refused.
            connections: how many threads will call at once.
        """
        # requests keeps 10 connections a host by default, and drops the others after each use.
        adapter = HTTPAdapter(pool_connections=connections, pool_maxsize=connections)
        client._http.mount("https://", adapter)
        client._http.mount("http://", adapter)
        self._client = client
        self._timeout = timeout_seconds
        self._retry: retry.Retry = DEFAULT_RETRY.with_timeout(timeout_seconds)
        self._max_bytes = max_bytes

    def resolve(self, ref: ImageRef) -> ImageRef:
        """Complete a reference: the live generation where it names none, and what is known of it.

        Raises:
            ObjectGoneError: there is no such object, or not of this generation.
            StorageUnavailableError: Cloud Storage did not answer.
        """
        with _translated():
            blob = self._client.bucket(ref.bucket).blob(ref.name, generation=ref.generation)
            blob.reload(timeout=self._timeout, retry=self._retry)
            found = _metadata(blob, blob.size)
            return replace(ref, generation=blob.generation, metadata=_merged(ref.metadata, found))

    def download(self, ref: ImageRef) -> Download:
        """Fetch the bytes of exactly this generation, checked against Cloud Storage's checksum.

        Raises:
            BadImageError: the object is larger than allowed, or not in its Content-Encoding.
            ObjectGoneError: this generation no longer exists.
            StorageUnavailableError: Cloud Storage did not answer, or its bytes were damaged.
        """
        if (ref.metadata.size or 0) > self._max_bytes:
            raise _too_large(self._max_bytes)
        with _translated():
            blob = self._client.bucket(ref.bucket).blob(ref.name, generation=ref.generation)
            data = self._download_checked(blob)
        return Download(data, _merged(ref.metadata, _metadata(blob, len(data))))

    def _download_checked(self, blob: storage.Blob) -> bytes:
        """Download, and once more what is not in its encoding: it may have been damaged on its way.

        Decoding comes before the checksum is looked at.
        """
        download = self._retry(self._download_whole)
        with suppress(ContentDecodingError):
            return download(blob)
        return download(blob)  # not in the handler, whose trace would hold the first bytes

    def _download_whole(self, blob: storage.Blob) -> bytes:
        """Download from the first byte on: the client checks no download that it resumes.

        Its retry asks for the rest of a download that broke, and takes that unchecked
        (google-cloud-storage 3.x, _media/requests/download.py).
        """
        buffer = _BoundedBuffer(self._max_bytes)
        blob.download_to_file(buffer, timeout=self._timeout, retry=None)
        return buffer.getvalue()


class ObjectLister:
    """Lists buckets; see `connect_lister`."""

    def __init__(self, client: storage.Client, *, timeout_seconds: float = 60.0) -> None:
        """Take a client, and how long one call is retried."""
        self._client = client
        self._timeout = timeout_seconds
        self._retry: retry.Retry = DEFAULT_RETRY.with_timeout(timeout_seconds)

    def pages(self, bucket: str, prefix: str, *, after: str = "") -> Iterator[Sequence[ImageRef]]:
        """List the live objects with a prefix, up to 1000 at a time, by the bytes of their names.

        Args:
            bucket: the bucket's name.
            prefix: beginning of the names.
            after: the name that a listing before this one ended with.

        Raises:
            NoBucketError: there is no such bucket.
            StorageUnavailableError: Cloud Storage did not answer.
        """
        with _translated():
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
            except NotFound as exc:
                raise NoBucketError(f"There is no bucket gs://{bucket}") from exc


def connect_lister(project: str | None) -> ObjectLister:
    """Connect to Cloud Storage.

    Raises:
        CredentialsError: there are none.
    """
    try:
        return ObjectLister(storage.Client(project=project))
    except (GoogleAuthError, OSError) as exc:  # OSError: no project is known
        raise CredentialsError from exc


def _listed(bucket: str, blob: storage.Blob) -> ImageRef:
    return ImageRef(bucket, blob.name, blob.generation, ObjectMetadata(size=blob.size))


class _BoundedBuffer(io.BytesIO):
    """Memory that refuses to grow past a limit, whatever the object's size was said to be."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes = max_bytes

    def write(self, data: "bytes | bytearray | memoryview", /) -> int:  # type: ignore[override]
        if self.tell() + len(data) > self._max_bytes:
            raise _too_large(self._max_bytes)
        return super().write(data)


def _too_large(max_bytes: int) -> BadImageError:
    return BadImageError(
        ErrorCode.IMAGE_TOO_LARGE, f"The object has more than MAX_IMAGE_BYTES={max_bytes} bytes."
    )


def _metadata(blob: storage.Blob, size: int | None) -> ObjectMetadata:
    return ObjectMetadata(size, blob.content_type, blob.md5_hash, blob.crc32c)


def _merged(event: ObjectMetadata, answer: ObjectMetadata) -> ObjectMetadata:
    """Prefer the event's size and type, as an answer may tell an encoding's, but not its sums."""
    return ObjectMetadata(
        size=answer.size if event.size is None else event.size,
        content_type=event.content_type or answer.content_type,
        md5=answer.md5 or event.md5,
        crc32c=answer.crc32c or event.crc32c,
    )


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the vendor's errors into ours."""
    try:
        yield
    except (NotFound, exceptions.PreconditionFailed) as exc:
        raise ObjectGoneError("Cloud Storage has no such object generation.") from exc
    except (exceptions.Forbidden, exceptions.Unauthorized) as exc:
        raise StorageUnavailableError(
            "Cloud Storage refused access: the service account needs roles/storage.objectViewer "
            "on the bucket."
        ) from exc
    except ContentDecodingError as exc:
        raise BadImageError(
            ErrorCode.CORRUPT_IMAGE, "The object's bytes are not in its Content-Encoding."
        ) from exc
    except (
        exceptions.GoogleAPIError,
        GoogleAuthError,
        DataCorruption,
        RequestException,
        OSError,
    ) as exc:
        raise StorageUnavailableError("Cloud Storage is unavailable.") from exc
