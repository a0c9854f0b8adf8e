"""The use case: an event's pictures, each fetched, decoded, batched, detected and committed.

    events → pipeline → (storage, images, batching, detector) → store

The promise: `handle` returns only when every picture of the event has its final record, or needs
none. Whatever it raises means that the event must come again, and doing so is safe.
"""

import logging
import math
import shlex
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Protocol

from service.budget import Budget
from service.domain import (
    Detection,
    Download,
    Event,
    Failure,
    ImageInfo,
    ImageRef,
    ImageResult,
    ObjectMetadata,
    Outcome,
    Rerun,
    Timings,
)
from service.errors import (
    BadImageError,
    DecoderBusyError,
    DetectorError,
    DocumentKeptError,
    ModelNotReadyError,
    ObjectGoneError,
    ShuttingDownError,
    TooLateError,
)
from service.images.decode import decode, is_sandboxed
from service.images.letterbox import enlarge_box, letterbox, shrink
from service.images.pixels import Pixels
from service.images.read import inspect
from service.inference.batching import Batcher
from service.inference.detector import Detector
from service.machine import cores
from service.singleflight import SingleFlight
from service.stages import NO_CLOCK, StageClock
from service.suspects import Suspects
from service.watchdog import Watchdog

logger = logging.getLogger(__name__)

_STOPPING = "The service is shutting down."
# For memory, a decoder or the sandbox: a queue of the slowest files would take minutes.
_TURN_PATIENCE_SECONDS = 120.0
_PREPARE_SECONDS = 10.0  # from the decode's begin to the network's, by far
_STRIDE = 32  # of YOLO26: its coarsest cells
# Recorded if Cloud Storage refuses to report the generation. No object has generation 0.
_NO_GENERATION = 0


class Storage(Protocol):
    """Where pictures come from; see `service.gcp.storage.ImageStorage`."""

    def resolve(self, ref: ImageRef) -> ImageRef:
        """Complete a reference: its generation, its size."""

    def download(self, ref: ImageRef) -> Download:
        """Fetch exactly this generation."""


class Store(Protocol):
    """Where results go; see `service.gcp.firestore.ResultStore`."""

    def is_final(self, document_id: str, rerun: Rerun | None = None) -> bool:
        """Say whether the picture has its document, which no rerun may replace."""

    def commit(self, results: Sequence[ImageResult]) -> Sequence[ImageResult | Exception]:
        """Make results final; return each as it was recorded, or why it was not."""


@dataclass(frozen=True)
class PipelineOptions:
    """Limits of the pipeline; see `service.settings.Settings` for each one's meaning."""

    max_batch_size: int = 8
    max_batch_delay_seconds: float = 0.02
    max_batch_pixels: int = 20_000_000
    max_queue: int = 32
    max_image_bytes: int = 32 * 2**20
    max_held_bytes: int = 128 * 2**20
    max_image_pixels: int = 50_000_000
    reduced_decode: bool = True
    allowed_buckets: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Delivery:
    """What a message's pictures share."""

    event_time: datetime | None
    begin_by: float  # monotonic; a picture that is not with the network by then is given back
    prepare_by: float  # sooner, or a decode would end when it is too late to begin

    @classmethod
    def of(cls, event: Event, begin_by: float) -> "_Delivery":
        """Leave some seconds for decode and queue, but half of the time at most.

        Without them, under an overload, every decode would be of a picture that is late when it is
        ready, and none would be delivered as long as that lasts.
        """
        left = max(0.0, begin_by - time.monotonic())
        prepare_by = begin_by - min(_PREPARE_SECONDS, left / 2)
        return cls(event.event_time, begin_by, prepare_by)

    def patience_seconds(self) -> float:
        """How long a picture may wait for a place in the queue.

        Raises:
            TooLateError: not even until now.
        """
        if self.begin_by < time.monotonic():
            raise TooLateError
        return 0.0


@dataclass(frozen=True)
class _Prepared:
    """A picture that waits for its batch, small enough to wait in numbers."""

    ref: ImageRef
    info: ImageInfo
    pixels: Pixels
    event_time: datetime | None
    download_ms: float
    decode_ms: float
    queued_at: float


