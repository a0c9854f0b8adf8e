"""The use case: one image, from the request that names it to its final record.

    slot → known already? → download → decode → inference → commit → outcome

`handle` returns only when the image has its final record, or needs none. Whatever it raises means
that the message must be delivered again, and that this is safe.
"""

import logging
import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from service.concurrency.semaphore import FairSemaphore
from service.concurrency.slots import Slots
from service.deadline import Deadline
from service.domain import (
    Detection,
    Download,
    Event,
    Failure,
    ImageRef,
    ImageResult,
    Outcome,
    Timings,
)
from service.errors import (
    BadImageError,
    DocumentKeptError,
    ObjectGoneError,
    OtherModelError,
)
from service.health import Health
from service.images.letterbox import enlarge_box
from service.images.pixels import DecodedImage
from service.inference.model import Model
from service.recorder import Recorder

logger = logging.getLogger(__name__)

# Recorded if Cloud Storage refuses to report the generation. No object has generation 0.
_NO_GENERATION = 0
_CLOSE_SECONDS = 8.0
# Pub/Sub's shortest back-off, unless a subscription sets another one:
# https://cloud.google.com/pubsub/docs/handling-failures#exponential_backoff
_BACK_OFF = timedelta(seconds=10)


class Storage(Protocol):
    """Where images come from; see `service.gcp.storage.ImageStorage`."""

    def resolve(self, ref: ImageRef, deadline: Deadline) -> ImageRef:
        """Complete a reference: the live generation where it names none, and its metadata."""

    def download(
        self,
        ref: ImageRef,
        deadline: Deadline,
        buffer: Callable[[int, Deadline], AbstractContextManager[None]],
    ) -> AbstractContextManager[Download]:
        """Fetch exactly this generation; `buffer` counts its bytes until the block ends."""


class Decoders(Protocol):
    """Where files become pixels; see `service.images.decoders.Decoders`."""

    def decode(
        self, data: bytes, *, image_size: int, content_encoding: str | None, deadline: Deadline
    ) -> DecodedImage:
        """Decode a file to upright pixels no larger than the model sees."""

    def close(self) -> None:
        """End the decoder processes."""


@dataclass(frozen=True)
class PipelineOptions:
    """Limits of the pipeline; see `service.settings.Settings` for the meaning of each."""

    max_in_flight: int = 32
    max_buffered_bytes: int = 112 * 2**20
    allowed_buckets: tuple[str, ...] = ()


