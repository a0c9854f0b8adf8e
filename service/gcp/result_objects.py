"""The objects in RESULTS_BUCKET that belong to an image's document.

The name of each object begins with its document's id, and contains a hash of its content. It is
created with ifGenerationMatch=0. So two deliveries with the same content have the same object,
deliveries with other content have other objects, and nobody overwrites an object that a document
refers to. All objects of a document can be removed together.

Each object has a marker in its metadata. The service ignores objects with this marker, so that the
objects of one deployment are never the images of another.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from service.deadline import NO_DEADLINE, Deadline
from service.domain import ResultObject
from service.errors import ResultObjectError, StorageRefusedError, StorageUnavailableError
from service.gcp.outages import Outages
from service.gcp.refusals import NO_CREDENTIALS, Scope
from service.gcp.storage import REFUSALS, read_refusal, translate_errors, widen
from service.object_metadata import RESULT_MARKER

_URI = re.compile(r"gs://([^/]+)/(([0-9a-f]{40})-[0-9a-z.-]{1,200})")
_ATTEMPTS = 3  # an attempt gets this part of a call's time
_NO_ROLE = (
    "Cloud Storage refuses RESULTS_BUCKET. Grant the service account roles/storage.objectUser on "
    "the bucket."
)
_NO_BUCKET = "The bucket RESULTS_BUCKET does not exist. Create it, or correct the setting."


class ResultObjects:
    """Creates, reads and removes objects. Safe to use from many threads."""

    def __init__(
        self,
        client: storage.Client,
        bucket: str | None,
        *,
        timeout_seconds: float,
        connections: int = 10,
        outages: Outages | None = None,
    ) -> None:
        """Take the client and the limits.

        Args:
            client: the vendor's client.
            bucket: RESULTS_BUCKET. None: there is none, and nothing can be created.
            timeout_seconds: time of one call, with all its attempts.
            connections: how many threads will use it at once.
            outages: logs outages. None: a new object.
        """
        widen(client, connections)
        self._client = client
        self.bucket = bucket
        self._timeout_seconds = timeout_seconds
        self._outages = outages or Outages()

    def uri(self, name: str) -> str:
        """Return the URI of the object with a name."""
        return f"gs://{self.bucket}/{name}"

    def create(self, content: ResultObject, deadline: Deadline = NO_DEADLINE) -> bool:
        """Create an object, unless it exists. Return whether it is new.

        An object that this call created can count as existing: if the response was lost, the
        request is repeated.

        Raises:
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            TooLateError: the deadline has passed.
        """
        with self._requesting(deadline) as (bucket, limits):
            blob = bucket.blob(content.name)
            blob.metadata = {RESULT_MARKER: "true"}
            try:
                blob.upload_from_string(
                    content.data,
                    content_type=content.content_type,
                    if_generation_match=0,
                    **limits,
                )
            except exceptions.PreconditionFailed as exc:
                if read_refusal(exc).scope is Scope.EVERYTHING:  # a policy refuses with 412, too
                    raise
                return False
        return True

    def read(self, uri: str) -> bytes:
        """Return an object's bytes.

        Raises:
            ResultObjectError: this is not the name of such an object, or it does not exist.
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
        """
        match = _URI.fullmatch(uri)
        if not match:
            raise ResultObjectError(f"{uri} is not the name of an object in RESULTS_BUCKET.")
        with self._requesting(NO_DEADLINE, match[1]) as (bucket, limits):
            try:
                data: bytes = bucket.blob(match[2]).download_as_bytes(raw_download=True, **limits)
            except exceptions.NotFound as exc:
                raise ResultObjectError(f"{uri} does not exist.") from exc
        return data

    def remove(self, uri: str, document_id: str, deadline: Deadline = NO_DEADLINE) -> None:
        """Delete an object of this document, if it still exists.

        Raises:
            ResultObjectError: the object is not one of this document in RESULTS_BUCKET. Documents
                are untrusted: whoever can change them must not be able to delete other objects.
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            TooLateError: the deadline has passed.
        """
        match = _URI.fullmatch(uri)
        if not match or match[1] != self.bucket or match[3] != document_id:
            raise ResultObjectError(f"{uri} is not an object of {document_id} in RESULTS_BUCKET.")
        with self._requesting(deadline) as (bucket, limits):
            try:
                bucket.blob(match[2]).delete(**limits)
            except exceptions.NotFound:
                return

    def remove_all(self, document_id: str, deadline: Deadline = NO_DEADLINE) -> None:
        """Delete all objects of a document. Without RESULTS_BUCKET, there are none.

        Raises:
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            TooLateError: the deadline has passed.
        """
        if not self.bucket:
            return
        with self._requesting(deadline) as (bucket, limits):
            names = [blob.name for blob in bucket.list_blobs(prefix=f"{document_id}-", **limits)]
        for name in names:
            self.remove(self.uri(name), document_id, deadline)

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
        name = bucket or self.bucket
        subject = f"gs://{name}"
        with translate_errors():
            try:
                yield self._client.bucket(name), limits
            except exceptions.GoogleAPICallError as exc:
                if (
                    exc.code == 410
                ):  # the session of a large upload ended. It is not about an image.
                    raise StorageUnavailableError("Cloud Storage ended an upload.") from exc
                if not (reason := _advice(exc)):
                    raise
                self._outages.report(subject, reason, str(exc))
                raise StorageRefusedError(reason) from exc
            except GoogleAuthError as exc:
                self._outages.report(subject, NO_CREDENTIALS, str(exc))
                raise StorageRefusedError(NO_CREDENTIALS) from exc
        self._outages.clear(subject)


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
