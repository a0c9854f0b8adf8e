"""The exact generation's bytes from Cloud Storage, and the names of what a bucket holds."""

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from google.api_core import exceptions, retry
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.cloud import storage  # type: ignore[attr-defined]  # published without types
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter
from requests.exceptions import ContentDecodingError, RequestException

from service.domain import Download, ErrorCode, ImageRef, ObjectMetadata
from service.errors import (
    BadImageError,
    CredentialsError,
    ObjectGoneError,
    StorageRefusedError,
    StorageUnavailableError,
    YoloBatchError,
)
from service.gcp.outages import Outages
from service.gcp.refusals import NO_CREDENTIALS, AccessHistory, Refusal, Scope

# Otherwise the client looks up each bucket in a background thread (for traces that are off), and
# needs a role for it that the service does not have (google-cloud-storage 3.17).
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

_PAGE_SIZE = 1000  # the most that Cloud Storage gives
# What the listing asks for of each object: names are long enough.
_LISTED_FIELDS = "items(name,generation,size,timeCreated),nextPageToken"
_GONE = frozenset({404, 410})
_REFUSALS = frozenset({400, 401, 403, 451})  # an answer that a repetition does not change
# Of the bucket. With both, Cloud Storage tells a missing object from a refused one.
_RIGHTS = ("storage.objects.get", "storage.objects.list")
_NO_RIGHTS_SECONDS = 30.0  # how long a bucket is not asked again for the rights that it denied
_MAX_BUCKETS = 1000  # remembered
_FOR_NOW = "Cloud Storage refuses the object now. A later delivery may succeed."
_YOUR_CREDENTIALS = (
    "Google does not accept your credentials, or they have expired: run `gcloud auth "
    "application-default login`"
)


class NoBucketError(YoloBatchError):
    """The bucket does not exist."""


