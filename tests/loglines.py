"""The service's log lines on standard output, without those of other tests' threads.

The stacks that the session's fixtures started deliver on, and log, while other tests run; so do
threads that the vendor's clients start and nobody waits for.
"""

import logging
import logging.config

from service import logs

_OF_OTHERS = ("eventarc", "Thread-")  # begin their threads' names; the service names its own


def configure(level: str) -> None:
    """Log as the service does, but for what other tests' threads log."""
    logging.config.dictConfig(logs.config(level))
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_of_the_test)


def _is_of_the_test(record: logging.LogRecord) -> bool:
    return not (record.threadName or "").startswith(_OF_OTHERS)
