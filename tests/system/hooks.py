"""Workers of the service with a fault. A test names a worker in GUNICORN_CMD_ARGS."""

import os
import signal
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.domain import Prediction, Task
from service.gcp.firestore import ResultStore
from service.images.decoders import DecodeLimits, Decoders
from service.images.pixels import DecodedImage
from service.inference.detector import Detector
from service.machine import cores
from service.publish import after_commit
from service.server import wsgi
from service.server.gunicorn_worker import Worker
from service.settings import Settings
from tests import hostile_decoder
from tests.masks import segmented

POISON_SHAPE = (99, 132, 3)  # of the image on which the model fails
WALL_SECONDS = 15.0  # time limit of a decode; only a hanging file reaches it


def settings(worker: type[Worker]) -> dict[str, str]:
    """Return settings that make a service use a worker of this module."""
    return {
        "GUNICORN_CMD_ARGS": f"--worker-class {worker.__module__}.{worker.__qualname__}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


class ShortReadTimeoutWorker(Worker):
    """Gives a client one second to send its request."""

    read_seconds = 1.0


class HostileDecodersWorker(Worker):
    """Uses decoders that misbehave on marked files, see tests/hostile_decoder.py."""

    def load_wsgi(self) -> None:
        vars(wsgi)["build_decoders"] = hostile_decoders
        super().load_wsgi()


def hostile_decoders(settings: Settings) -> Decoders:
    return Decoders(
        cores(),
        max_pixels=settings.max_image_pixels,
        max_decompressed_bytes=settings.max_image_bytes,
        limits=DecodeLimits(wall_seconds=WALL_SECONDS),
        command=hostile_decoder.COMMAND,
    )


class CrashingAtLoadWorker(Worker):
    """Crashes while it loads its model, as by a defect of a native library."""

    def load_wsgi(self) -> None:
        vars(wsgi)["load_model"] = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        super().load_wsgi()


class CrashingAtCommitWorker(Worker):
    """Crashes before its first commit: the objects of the result were uploaded."""

    def load_wsgi(self) -> None:
        super().load_wsgi()
        ResultStore.commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore


class CrashingWorker(Worker):
    """Crashes on one image in the model, as by a defect of a native library."""

    def load_wsgi(self) -> None:
        load_model = vars(wsgi)["load_model"]

        def load(*args: Any) -> Any:
            verified = load_model(*args)
            return replace(verified, detector=self.faulty(verified.detector))

        vars(wsgi)["load_model"] = load
        super().load_wsgi()

    def faulty(self, detector: Detector) -> Detector:
        return CrashingDetector(detector)


class CrashingAfterCommitWorker(Worker):
    """Crashes between the commit of a result and the publishing of its message."""

    def load_wsgi(self) -> None:
        vars(after_commit)["to_document"] = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        super().load_wsgi()


class HangingWorker(CrashingWorker):
    """Hangs on one image in the model."""

    def faulty(self, detector: Detector) -> Detector:
        return HangingDetector(detector)


class FailingWorker(CrashingWorker):
    """Fails on every image in the model, as after a GPU error."""

    def faulty(self, detector: Detector) -> Detector:
        return FailingDetector(detector)


class MaskingWorker(CrashingWorker):
    """Finds 300 masks in every image. Their document would have 1.5 MB."""

    def faulty(self, detector: Detector) -> Detector:
        return MaskingDetector(detector)


class CrashingDetector:
    """A detector that kills its process."""

    def __init__(self, detector: Detector) -> None:
        self.info = detector.info
        self.labels = detector.labels
        self.runners = detector.runners
        self.input_shape = detector.input_shape
        self._detector = detector

    def detect(self, images: Sequence[DecodedImage]) -> Iterable[Prediction]:
        if any(image.pixels.shape == POISON_SHAPE for image in images):
            self.fail()
        return self._detector.detect(images)

    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class HangingDetector(CrashingDetector):
    """A detector that never returns."""

    def fail(self) -> None:
        threading.Event().wait()


class FailingDetector(CrashingDetector):
    """A detector that raises."""

    def detect(self, images: Sequence[DecodedImage]) -> Iterable[Prediction]:
        raise RuntimeError("The device is lost.")


class MaskingDetector(CrashingDetector):
    """A detector of masks. They are not in the image."""

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector)
        self.info = replace(detector.info, task=Task.SEGMENT)

    def detect(self, images: Sequence[DecodedImage]) -> Iterable[Prediction]:
        return [Prediction(segmented("").detections) for _ in images]
