"""The container's service with hooks, for chaos runs.

gunicorn --config python:service.server.gunicorn_conf "devtools.chaos.served:build_app()"

The hooks log each batch, slow down the loading of the model, break the model or end the process
after a commit on request, and make decoders fail on marked files.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask

from devtools.chaos.poisoned_decoder import COMMAND as DECODERS
from service.after_commit import AfterCommit
from service.domain import Prediction
from service.images import decoders
from service.images.pixels import DecodedImage
from service.inference.canary import Decode, VerifiedModel
from service.inference.detector import Detector
from service.inference.loading import load_model
from service.server import wsgi as main
from service.settings import Settings

#: Environment variable: seconds that are added to the load of the model.
LOAD_SECONDS = "CHAOS_LOAD_SECONDS"
#: Environment variable: path of a file. The process that finds it removes it and breaks its model.
BREAK_FILE = "CHAOS_BREAK_FILE"
#: Environment variable: path of a file. The process that finds it after a commit removes it, and
#: kills itself before it publishes the result.
KILL_FILE = "CHAOS_KILL_FILE"
#: Field of a log line: number of images in the batch that is about to run.
INFERRING = "inferring"
#: Field of a log line: number of different images on which the broken model has failed.
FAILED_ON = "failed_on"

logger = logging.getLogger(__name__)


class Break(StrEnum):
    """How the model is broken until its process ends. This is the content of the file."""

    HANGS = "hangs"
    FAILS = "fails"  # on every image, as after a CUDA error


def build_app() -> Flask:
    """Build the application of `service.server.wsgi` with the hooks."""

    def load_hooked(settings: Settings, decode: Decode | None = None) -> VerifiedModel:
        time.sleep(float(os.environ.get(LOAD_SECONDS, "0")))
        verified = load_model(settings, decode)
        return replace(verified, detector=_Hooked(verified.detector))

    # The application gets models and decoders only by these two names. All else is unchanged.
    vars(main)["load_model"] = load_hooked
    vars(decoders)["Decoders"] = partial(decoders.Decoders, command=DECODERS)
    vars(main)["AfterCommit"] = _Killed
    return main.build_app()


class _Killed(AfterCommit):
    """Kills the process before a result is published, if the file exists."""

    def committed(self, *arguments: Any, **named: Any) -> None:
        file = Path(os.environ[KILL_FILE]) if KILL_FILE in os.environ else None
        if file and file.exists():
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        super().committed(*arguments, **named)


class _Hooked:
    """A detector that logs each batch before it runs, and can be broken."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._break_file = Path(os.environ[BREAK_FILE]) if BREAK_FILE in os.environ else None
        self._broken: Break | None = None
        self._failed_on: set[bytes] = set()
        self.info = detector.info
        self.labels = detector.labels
        self.runners = detector.runners
        self.input_shape = detector.input_shape

    def detect(self, images: Sequence[DecodedImage]) -> Iterable[Prediction]:
        if self._break_file and self._break_file.exists():
            self._broken = Break(self._break_file.read_text())
            self._break_file.unlink()
        if self._broken is Break.HANGS:
            threading.Event().wait()
        if self._broken is Break.FAILS:
            if len(images) == 1:  # images of a larger batch are retried alone
                self._failed_on.add(images[0].pixels.tobytes())
            logger.info("The model is broken", extra={FAILED_ON: len(self._failed_on)})
            raise RuntimeError("The model was broken on purpose.")
        logger.info("Inferring a batch", extra={INFERRING: len(images)})
        return self._detector.detect(images)
