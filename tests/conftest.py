"""Every test starts with the same environment, and restores the logging."""

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import fields

import hypothesis
import pytest

from service.settings import Settings

_EMULATOR_SUFFIXES = ("_EMULATOR_HOST", "_EMULATOR_HUB")

# A slow machine must not fail a test.
hypothesis.settings.register_profile("any machine", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("any machine")

# A shell starts background jobs with SIGINT ignored, and the processes of the tests inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_isolated(variable: str) -> bool:
    """Return whether a variable could change the behaviour of the service or a Google client."""
    settings = {spec.name.upper() for spec in fields(Settings)}
    return (
        variable in settings
        or variable.endswith(_EMULATOR_SUFFIXES)
        or variable.startswith(("GOOGLE_", "CLOUDSDK_", "GCLOUD_", "GUNICORN_"))
    )


@pytest.fixture(autouse=True)
def isolate_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in filter(_is_isolated, list(os.environ)):
        monkeypatch.delenv(variable)


_LOGGERS = ("service", "devtools", "examples", "gunicorn")


@pytest.fixture(autouse=True)
def isolate_logging() -> Iterator[None]:
    """Start with Python's own logging, whatever a library, a thread or a wider fixture has set."""
    root = logging.getLogger()
    logging.disable(logging.NOTSET)
    root.setLevel(logging.WARNING)
    root.filters.clear()
    for handler in root.handlers:  # those of pytest
        handler.setLevel(logging.NOTSET)
        handler.filters.clear()
    for name, logger in list(root.manager.loggerDict.items()):
        if name.split(".")[0] in _LOGGERS and isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)
            logger.filters.clear()
            logger.propagate, logger.disabled = True, False
    handlers = [
        (logger, logger.handlers[:])
        for logger in (
            root,
            logging.getLogger("gunicorn.error"),
            logging.getLogger("gunicorn.access"),
        )
    ]
    yield
    for logger, own in handlers:
        logger.handlers[:] = own


@pytest.fixture(autouse=True, scope="session")
def offline_ultralytics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep ultralytics from using the network and the home folder."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("YOLO_OFFLINE", "True")
        environment.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        yield
