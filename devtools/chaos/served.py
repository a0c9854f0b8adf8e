"""The service under test: the container's, but it logs what it infers, and may load slowly.

gunicorn --config python:service.server.gunicorn_conf "devtools.chaos.served:build_app()"
"""

import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from flask import Flask

from service.domain import Detection
from service.images.pixels import Pixels
from service.inference.canary import Decode, VerifiedModel
from service.inference.detector import Detector
from service.inference.loading import load_model
from service.server import wsgi as main
from service.settings import Settings

#: Environment variable: how long the model takes longer to load.
LOAD_SECONDS = "CHAOS_LOAD_SECONDS"
#: Field of a log line: pictures of a batch that is about to be inferred.
INFERRING = "inferring"

logger = logging.getLogger(__name__)


def build_app() -> Flask:
    """Build the application of `service.server.wsgi` around a model that counts."""

    def load_counting(settings: Settings, decode: Decode | None = None) -> VerifiedModel:
        time.sleep(float(os.environ.get(LOAD_SECONDS, "0")))
        verified = load_model(settings, decode)
        return replace(verified, detector=_Counting(verified.detector))

    # The one place where the model comes from: whatever else the container does, this one does.
    vars(main)["load_model"] = load_counting
    return main.build_app()


class _Counting:
    """A detector that logs each batch before it runs."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.info = detector.info
        self.runners = detector.runners
        self.input_shape = detector.input_shape

    def detect(self, images: Sequence[Pixels]) -> Iterable[list[Detection]]:
        logger.info("Inferring a batch", extra={INFERRING: len(images)})
        return self._detector.detect(images)
