"""The use case: one image, from the request that names it to its final document.

    slot → source → has a document? → daily limit → download → decode → inference → derived images
        → upload → commit → outcome

The deletion of an image takes a slot too. Then `service.deletion` removes its document. `detect`
and `detect_bytes` end before the commit: they return the result to the caller.

`handle` returns when the image has its final document, is parked, or needs no document. If it
raises, the message must be redelivered, which is safe.
"""

import hashlib
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

from service.capture import day_of, with_capture
from service.concurrency.semaphore import FairSemaphore
from service.concurrency.slots import Slots
from service.daily_limit import DailyLimit
from service.deadline import Deadline
from service.deletion import Deletion
from service.derived import LARGEST_OPTIONS, DeriveOptions
from service.domain import (
    Alert,
    DerivedImage,
    Download,
    Event,
    Failure,
    ImageRef,
    ImageResult,
    ObjectMetadata,
    Outcome,
    Task,
    Timings,
)
from service.errors import (
    BadImageError,
    DocumentKeptError,
    NotAnImageError,
    ObjectGoneError,
    OtherModelError,
)
from service.evaluation import evaluate
from service.health import Health
from service.images.pixels import DecodedImage
from service.inference.model import Model
from service.object_metadata import is_marked
from service.publish.after_commit import AfterCommit
from service.recorder import Recorder
from service.settings import Settings
from service.sources.current import SourceSettings
from service.sources.rules import AlertRules, Rules

if TYPE_CHECKING:
    from service.images.derive import DerivePlan

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

# Recorded if Cloud Storage refuses to report the generation. No object has generation 0.
_NO_GENERATION = 0
_KEPT_RESULT = "a deletion: the settings keep the result"
_MARKED = "an object that the service made, by its metadata"
_CLOSE_SECONDS = 8.0
# Pub/Sub's default for the minimum back-off:
# https://cloud.google.com/pubsub/docs/handling-failures#exponential_backoff
_BACK_OFF = timedelta(seconds=10)
_NO_OBJECT = ImageRef("", "", _NO_GENERATION)  # an image that is not in Cloud Storage


class Storage(Protocol):
    """Where images are downloaded from. `service.gcp.storage.ImageStorage` implements it."""

    def resolve(self, ref: ImageRef, deadline: Deadline) -> ImageRef:
        """Return the reference with metadata, and with the live generation if it has none."""

    def download(
        self,
        ref: ImageRef,
        deadline: Deadline,
        buffer: Callable[[int, Deadline], AbstractContextManager[object]],
    ) -> AbstractContextManager[Download]:
        """Download exactly this generation. `buffer` reserves memory for its bytes meanwhile."""


class Decoders(Protocol):
    """Decodes files to pixels. `service.images.decoders.Decoders` implements it."""

    def decode(
        self,
        data: bytes,
        *,
        image_size: int,
        crop: bool,
        content_encoding: str | None,
        deadline: Deadline,
    ) -> DecodedImage:
        """Decode a file to upright pixels, no larger than the model's input."""

    def derive(
        self,
        data: bytes,
        plan: "DerivePlan",
        *,
        content_encoding: str | None,
        deadline: Deadline,
    ) -> tuple[DerivedImage, ...]:
        """Make derived images from a file that was decoded before."""

    def close(self) -> None:
        """End the decoder processes."""


class Sources(Protocol):
    """Knows the settings of images. `service.sources.current.CurrentSources` implements it."""

    def settings_of(self, ref: ImageRef, deadline: Deadline) -> SourceSettings:
        """Return the settings of an image."""


class Alerts(Protocol):
    """Applies alert rules. `service.alerts.step.AlertStep` implements it."""

    def fired(
        self, rules: AlertRules, result: ImageResult, deadline: Deadline
    ) -> tuple[Alert, ...]:
        """Return the alerts that are created with a result."""


