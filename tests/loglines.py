"""The log lines of the code under test, without those of other threads.

Other threads log at any time: those of stacks that session fixtures started, and those of the
vendor's clients.
"""

import logging
import logging.config

import pytest

from service import logs

# Prefixes of the names of those threads.
_OTHER_THREADS = ("eventarc", "Thread-")


def configure(level: str) -> None:
    """Log as the service does, without the log lines of other tests' threads."""
    logging.config.dictConfig(logs.config(level))
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_of_the_test)


def _is_of_the_test(record: logging.LogRecord) -> bool:
    return not (record.threadName or "").startswith(_OTHER_THREADS)


def logged_by(caplog: pytest.LogCaptureFixture, logger: str) -> list[logging.LogRecord]:
    """Return the records of a logger and its children, for a test that counts lines."""
    below = f"{logger}."
    return [
        record
        for record in caplog.records
        if record.name == logger or record.name.startswith(below)
    ]
