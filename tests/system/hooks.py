"""Workers of the service with a fault; a test names one in GUNICORN_CMD_ARGS."""

import os
import signal
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.domain import Detection
from service.images.decoders import DecodeLimits, Decoders
from service.images.pixels import Pixels
from service.inference.detector import Detector
from service.machine import cores
from service.server import wsgi
from service.server.gunicorn_worker import Worker
from service.settings import Settings
from tests import hostile_decoder

POISON_SHAPE = (99, 132, 3)  # of the image on which the model has its fault
WALL_SECONDS = 15.0  # that a file may take; none but a hanging one needs so long


def settings(worker: type[Worker]) -> dict[str, str]:
    """Make a service run by one of these."""
    return {
        "GUNICORN_CMD_ARGS": f"--worker-class {worker.__module__}.{worker.__qualname__}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


class HastyWorker(Worker):
    """Gives a client one second for its request."""

    read_seconds = 1.0


class HostileDecodersWorker(Worker):
    """Has decoders that do what a marked file says; see tests/hostile_decoder.py."""

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


class DyingAtLoadWorker(Worker):
    """Dies while it loads its model, by a defect of a native library."""

    def load_wsgi(self) -> None:
        vars(wsgi)["load_model"] = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        super().load_wsgi()


class DeadlyWorker(Worker):
    """Dies of one image in the model, by a defect of a native library."""

    def load_wsgi(self) -> None:
        load_model = vars(wsgi)["load_model"]

        def load(*args: Any) -> Any:
            verified = load_model(*args)
            return replace(verified, detector=self.faulty(verified.detector))

        vars(wsgi)["load_model"] = load
        super().load_wsgi()

    def faulty(self, detector: Detector) -> Detector:
        return Deadly(detector)


class HangingWorker(DeadlyWorker):
    """Hangs on one image in the model."""

    def faulty(self, detector: Detector) -> Detector:
        return Endless(detector)


class FailingWorker(DeadlyWorker):
    """Fails on every image in the model, as after an error of a GPU."""

    def faulty(self, detector: Detector) -> Detector:
        return Failing(detector)


class Deadly:
    """A detector that kills its process."""

    def __init__(self, detector: Detector) -> None:
        self.info = detector.info
        self.runners = detector.runners
        self.input_shape = detector.input_shape
        self._detector = detector

    def detect(self, images: Sequence[Pixels]) -> Iterable[list[Detection]]:
        if any(image.shape == POISON_SHAPE for image in images):
            self.end()
        return self._detector.detect(images)

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Endless(Deadly):
    """A detector that never returns."""

    def end(self) -> None:
        threading.Event().wait()


class Failing(Deadly):
    """A detector that raises."""

    def detect(self, images: Sequence[Pixels]) -> Iterable[list[Detection]]:
        raise RuntimeError("The device is lost.")
