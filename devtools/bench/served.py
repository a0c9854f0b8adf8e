"""The container's service with a CPU clock around the pipeline's stages, for `bench --profile`.

gunicorn --config python:service.server.gunicorn_conf "devtools.bench.served:build_app()"

On SIGUSR1 it logs the CPU seconds so far, by Python thread and stage. The line has the names of the
threads, which the operating system does not know.
"""

import logging
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from flask import Flask

from service.deadline import Deadline
from service.domain import Download, ImageRef, Prediction
from service.gcp.firestore import ResultStore
from service.gcp.storage import ImageStorage
from service.images.decoders import Decoders
from service.images.pixels import DecodedImage
from service.inference.canary import VerifiedModel
from service.inference.detector import Detector
from service.pipeline import Pipeline
from service.server import wsgi
from service.settings import Settings

DOWNLOAD = "download"
HAND_OVER = "to and from decoders"
INFERENCE = "inference"
READ = "store: read"
COMMIT = "store: commit"
#: Message of the log line.
MESSAGE = "Stages"

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)


class StageClock:
    """Adds up CPU seconds by thread and stage. Stages do not nest. Any thread may use it."""

    def __init__(self) -> None:
        """Start at zero."""
        # Each key has a single writer, so the signal handler needs no lock.
        self._seconds: defaultdict[tuple[int, str], float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the CPU time of the calling thread inside the block."""
        started = time.thread_time()
        try:
            yield
        finally:
            self._seconds[threading.get_native_id(), stage] += time.thread_time() - started

    def timed(self, stage: str, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function with a clock around its calls."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.measure(stage):
                return function(*args, **kwargs)

        return call

    def report(self) -> dict[str, object]:
        """Return the fields of the log line."""
        counted = self._seconds.copy()
        threads = {
            str(thread.native_id): {
                "name": thread.name,
                "cpu_seconds": {
                    stage: seconds
                    for (number, stage), seconds in counted.items()
                    if number == thread.native_id
                },
            }
            for thread in threading.enumerate()
        }
        totals: defaultdict[str, float] = defaultdict(float)
        for (_, stage), seconds in counted.items():
            totals[stage] += seconds
        return {"cpu_seconds": dict(totals), "threads": threads}


def build_app() -> Flask:
    """Build the application of `service.server.wsgi` with a clock around its stages."""
    clock = StageClock()
    build_pipeline = wsgi.build_pipeline

    def build_timed(
        settings: Settings,
        decoders: Decoders,
        verified: VerifiedModel,
        storage: ImageStorage,
        store: ResultStore,
        *others: Any,
    ) -> Pipeline:
        timed = vars  # an attribute of the instance hides the method of its class
        timed(storage)["resolve"] = clock.timed(DOWNLOAD, storage.resolve)
        timed(storage)["download"] = _timed_download(clock, storage.download)
        timed(decoders)["decode"] = clock.timed(HAND_OVER, decoders.decode)
        timed(store)["is_final"] = clock.timed(READ, store.is_final)
        timed(store)["commit"] = clock.timed(COMMIT, store.commit)
        detector = _TimedDetector(verified.detector, clock)
        timed_model = replace(verified, detector=detector)
        return build_pipeline(settings, decoders, timed_model, storage, store, *others)

    # `build_app` calls this function by name. All else is unchanged.
    vars(wsgi)["build_pipeline"] = build_timed
    app = wsgi.build_app()
    signal.signal(signal.SIGUSR1, lambda *_: logger.info(MESSAGE, extra=clock.report()))
    return app


Buffer = Callable[[int, Deadline], AbstractContextManager[object]]
DownloadMethod = Callable[[ImageRef, Deadline, Buffer], AbstractContextManager[Download]]


def _timed_download(clock: StageClock, download: DownloadMethod) -> DownloadMethod:
    """Measure the entry and the exit of the block, not the block itself."""

    @contextmanager
    def timed(ref: ImageRef, deadline: Deadline, buffer: Buffer) -> Iterator[Download]:
        block = download(ref, deadline, buffer)
        with clock.measure(DOWNLOAD):
            downloaded = block.__enter__()
        try:
            yield downloaded
        except BaseException as exc:
            with clock.measure(DOWNLOAD):
                if not block.__exit__(type(exc), exc, exc.__traceback__):
                    raise
        else:
            with clock.measure(DOWNLOAD):
                block.__exit__(None, None, None)

    return timed


class _TimedDetector:
    """A detector with a clock around each image."""

    def __init__(self, detector: Detector, clock: StageClock) -> None:
        self._detector = detector
        self._clock = clock
        self.info = detector.info
        self.labels = detector.labels
        self.runners = detector.runners
        self.input_shape = detector.input_shape

    def detect(self, images: Sequence[DecodedImage]) -> Iterable[Prediction]:
        with self._clock.measure(INFERENCE):
            results = self._detector.detect(images)
        return results if isinstance(results, list) else self._steps(results)

    def _steps(self, results: Iterable[Prediction]) -> Iterator[Prediction]:
        iterator = iter(results)
        while True:
            with self._clock.measure(INFERENCE):
                prediction = next(iterator, None)
            if prediction is None:
                return
            yield prediction
