"""The exact generation's bytes from Cloud Storage, and the names of what a bucket holds."""

import base64
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
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

# Otherwise the client looks up each bucket in a background thread (for traces that are off), and
# needs a role for it that the service does not have (google-cloud-storage 3.17).
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

_METADATA_FIELDS = "generation,size,contentType,md5Hash,crc32c"
GONE = frozenset({404, 410})
REFUSALS = frozenset({400, 401, 403, 451})  # an answer that a repetition does not change
# Of the bucket. With both, Cloud Storage tells a missing object from a refused one.
_RIGHTS = ("storage.objects.get", "storage.objects.list")
_MEMORY_SECONDS = 0.1  # that a response waits for memory
_MAX_SILENCE_SECONDS = 5.0  # of a peer, before the request is sent again
_READ_BYTES = 2**16  # at a time, at most
_MAX_JSON_BYTES = 2**16  # of metadata, or of a message of error
_FOR_NOW = "Cloud Storage refuses the object now. A later delivery may succeed."
_YOUR_CREDENTIALS = (
    "Google does not accept your credentials, or they have expired: run `gcloud auth "
    "application-default login`"
)


# Holds so many bytes while its block lasts; ends its wait with the deadline.
Buffer = Callable[[int, Deadline], AbstractContextManager[None]]


def _unlimited(count: int, deadline: Deadline) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class _Response:
    headers: Mapping[str, str]  # by name, whatever its case
    body: bytes


class _NoMemoryYetError(Exception):
    """The object is larger than its event says, and there is no memory for it at once."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.bytes = count


class _Reservation:
    """Memory for one object's bytes, held while the block lasts."""

    def __init__(self, buffer: Buffer, deadline: Deadline) -> None:
        self._buffer = buffer
        self._deadline = deadline
        self._held = ExitStack()
        self._bytes = 0

    def cover(self, count: int, deadline: Deadline | None = None) -> None:
        """Hold at least so many bytes; what was held before is released first, to wait in line.

        Raises:
            TooLateError: the deadline, or the reservation's own, passed first.
        """
        if count > self._bytes:
            self._held.close()
            self._bytes = 0
            self._held.enter_context(self._buffer(count, deadline or self._deadline))
            self._bytes = count

    def __enter__(self) -> "_Reservation":
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()


