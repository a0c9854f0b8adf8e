"""The service under test: the container's, but it logs what it infers, and may load slowly.

gunicorn --config python:service.server.gunicorn_conf "devtools.chaos.served:build_app()"
"""

import logging
import os
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace

from flask import Flask

from service.domain import Detection, ModelInfo
from service.images.pixels import Pixels
from service.inference.canary import Checked
from service.inference.detector import Detector
from service.inference.loading import load_model
from service.server import wsgi as main
from service.settings import Settings
from service.stages import StageClock

#: Environment variable: how long the model takes longer to load.
LOAD_SECONDS = "CHAOS_LOAD_SECONDS"
#: Field of a log line: pictures of a batch that is about to be inferred.
INFERRING = "inferring"

logger = logging.getLogger(__name__)


def build_app() -> Flask:
    """Build the application of `service.server.wsgi` around a model that counts."""

    def load_counting(settings: Settings, clock: StageClock) -> Checked:
        time.sleep(float(os.environ.get(LOAD_SECONDS, "0")))
        checked = load_model(settings, clock)
        return replace(checked, detector=_Counting(checked.detector))

    # The one place where the model comes from: whatever else the container does, this one does.
    vars(main)["load_model"] = load_counting
    return main.build_app()


class _Counting:
    """A detector that logs each batch before it runs."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @property
    def info(self) -> ModelInfo:
        return self._detector.info

    def batch_key(self, width: int, height: int) -> Hashable:
        return self._detector.batch_key(width, height)

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        logger.info("Inferring a batch", extra={INFERRING: len(images)})
        return self._detector.detect(images)
