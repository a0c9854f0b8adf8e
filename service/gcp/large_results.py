"""Results that are larger than a Firestore document may be, for example with hundreds of masks.

With RESULTS_BUCKET, all detections of such a result go to an object there, before the commit. The
document has `detections_uri`, and its `detections` lack the large fields: `polygons` or
`keypoints`. Without RESULTS_BUCKET, the polygons are simplified until the document fits.

The object is JSON, compressed with gzip. Its name is `<document id>-<sha256 of the JSON>.json.gz`.
It is created with ifGenerationMatch=0. So two deliveries with the same detections have the same
object, deliveries with other detections have other objects, and nobody overwrites an object that a
document refers to. An object that no document refers to is removed:

- the object of this delivery, if another one committed its document first, or if the image was
  deleted
- the object of a document that was replaced, after the commit

If it is unknown whether a commit succeeded, the object stays. The next delivery uses it again. All
objects of an image begin with its document's id, so they can be removed together.
"""

import gzip
import hashlib
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from service.deadline import NO_DEADLINE, Deadline
from service.document import detections_of, to_document
from service.domain import SCHEMA, CommittedResult, ImageResult, Task
from service.errors import LargeResultError, StorageRefusedError, YoloBatchError
from service.gcp.document_size import MAX_DOCUMENT_BYTES, document_bytes
from service.gcp.outages import Outages
from service.gcp.refusals import NO_CREDENTIALS, Scope
from service.gcp.storage import REFUSALS, read_refusal, translate_errors

logger = logging.getLogger(__name__)

_NAME = re.compile(r"gs://([^/]+)/(([0-9a-f]{40})-([0-9a-f]{64})\.json\.gz)")
# Tolerances that are tried. The polygons of the model have a tolerance of at most 1 pixel.
_TOLERANCES = [2.0**power for power in range(1, 9)]
_LARGE_FIELDS = {Task.SEGMENT: ("polygons",), Task.POSE: ("keypoints",)}
_ATTEMPTS = 3  # an attempt gets this part of a call's time
_MAX_JSON_BYTES = 2**28  # 256 MiB
_NO_ROLE = (
    "Cloud Storage refuses RESULTS_BUCKET. Grant the service account roles/storage.objectUser on "
    "the bucket."
)
_NO_BUCKET = "The bucket RESULTS_BUCKET does not exist. Create it, or correct the setting."


