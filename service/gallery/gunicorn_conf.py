"""Configuration of gunicorn for the gallery in the cloud."""

import os

from service import logs
from service.settings import Settings

_settings = Settings.from_env()

bind = f"{_settings.bind_address}:{_settings.port}"
workers = 1  # the caches and the decoder processes are those of one process
worker_class = "gthread"
threads = 32  # a page requests 60 thumbnails, most of which are in a cache
timeout = 300  # an export
graceful_timeout = _settings.graceful_timeout_seconds
keepalive = 620  # longer than Cloud Run's front end keeps idle connections
control_socket_disable = True
logconfig_dict = logs.config(_settings.log_level)
os.environ.setdefault("PYTHONUNBUFFERED", "1")
