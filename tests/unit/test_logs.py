"""Log lines have the form of Cloud Logging."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.server import logs
from tests.loglines import configure

TRACE = "logging.googleapis.com/trace"
TRACE_ID = "105445aa7843bc8bf206b12000100000"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the lines on standard output. Each must be a JSON object."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def configured() -> logging.Logger:
    """Return a logger of the service. No fixture, because pytest replaces standard output."""
    configure("INFO")
    logs.set_trace(None, None)
    return logging.getLogger("service.test")


@pytest.mark.parametrize(
    ("level", "severity"),
    [
        (logging.INFO, "INFO"),
        (logging.WARNING, "WARNING"),
        (logging.ERROR, "ERROR"),
        (logging.CRITICAL, "CRITICAL"),
    ],
)
def test_line_has_severity_logger_message_and_time(
    capsys: pytest.CaptureFixture[str], level: int, severity: str
) -> None:
    logger = configured()
    logger.log(level, "Committed %d", 3)
    [line] = lines(capsys)
    assert line.pop("time").startswith("20")
    assert line == {"severity": severity, "logger": "service.test", "message": "Committed 3"}


def test_line_has_its_extra_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logger = configured()
    logger.info("Committed", extra={"batch_size": 4, "shapes": ["640x480"], "model": {"a": None}})
    [line] = lines(capsys)
    assert (line["batch_size"], line["shapes"]) == (4, ["640x480"])
    assert line["model"] == {"a": None}


def test_line_of_less_than_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logger = configured()
    logger.debug("quiet")
    logging.getLogger("gunicorn.access").info("GET /")
    assert lines(capsys) == []


def test_line_with_newlines_and_unicode_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logger = configured()
    logger.info("one\ntwo\u2028three 日本 %s", "\x00\ud800")
    [line] = lines(capsys)
    assert line["message"] == "one\ntwo\u2028three 日本 \x00\ud800"


def test_line_of_an_exception_is_one_line_with_its_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = configured()
    try:
        raise ValueError("a\nb")
    except ValueError:
        logger.exception("Failed")
    [line] = lines(capsys)
    assert (line["severity"], line["message"]) == ("ERROR", "Failed")
    assert line["exc_info"].startswith("Traceback (most recent call last):\n")
    assert line["exc_info"].endswith("ValueError: a\nb")


@pytest.mark.parametrize(
    ("header", "project", "expected"),
    [
        (f"{TRACE_ID}/1;o=1", "p", f"projects/p/traces/{TRACE_ID}"),
        (TRACE_ID, "p", f"projects/p/traces/{TRACE_ID}"),
        (None, "p", None),
        ("", "p", None),
        ("/1;o=1", "p", None),
        (f"{TRACE_ID}/1;o=1", None, None),
        ("abc/1", "p", None),
        (f"{TRACE_ID}0/1", "p", None),
        (TRACE_ID.replace("a", "A"), "p", None),
        (f"{TRACE_ID}\n", "p", None),
        ("../" * 11, "p", None),
        ("x" * 8000, "p", None),
    ],
    ids=["full", "short", "none", "empty", "no-id", "no-project"]
    + ["too-short", "too-long", "capitals", "newline", "path", "huge"],
)
def test_line_names_the_trace_of_the_header(
    capsys: pytest.CaptureFixture[str],
    header: str | None,
    project: str | None,
    expected: str | None,
) -> None:
    logger = configured()
    logs.set_trace(header, project)
    logger.info("Committed")
    logging.getLogger("vendor").warning("slow")
    assert [line.get(TRACE) for line in lines(capsys)] == [expected, expected]


def test_trace_of_one_request_does_not_reach_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    logger = configured()
    logs.set_trace(f"{TRACE_ID}/1", "p")
    logs.set_trace(None, "p")
    logger.info("Committed")
    assert TRACE not in lines(capsys)[0]


def test_trace_of_one_thread_does_not_reach_another(capsys: pytest.CaptureFixture[str]) -> None:
    logger = configured()
    logs.set_trace(f"{TRACE_ID}/1", "p")
    with ThreadPoolExecutor(1) as other:
        other.submit(logger.info, "Committed").result()
    assert TRACE not in lines(capsys)[0]


def test_gunicorns_errors_are_json_lines_once(capsys: pytest.CaptureFixture[str]) -> None:
    configured()
    logging.getLogger("gunicorn.error").info("Booting worker")
    [line] = lines(capsys)
    assert (line["severity"], line["logger"]) == ("INFO", "gunicorn.error")