class Pipeline:
    """Handles events; safe to call from many threads."""

    def __init__(
        self,
        storage: Storage,
        store: Store,
        detector: "Future[Detector]",
        options: PipelineOptions | None = None,
        clock: StageClock = NO_CLOCK,
        watchdog: Watchdog | None = None,
    ) -> None:
        """Take the parts.

        Args:
            storage: gives pictures.
            store: takes results.
            detector: the network, which may still be loading; pictures are fetched meanwhile.
            options: limits.
            clock: counts the CPU time of `download`, `decode` and `store`.
            watchdog: watches the network's load, then each picture; started here.
        """
        self._options = options or PipelineOptions()
        self._clock = clock
        self._storage = storage
        self._store = store
        self._detector = detector
        self._watchdog = watchdog or Watchdog()
        if watchdog:
            watchdog.start(after=detector)
        self._flights: SingleFlight[str, Outcome] = SingleFlight()
        self._suspects = Suspects()
        self._stopping = False
        # Full-size pixels exist only between decode and shrink: as many at once as can be worked
        # on, or a burst of large pictures would take gigabytes. And one more, of the files that the
        # sandbox decodes: apart from the others, who would wait for the slowest of them.
        self._decoders = Budget(cores())
        self._sandbox = Budget(1)
        self._held_bytes = Budget(self._options.max_held_bytes)
        self._batcher: Batcher[_Prepared, ImageResult] = Batcher(
            self._detect,
            self._commit,
            max_batch_size=self._options.max_batch_size,
            max_delay_seconds=self._options.max_batch_delay_seconds,
            max_admitted=self._options.max_queue,
            key=self._batch_key,
            weight=self._frame_pixels,
            max_weight=self._options.max_batch_pixels,
        )

    def handle(self, event: Event, *, begin_by: float = math.inf) -> list[Outcome]:
        """Bring the image of an event to its final record.

        Args:
            event: names the image.
            begin_by: until when a picture may begin, by the monotonic clock. Later it could not
                be final before the message's deadline: somebody else would work on it too.

        Returns:
            How the image ended; nothing where there is none.

        Raises:
            TransientError: it has no final record yet; the event must come again.
            DetectorError: the model failed on this image.
        """
        if event.ignored:
            logger.info("Ignored an event", extra={"reason": event.ignored})
            return []
        if event.image is None:
            return []
        return [self._process(event.image, _Delivery.of(event, begin_by))]

    def learn_from(self, suspects: Suspects) -> None:
        """Take over what the process before this one died of. Before the first event."""
        suspects.mourn()
        self._suspects = suspects

    def status(self) -> str:
        """Say `ready`, `loading`, `stopping`, or `failed` when the model did not load."""
        if self._stopping:
            return "stopping"
        if not self._detector.done():
            return "loading"
        return "failed" if self._detector.exception() else "ready"

    def stop(self) -> None:
        """Take nothing new; what is in flight goes on. Safe to call from a signal handler."""
        self._stopping = True

    def close(self, *, timeout_seconds: float = 8.0) -> None:
        """Stop, and wait for what is in flight, but no longer than this."""
        self.stop()
        self._batcher.close(timeout_seconds=timeout_seconds)
        self._watchdog.close()

    def _process(self, ref: ImageRef, delivery: _Delivery) -> Outcome:
        if self._stopping:
            raise ShuttingDownError(_STOPPING)
        if ref.is_ignorable:
            return Outcome.IGNORED
        if self._options.allowed_buckets and ref.bucket not in self._options.allowed_buckets:
            logger.warning(
                "Refused a picture of a bucket that is not in ALLOWED_BUCKETS",
                extra={"uri": ref.uri},
            )
            return Outcome.REFUSED
        try:
            with self._watchdog.watch():
                return self._process_together(ref, delivery)
        except DocumentKeptError as exc:
            logger.warning(
                "A rerun failed for a reason outside the image: its done document is kept",
                extra={"uri": ref.uri, "generation": ref.generation, "reason": str(exc)},
            )
            return Outcome.ALREADY_FINAL
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

    def _process_together(self, ref: ImageRef, delivery: _Delivery) -> Outcome:
        """Process a picture once for all that ask for it meanwhile."""
        failure = None
        if ref.generation is None:
            try:
                with self._clock.measure("download"):
                    ref = self._storage.resolve(ref)
            except BadImageError as exc:
                ref = replace(ref, generation=_NO_GENERATION)
                failure = Failure(exc.code, exc.message)
        self._check_model(ref.rerun)
        # A rerun must not take part in the flight of somebody who finds the document final.
        flight = f"{ref.document_id} {ref.rerun}" if ref.rerun else ref.document_id
        return self._flights.do(flight, lambda: self._process_once(ref, delivery, failure))

    def _process_once(self, ref: ImageRef, delivery: _Delivery, failure: Failure | None) -> Outcome:
        """Bring one image to its final record; `failure` is why it cannot be read, if known."""
        with self._batcher.admit(patience_seconds=delivery.patience_seconds()) as ticket:
            with self._clock.measure("store"):
                is_final = self._store.is_final(ref.document_id, ref.rerun)
            if is_final:
                return Outcome.ALREADY_FINAL
            if self._suspects.is_culprit(ref.document_id):
                raise DetectorError(f"The process died of {ref.uri} before: it is not run again.")
            prepared: _Prepared | ImageResult
            if failure:
                prepared = ImageResult(ref, failure=failure, event_time=delivery.event_time)
            else:
                prepared = self._prepare(ref, delivery)
            if isinstance(prepared, _Prepared):
                recorded = ticket.submit(prepared, begin_by=delivery.begin_by).result()
                return Outcome.FAILED if recorded.failure else Outcome.DONE
        [committed] = self._commit([prepared])
        if isinstance(committed, Exception):
            raise committed
        return Outcome.FAILED

    def _prepare(self, ref: ImageRef, delivery: _Delivery) -> _Prepared | ImageResult:
        """Download, decode and shrink on the caller's thread, beside the running batch.

        A picture that can never be detected comes back as its final, failed result.
        """
        size = ref.metadata.size
        try:
            # A job has no size. Do not reject an image as too large on the event's untrusted size.
            if size is None or size > self._options.max_image_bytes:
                with self._clock.measure("download"):
                    ref = self._storage.resolve(replace(ref, metadata=ObjectMetadata()))
            # What is larger is refused unread.
            size = min(ref.metadata.size or 0, self._options.max_image_bytes)
            turn_by = min(delivery.prepare_by, time.monotonic() + _TURN_PATIENCE_SECONDS)
            delivery = replace(delivery, prepare_by=turn_by)
            # A file is in memory from download to decode.
            with self._held_bytes.hold(size, begin_by=turn_by):
                started = time.monotonic()
                with self._clock.measure("download"):
                    download = self._storage.download(ref)
                ref = replace(ref, metadata=download.metadata)
                download_ms = (time.monotonic() - started) * 1000
                return self._decode(ref, delivery, download.data, download_ms)
        except BadImageError as exc:
            failure = Failure(exc.code, exc.message)
            return ImageResult(ref, failure=failure, event_time=delivery.event_time)

    def _decode(
        self, ref: ImageRef, delivery: _Delivery, data: bytes, download_ms: float
    ) -> _Prepared:
        apart = self._suspects.must_decode_apart(ref.document_id)
        has_sandbox = apart or is_sandboxed(data)
        if not apart and (has_sandbox or not self._detector.done()):
            # The header, here, as a native library may read it; and what is no picture need not
            # wait for the model.
            with self._decoding_here(ref, delivery):
                inspect(data, max_pixels=self._options.max_image_pixels)
        image_size = self._loaded_detector().info.image_size
        room = self._sandboxed(delivery) if has_sandbox else self._decoding_here(ref, delivery)
        with room, self._clock.measure("decode"):
            started = time.monotonic()
            picture = decode(
                data,
                max_pixels=self._options.max_image_pixels,
                image_size=image_size if self._options.reduced_decode else None,
                apart=apart,
            )
            pixels = shrink(picture.pixels, image_size=image_size)
            queued_at = time.monotonic()
        return _Prepared(
            ref=ref,
            info=picture.info,
            pixels=pixels,
            event_time=delivery.event_time,
            download_ms=download_ms,
            decode_ms=(queued_at - started) * 1000,
            queued_at=queued_at,
        )

    @contextmanager
    def _decoding_here(self, ref: ImageRef, delivery: _Delivery) -> Iterator[None]:
        """Wait for a decoder, and note the picture, should this process die of it."""
        with self._decoders.hold(1, begin_by=delivery.prepare_by):
            try:
                self._suspects.begin_decode(ref.document_id)
                yield
            finally:
                self._suspects.end_decode(ref.document_id)

    @contextmanager
    def _sandboxed(self, delivery: _Delivery) -> Iterator[None]:
        """Wait for the sandbox, but not for ever.

        Raises:
            DecoderBusyError: others' files took too long.
        """
        with ExitStack() as room:
            try:
                room.enter_context(self._sandbox.hold(1, begin_by=delivery.prepare_by))
            except TooLateError as exc:
                raise DecoderBusyError("Other files keep the decoder's process busy.") from exc
            yield

    def _batch_key(self, prepared: _Prepared) -> Hashable:
        if self._suspects.must_run_alone(prepared.ref.document_id):
            return prepared.ref.document_id
        height, width = prepared.pixels.shape[:2]
        return self._loaded_detector().batch_key(width, height)

    def _frame_pixels(self, prepared: _Prepared) -> int:
        height, width = prepared.pixels.shape[:2]
        image_size = self._loaded_detector().info.image_size
        frame = letterbox(width, height, image_size=image_size, stride=_STRIDE)
        return frame.frame_height * frame.frame_width

    def _detect(self, batch: list[_Prepared]) -> list[ImageResult]:
        detector = self._loaded_detector()
        running = [prepared.ref.document_id for prepared in batch]
        # A suspect runs while nothing is decoded here: if the process dies, it is clear of what.
        is_suspect = any(map(self._suspects.must_run_alone, running))
        with self._decoders.hold_all() if is_suspect else nullcontext():
            self._suspects.begin(running)
            started = time.monotonic()
            try:
                found = detector.detect([prepared.pixels for prepared in batch])
            except Exception as exc:
                raise DetectorError(
                    f"{detector.info.name} failed on {len(batch)} pictures: {exc}"
                ) from exc
            finally:
                self._suspects.end(running)
        if len(found) != len(batch):
            raise DetectorError(
                f"{detector.info.name} got {len(batch)} pictures and gave {len(found)} results"
            )
        inference_ms = (time.monotonic() - started) * 1000 / len(batch)
        return [
            ImageResult(
                ref=prepared.ref,
                image=prepared.info,
                model=detector.info,
                detections=_enlarged(detections, prepared),
                batch_size=len(batch),
                timings=Timings(
                    download_ms=round(prepared.download_ms, 1),
                    decode_ms=round(prepared.decode_ms, 1),
                    queue_ms=round((started - prepared.queued_at) * 1000, 1),
                    inference_ms=round(inference_ms, 1),
                ),
                event_time=prepared.event_time,
            )
            for prepared, detections in zip(batch, found, strict=True)
        ]

    def _commit(self, results: Sequence[ImageResult]) -> Sequence[ImageResult | Exception]:
        started = time.monotonic()
        with self._clock.measure("store"):
            outcomes = self._store.commit(results)
        commit_ms = round((time.monotonic() - started) * 1000, 1)
        recorded = [result for result in outcomes if isinstance(result, ImageResult)]
        done = [result for result in recorded if not result.failure]
        if done:
            logger.info("Committed a batch", extra=_batch_log(done) | {"commit_ms": commit_ms})
        for result in recorded:
            if result.failure:
                logger.warning("A picture failed", extra=_failure_log(result, result.failure))
        return outcomes

    def _check_model(self, rerun: Rerun | None) -> None:
        """Refuse a rerun for another model, as another revision of the service may run it.

        Raises:
            ModelNotReadyError: this one does not.
        """
        wanted = rerun.model if rerun else None
        if wanted and wanted != self._loaded_detector().info.sha256:
            raise ModelNotReadyError("The job asks for another model than this service runs.")

    def _loaded_detector(self) -> Detector:
        """Wait for the network.

        Raises:
            ModelNotReadyError: it did not load.
        """
        try:
            return self._detector.result()
        except Exception as exc:
            raise ModelNotReadyError("The model did not load; the log says why.") from exc


def _enlarged(detections: Sequence[Detection], prepared: _Prepared) -> tuple[Detection, ...]:
    """Take boxes from the queued picture's pixels to the full picture's."""
    height, width = prepared.pixels.shape[:2]
    full = (prepared.info.width, prepared.info.height)
    return tuple(
        replace(found, box=enlarge_box(found.box, small=(width, height), full=full))
        for found in detections
    )


def _batch_log(results: Sequence[ImageResult]) -> dict[str, object]:
    """One batch for the log: its size, its pictures' sizes, and its mean stage times."""
    count = len(results)
    return {
        "batch_size": count,
        "shapes": sorted({f"{r.image.width}x{r.image.height}" for r in results if r.image}),
        **{
            stage: round(sum(asdict(result.timings)[stage] for result in results) / count, 1)
            for stage in asdict(results[0].timings)
        },
    }


def _failure_log(result: ImageResult, failure: Failure) -> dict[str, object]:
    return {
        "uri": result.ref.uri,
        "generation": result.ref.generation,
        "code": str(failure.code),
        "reason": failure.message,
    }
