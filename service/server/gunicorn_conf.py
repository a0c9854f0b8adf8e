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

try:
    _settings = Settings.from_env()
except SettingsError as exc:
    sys.exit(f"Cannot start: {exc}")

bind = f"{_settings.bind_address}:{_settings.port}"
# One worker: a second one would load a second model and split the batches.
workers = 1
worker_class = "service.server.gunicorn_worker.Worker"
threads = _settings.server_threads
# Cloud Run limits the request's time; gunicorn's limit would kill a worker that loads its model.
timeout = 0
graceful_timeout = _settings.graceful_timeout_seconds
# Cloud Run's front end keeps connections; closing them first would race with its next request.
keepalive = 620
control_socket_disable = True
logconfig_dict = logs.config(_settings.log_level)


def post_worker_init(worker: Any) -> None:
    """On SIGTERM, stop admitting images at once; gunicorn then waits for those in flight."""
    drain = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        worker.wsgi.extensions["pipeline"].stop()
        if callable(drain):
            drain(number, frame)

    signal.signal(signal.SIGTERM, stop)


def worker_exit(_server: Any, worker: Any) -> None:
    """After the last response, let the pipeline's threads end."""
    if not (app := getattr(worker, "wsgi", None)):
        return
    try:
        app.extensions["pipeline"].close(timeout_seconds=1.0)
        logging.shutdown()
    finally:
        # Python would wait for every thread. One that never ends would keep a worker alive that
        # serves nobody.
        os._exit(0)
