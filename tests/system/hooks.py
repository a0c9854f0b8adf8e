"""Workers of the service with something amiss; a test names one in GUNICORN_CMD_ARGS."""

import os
import signal
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.domain import Detection
from service.images.pixels import Pixels
from service.inference.detector import Detector
from service.server import wsgi as main
from service.server.gunicorn_worker import Worker

POISON_SHAPE = (99, 132, 3)  # of the picture that kills; of the demo's ratio, to share its batches


def settings(worker: type[Worker]) -> dict[str, str]:
    """Make a service run by one of these."""
    return {
        "GUNICORN_CMD_ARGS": f"--worker-class {worker.__module__}.{worker.__qualname__}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


class HastyWorker(Worker):
    """Gives a client one second for its request."""

    read_seconds = 1.0


STOPPING = "the pipeline knows that it stops"


class TellingWorker(Worker):
    """Writes to its log when SIGTERM has reached its pipeline."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        os.write(1, f"{STOPPING}\n".encode())  # a logger's lock is not for a signal's handler


class PoisonedWorker(Worker):
    """Dies of one picture in the network, as of a defect of a native library."""

    def load_wsgi(self) -> None:
        load_model = main.load_model

        def load_poisoned(*args: Any) -> Any:
            checked = load_model(*args)
            return replace(checked, detector=self.poison(checked.detector))

        main.load_model = load_poisoned
        super().load_wsgi()

    def poison(self, detector: Detector) -> Detector:
        return Deadly(detector)


class HangingWorker(PoisonedWorker):
    """Hangs on one picture in the network."""

    def poison(self, detector: Detector) -> Detector:
        return Endless(detector)


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
    """A detector that never answers."""

    def end(self) -> None:
        threading.Event().wait()
