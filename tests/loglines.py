"""The log lines of the code under test, without those of other threads.

The stacks that the session's fixtures started deliver on, and log, while other tests run; so do
threads that the vendor's clients start and nobody waits for.
"""

import logging
import logging.config

import pytest

from service.server import logs

# Prefixes of the names of other threads; the service names its own.
_OF_OTHERS = ("eventarc", "Thread-")


def configure(level: str) -> None:
    """Log as the service does, without the log lines of other tests' threads."""
    logging.config.dictConfig(logs.config(level))
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_of_the_test)


def _is_of_the_test(record: logging.LogRecord) -> bool:
    return not (record.threadName or "").startswith(_OF_OTHERS)


def logged_by(caplog: pytest.LogCaptureFixture, logger: str) -> list[logging.LogRecord]:
    """Return the lines of a logger and those below it.

    A test that counts lines looks at these: vendors' threads and other tests' log at any time.
    """
    below = f"{logger}."
    return [one for one in caplog.records if one.name == logger or one.name.startswith(below)]