@dataclass(frozen=True)
class PipelineOptions:
    """Limits of the pipeline. `service.settings.Settings` describes them."""

    max_in_flight: int = Settings.max_in_flight
    max_buffered_bytes: int = Settings.max_buffered_bytes
    allowed_buckets: tuple[str, ...] = Settings.allowed_buckets
    rules: Rules = Rules()  # of all images, if there are no sources
    store_confidence: float = Settings.store_confidence
    # Its objects are no images. None: there is no such bucket, and no derived images are made.
    results_bucket: str | None = Settings.results_bucket


class Pipeline:
    """Handles one image per request. Safe to call from many threads."""

    def __init__(
        self,
        storage: Storage,
        decoders: Decoders,
        model: Model,
        recorder: Recorder,
        health: Health,
        options: PipelineOptions | None = None,
        limit: DailyLimit | None = None,
        sources: Sources | None = None,
        deletion: Deletion | None = None,
        after_commit: AfterCommit | None = None,
        alerts: Callable[[], Alerts] | None = None,
    ) -> None:
        """Take the parts. `close` closes the decoders, the model and the recorder.

        Args:
            storage: downloads images.
            decoders: decode files to pixels.
            model: detects objects in pixels.
            recorder: commits results as documents.
            health: watches the work in flight.
            options: limits. Default: those of the default settings.
            limit: parks the images beyond it. None: there is no limit.
            sources: the settings of images. None: all images have `options.rules`.
            deletion: removes the results of deleted objects. None: deletions are ignored.
            after_commit: publishes what is recorded. None: nothing is published.
            alerts: returns what applies alert rules. It is called only for images whose source has
                rules. None: rules are ignored.
        """
        self._options = options or PipelineOptions()
        self._storage = storage
        self._decoders = decoders
        self._model = model
        self._recorder = recorder
        self._health = health
        self._limit = limit
        self._sources = sources
        self._deletion = deletion
        self._after_commit = after_commit
        self._alerts = alerts
        self._slots = Slots(
            self._options.max_in_flight, jobs=max(1, self._options.max_in_flight // 2)
        )
        self._buffered = FairSemaphore(self._options.max_buffered_bytes)
        self._outputs = FairSemaphore(LARGEST_OPTIONS.max_output_bytes)  # bytes of derived images

    def handle(self, event: Event, deadline: Deadline) -> Outcome:
        """Process the image of a request until it has its final document, or park it.

        If the request reports that the image was deleted, remove its document.

        Args:
            event: the request.
            deadline: the delivery's deadline, which ends every wait.

        Raises:
            NoFreeSlotError: too many images are in flight.
            TransientError: the image has no final document yet.
            DetectorError: the model failed on this image.
        """
        outcome = self._handle(event, deadline)
        self._recorder.count(outcome)
        return outcome

    def detect(self, ref: ImageRef, deadline: Deadline) -> ImageResult | Outcome:
        """Detect an image, and return its result instead of recording it.

        Args:
            ref: the image.
            deadline: ends every wait.

        Returns:
            The result. Or the outcome if there is none: IGNORED, BUCKET_NOT_ALLOWED, DISABLED or
            GONE.

        Raises:
            NoFreeSlotError: too many images are in flight.
            TransientError: a later attempt can succeed.
            DetectorError: the model failed on this image.
        """
        return self._respond(ref, deadline, self._detect_object)

    def detect_bytes(
        self, read: Callable[[], bytes], max_bytes: int, deadline: Deadline
    ) -> ImageResult:
        """Detect an image that is not in Cloud Storage, and return its result.

        Args:
            read: returns the file. It is called when memory for it is reserved.
            max_bytes: the memory to reserve, in bytes.
            deadline: ends every wait.

        Raises:
            NoFreeSlotError: too many images are in flight.
            TransientError: a later attempt can succeed.
            DetectorError: the model failed on this image.
            Exception: what `read` raises.
        """
        settings = SourceSettings(self._options.rules)
        with self._slots.take(is_job=False), self._health.work():
            received = self._received(read, max_bytes, deadline)
            return self._detect_unrecorded(_NO_OBJECT, settings, deadline, received)

    def store(self, ref: ImageRef, deadline: Deadline) -> ImageRef | Outcome:
        """Process an image as its upload does.

        Args:
            ref: the image.
            deadline: ends every wait.

        Returns:
            The image, with its generation, if it has a document now. Otherwise the outcome, as
            `detect` returns it.

        Raises:
            NoFreeSlotError: too many images are in flight.
            TransientError: the image has no final document yet.
            DetectorError: the model failed on this image.
        """
        return self._respond(ref, deadline, self._store)

    def stop(self) -> None:
        """Reject further images. Those in flight continue. Safe to call from a signal handler."""
        self._slots.stop()

    def close(self, *, timeout_seconds: float = _CLOSE_SECONDS) -> None:
        """Stop, and wait for the images in flight for at most this long."""
        deadline = Deadline.after(timeout_seconds)
        self.stop()
        self._model.close(timeout_seconds=max(0.0, deadline.seconds_left()))
        self._recorder.close(timeout_seconds=max(0.0, deadline.seconds_left()))
        if self._limit:
            self._limit.share(deadline, is_due=True)
        self._decoders.close()

    def status(self) -> tuple[str, str | None]:
        """Return `ready`, `stopping` or `failed`. For `failed`, also return the reason."""
        if fault := self._health.probe():
            return "failed", fault
        return "stopping" if self._slots.is_stopped else "ready", None

    def _handle(self, event: Event, deadline: Deadline) -> Outcome:
        ref = event.ref
        if ref is None or ref.is_ignorable:
            logger.info("Ignored a request", extra={"reason": event.ignored or "not an image"})
            return Outcome.IGNORED
        deletion = self._deletion
        if event.is_deletion and not (deletion and deletion.is_wanted(event)):
            logger.info("Ignored a request", extra={"reason": _KEPT_RESULT})
            return Outcome.IGNORED
        if ref.bucket == self._options.results_bucket:
            logger.warning("Ignored an object of RESULTS_BUCKET", extra={"uri": ref.uri})
            return Outcome.IGNORED
        if not self._is_allowed(ref):
            logger.warning(
                "Acknowledged an image whose bucket is not in ALLOWED_BUCKETS",
                extra={"uri": ref.uri},
            )
            return Outcome.BUCKET_NOT_ALLOWED
        try:
            # Deletions count as jobs, so that a large deletion leaves slots to uploads.
            is_job = event.is_job or event.is_deletion
            with self._slots.take(is_job=is_job), self._health.work():
                if event.is_deletion and deletion:
                    return deletion.handle(ref, event, deadline)
                return self._process(ref, event, deadline)
        except DocumentKeptError as exc:
            logger.warning(
                "Kept a document: its replacement failed for a reason outside the image",
                extra={"uri": ref.uri, "generation": ref.generation, "reason": str(exc)},
            )
            return Outcome.ALREADY_RECORDED
        except NotAnImageError:
            logger.info("Ignored a request", extra={"reason": _MARKED})
            return Outcome.IGNORED
        except ObjectGoneError:
            if self._after_commit and ref.generation is not None:
                # An earlier delivery may have committed it, and crashed before it published.
                self._publish_stored(ref, self._settings_of(ref, deadline), deadline)
            logger.warning(
                "An image is gone: deleted or overwritten before it had a result, or it never "
                "existed",
                extra={
                    "uri": ref.uri,
                    "generation": ref.generation,
                    "look": f"gcloud storage ls --all-versions {shlex.quote(ref.uri)}",
                },
            )
            return Outcome.GONE

    def _process(self, ref: ImageRef, event: Event, deadline: Deadline) -> Outcome:
        _check_is_image(ref)
        settings = self._settings_of(ref, deadline)
        if not settings.is_enabled:
            return Outcome.DISABLED
        _check_model(ref, self._model.info.sha256)
        ref, failure = self._resolved(ref, deadline)
        return self._process_generation(ref, failure, settings, event, deadline)

    def _process_generation(
        self,
        ref: ImageRef,
        failure: Failure | None,
        settings: SourceSettings,
        event: Event,
        deadline: Deadline,
    ) -> Outcome:
        if not _is_first_delivery(event) and self._recorder.is_final(ref, deadline):
            self._publish_stored(ref, settings, deadline)
            return Outcome.ALREADY_RECORDED
        if failure:
            return self._record(ref, failure, settings, event, deadline)
        with self._counted(deadline) as over_limit:
            return self._record(ref, over_limit, settings, event, deadline)

    def _resolved(self, ref: ImageRef, deadline: Deadline) -> tuple[ImageRef, Failure | None]:
        """Return the image with its generation, and why it is not known, if so."""
        if ref.generation is not None:
            return ref, None
        try:
            ref = self._storage.resolve(ref, deadline)
        except BadImageError as exc:
            return replace(ref, generation=_NO_GENERATION), Failure(exc.code, exc.message)
        _check_is_image(ref)
        return ref, None

    @contextmanager
    def _counted(self, deadline: Deadline) -> Iterator[Failure | None]:
        """Count an image of the day. Yield its failure if it is beyond the day's limit."""
        if not self._limit:
            yield None
            return
        try:
            yield None if self._limit.admit() else self._limit.failure()
        finally:
            self._limit.share(deadline.for_commit())

    def _respond(
        self,
        ref: ImageRef,
        deadline: Deadline,
        work: Callable[[ImageRef, SourceSettings, Deadline], Value | Outcome],
    ) -> Value | Outcome:
        """Return what `work` returns for an image in scope, otherwise an outcome."""
        if ref.is_ignorable or ref.bucket == self._options.results_bucket:
            return Outcome.IGNORED
        if not self._is_allowed(ref):
            return Outcome.BUCKET_NOT_ALLOWED
        try:
            with self._slots.take(is_job=False), self._health.work():
                settings = self._settings_of(ref, deadline)
                return work(ref, settings, deadline) if settings.is_enabled else Outcome.DISABLED
        except ObjectGoneError:
            return Outcome.GONE
        except NotAnImageError:
            return Outcome.IGNORED

    def _detect_object(
        self, ref: ImageRef, settings: SourceSettings, deadline: Deadline
    ) -> ImageResult:
        ref, failure = self._resolved(ref, deadline)
        if failure:
            return _of_source(ImageResult(ref, failure=failure), None, settings)
        download = self._storage.download(ref, deadline, self._buffered.acquire)
        return self._detect_unrecorded(ref, settings, deadline, download)

    def _detect_unrecorded(
        self,
        ref: ImageRef,
        settings: SourceSettings,
        deadline: Deadline,
        download: AbstractContextManager[Download],
    ) -> ImageResult:
        with self._counted(deadline) as over_limit:
            if over_limit:
                result = ImageResult(ref, failure=over_limit)
            else:
                result = self._detect(ref, settings, deadline, download, outputs=None)
        return _of_source(result, None, settings)

    def _store(
        self, ref: ImageRef, settings: SourceSettings, deadline: Deadline
    ) -> ImageRef | Outcome:
        ref, failure = self._resolved(ref, deadline)
        try:
            outcome = self._process_generation(ref, failure, settings, Event(ref), deadline)
        except DocumentKeptError:  # another delivery was faster, and the day's limit is reached
            outcome = Outcome.ALREADY_RECORDED
        self._recorder.count(outcome)
        return ref

    @contextmanager
    def _received(
        self, read: Callable[[], bytes], max_bytes: int, deadline: Deadline
    ) -> Iterator[Download]:
        """Receive a file into memory that is reserved first, as a download does."""
        with self._buffered.acquire(max_bytes, deadline):
            data = read()
            yield Download(data, ObjectMetadata(size=len(data)))

    def _is_allowed(self, ref: ImageRef) -> bool:
        return not self._options.allowed_buckets or ref.bucket in self._options.allowed_buckets

    def _settings_of(self, ref: ImageRef, deadline: Deadline) -> SourceSettings:
        if not self._sources:
            return SourceSettings(self._options.rules)
        return self._sources.settings_of(ref, deadline)

    def _record(
        self,
        ref: ImageRef,
        failure: Failure | None,
        settings: SourceSettings,
        event: Event,
        deadline: Deadline,
    ) -> Outcome:
        """Detect and commit. An image with a failure is not read."""
        with ExitStack() as outputs:  # the memory of its derived images
            if failure:
                result = ImageResult(ref, failure=failure)
            else:
                download = self._storage.download(ref, deadline, self._buffered.acquire)
                result = self._detect(ref, settings, deadline, download, outputs)
            result = _of_source(result, event.event_time, settings)
            if settings.alerts and self._alerts:
                alerts = self._alerts().fired(settings.alerts, result, deadline.for_commit())
                result = replace(result, alerts=alerts)
            try:
                committed = self._recorder.record(result, deadline)
            except DocumentKeptError:
                self._publish_stored(ref, settings, deadline)
                raise
        if self._after_commit and committed.created_at and committed.outcome is not Outcome.PARKED:
            self._after_commit.committed(committed.result, committed.created_at, deadline)
        elif committed.outcome is not Outcome.PARKED:
            # Another delivery committed the document. It may have crashed before it published.
            self._publish_stored(ref, settings, deadline)
        return committed.outcome

    def _publish_stored(self, ref: ImageRef, settings: SourceSettings, deadline: Deadline) -> None:
        """Publish a document that another delivery committed."""
        if self._after_commit:
            has_rules = settings.alerts is not None
            self._after_commit.stored(ref.document_id, deadline, has_rules=has_rules)

    def _detect(
        self,
        ref: ImageRef,
        settings: SourceSettings,
        deadline: Deadline,
        opened: AbstractContextManager[Download],
        outputs: ExitStack | None,
    ) -> ImageResult:
        """Download, decode and detect. If the file can never be processed, the result is failed.

        The memory of the derived images is reserved until `outputs` is closed. Without `outputs`,
        there are none.
        """
        derives = self._options.results_bucket and not settings.derive.is_empty
        started_at = time.monotonic()
        downloaded_at = math.inf  # not yet
        with ExitStack() as file:
            try:
                download = file.enter_context(opened)
                # Health checks count different images. A file without a name is its content.
                name = ref.name or hashlib.sha256(download.data).hexdigest()
                ref = replace(ref, name=name, metadata=download.metadata)
                _check_is_image(ref)
                downloaded_at = time.monotonic()
                with self._health.decoder_call(ref.document_id):
                    image = self._decoders.decode(
                        download.data,
                        image_size=self._model.info.image_size,
                        crop=self._model.info.task is Task.CLASSIFY,
                        content_encoding=download.content_encoding,
                        deadline=deadline,
                    )
            except BadImageError as exc:
                # Failed results need timings too, because the store recognises its own document by
                # them.
                failure = Failure(exc.code, exc.message)
                return ImageResult(
                    ref, failure=failure, timings=_timings(started_at, downloaded_at)
                )
            kept = download if derives and outputs is not None else None
            del download  # without derived images, free the file before the model's queue
            if not kept:
                file.close()
            timings = _timings(started_at, downloaded_at)
            result = self._infer(ref, image, timings, settings, deadline)
            del image  # free the pixels before the derived images are made
            if kept and outputs is not None:
                result = self._derive(result, kept, settings.derive, deadline, outputs)
        return result if settings.rules.keep_faint else replace(result, faint=None)

    def _infer(
        self,
        ref: ImageRef,
        image: DecodedImage,
        timings: Timings,
        settings: SourceSettings,
        deadline: Deadline,
    ) -> ImageResult:
        """Return the result of an image. It has all faint detections, whatever its source says."""
        inferred = self._model.infer(image, ref.document_id, deadline)
        result = ImageResult(
            ref,
            image_info=image.info,
            model=self._model.info,
            batch_size=inferred.batch_size,
            timings=replace(
                timings,
                queue_ms=round(inferred.queue_ms, 1),
                inference_ms=round(inferred.inference_ms, 1),
            ),
            store_confidence=self._options.store_confidence,
        )
        result = with_capture(
            result,
            image.capture,
            timezone=settings.timezone,
            store_location=settings.store_location,
        )
        return evaluate(result, inferred.result, replace(settings.rules, keep_faint=True))

    def _derive(
        self,
        result: ImageResult,
        file: Download,
        options: DeriveOptions,
        deadline: Deadline,
        outputs: ExitStack,
    ) -> ImageResult:
        """Return the result with its derived images, or with the reason why there are none.

        A reason never fails the image. If something must be redacted, no other image is made
        without the redaction.
        """
        from service.derive_plan import plan_of  # only needed if something is derived

        plan = plan_of(options, result, self._model.labels)
        if isinstance(plan, str):
            return replace(result, derived_error=plan)
        reduce_to = outputs.enter_context(self._outputs.acquire(options.max_output_bytes, deadline))
        try:
            with self._health.derive_call(result.ref.document_id):
                derived = self._decoders.derive(
                    file.data, plan, content_encoding=file.content_encoding, deadline=deadline
                )
        except BadImageError as exc:
            reduce_to(0)
            return replace(result, derived_error=exc.message)
        reduce_to(sum(len(image.data) for image in derived))
        return replace(result, derived=derived)


def _check_is_image(ref: ImageRef) -> None:
    """Check that the service did not make the object itself.

    Raises:
        NotAnImageError: the object's metadata have the marker of result objects.
    """
    if is_marked(ref.metadata.custom):
        raise NotAnImageError("The object has the marker of result objects.")


def _of_source(
    result: ImageResult, event_time: datetime | None, settings: SourceSettings
) -> ImageResult:
    """Return a result with its source and its day."""
    return replace(
        result,
        event_time=event_time,
        day=day_of(result.captured_at, event_time, settings.timezone),
        source=settings.version,
    )


def _check_model(ref: ImageRef, sha256: str) -> None:
    """Check that a replacement is for this model.

    Raises:
        OtherModelError: it is for another model, which another revision of the service may run.
    """
    if ref.replace and ref.replace.unless_model not in (None, sha256):
        raise OtherModelError("The message asks for a model that this service does not run.")


def _is_first_delivery(event: Event) -> bool:
    """Return whether this is probably an upload's first delivery. Then its image has no document.

    Eventarc does not count deliveries. There, an event is probably delivered for the first time if
    it is younger than the shortest back-off. A wrong guess costs one inference, because the commit
    never replaces a document.
    """
    if event.is_job:
        return False
    if event.delivery_attempt is not None:
        return event.delivery_attempt == 1
    return event.event_time is not None and datetime.now(UTC) - event.event_time < _BACK_OFF


def _timings(started_at: float, downloaded_at: float) -> Timings:
    """Return the times of a download that ended at `downloaded_at` and a decode that ends now.

    If the download failed, `downloaded_at` is infinity, and all the time counts as download.
    """
    now = time.monotonic()
    downloaded_at = min(downloaded_at, now)
    return Timings(
        download_ms=round((downloaded_at - started_at) * 1000, 1),
        decode_ms=round((now - downloaded_at) * 1000, 1),
    )
