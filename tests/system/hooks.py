"""Workers of the service with something amiss; a test names one in GUNICORN_CMD_ARGS."""

import os
import signal
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from service import main
from service.detector import Detector
from service.domain import Detection
from service.gunicorn_worker import Worker
from service.images import Pixels

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


class PoisonedWorker(Worker):
    """Dies of one picture in the network, as of a defect of a native library."""

    def load_wsgi(self) -> None:
        load_model = main.load_model

        def load_poisoned(*args: Any) -> Any:
            checked = load_model(*args)
            return replace(checked, detector=Deadly(checked.detector))

        main.load_model = load_poisoned
        super().load_wsgi()


class Deadly:
    """A detector that kills its process."""

    def __init__(self, detector: Detector) -> None:
        self.info = detector.info
        self._detector = detector

    def batch_key(self, width: int, height: int) -> Hashable:
        return self._detector.batch_key(width, height)

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        if any(image.shape == POISON_SHAPE for image in images):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._detector.detect(images)
