"""Hand-written fakes of the pipeline's parts, and image files for them.

A fake waits only while a test has closed its gate, and at most `PATIENCE_SECONDS`. So a test that
would hang fails instead.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

import cv2
import numpy as np

from service.daily_limit import DailyLimit
from service.deadline import NO_DEADLINE, Deadline
from service.deletion import Deletion
from service.document import to_document
from service.domain import (
    Box,
    CommittedResult,
    DerivedImage,
    Detection,
    Download,
    ImageRef,
    ImageResult,
    ModelInfo,
    Prediction,
    PreparedResult,
    Replace,
)
from service.errors import DocumentKeptError, ObjectGoneError
from service.health import Health
from service.images.crop import center_crop
from service.images.decode import decode
from service.images.derive import DerivePlan
from service.images.letterbox import shrink
from service.images.pixels import DecodedImage, Pixels
from service.inference.model import Model
from service.pipeline import Alerts, Pipeline, PipelineOptions, Sources
from service.publish.after_commit import AfterCommit
from service.recorder import Recorder

PATIENCE_SECONDS = 60.0  # for every wait: far longer than anything takes on a busy machine
BUCKET = "uploads"

Color = tuple[int, int, int]  # blue, green, red
Buffer = Callable[[int, Deadline], AbstractContextManager[object]]
Value = TypeVar("Value")


class Clock:
    """A clock in seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """A gate in a fake. It is open unless a test closes it, and counts the calls that arrive."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._arrivals = threading.Semaphore(0)
        self._free = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.waiting = 0  # calls that wait at the gate

    def close(self, *, after: int = 0) -> None:
        """Close the gate after this many more calls."""
        self._free = threading.Semaphore(after)
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wait_for_arrivals(self, count: int = 1) -> None:
        for _ in range(count):
            if not self._arrivals.acquire(timeout=PATIENCE_SECONDS):
                raise TimeoutError(f"fewer than {count} arrived at the gate")

    def enter(self) -> None:
        self._arrivals.release()
        if self._open.is_set() or self._free.acquire(blocking=False):
            return
        with self._lock:
            self.waiting += 1
        try:
            if not self._open.wait(PATIENCE_SECONDS):
                raise TimeoutError("nobody opened the gate")
        finally:
            with self._lock:
                self.waiting -= 1


class FakeStorage:
    """A storage with a gate before each download. Errors are by object name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, int], bytes] = {}
        self.errors: dict[str, Exception] = {}
        self.unresolvable: dict[str, Exception] = {}
        self.gate = Gate()
        self.downloads: list[ImageRef] = []
        self.resolved: list[ImageRef] = []

    def put(self, name: str, data: bytes, *, generation: int = 1, bucket: str = BUCKET) -> ImageRef:
        self.objects[bucket, name, generation] = data
        return ImageRef(bucket, name, generation)

    def resolve(self, ref: ImageRef, deadline: Deadline) -> ImageRef:
        self.resolved.append(ref)
        if error := self.unresolvable.get(ref.name):
            raise error
        key = (ref.bucket, ref.name)
        generations = [found[2] for found in self.objects if found[:2] == key]
        if not generations or ref.generation not in (None, *generations):
            raise ObjectGoneError("no such object")
        generation = ref.generation or max(generations)
        size = len(self.objects[(*key, generation)])
        return replace(ref, generation=generation, metadata=replace(ref.metadata, size=size))

    @contextmanager
    def download(self, ref: ImageRef, deadline: Deadline, buffer: Buffer) -> Iterator[Download]:
        self.downloads.append(ref)
        if error := self.errors.get(ref.name):
            raise error
        try:
            data = self.objects[ref.bucket, ref.name, ref.generation or 0]
        except KeyError:
            raise ObjectGoneError("no such generation") from None
        with buffer(len(data), deadline):
            self.gate.enter()
            metadata = replace(ref.metadata, size=len(data), content_type="image/bmp")
            yield Download(data, metadata)


