"""Formats log lines for Cloud Logging: one JSON object a line, with severity and trace."""

import logging
import re
from contextvars import ContextVar
from typing import Any

# JSON keys that Cloud Logging interprets:
# https://cloud.google.com/logging/docs/structured-logging#structured_logging_special_fields
_SEVERITY = "severity"
_TRACE = "logging.googleapis.com/trace"

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


def config(level: str) -> dict[str, Any]:
    """Return a configuration for `logging.config.dictConfig`, including gunicorn's loggers."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"trace": {"()": TraceFilter}},
        "formatters": {
            "json": {
                "()": "pythonjsonlogger.json.JsonFormatter",
                "fmt": "%(levelname)s %(name)s %(message)s",
                "rename_fields": {"levelname": _SEVERITY, "name": "logger"},
                "timestamp": "time",
            }
        },
        "handlers": {
            "stdout": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stdout",
                "formatter": "json",
                "filters": ["trace"],
            }
        },
        "root": {"level": level, "handlers": ["stdout"]},
        "loggers": {
            # Without gunicorn's own handlers, which would log each event a second time.
            "gunicorn.error": {"level": level, "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": True},
        },
    }
