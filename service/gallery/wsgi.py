"""The gallery's application in the cloud, behind Identity-Aware Proxy.

gunicorn --config python:service.gallery.gunicorn_conf "service.gallery.wsgi:build_app()"
"""

import logging
import logging.config
import sys
from typing import TYPE_CHECKING

from service import logs
from service.errors import CredentialsError, SettingsError
from service.gallery.access import IapAccess
from service.gallery.app import create_app
from service.gallery.build import build_gallery
from service.gallery.settings import GallerySettings
from service.gcp.iap import AssertionVerifier
from service.settings import Settings

if TYPE_CHECKING:
    from flask import Flask

_BOOT_ERROR = 3  # exit code at which gunicorn stops, instead of restarting the worker

logger = logging.getLogger(__name__)


def build_app() -> "Flask":
    """Build the application from the environment. gunicorn calls this."""
    try:
        settings, own = Settings.from_env(), GallerySettings.from_env()
        logging.config.dictConfig(logs.config(settings.log_level))
        if own.audience is None:
            raise SettingsError("GALLERY_AUDIENCE is not set, so nobody could be let in")
        return create_app(build_gallery(settings, own, IapAccess(AssertionVerifier(own.audience))))
    except (CredentialsError, SettingsError) as exc:
        logger.critical("Cannot start: %s", exc)
        sys.exit(_BOOT_ERROR)