class DecodersHere:
    """Decodes in this process, with the interface of the decoder processes."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.is_closed = False
        self.plans: list[DerivePlan] = []
        self.derived: tuple[DerivedImage, ...] = ()  # what `derive` returns
        self.derive_errors: list[Exception] = []  # each call raises the next one, if there is one
        self.derive_gate = Gate()

    def decode(
        self,
        data: bytes,
        *,
        image_size: int,
        crop: bool = False,
        content_encoding: str | None = None,
        deadline: Deadline,
    ) -> DecodedImage:
        self.gate.enter()
        deadline.wait_seconds()
        if crop:
            image = decode(data, max_pixels=50_000_000)
            return replace(image, pixels=center_crop(image.pixels, size=image_size))
        image = decode(data, max_pixels=50_000_000, image_size=image_size)
        return replace(image, pixels=shrink(image.pixels, image_size=image_size))

    def derive(
        self,
        data: bytes,
        plan: DerivePlan,
        *,
        content_encoding: str | None = None,
        deadline: Deadline,
    ) -> tuple[DerivedImage, ...]:
        assert data, "the file's bytes are kept until they are needed"
        self.plans.append(plan)
        self.derive_gate.enter()
        deadline.wait_seconds()
        if self.derive_errors:
            raise self.derive_errors.pop(0)
        return self.derived

    def close(self) -> None:
        self.is_closed = True


class FakeStore:
    """A store in memory. Each commit fails with the next of `errors`, if there is one."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Any]] = {}
        self.created: dict[str, datetime] = {}
        self.now = datetime(2026, 1, 1, tzinfo=UTC)  # the store's clock: one second a document
        self.commits: list[list[str]] = []
        self.errors: list[Exception] = []
        self.outcomes: dict[str, ImageResult | Exception] = {}  # by name, instead of the result
        self.gate = Gate()
        self.lookups: list[str] = []
        self._lock = threading.Lock()

    def is_final(self, document_id: str, permission: Replace | None, deadline: Deadline) -> bool:
        with self._lock:
            self.lookups.append(document_id)
            return self._is_final(document_id, permission)

    def _is_final(self, document_id: str, permission: Replace | None) -> bool:
        document = self.documents.get(document_id)
        if document is None or document["status"] == "parked":
            return False
        if permission is None:
            return True
        model = (document["model"] or {}).get("sha256")
        return not permission.replaces(self.created[document_id], model, document["schema"])

    def commit(
        self, results: Sequence[ImageResult], deadline: Deadline
    ) -> Sequence[CommittedResult | Exception]:
        self.gate.enter()
        with self._lock:
            if self.errors:
                error = self.errors.pop(0)
                return [error] * len(results)
            self.commits.append([result.ref.name for result in results])
            return [self._commit(self.outcomes.get(result.ref.name, result)) for result in results]

    def _commit(self, result: ImageResult | Exception) -> CommittedResult | Exception:
        if isinstance(result, Exception):
            return result
        document_id = result.ref.document_id
        if self._is_final(document_id, result.ref.replace):
            return CommittedResult(result, is_superseded=True)
        if result.failure and result.failure.is_parked and document_id in self.documents:
            if self.documents[document_id]["status"] == "parked":
                return CommittedResult(result)
            return DocumentKeptError("The day's limit is reached.")
        self.now += timedelta(seconds=1)
        self.documents[document_id] = to_document(result)
        self.created[document_id] = self.now
        return CommittedResult(result, created_at=self.now)

    def read_document(self, document_id: str, deadline: Deadline) -> dict[str, Any] | None:
        document = self.documents.get(document_id)
        return document and document | {"created_at": self.created[document_id]}

    def document(self, name: str) -> dict[str, Any]:
        """Return the only document with this object name."""
        [match] = [document for document in self.documents.values() if document["name"] == name]
        return match


class FakeTopic:
    """A topic in memory. Each call fails with the next of `errors`, if there is one."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.attributes: list[Mapping[str, str]] = []
        self.errors: list[Exception] = []

    def publish(self, data: bytes, attributes: Mapping[str, str], deadline: Deadline) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.messages.append(json.loads(data))
        self.attributes.append(attributes)


class FakeUploads:
    """Objects in memory, by URI. It never removes one."""

    def __init__(self, bucket: str = "results") -> None:
        self.bucket = bucket
        self.objects: dict[str, bytes] = {}
        self.errors: list[Exception] = []  # each call raises the next one, if there is one

    def prepare(self, result: ImageResult, deadline: Deadline) -> PreparedResult:
        if self.errors:
            raise self.errors.pop(0)
        derived = []
        for image in result.derived:
            uri = f"gs://{self.bucket}/{result.ref.document_id}-{image.kind}"
            self.objects[uri] = image.data
            derived.append(replace(image, uri=uri))
        return PreparedResult(replace(result, derived=tuple(derived)))

    def settle(
        self, prepared: PreparedResult, committed: CommittedResult, deadline: Deadline
    ) -> None:
        raise AssertionError("nothing is to be removed")

    def remove_all(self, document_id: str, deadline: Deadline) -> None:
        raise AssertionError("nothing is to be removed")


class FakeCounter:
    """A counter in memory, and a clock for the limits that use it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)
        self.counts: Counter[date] = Counter()
        self.added: list[int] = []
        self.errors: list[BaseException] = []  # each call raises the next one, if there is one

    def add(self, day: date, images: int, deadline: Deadline) -> int:
        self.added.append(images)
        if self.errors:
            raise self.errors.pop(0)
        self.counts[day] += images
        return self.counts[day]

    def limit(self, images: int) -> DailyLimit:
        """Return the limit of a new instance."""
        limit = DailyLimit(images, self, now=lambda: self.now)
        limit.share(NO_DEADLINE, is_due=True)
        return limit


