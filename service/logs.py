"""Formats log lines for Cloud Logging: one JSON object a line, with severity and trace.

Error Reporting takes a line's error from `stack_trace`, if that is the text of a Python traceback.
If a line has no traceback, it takes `message`, but only if `@type` marks the line as an error event
(https://cloud.google.com/error-reporting/docs/formatting-error-messages).
"""

import logging
import re
import sys
import threading
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from pythonjsonlogger.core import LogData
from pythonjsonlogger.json import JsonFormatter

logger = logging.getLogger(__name__)

# JSON keys that Cloud Logging interprets:
# https://cloud.google.com/logging/docs/structured-logging#structured_logging_special_fields
_SEVERITY = "severity"
_TRACE = "logging.googleapis.com/trace"
_ERROR_EVENT = "type.googleapis.com/google.devtools.clouderrorreporting.v1beta1.ReportedErrorEvent"

_TRACEBACK = "Traceback (most recent call last):"

# https://cloud.google.com/trace/docs/trace-context. Anything else in the header is not logged.
_TRACE_ID = re.compile(r"[0-9a-f]{32}")

_trace: ContextVar[str | None] = ContextVar("trace", default=None)


def set_trace(header: str | None, project: str | None) -> None:
    """Set the trace of the following log lines on this thread.

    Args:
        header: `X-Cloud-Trace-Context` as Cloud Run sends it: `TRACE_ID/SPAN_ID;o=OPTIONS`.
        project: the project that the trace belongs to.
    """
    trace_id = (header or "").partition("/")[0]
    is_trace = project and _TRACE_ID.fullmatch(trace_id)
    _trace.set(f"projects/{project}/traces/{trace_id}" if is_trace else None)


class TraceFilter(logging.Filter):
    """Adds the current request's trace to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the trace if there is one. Return True, to keep the record."""
        if trace := _trace.get():
            setattr(record, _TRACE, trace)
        return True


class Formatter(JsonFormatter):
    """Writes a record as JSON. Error Reporting gets each ERROR and CRITICAL, and nothing else."""

    def process_log_record(self, log_data: LogData) -> LogData:
        """Rename the traceback of an error, or mark an error that has none. Shorten the line.

        The service's own messages are listed with their loggers in
        docs/reference/logs-and-metrics.md, so that their lines need no logger.
        """
        if log_data["logger"].partition(".")[0] == "service":
            del log_data["logger"]
        if log_data[_SEVERITY] in ("ERROR", "CRITICAL"):
            if "exc_info" in log_data:
                log_data["stack_trace"] = log_data.pop("exc_info")
            # The text of an exception that was never raised is no traceback.
            if not log_data.get("stack_trace", "").startswith(_TRACEBACK):
                log_data["@type"] = _ERROR_EVENT
        return log_data


def log_uncaught_exceptions() -> None:
    """Log exceptions that end the process or a thread. Python prints them as many lines."""

    def log(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, Exception):
            # Not the error alone: logging leaves it out if its truth value is false.
            known = Exception(kind.__name__) if error is None else error
            logger.critical("An exception was not handled", exc_info=(kind, known, trace))

    sys.excepthook = log
    threading.excepthook = lambda args: log(args.exc_type, args.exc_value, args.exc_traceback)


def config(level: str, stream: str = "stdout") -> dict[str, Any]:
    """Return a configuration for `logging.config.dictConfig`, including gunicorn's loggers.

    Args:
        level: the lowest severity.
        stream: `stdout` or `stderr`. Cloud Logging reads both in the same way.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"trace": {"()": TraceFilter}},
        "formatters": {
            "json": {
                "()": Formatter,
                "fmt": "%(levelname)s %(name)s %(message)s",
                "rename_fields": {"levelname": _SEVERITY, "name": "logger"},
                "timestamp": "time",
            }
        },
        "handlers": {
            "stream": {
                "class": "logging.StreamHandler",
                "stream": f"ext://sys.{stream}",
                "formatter": "json",
                "filters": ["trace"],
            }
        },
        "root": {"level": level, "handlers": ["stream"]},
        "loggers": {
            # Without gunicorn's own handlers, which would log each event a second time.
            "gunicorn.error": {"level": level, "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": True},
        },
    }