class ImageStorage:
    """Reads pictures; safe to use from many threads."""

    def __init__(
        self,
        client: storage.Client,
        *,
        timeout_seconds: float,
        max_bytes: int,
        connections: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a client and the limits.

        Args:
            client: the vendor's client.
            timeout_seconds: how long one call is retried, and how long it may be silent.
            max_bytes: larger objects are refused.
            connections: how many threads will call at once.
            clock: seconds, by which refusals grow old.
        """
        _widen(client, connections)
        self._client = client
        self._timeout = timeout_seconds
        self._retry: retry.Retry = DEFAULT_RETRY.with_timeout(timeout_seconds)
        self._max_bytes = max_bytes
        self._outages = Outages()
        self._clock = clock
        self._history = AccessHistory(clock)
        self._no_rights: dict[str, float] = {}  # buckets, and when they denied a right
        self._lock = threading.Lock()

    def resolve(self, ref: ImageRef) -> ImageRef:
        """Complete a reference: the live generation where it names none, and what is known of it.

        Raises:
            BadImageError: Cloud Storage refuses this object for good.
            ObjectGoneError: there is no such object, or not of this generation.
            StorageUnavailableError: Cloud Storage did not answer, or refuses the whole bucket.
        """
        with self._reading(ref):
            blob = self._blob(ref)
            self._read_metadata(blob)
            found = _metadata(blob, blob.size)
            return replace(ref, generation=blob.generation, metadata=_merged(ref.metadata, found))

    def download(self, ref: ImageRef) -> Download:
        """Fetch the bytes of exactly this generation, checked against Cloud Storage's checksum.

        Raises:
            BadImageError: the object is larger than allowed, or not in its Content-Encoding, or
                Cloud Storage refuses it for good.
            ObjectGoneError: this generation no longer exists.
            StorageUnavailableError: Cloud Storage did not answer, its bytes were damaged, or it
                refuses the whole bucket.
        """
        if (ref.metadata.size or 0) > self._max_bytes:
            raise _too_large(self._max_bytes)
        with self._reading(ref, is_download=True):
            blob = self._blob(ref)
            data = self._download_checked(blob)
        return Download(data, _merged(ref.metadata, _metadata(blob, len(data))))

    def _blob(self, ref: ImageRef) -> storage.Blob:
        return self._client.bucket(ref.bucket).blob(ref.name, generation=ref.generation)

    def _read_metadata(self, blob: storage.Blob) -> None:
        blob.reload(timeout=self._timeout, retry=self._retry)

    @contextmanager
    def _reading(self, ref: ImageRef, *, is_download: bool = False) -> Iterator[None]:
        """Turn the vendor's errors into ours, and find out what a refusal concerns."""
        with _translated():
            try:
                yield
            except exceptions.GoogleAPICallError as exc:
                # An organisation's policy is answered 412.
                if exc.code not in _REFUSALS and _refusal(exc, ref).scope is not Scope.EVERYTHING:
                    raise
                raise self._refused(ref, exc, is_download=is_download) from exc
            except GoogleAuthError as exc:
                self._outages.report(f"gs://{ref.bucket}", NO_CREDENTIALS, str(exc))
                raise StorageRefusedError(NO_CREDENTIALS) from exc
        self._history.read(*_request(ref, is_download=is_download))
        self._outages.clear(f"gs://{ref.bucket}")

    def _refused(
        self, ref: ImageRef, error: exceptions.GoogleAPICallError, *, is_download: bool
    ) -> YoloBatchError:
        """Say what a refusal means for this object.

        Raises:
            GoogleAPICallError: further questions to Cloud Storage failed.
        """
        refusal = _refusal(error, ref)
        has_metadata = False
        if refusal.scope is Scope.UNCLEAR and is_download:
            # The metadata's answer has a reason. If they are not refused, the bytes alone are.
            again = self._metadata_refusal(ref)
            has_metadata = again is None
            refusal = again or refusal
        scope = refusal.scope
        if scope is Scope.UNCLEAR:
            is_lasting = self._history.is_lasting(*_request(ref, is_download=is_download))
            is_readable = has_metadata or self._has_rights(ref.bucket)
            if is_lasting and (is_readable or self._history.was_read_lately(ref.bucket)):
                scope = Scope.OBJECT
            elif refusal.is_plain and not is_readable:
                scope = Scope.EVERYTHING
        if scope is Scope.OBJECT:
            sentence = refusal.sentence(has_generation=ref.generation is not None)
            return BadImageError(ErrorCode.UNREADABLE_OBJECT, sentence)
        if scope is not Scope.EVERYTHING:
            return StorageUnavailableError(_FOR_NOW)
        reason = f"{refusal.advice()} ({refusal.code})"
        self._outages.report(f"gs://{ref.bucket}", reason, refusal.text)
        return StorageRefusedError(refusal.advice())

    def _metadata_refusal(self, ref: ImageRef) -> Refusal | None:
        """Ask for an object's metadata; return why they are refused, or None if they are not."""
        try:
            self._read_metadata(self._blob(ref))
        except exceptions.GoogleAPICallError as exc:
            if exc.code not in _REFUSALS:
                raise
            return _refusal(exc, ref)
        return None

    def _has_rights(self, bucket: str) -> bool:
        """Say whether the account may read and list a bucket; asking this needs no right itself.

        Only a denial is remembered: rights that were taken away a moment ago must be seen.
        """
        now = self._clock()
        with self._lock:
            if now - self._no_rights.get(bucket, -_NO_RIGHTS_SECONDS) < _NO_RIGHTS_SECONDS:
                return False
        try:
            granted = self._client.bucket(bucket).test_iam_permissions(
                list(_RIGHTS), timeout=self._timeout, retry=self._retry
            )
        except exceptions.ClientError:
            granted = []
        if set(granted) >= set(_RIGHTS):
            return True
        with self._lock:
            if len(self._no_rights) >= _MAX_BUCKETS:
                self._no_rights.clear()
            self._no_rights[bucket] = now
        return False

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

    def exists(self, ref: ImageRef) -> bool:
        """Say whether an object is there; its generation, if the reference names one.

        Raises:
            StorageUnavailableError: Cloud Storage did not answer, or refuses to say.
        """
        with _translated():
            blob = self._client.bucket(ref.bucket).blob(ref.name, generation=ref.generation)
            try:
                return bool(blob.exists(timeout=self._timeout, retry=self._retry))
            except exceptions.GoogleAPICallError as exc:
                if exc.code in _GONE:
                    return False
                if exc.code not in _REFUSALS:
                    raise
                refusal = _refusal(exc)
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
            except exceptions.GoogleAPICallError as exc:
                if exc.code in _GONE:
                    raise NoBucketError(f"There is no bucket gs://{bucket}") from exc
                if exc.code not in _REFUSALS:
                    raise
                refusal = _refusal(exc)
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
        _widen(client, connections)
        return ObjectLister(client)
    except (GoogleAuthError, OSError) as exc:  # OSError: no project is known
        raise CredentialsError from exc


def _widen(client: storage.Client, connections: int) -> None:
    """Keep so many connections; requests drops those beyond 10 after each use."""
    adapter = HTTPAdapter(pool_connections=connections, pool_maxsize=connections)
    client._http.mount("https://", adapter)
    client._http.mount("http://", adapter)


def _listed(bucket: str, blob: storage.Blob) -> ImageRef:
    metadata = ObjectMetadata(size=blob.size, created_at=blob.time_created)
    return ImageRef(bucket, blob.name, blob.generation, metadata)


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
    except exceptions.PreconditionFailed as exc:
        raise ObjectGoneError("Cloud Storage has no such object generation.") from exc
    except ContentDecodingError as exc:
        raise BadImageError(
            ErrorCode.CORRUPT_IMAGE, "The object's bytes are not in its Content-Encoding."
        ) from exc
    except (RefreshError, DefaultCredentialsError) as exc:
        raise StorageRefusedError(_YOUR_CREDENTIALS) from exc
    except (
        exceptions.GoogleAPIError,
        GoogleAuthError,
        DataCorruption,
        RequestException,
        OSError,
    ) as exc:
        if getattr(exc, "code", None) in _GONE:
            raise ObjectGoneError("Cloud Storage has no such object generation.") from exc
        raise StorageUnavailableError("Cloud Storage is unavailable.") from exc


def _request(ref: ImageRef, *, is_download: bool) -> tuple[str, object, object, object]:
    """Return what is refused or allowed: where metadata can be read, the bytes may be refused."""
    return ref.bucket, ref.name, ref.generation, is_download


def _refusal(error: exceptions.GoogleAPICallError, ref: ImageRef | None = None) -> Refusal:
    """Read what Cloud Storage wrote with an error of an object."""
    body = getattr(error.response, "text", None) or error.message or ""
    return Refusal.read(error.code or 0, body, ref.name if ref else "")
