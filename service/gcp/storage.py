"""Downloads exact generations of objects from Cloud Storage."""

import base64
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import google_crc32c
import requests
from google.api_core import exceptions, retry
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from service.deadline import NO_DEADLINE, Deadline
from service.domain import Download, ErrorCode, ImageRef, ObjectMetadata
from service.errors import (
    BadImageError,
    ObjectGoneError,
    StorageRefusedError,
    StorageUnavailableError,
    TooLateError,
    YoloBatchError,
)
from service.gcp.outages import Outages
from service.gcp.refusals import NO_CREDENTIALS, AccessHistory, Refusal, Scope
from service.object_metadata import read_custom, read_custom_headers

# Otherwise the client looks up each bucket in a background thread, for traces that are off. The
# service's role does not allow that (google-cloud-storage 3.17).
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

_METADATA_FIELDS = "generation,size,contentType,md5Hash,crc32c,timeCreated,metadata"
GONE = frozenset({404, 410})
REFUSALS = frozenset({400, 401, 403, 451})  # statuses that a retry does not change
# Permissions on the bucket. To an account without both, Cloud Storage reports a missing object as
# 403 instead of 404.
_PERMISSIONS = ("storage.objects.get", "storage.objects.list")
_MEMORY_SECONDS = 0.1  # how long an open response waits for memory
_MAX_SILENCE_SECONDS = 5.0  # without a byte. Then the request is sent again.
_READ_BYTES = 2**16  # per read, at most
_MAX_JSON_BYTES = 2**16  # largest metadata or error message that is read
_FOR_NOW = "Cloud Storage refuses the object now. A later delivery may succeed."
_NOT_KNOWN = "Cloud Storage does not say whether the object exists."
_YOUR_CREDENTIALS = (
    "Google rejected your credentials, or they have expired: run `gcloud auth "
    "application-default login`"
)


# Reserves this many bytes of memory while its block runs. Waits for them until the deadline.
Buffer = Callable[[int, Deadline], AbstractContextManager[object]]


def _unlimited(count: int, deadline: Deadline) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class _Response:
    headers: Mapping[str, str]  # names are case-insensitive
    body: bytes


class _NoMemoryYetError(Exception):
    """The object is larger than its metadata claims, and the extra memory is not free yet."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.bytes = count


class _Reservation:
    """Memory reserved for one object's bytes while the block runs."""

    def __init__(self, buffer: Buffer, deadline: Deadline) -> None:
        self._buffer = buffer
        self._deadline = deadline
        self._reserved = ExitStack()
        self._bytes = 0

    def cover(self, count: int, deadline: Deadline | None = None) -> None:
        """Reserve at least this many bytes.

        A smaller reservation is released first, because a thread that waits while it holds memory
        could deadlock with others.

        Args:
            count: how many bytes.
            deadline: ends the wait. None: the reservation's own deadline.

        Raises:
            TooLateError: the deadline passed first.
        """
        if count > self._bytes:
            self._reserved.close()
            self._bytes = 0
            self._reserved.enter_context(self._buffer(count, deadline or self._deadline))
            self._bytes = count

    def __enter__(self) -> "_Reservation":
        return self

    def __exit__(self, *error: object) -> None:
        self._reserved.close()


