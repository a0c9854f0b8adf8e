"""Evaluates the part of the Logging query language that the module uses.

https://cloud.google.com/logging/docs/view/logging-query-language. A filter is comparisons that AND
connects. A value is a word, a text in quotes, or several of them in parentheses with OR.
"""

import re
from typing import Any

_COMPARISON = re.compile(
    r"(?P<path>[\w.]+)(?P<operator>=~|>=|<=|=|<|>)(?P<value>\(.*?\)|\".*?\"|[\w.]+)"
    r"|log_id\(\"(?P<log>[^\"]+)\"\)"
)
_SEVERITIES = ("DEFAULT", "DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL")


def matches(query: str, entry: dict[str, Any]) -> bool:
    """Return whether a log entry matches a filter.

    Args:
        query: the filter.
        entry: a LogEntry as JSON. A field that it lacks matches nothing.

    Raises:
        ValueError: the filter has a part that this module does not know.
    """
    parts = [_COMPARISON.fullmatch(part.strip()) for part in query.split(" AND ")]
    if not all(parts):
        raise ValueError(query)
    return all(part and _holds(part, entry) for part in parts)


def _holds(part: re.Match[str], entry: dict[str, Any]) -> bool:
    if log := part["log"]:
        return bool(entry["logName"].rpartition("/logs/")[2].replace("%2F", "/") == log)
    found: Any = entry
    for name in part["path"].split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if found is None:
        return False
    values = [value.strip(' "') for value in part["value"].strip("()").split(" OR ")]
    return any(_compare(part["path"], part["operator"], found, value) for value in values)


def _compare(path: str, operator: str, found: Any, value: str) -> bool:
    if operator == "=~":
        return bool(re.search(value, str(found)))
    if path == "severity":
        left, right = float(_SEVERITIES.index(found)), float(_SEVERITIES.index(value))
    elif operator == "=":
        return str(found) == value
    else:
        left, right = float(found), float(value)
    return {
        "=": left == right,
        "<": left < right,
        ">": left > right,
        "<=": left <= right,
        ">=": left >= right,
    }[operator]