class Pipeline:
    """Handles one image a request; safe to call from many threads."""

    def __init__(
        self,
        storage: Storage,
        decoders: Decoders,
        model: Model,
        recorder: Recorder,
        health: Health,
        options: PipelineOptions | None = None,
    ) -> None:
        """Take the parts.

        Args:
            storage: where images come from.
            decoders: files to pixels.
            model: pixels to detections.
            recorder: results to documents.
            health: watches the work in flight.
            options: limits.
        """
        self._options = options or PipelineOptions()
        self._storage = storage
        self._decoders = decoders
        self._model = model
        self._recorder = recorder
        self._health = health
        self._slots = Slots(
            self._options.max_in_flight, jobs=max(1, self._options.max_in_flight // 2)
        )
        self._buffered = FairSemaphore(self._options.max_buffered_bytes)

    def handle(self, event: Event, deadline: Deadline) -> Outcome:
        """Bring the image of a request to its final record.

        Args:
            event: what the request names.
            deadline: of the delivery; every wait ends with it.

        Raises:
            NoFreeSlotError: too many images are in flight.
            TransientError: the image has no final record yet.
            DetectorError: the model failed on this image.
        """
        outcome = self._handle(event, deadline)
        self._recorder.count(outcome)
        return outcome

    def stop(self) -> None:
        """Admit nothing new; what is in flight goes on. Safe to call from a signal handler."""
        self._slots.stop()

    def close(self, *, timeout_seconds: float = _CLOSE_SECONDS) -> None:
        """Stop, and wait for what is in flight, but no longer than this."""
        until = Deadline.after(timeout_seconds)
        self.stop()
        self._model.close(timeout_seconds=max(0.0, until.seconds_left()))
        self._recorder.close(timeout_seconds=max(0.0, until.seconds_left()))
        self._decoders.close()

    def status(self) -> tuple[str, str | None]:
        """Return `ready`, `stopping` or `failed`, and why the process should be replaced."""
        if fault := self._health.probe():
            return "failed", fault
        return "stopping" if self._slots.is_stopped else "ready", None

    def _handle(self, event: Event, deadline: Deadline) -> Outcome:
        ref = event.ref
        if ref is None or ref.is_ignorable:
            logger.info("Ignored a request", extra={"reason": event.ignored or "not an image"})
            return Outcome.IGNORED
        if self._options.allowed_buckets and ref.bucket not in self._options.allowed_buckets:
            logger.warning(
                "Refused an image of a bucket that is not in ALLOWED_BUCKETS",
                extra={"uri": ref.uri},
            )
            return Outcome.REFUSED
        try:
            with self._slots.take(is_job=event.is_job), self._health.work():
                return self._process(ref, event, deadline)
        except DocumentKeptError as exc:
            logger.warning(
                "A replacement failed for a reason outside the image: its done document is kept",
                extra={"uri": ref.uri, "generation": ref.generation, "reason": str(exc)},
            )
            return Outcome.ALREADY_RECORDED
        except ObjectGoneError:
            logger.warning(
                "An image is gone: deleted or overwritten before it was read, or it never existed",
                extra={
                    "uri": ref.uri,
                    "generation": ref.generation,
                    "look": f"gcloud storage ls --all-versions {shlex.quote(ref.uri)}",
                },
            )
            return Outcome.GONE

    def _process(self, ref: ImageRef, event: Event, deadline: Deadline) -> Outcome:
        _check_model(ref, self._model.info.sha256)
        failure = None
        if ref.generation is None:
            try:
                ref = self._storage.resolve(ref, deadline)
            except BadImageError as exc:
                ref = replace(ref, generation=_NO_GENERATION)
                failure = Failure(exc.code, exc.message)
        if not _is_first_delivery(event) and self._recorder.is_final(ref, deadline):
            return Outcome.ALREADY_RECORDED
        result = ImageResult(ref, failure=failure) if failure else self._detect(ref, deadline)
        return self._recorder.record(replace(result, event_time=event.event_time), deadline)

    def _detect(self, ref: ImageRef, deadline: Deadline) -> ImageResult:
        """Download, decode and detect. A file that can never be detected is a failed result."""
        started = time.monotonic()
        downloaded = math.inf
        try:
            with self._storage.download(ref, deadline, self._buffered.acquire) as download:
                ref = replace(ref, metadata=download.metadata)
                downloaded = time.monotonic()
                with self._health.decoder_call(ref.document_id):
                    picture = self._decoders.decode(
                        download.data,
                        image_size=self._model.info.image_size,
                        content_encoding=download.content_encoding,
                        deadline=deadline,
                    )
                del download  # not to be kept while the pixels wait for the model
        except BadImageError as exc:
            # The times also tell the store that a document is this delivery's own.
            failure = Failure(exc.code, exc.message)
            return ImageResult(ref, failure=failure, timings=_timings(started, downloaded))
        timings = _timings(started, downloaded)
        inferred = self._model.infer(picture.pixels, ref.document_id, deadline)
        return ImageResult(
            ref,
            image_info=picture.info,
            model=self._model.info,
            detections=_enlarged(inferred.result, picture),
            batch_size=inferred.batch_size,
            timings=replace(
                timings,
                queue_ms=round(inferred.queue_ms, 1),
                inference_ms=round(inferred.inference_ms, 1),
            ),
        )


def _check_model(ref: ImageRef, sha256: str) -> None:
    """Refuse a replacement by another model: another revision of the service may run it.

    Raises:
        OtherModelError: this service runs another one.
    """
    if ref.replace and ref.replace.unless_model not in (None, sha256):
        raise OtherModelError("The message asks for another model than this service runs.")


def _is_first_delivery(event: Event) -> bool:
    """Return whether an upload is most likely delivered for the first time, so has no document.

    Eventarc reports no attempts: there, an event younger than any back-off is taken for the first.
    A wrong guess costs an inference only: the commit never replaces a document.
    """
    if event.is_job:
        return False
    if event.delivery_attempt is not None:
        return event.delivery_attempt == 1
    return event.event_time is not None and datetime.now(UTC) - event.event_time < _BACK_OFF


def _timings(started: float, downloaded: float) -> Timings:
    """Return the times of a download and a decode that ended now; one that failed took all."""
    now = time.monotonic()
    downloaded = min(downloaded, now)
    return Timings(
        download_ms=round((downloaded - started) * 1000, 1),
        decode_ms=round((now - downloaded) * 1000, 1),
    )


def _enlarged(detections: Sequence[Detection], picture: DecodedImage) -> tuple[Detection, ...]:
    """Take boxes from the decoded pixels to the full image's."""
    height, width = picture.pixels.shape[:2]
    full = (picture.info.width, picture.info.height)
    return tuple(
        replace(found, box=enlarge_box(found.box, small=(width, height), full=full))
        for found in detections
    )