class ImageStorage:
    """Reads images; safe to use from many threads.

    It sends its own requests through the client's authorized session. The client's downloads have
    no total time: each read of a slow peer gets the whole timeout again, and they decompress
    without a limit (google-cloud-storage 3.17). Not bounded: looking up the host's name, a peer
    that sends the head of a response byte by byte, and a token that the credentials renew.
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
        """Take a client and the limits.

        Args:
            client: the vendor's client.
            timeout_seconds: total time of a call, with all its attempts.
            max_bytes: larger objects are refused. Counted as they are stored.
            connections: how many threads will call at once.
            clock: seconds, by which refusals grow old.
        """
        widen(client, connections)
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._retry: retry.Retry = DEFAULT_RETRY.with_delay(initial=0.1, maximum=2.0)
        self._max_bytes = max_bytes
        self._outages = Outages()
        self._history = AccessHistory(clock)

    def resolve(self, ref: ImageRef, deadline: Deadline = NO_DEADLINE) -> ImageRef:
        """Complete a reference: the live generation where it names none, and its metadata.

        Nothing of the event's untrusted metadata is kept.

        Raises:
            BadImageError: Cloud Storage refuses this object for good.
            ObjectGoneError: there is no such object, or not of this generation.
            StorageUnavailableError: Cloud Storage did not answer, or refuses the whole bucket.
            TooLateError: the deadline has passed.
        """
        until = self._until(deadline)
        with self._reading(ref, until):
            return self._read_metadata(ref, until)

    @contextmanager
    def download(
        self, ref: ImageRef, deadline: Deadline = NO_DEADLINE, buffer: Buffer = _unlimited
    ) -> Iterator[Download]:
        """Fetch the bytes of exactly this generation, as they are stored.

        They are checked against Cloud Storage's checksum, and not decompressed.

        Args:
            ref: names the object and its generation.
            deadline: ends the download.
            buffer: holds as many bytes as the object has, until the block ends.

        Raises:
            BadImageError: the object is larger than allowed, or Cloud Storage refuses it for good.
            ObjectGoneError: this generation no longer exists.
            StorageUnavailableError: Cloud Storage did not answer in time, its bytes were damaged,
                or it refuses the whole bucket.
            TooLateError: the deadline has passed.
        """
        with _Reservation(buffer, deadline) as reservation:
            # Before the request, so that waiting for memory is not taken for a slow peer. What the
            # event says of the size is not trusted: the response's own length decides. A job says
            # nothing: where there is no memory at once, the request is sent again after the wait.
            count = min(ref.metadata.size or 0, self._max_bytes)
            while True:
                reservation.cover(count)
                until = self._until(deadline)
                try:
                    with self._reading(ref, until, is_download=True):
                        response = self._get(
                            _object(ref, "/download"), _query(ref, alt="media"), until, reservation
                        )
                    break
                except _NoMemoryYetError as exc:
                    count = exc.bytes
            headers, sums = response.headers, _checksums(response)
            metadata = ObjectMetadata(
                len(response.body), headers.get("Content-Type"), sums.get("md5"), sums["crc32c"]
            )
            yield Download(response.body, metadata, headers.get("Content-Encoding"))

    def _until(self, deadline: Deadline) -> Deadline:
        """Return when a call ends: with the delivery, or after its own time."""
        return Deadline.after(deadline.wait_seconds(self._timeout_seconds))

    def _read_metadata(self, ref: ImageRef, until: Deadline) -> ImageRef:
        found = self._get_json(_object(ref), _query(ref, fields=_METADATA_FIELDS), until)
        try:
            generation, size = int(found["generation"]), int(found["size"])
        except (KeyError, TypeError, ValueError) as exc:
            raise StorageUnavailableError("Cloud Storage sent metadata without a size.") from exc
        metadata = ObjectMetadata(
            size, found.get("contentType"), found.get("md5Hash"), found.get("crc32c")
        )
        return replace(ref, generation=generation, metadata=metadata)

    @contextmanager
    def _reading(
        self, ref: ImageRef, until: Deadline, *, is_download: bool = False
    ) -> Iterator[None]:
        """Turn the vendor's errors into ours, and find out what a refusal concerns."""
        with translate_errors():
            try:
                yield
            except exceptions.GoogleAPICallError as exc:
                # An organisation's policy is answered 412.
                if (
                    exc.code not in REFUSALS
                    and read_refusal(exc, ref).scope is not Scope.EVERYTHING
                ):
                    raise
                raise self._refused(ref, exc, until, is_download=is_download) from exc
            except GoogleAuthError as exc:
                self._outages.report(f"gs://{ref.bucket}", NO_CREDENTIALS, str(exc))
                raise StorageRefusedError(NO_CREDENTIALS) from exc
        self._history.read(*_request(ref, is_download=is_download))
        self._outages.clear(f"gs://{ref.bucket}")

    def _refused(
        self,
        ref: ImageRef,
        error: exceptions.GoogleAPICallError,
        until: Deadline,
        *,
        is_download: bool,
    ) -> YoloBatchError:
        """Say what a refusal means for this object.

        Raises:
            GoogleAPICallError: further questions to Cloud Storage failed.
        """
        refusal = read_refusal(error, ref)
        has_metadata = False
        if refusal.scope is Scope.UNCLEAR and is_download:
            # The metadata's answer has a reason. If they are not refused, the bytes alone are.
            again = self._metadata_refusal(ref, until)
            has_metadata = again is None
            refusal = again or refusal
        scope = refusal.scope
        if scope is Scope.UNCLEAR:
            is_lasting = self._history.is_lasting(*_request(ref, is_download=is_download))
            is_readable = has_metadata or self._has_rights(ref.bucket, until)
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
        """Ask for an object's metadata; return why they are refused, or None if they are not."""
        try:
            self._read_metadata(ref, until)
        except exceptions.GoogleAPICallError as exc:
            if exc.code not in REFUSALS:
                raise
            return read_refusal(exc, ref)
        return None

    def _has_rights(self, bucket: str, until: Deadline) -> bool:
        """Say whether the account may read and list a bucket; asking this needs no right itself.

        Only a denial is remembered: rights that were taken away a moment ago must be seen.
        """
        if self._history.was_denied_lately(bucket):
            return False
        path = f"/storage/v1/b/{quote(bucket, safe='')}/iam/testPermissions"
        try:
            answer = self._get_json(path, urlencode({"permissions": _RIGHTS}, doseq=True), until)
        except exceptions.ClientError:
            answer = {}
        if set(answer.get("permissions", ())) >= set(_RIGHTS):
            return True
        self._history.deny(bucket)
        return False

    def _get_json(self, path: str, query: str, until: Deadline) -> Mapping[str, Any]:
        """Fetch a resource's metadata.

        Raises:
            StorageUnavailableError: what came is no JSON object.
        """
        response = self._get(path, query, until)
        try:
            found = json.loads(response.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StorageUnavailableError("Cloud Storage sent no JSON object.")
        return found

    def _get(
        self, path: str, query: str, until: Deadline, media: "_Reservation | None" = None
    ) -> _Response:
        """Send a GET, and again while it fails for a reason that may pass.

        Args:
            path: of the resource, percent-encoded.
            query: its parameters.
            until: when the last attempt ends.
            media: of memory, if the response is an object's bytes, which have a checksum.

        Raises:
            BadImageError: the body is larger than an image may be.
            GoogleAPIError: Cloud Storage refuses the request, or time was up.
            GoogleAuthError: there is no token for the request.
            RequestException, HTTPError, OSError: the network failed.
        """
        url = f"{self._client._connection.API_BASE_URL}{path}?{query}"
        send = self._retry.with_timeout(max(until.seconds_left(), 0.0))(self._get_once)
        response: _Response = send(url, until, media)
        return response

    def _get_once(self, url: str, until: Deadline, media: "_Reservation | None") -> _Response:
        """Send a GET, and read its body until `until` at most; see `_get`.

        Connecting, waiting for the response, and each read of its body may take a third of the
        time that is left. So it ends in time, and a silent peer leaves time for another attempt.
        """
        left = until.seconds_left()
        if left <= 0:
            raise requests.Timeout("no time is left")
        silence_seconds = min(left / 3, _MAX_SILENCE_SECONDS)
        with self._client._http.get(
            url,
            headers={"Accept-Encoding": "gzip"},  # else what is stored as gzip is decompressed
            timeout=silence_seconds,
            stream=True,
        ) as response:
            is_media = media is not None and response.status_code == 200
            max_bytes = self._max_bytes if is_media else _MAX_JSON_BYTES
            if media and is_media:
                length = response.raw.length_remaining
                if (length or 0) > max_bytes:
                    raise BadImageError.too_many_bytes("object", max_bytes)
                count = max_bytes if length is None else length
                try:
                    media.cover(count, Deadline.after(_MEMORY_SECONDS))
                except TooLateError as exc:
                    raise _NoMemoryYetError(count) from exc
            body = io.BytesIO()
            chunk = b"first"
            while chunk and body.tell() <= max_bytes:
                if until.seconds_left() < silence_seconds:
                    raise requests.Timeout("the response comes too slowly")
                # One read of the socket: `read` would wait until it has so many bytes.
                chunk = response.raw.read1(_READ_BYTES, decode_content=not is_media)
                body.write(chunk)
            found = _Response(response.headers, body.getvalue())
        if is_media and len(found.body) > max_bytes:
            raise BadImageError.too_many_bytes("object", max_bytes)
        if response.status_code != 200:
            text = found.body.decode(errors="replace")
            raise exceptions.from_http_status(response.status_code, text)
        if is_media and _crc32c(found.body) != _checksums(found).get("crc32c"):
            raise ConnectionError("The bytes do not have their checksum.")  # it is tried again
        return found


def widen(client: storage.Client, connections: int) -> None:
    """Keep so many connections; requests drops those beyond 10 after each use."""
    adapter = HTTPAdapter(pool_connections=connections, pool_maxsize=connections)
    client._http.mount("https://", adapter)
    client._http.mount("http://", adapter)


def _object(ref: ImageRef, prefix: str = "") -> str:
    """Return the path of an object in the JSON API."""
    bucket, name = quote(ref.bucket, safe=""), quote(ref.name, safe="")
    return f"{prefix}/storage/v1/b/{bucket}/o/{name}"


def _query(ref: ImageRef, **parameters: str) -> str:
    generation = {} if ref.generation is None else {"generation": ref.generation}
    return urlencode(generation | parameters)


def _checksums(response: _Response) -> dict[str, str]:
    """Return the checksums of the stored bytes by name, in base64.

    Composite objects have no md5. https://cloud.google.com/storage/docs/xml-api/reference-headers
    """
    sums = response.headers.get("X-Goog-Hash", "").split(",")
    return {name.strip(): value for name, _, value in (item.partition("=") for item in sums)}


def _crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn the vendor's errors into ours."""
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
        OSError,  # and what `requests` raises
    ) as exc:
        if getattr(exc, "code", None) in GONE:
            raise ObjectGoneError("Cloud Storage has no such object generation.") from exc
        raise StorageUnavailableError("Cloud Storage is unavailable.") from exc


def _request(ref: ImageRef, *, is_download: bool) -> tuple[str, object, object, object]:
    """Return what is refused or allowed: where metadata can be read, the bytes may be refused."""
    return ref.bucket, ref.name, ref.generation, is_download


def read_refusal(error: exceptions.GoogleAPICallError, ref: ImageRef | None = None) -> Refusal:
    """Read what Cloud Storage wrote with an error of an object."""
    body = getattr(error.response, "text", None) or error.message or ""
    return Refusal.read(error.code or 0, body, ref.name if ref else "")
