"""What a test reads of the log."""

import logging

import pytest


def logged_by(caplog: pytest.LogCaptureFixture, logger: str) -> list[logging.LogRecord]:
    """Return the lines of a logger and those below it.

    A test that counts lines looks at these: vendors' threads and other tests' log at any time.
    """
    below = f"{logger}."
    return [one for one in caplog.records if one.name == logger or one.name.startswith(below)]
