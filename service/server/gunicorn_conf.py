"""How gunicorn serves, in the container and in the local stack alike.

gunicorn --config python:service.server.gunicorn_conf "service.server.wsgi:build_app()"
"""

import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

from service.errors import SettingsError
from service.server import logs
from service.settings import Settings
from service.suspects import Suspects

logger = logging.getLogger(__name__)

try:
    _settings = Settings.from_env()
except SettingsError as exc:
    sys.exit(f"Cannot start: {exc}")

bind = f"{_settings.bind_address}:{_settings.port}"
# One worker: a second one would hold a second model and split the batches.
workers = 1
worker_class = "service.server.gunicorn_worker.Worker"
threads = _settings.concurrency
# Cloud Run keeps the request's clock; gunicorn's would kill a worker that loads its model.
timeout = 0
graceful_timeout = _settings.graceful_timeout_seconds
# Cloud Run's front end keeps connections; closing them first would race with its next request.
keepalive = 620
control_socket_disable = True
logconfig_dict = logs.config(_settings.log_level)
# Made here, before the worker is forked: one that is started after its death finds it.
_suspects = Suspects()


def post_worker_init(worker: Any) -> None:
    """Learn from a worker that died; on SIGTERM, tell the pipeline first.

    A job of many pictures is given back then, not drained.
    """
    worker.wsgi.extensions["pipeline"].learn_from(_suspects)
    drain = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        worker.wsgi.extensions["pipeline"].stop()
        if callable(drain):
            drain(number, frame)

    signal.signal(signal.SIGTERM, stop)
    if _settings.profile_stages:
        signal.signal(signal.SIGUSR1, lambda number, frame: _log_stages(worker.wsgi))


def worker_exit(_server: Any, worker: Any) -> None:
    """After the last answer, let the pipeline's threads end."""
    if not (app := getattr(worker, "wsgi", None)):
        return
    try:
        app.extensions["pipeline"].close(timeout_seconds=1.0)
        if _settings.profile_stages:
            _log_stages(app)
        logging.shutdown()
    finally:
        # Python would wait for every thread, and one that waits for another's answer may never end:
        # the server would count a worker as alive that answers nobody.
        os._exit(0)


def _log_stages(app: Any) -> None:
    logger.info("Stages", extra=app.extensions["stages"].report())