class FakeDetector:
    """Finds one object in every image: its middle half, labelled by the image's colour."""

    def __init__(self) -> None:
        self.info = ModelInfo("fake.pt", "0" * 64, image_size=640, precision="fp32", runtime="fake")
        self.batch_sizes: list[int] = []
        self.shapes: list[tuple[int, ...]] = []
        self.poison: Color | None = None
        self.labels = {0: "0-0-0"}
        self.runners = 1
        self.shape: tuple[int, int] | None = (640, 640)  # of every image; None: its own
        self.missing_results = 0
        self.gate = Gate()

    def input_shape(self, width: int, height: int) -> tuple[int, int]:
        return self.shape or (height, width)

    def detect(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        self.batch_sizes.append(len(images))
        self.shapes += [image.pixels.shape for image in images]
        self.gate.enter()
        if any(mean_color(image.pixels) == self.poison for image in images):
            raise RuntimeError("poison")
        return [_middle(image) for image in images][: max(len(images) - self.missing_results, 0)]


def mean_color(pixels: Pixels) -> Color:
    blue, green, red = pixels.reshape(-1, 3).mean(axis=0).round().astype(int).tolist()
    return blue, green, red


def label_of(color: Color) -> str:
    return "-".join(map(str, color))


def _middle(image: DecodedImage) -> Prediction:
    width, height = image.info.width, image.info.height
    color = mean_color(image.pixels)
    box = Box(width / 4, height / 4, width * 3 / 4, height * 3 / 4)
    confidence = round(0.5 + max(color) / 510, 3)  # over every usual threshold
    return Prediction((Detection(label_of(color), sum(color) % 80, confidence, box),))


def bmp_image(color: Color = (10, 20, 30), *, width: int = 32, height: int = 24) -> bytes:
    """Return a BMP file of one colour, which is lossless and fast to decode."""
    pixels = np.full((height, width, 3), color, np.uint8)
    return cv2.imencode(".bmp", pixels)[1].tobytes()


def color_of(number: int) -> Color:
    """Return another colour for every number below 65,536."""
    return number // 256, number % 256, 200


def wait_until(
    condition: Callable[[], bool], failure: str, *, patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Wait until the condition is true. Fail with this message after the patience."""
    deadline = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.02)


def in_thread(call: Callable[[], Value]) -> "Future[Value]":
    """Call in a new thread, and return the future of its result."""
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # noqa: BLE001 - raised where the test asks for the result
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future


def pipeline_of(
    storage: FakeStorage,
    store: FakeStore,
    detector: FakeDetector,
    *,
    decoders: DecodersHere | None = None,
    health: Health | None = None,
    max_batch_size: int = 8,
    limit: DailyLimit | None = None,
    sources: Sources | None = None,
    deletion: Deletion | None = None,
    after_commit: AfterCommit | None = None,
    uploads: FakeUploads | None = None,
    alerts: Callable[[], Alerts] | None = None,
    **options: Any,
) -> Pipeline:
    """Return a pipeline around fakes."""
    health = health or Health(hang_timeout_seconds=300)
    return Pipeline(
        storage,
        decoders or DecodersHere(),
        Model(detector, health, max_batch_size=max_batch_size),
        Recorder(store, health, uploads),
        health,
        PipelineOptions(**options),
        limit,
        sources,
        deletion=deletion,
        after_commit=after_commit,
        alerts=alerts,
    )
