"""Configuration of gunicorn, for the container and the local stack.

gunicorn --config python:service.server.gunicorn_conf "service.server.wsgi:build_app()"
"""

import logging
import logging.config
import os
import signal
import sys
from types import FrameType
from typing import Any

from service import logs
from service.errors import SettingsError
from service.settings import Settings

logger = logging.getLogger(__name__)

try:
    _settings = Settings.from_env()
except SettingsError as exc:
    logging.config.dictConfig(logs.config("INFO"))
    logger.critical("Cannot start: %s", exc)
    sys.exit(1)

logs.log_uncaught_exceptions()

bind = f"{_settings.bind_address}:{_settings.port}"
# A second worker would load a second model and split the batches.
workers = 1
worker_class = "service.server.gunicorn_worker.Worker"
threads = _settings.server_threads
# No limit, because gunicorn would kill a worker that loads its model. Cloud Run limits requests.
timeout = 0
graceful_timeout = _settings.graceful_timeout_seconds
# Longer than Cloud Run's front end keeps idle connections. If the server closed a connection first,
# the next request on it could fail.
keepalive = 620
control_socket_disable = True
logconfig_dict = logs.config(_settings.log_level)


def post_worker_init(worker: Any) -> None:
    """Reject further images after SIGTERM. gunicorn then waits for the images in flight."""
    drain = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        worker.wsgi.extensions["pipeline"].stop()
        if callable(drain):
            drain(number, frame)

    signal.signal(signal.SIGTERM, stop)


def worker_exit(_server: Any, worker: Any) -> None:
    """Close the pipeline after the last response."""
    if not (app := getattr(worker, "wsgi", None)):
        return
    try:
        app.extensions["pipeline"].close(timeout_seconds=1.0)
        logging.shutdown()
    finally:
        # A normal exit waits for every thread, so a thread that hangs would keep the process alive.
        os._exit(0)
