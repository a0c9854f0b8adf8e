"""The container's service with hooks, for chaos runs.

gunicorn --config python:service.server.gunicorn_conf "devtools.chaos.served:build_app()"

The hooks log each batch, slow down the loading of the model, break the model on request, end the
process after an upload or a commit on request, and make decoders fail on marked files.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask

from devtools.chaos.poisoned_decoder import COMMAND as DECODERS
from service.domain import Prediction, PreparedResult
from service.gcp import result_uploads
from service.gcp.result_uploads import ResultUploads
from service.images import decoders
from service.images.pixels import DecodedImage
from service.inference.canary import Decode, VerifiedModel
from service.inference.detector import Detector
from service.inference.loading import load_model
from service.publish.after_commit import AfterCommit
from service.server import wsgi as main
from service.settings import Settings

#: Environment variable: seconds that are added to the load of the model.
LOAD_SECONDS = "CHAOS_LOAD_SECONDS"
#: Environment variable: path of a file. The process that finds it removes it and breaks its model.
BREAK_FILE = "CHAOS_BREAK_FILE"
#: Environment variable: path of a file with a `Moment`. The process that finds it at this moment
#: removes it, and kills itself.
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


class Moment(StrEnum):
    """When the process kills itself. This is the content of the file."""

    UPLOADED = "uploaded"  # derived images exist, and no document refers to them
    COMMITTED = "committed"  # the document exists, and is not published


def build_app() -> Flask:
    """Build the application of `service.server.wsgi` with the hooks."""

    def load_hooked(settings: Settings, decode: Decode | None = None) -> VerifiedModel:
        time.sleep(float(os.environ.get(LOAD_SECONDS, "0")))
        verified = load_model(settings, decode)
        return replace(verified, detector=_Hooked(verified.detector))

    # The application gets models and decoders only by these two names. All else is unchanged.
    vars(main)["load_model"] = load_hooked
    vars(decoders)["Decoders"] = partial(decoders.Decoders, command=DECODERS)
    vars(result_uploads)["ResultUploads"] = _Uploads
    vars(main)["AfterCommit"] = _AfterCommit
    return main.build_app()


class _Uploads(ResultUploads):
    def prepare(self, *arguments: Any, **named: Any) -> PreparedResult:
        prepared = super().prepare(*arguments, **named)
        if prepared.result.derived:
            _kill_at(Moment.UPLOADED)
        return prepared


class _AfterCommit(AfterCommit):
    def committed(self, *arguments: Any, **named: Any) -> None:
        _kill_at(Moment.COMMITTED)
        super().committed(*arguments, **named)


def _kill_at(moment: Moment) -> None:
    """Kill this process if the file asks for it."""
    if KILL_FILE not in os.environ:
        return
    file = Path(os.environ[KILL_FILE])
    with suppress(FileNotFoundError):
        if file.read_text() == moment:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


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