class LargeResults:
    """Makes results fit into documents. Safe to use from many threads."""

    def __init__(
        self,
        client: storage.Client,
        bucket: str | None,
        *,
        timeout_seconds: float,
        outages: Outages | None = None,
    ) -> None:
        """Take the client and the limits.

        Args:
            client: the vendor's client.
            bucket: RESULTS_BUCKET. None: polygons are simplified instead.
            timeout_seconds: time of one call, with all its attempts.
            outages: logs outages. None: a new object.
        """
        self._client = client
        self._bucket = bucket
        self._timeout_seconds = timeout_seconds
        self._outages = outages or Outages()

    def prepare(self, result: ImageResult, deadline: Deadline = NO_DEADLINE) -> ImageResult:
        """Return the result as its document can have it. Usually, it is unchanged.

        Raises:
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            TooLateError: the deadline has passed.
        """
        fields = _LARGE_FIELDS.get(result.model.task, ()) if result.model else ()
        if not fields or _fits(result):
            return result
        if not self._bucket:
            return _simplified(result) or replace(result, left_out=fields)
        name, data = _encode(result)
        self._create(name, data, deadline)
        return replace(result, left_out=fields, detections_uri=f"gs://{self._bucket}/{name}")

    def settle(
        self, result: ImageResult, committed: CommittedResult, deadline: Deadline = NO_DEADLINE
    ) -> None:
        """Remove the object that a commit made useless. Create the result's own if it is missing.

        A failure is only logged, because the document is committed.

        Args:
            result: the result before `prepare`.
            committed: how the prepared result is recorded.
            deadline: ends the requests.
        """
        own_uri = None if committed.is_superseded else committed.result.detections_uri
        try:
            if own_uri:
                # Another delivery may have created the same object, and removed it again.
                self._create(*_encode(result), deadline)
            if committed.unused_uri:
                self.remove(committed.unused_uri, result.ref.document_id, deadline)
        except YoloBatchError as exc:
            logger.warning(
                "An object of a large result could not be created or removed",
                extra={
                    "uri": result.ref.uri,
                    "unused": committed.unused_uri,
                    "needed": own_uri,
                    "reason": str(exc),
                },
            )

    def remove(self, uri: str, document_id: str, deadline: Deadline = NO_DEADLINE) -> None:
        """Delete an object of this image's detections, if it still exists.

        Raises:
            LargeResultError: the object is not one of this image in RESULTS_BUCKET. Documents are
                untrusted: whoever can change them must not be able to delete other objects.
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            TooLateError: the deadline has passed.
        """
        match = _NAME.fullmatch(uri)
        if not match or match[1] != self._bucket or match[3] != document_id:
            raise LargeResultError(f"{uri} is not an object of {document_id} in RESULTS_BUCKET.")
        with self._requesting(deadline) as (bucket, limits):
            try:
                bucket.blob(match[2]).delete(**limits)
            except exceptions.NotFound:
                return

    def remove_all(self, document_id: str, deadline: Deadline = NO_DEADLINE) -> None:
        """Delete all objects of an image's detections. Without RESULTS_BUCKET, there are none.

        Raises:
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            TooLateError: the deadline has passed.
        """
        if not self._bucket:
            return
        with self._requesting(deadline) as (bucket, limits):
            names = [blob.name for blob in bucket.list_blobs(prefix=f"{document_id}-", **limits)]
        for name in names:
            self.remove(f"gs://{self._bucket}/{name}", document_id, deadline)

    def read(self, document: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return all detections of a document, with all fields.

        Raises:
            LargeResultError: the object is missing, or not the one that was written.
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
        """
        uri = document.get("detections_uri")
        if not uri:
            return list(document.get("detections") or ())
        match = _NAME.fullmatch(str(uri))
        if not match:
            raise LargeResultError(f"{uri} is not the name of an object with detections.")
        with self._requesting(NO_DEADLINE, match[1]) as (bucket, limits):
            try:
                data = bucket.blob(match[2]).download_as_bytes(raw_download=True, **limits)
            except exceptions.NotFound as exc:
                raise LargeResultError(f"{uri} does not exist.") from exc
        return _decode(data, match[4], uri)

    def _create(self, name: str, data: bytes, deadline: Deadline) -> None:
        """Create an object, unless it exists."""
        with self._requesting(deadline) as (bucket, limits):
            try:
                bucket.blob(name).upload_from_string(
                    data, content_type="application/gzip", if_generation_match=0, **limits
                )
            except exceptions.PreconditionFailed as exc:
                if read_refusal(exc).scope is Scope.EVERYTHING:  # a policy refuses with 412, too
                    raise

    @contextmanager
    def _requesting(
        self, deadline: Deadline, bucket: str | None = None
    ) -> Iterator[tuple[storage.Bucket, dict[str, Any]]]:
        """Yield a bucket, and the keyword arguments of a request. Translate the vendor's errors.

        Raises:
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            TooLateError: the deadline has passed.
        """
        seconds = deadline.wait_seconds(self._timeout_seconds)
        limits = {
            "timeout": seconds / _ATTEMPTS,
            "retry": DEFAULT_RETRY.with_delay(initial=0.1, maximum=2.0).with_timeout(seconds),
        }
        name = bucket or self._bucket
        subject = f"gs://{name}"
        with translate_errors():
            try:
                yield self._client.bucket(name), limits
            except exceptions.GoogleAPICallError as exc:
                if not (reason := _advice(exc)):
                    raise
                self._outages.report(subject, reason, str(exc))
                raise StorageRefusedError(reason) from exc
            except GoogleAuthError as exc:
                self._outages.report(subject, NO_CREDENTIALS, str(exc))
                raise StorageRefusedError(NO_CREDENTIALS) from exc
        self._outages.clear(subject)


def _fits(result: ImageResult) -> bool:
    numbers = sum(len(ring.points) for item in result.detections for ring in item.polygons)
    if 8 * numbers > MAX_DOCUMENT_BYTES:  # most large results, without building the document
        return False
    return document_bytes(to_document(result)) <= MAX_DOCUMENT_BYTES


def _simplified(result: ImageResult) -> ImageResult | None:
    """Return the result with simpler polygons, or None if no tolerance makes the document fit."""
    from service.images.polygons import simplify  # commands need no OpenCV

    for tolerance in _TOLERANCES:
        detections = []
        for item in result.detections:
            rings = [simplify(polygon, tolerance) for polygon in item.polygons]
            detections.append(replace(item, polygons=tuple(ring for ring in rings if ring)))
        candidate = replace(result, detections=tuple(detections), simplified_pixels=tolerance)
        if any(item.polygons for item in detections) and _fits(candidate):
            return candidate
    return None


def _encode(result: ImageResult) -> tuple[str, bytes]:
    """Return the name and the bytes of the object with all detections of a result."""
    ref = result.ref
    content = {
        "schema": SCHEMA,
        "uri": ref.uri,
        "generation": ref.generation,
        "detections": detections_of(result),
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    name = f"{ref.document_id}-{hashlib.sha256(text).hexdigest()}.json.gz"
    return name, gzip.compress(text, 6, mtime=0)


def _decode(data: bytes, sha256: str, uri: str) -> list[dict[str, Any]]:
    """Return the detections in an object's bytes.

    Raises:
        LargeResultError: the bytes are not those that were written.
    """
    try:
        text = zlib.decompressobj(wbits=31).decompress(data, _MAX_JSON_BYTES)  # 31: gzip
    except zlib.error:
        text = b""
    if hashlib.sha256(text).hexdigest() != sha256:
        raise LargeResultError(f"{uri} is damaged: its name does not match its content.")
    detections: list[dict[str, Any]] = json.loads(text)["detections"]
    return detections


def _advice(error: exceptions.GoogleAPICallError) -> str | None:
    """Return why everything is refused and what to do, or None for another error."""
    if error.code == 404:
        return _NO_BUCKET
    refusal = read_refusal(error)
    if refusal.scope is Scope.TEMPORARY or (
        error.code not in REFUSALS and refusal.scope is not Scope.EVERYTHING
    ):
        return None
    return _NO_ROLE if refusal.is_plain else refusal.advice()