class ImageStorage:
    """Downloads images. Safe to use from many threads.

    It sends its own requests through the client's authorized session, because downloads of
    google-cloud-storage 3.17 have no total timeout (each read of a slow peer gets the whole timeout
    again) and decompress without a limit. Three things remain without a time limit: a DNS lookup,
    a peer that sends a response's headers byte by byte, and the renewal of the access token.
    """

    def __init__(
        self,
        client: storage.Client,
        *,
        timeout_seconds: float,
        max_bytes: int,
        connections: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the client and the limits.

        Args:
            client: the vendor's client.
            timeout_seconds: total time of a call, with all its attempts.
            max_bytes: larger objects raise BadImageError. Counts stored bytes, maybe compressed.
            connections: how many threads will use it at once.
            clock: returns seconds, for the age of refusals.
        """
        widen(client, connections)
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._retry: retry.Retry = DEFAULT_RETRY.with_delay(initial=0.1, maximum=2.0)
        self._max_bytes = max_bytes
        self._outages = Outages()
        self._history = AccessHistory(clock)

    def resolve(self, ref: ImageRef, deadline: Deadline = NO_DEADLINE) -> ImageRef:
        """Return the reference with metadata, and with the live generation if it has none.

        Cloud Storage's metadata replace the event's, which are untrusted.

        Raises:
            BadImageError: Cloud Storage permanently refuses this object.
            ObjectGoneError: the object or its generation does not exist.
            StorageUnavailableError: Cloud Storage did not respond, or refuses the whole bucket.
            TooLateError: the deadline has passed.
        """
        until = self._until(deadline)
        with self._reading(ref, until):
            return self._read_metadata(ref, until)

    def exists(self, ref: ImageRef, deadline: Deadline = NO_DEADLINE) -> bool:
        """Return whether an object exists. Without a generation: whether it has a live one.

        A noncurrent generation exists, but a soft-deleted one does not. Only Cloud Storage's own
        404 means that there is none. With any other response, for example a refusal, it is unknown.

        Raises:
            StorageUnavailableError: it is not known, because Cloud Storage did not respond, or
                refuses the object or the bucket.
            TooLateError: the deadline has passed.
        """
        until = self._until(deadline)
        try:
            with self._reading(ref, until):
                self._read_metadata(ref, until)
        except ObjectGoneError as exc:
            if _is_missing(exc.__cause__):
                return False
            raise StorageUnavailableError(_NOT_KNOWN) from exc
        except BadImageError as exc:
            raise StorageUnavailableError(_NOT_KNOWN) from exc
        return True

    @contextmanager
    def download(
        self, ref: ImageRef, deadline: Deadline = NO_DEADLINE, buffer: Buffer = _unlimited
    ) -> Iterator[Download]:
        """Download the bytes of exactly this generation, as stored.

        The bytes match Cloud Storage's checksum. They are not decompressed.

        Args:
            ref: the object and its generation.
            deadline: ends the download.
            buffer: reserves memory for the object's bytes until the block ends.

        Raises:
            BadImageError: the object is too large, or Cloud Storage permanently refuses it.
            ObjectGoneError: this generation no longer exists.
            StorageUnavailableError: Cloud Storage did not respond in time, sent damaged bytes, or
                refuses the whole bucket.
            TooLateError: the deadline has passed.
        """
        with _Reservation(buffer, deadline) as reservation:
            # Wait for memory before the request, so that the wait does not use up the request's
            # time. The event's size is untrusted, and a job has none: the response's length
            # decides. If that needs more memory than is free, wait for it, and send the request
            # again.
            count = min(ref.metadata.size or 0, self._max_bytes)
            while True:
                reservation.cover(count)
                until = self._until(deadline)
                try:
                    with self._reading(ref, until, is_download=True):
                        response = self._get(
                            _object_path(ref, "/download"),
                            _query(ref, alt="media"),
                            until,
                            reservation,
                        )
                    break
                except _NoMemoryYetError as exc:
                    count = exc.bytes
            headers, checksums = response.headers, _checksums(response)
            custom, is_custom_cut = read_custom_headers(headers)
            if custom is None:  # no header can have a key with characters outside of ASCII
                custom, is_custom_cut = ref.metadata.custom, ref.metadata.is_custom_cut
            metadata = ObjectMetadata(
                size=len(response.body),
                content_type=headers.get("Content-Type"),
                md5=checksums.get("md5"),
                crc32c=checksums["crc32c"],
                created_at=ref.metadata.created_at,  # only `resolve` knows it
                custom=custom,
                is_custom_cut=is_custom_cut,
            )
            yield Download(response.body, metadata, headers.get("Content-Encoding"))

    def _until(self, deadline: Deadline) -> Deadline:
        """Return the deadline of one call: the delivery's, or the call's own if that is earlier."""
        return Deadline.after(deadline.wait_seconds(self._timeout_seconds))

    def _read_metadata(self, ref: ImageRef, until: Deadline) -> ImageRef:
        resource = self._get_json(_object_path(ref), _query(ref, fields=_METADATA_FIELDS), until)
        try:
            generation, size = int(resource["generation"]), int(resource["size"])
        except (KeyError, TypeError, ValueError) as exc:
            raise StorageUnavailableError("Cloud Storage sent invalid metadata.") from exc
        custom, is_custom_cut = read_custom(resource.get("metadata"))
        metadata = ObjectMetadata(
            size,
            resource.get("contentType"),
            resource.get("md5Hash"),
            resource.get("crc32c"),
            created_at=_created_at(resource),
            custom=custom,
            is_custom_cut=is_custom_cut,
        )
        return replace(ref, generation=generation, metadata=metadata)

    @contextmanager
    def _reading(
        self, ref: ImageRef, until: Deadline, *, is_download: bool = False
    ) -> Iterator[None]:
        """Translate the vendor's errors, and find out what a refusal concerns."""
        with translate_errors():
            try:
                yield
            except exceptions.GoogleAPICallError as exc:
                # A 412 can be an organization policy, too.
                if (
                    exc.code not in REFUSALS
                    and read_refusal(exc, ref).scope is not Scope.EVERYTHING
                ):
                    raise
                raise self._refused(ref, exc, until, is_download=is_download) from exc
            except GoogleAuthError as exc:
                self._outages.report(f"gs://{ref.bucket}", NO_CREDENTIALS, str(exc))
                raise StorageRefusedError(NO_CREDENTIALS) from exc
        self._history.note_read(*_request_key(ref, is_download=is_download))
        self._outages.clear(f"gs://{ref.bucket}")

    def _refused(
        self,
        ref: ImageRef,
        error: exceptions.GoogleAPICallError,
        until: Deadline,
        *,
        is_download: bool,
    ) -> YoloBatchError:
        """Return our error for a refusal, after further requests if it is unclear.

        Raises:
            GoogleAPICallError: a further request failed.
        """
        refusal = read_refusal(error, ref)
        has_metadata = False
        if refusal.scope is Scope.UNCLEAR and is_download:
            # A refusal of the metadata states a reason. A refusal of the bytes does not.
            metadata_refusal = self._metadata_refusal(ref, until)
            has_metadata = metadata_refusal is None
            refusal = metadata_refusal or refusal
        scope = refusal.scope
        if scope is Scope.UNCLEAR:
            is_lasting = self._history.note_refusal(*_request_key(ref, is_download=is_download))
            is_readable = has_metadata or self._has_permissions(ref.bucket, until)
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

    def _metadata_refusal(self, ref: ImageRef, until: Deadline) -> Refusal | None:
        """Request an object's metadata. Return the refusal, or None if they are readable."""
        try:
            self._read_metadata(ref, until)
        except exceptions.GoogleAPICallError as exc:
            if exc.code not in REFUSALS:
                raise
            return read_refusal(exc, ref)
        return None

    def _has_permissions(self, bucket: str, until: Deadline) -> bool:
        """Return whether the account may read and list a bucket. Any account may ask this.

        Only a denial is cached, so that a permission that was just removed is noticed.
        """
        if self._history.was_denied_lately(bucket):
            return False
        path = f"/storage/v1/b/{quote(bucket, safe='')}/iam/testPermissions"
        try:
            query = urlencode({"permissions": _PERMISSIONS}, doseq=True)
            granted = self._get_json(path, query, until).get("permissions", ())
        except exceptions.ClientError:
            granted = ()
        if set(granted) >= set(_PERMISSIONS):
            return True
        self._history.note_denial(bucket)
        return False

    def _get_json(self, path: str, query: str, until: Deadline) -> Mapping[str, Any]:
        """Send a GET, and return the JSON object of its response.

        Raises:
            StorageUnavailableError: the response is not a JSON object.
        """
        response = self._get(path, query, until)
        try:
            resource = json.loads(response.body)
        except ValueError:
            resource = None
        if not isinstance(resource, dict):
            raise StorageUnavailableError("Cloud Storage sent no JSON object.")
        return resource

    def _get(
        self, path: str, query: str, until: Deadline, reservation: _Reservation | None = None
    ) -> _Response:
        """Send a GET. Retry it while it fails for a temporary reason.

        Args:
            path: path of the resource, percent-encoded.
            query: its query string.
            until: when the last attempt ends.
            reservation: reserves memory for an object's bytes. None: the response is JSON.

        Raises:
            BadImageError: the object has more than `max_bytes` bytes.
            GoogleAPIError: Cloud Storage refuses the request, or the time is up.
            GoogleAuthError: there is no token for the request.
            RequestException, HTTPError, OSError: the network failed.
        """
        url = f"{self._client._connection.API_BASE_URL}{path}?{query}"
        send = self._retry.with_timeout(max(until.seconds_left(), 0.0))(self._get_once)
        response: _Response = send(url, until, reservation)
        return response

    def _get_once(self, url: str, until: Deadline, reservation: _Reservation | None) -> _Response:
        """Send one GET, and read its body. See `_get`.

        Connecting, waiting for the response and each read of its body may take a third of the time
        that is left, at most 5 s each. So the attempt ends in time, and after a silent peer there
        is time for another attempt.
        """
        seconds_left = until.seconds_left()
        if seconds_left <= 0:
            raise requests.Timeout("no time is left")
        silence_seconds = min(seconds_left / 3, _MAX_SILENCE_SECONDS)
        with self._client._http.get(
            url,
            headers={"Accept-Encoding": "gzip"},  # otherwise Cloud Storage decompresses gzip
            timeout=silence_seconds,
            stream=True,
        ) as response:
            is_media = reservation is not None and response.status_code == 200
            max_bytes = self._max_bytes if is_media else _MAX_JSON_BYTES
            if reservation and is_media:
                length = response.raw.length_remaining
                if (length or 0) > max_bytes:
                    raise BadImageError.too_many_bytes("object", max_bytes)
                count = max_bytes if length is None else length
                try:
                    reservation.cover(count, Deadline.after(_MEMORY_SECONDS))
                except TooLateError as exc:
                    raise _NoMemoryYetError(count) from exc
            body = io.BytesIO()
            chunk = b"first"
            while chunk and body.tell() <= max_bytes:
                if until.seconds_left() < silence_seconds:
                    raise requests.Timeout("the response is too slow")
                # One read of the socket: `read` would wait until it has all these bytes.
                chunk = response.raw.read1(_READ_BYTES, decode_content=not is_media)
                body.write(chunk)
            result = _Response(response.headers, body.getvalue())
        if is_media and len(result.body) > max_bytes:
            raise BadImageError.too_many_bytes("object", max_bytes)
        if response.status_code != 200:
            text = result.body.decode(errors="replace")
            raise exceptions.from_http_status(response.status_code, text)
        if is_media and _crc32c(result.body) != _checksums(result).get("crc32c"):
            raise ConnectionError("The bytes do not match their checksum.")  # causes a retry
        return result


def widen(client: storage.Client, connections: int) -> None:
    """Make a client keep this many connections open. By default, it keeps 10."""
    adapter = HTTPAdapter(pool_connections=connections, pool_maxsize=connections)
    client._http.mount("https://", adapter)
    client._http.mount("http://", adapter)


def _created_at(resource: Mapping[str, Any]) -> datetime | None:
    """Return when a generation was created, or None if the response does not say it."""
    try:
        created_at = datetime.fromisoformat(resource["timeCreated"])
    except (KeyError, TypeError, ValueError):
        return None
    return created_at if created_at.tzinfo else None


def _object_path(ref: ImageRef, prefix: str = "") -> str:
    """Return an object's path in the JSON API, percent-encoded."""
    bucket, name = quote(ref.bucket, safe=""), quote(ref.name, safe="")
    return f"{prefix}/storage/v1/b/{bucket}/o/{name}"


def _query(ref: ImageRef, **parameters: str) -> str:
    generation = {} if ref.generation is None else {"generation": ref.generation}
    return urlencode(generation | parameters)


def _checksums(response: _Response) -> dict[str, str]:
    """Return the checksums of the stored bytes in base64, by name. Composite objects have no md5.

    Source: https://cloud.google.com/storage/docs/xml-api/reference-headers
    """
    items = response.headers.get("X-Goog-Hash", "").split(",")
    return {name.strip(): value for name, _, value in (item.partition("=") for item in items)}


def _crc32c(data: bytes) -> str:
    """Return the checksum in base64, as Cloud Storage sends it."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise the vendor's errors as ObjectGoneError or StorageUnavailableError."""
    try:
        yield
    except exceptions.PreconditionFailed as exc:
        raise ObjectGoneError("Cloud Storage has no such object generation.") from exc
    except (RefreshError, DefaultCredentialsError) as exc:
        raise StorageRefusedError(_YOUR_CREDENTIALS) from exc
    except (
        exceptions.GoogleAPIError,
        GoogleAuthError,
        DataCorruption,
        HTTPError,
        OSError,  # includes the errors of `requests`
    ) as exc:
        if getattr(exc, "code", None) in GONE:
            raise ObjectGoneError("Cloud Storage has no such object generation.") from exc
        raise StorageUnavailableError("Cloud Storage is unavailable.") from exc


def _is_missing(error: BaseException | None) -> bool:
    """Return whether an error is a 404 of Cloud Storage's JSON API, not of a proxy before it.

    Source: https://cloud.google.com/storage/docs/json_api/v1/status-codes
    """
    if not isinstance(error, exceptions.NotFound):
        return False
    try:
        return bool(json.loads(error.message)["error"]["code"] == 404)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _request_key(ref: ImageRef, *, is_download: bool) -> tuple[str, object, object, object]:
    """Return the key of a request: bytes may be refused although metadata are readable."""
    return ref.bucket, ref.name, ref.generation, is_download


def read_refusal(error: exceptions.GoogleAPICallError, ref: ImageRef | None = None) -> Refusal:
    """Return the refusal in an error response. `ref` is the object that it is about, if any."""
    body = getattr(error.response, "text", None) or error.message or ""
    return Refusal.read(error.code or 0, body, ref.name if ref else "")
