"""Log lines have the form of Cloud Logging."""

import json
import logging
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from devtools.local_stack.processes import free_port
from service import logs
from tests.loglines import configure

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120
TRACE = "logging.googleapis.com/trace"
ERROR_EVENT = "type.googleapis.com/google.devtools.clouderrorreporting.v1beta1.ReportedErrorEvent"
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
def test_line_has_severity_message_and_time(
    capsys: pytest.CaptureFixture[str], level: int, severity: str
) -> None:
    logger = configured()
    logger.log(level, "Committed %d", 3)
    [line] = lines(capsys)
    assert line.pop("time").startswith("20")
    line.pop("@type", None)
    assert line == {"severity": severity, "message": "Committed 3"}


@pytest.mark.parametrize("name", ["urllib3.connection", "services", "root"])
def test_line_of_a_library_has_its_logger(capsys: pytest.CaptureFixture[str], name: str) -> None:
    configured()
    logging.getLogger(name).warning("slow")
    assert [line["logger"] for line in lines(capsys)] == [name]


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


def test_error_reporting_gets_the_traceback_of_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = configured()
    try:
        raise ValueError("a\nb")
    except ValueError:
        logger.exception("Failed")
        expected = traceback.format_exc()
    [line] = lines(capsys)
    assert (line["severity"], line["message"]) == ("ERROR", "Failed")
    assert line["stack_trace"] == expected.rstrip("\n")
    assert not {"exc_info", "@type"} & set(line)


@pytest.mark.parametrize("level", [logging.ERROR, logging.CRITICAL])
def test_error_reporting_gets_an_error_without_traceback(
    capsys: pytest.CaptureFixture[str], level: int
) -> None:
    logger = configured()
    logger.log(level, "Fell back")
    [line] = lines(capsys)
    assert line["@type"] == ERROR_EVENT
    assert line["message"] == "Fell back"


def test_error_reporting_gets_an_error_that_was_never_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = configured()
    logger.error("Failed", exc_info=ValueError("a"))
    [line] = lines(capsys)
    assert (line["stack_trace"], line["@type"]) == ("ValueError: a", ERROR_EVENT)


def test_error_reporting_does_not_get_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """A rejected message is delivered again. Its traceback is for whoever reads the log."""
    logger = configured()
    logger.warning("Rejected a message", exc_info=ValueError("a"))
    [line] = lines(capsys)
    assert line["exc_info"] == "ValueError: a"
    # Error Reporting looks at these fields, and at `message` if it is a traceback.
    assert not {"stack_trace", "exception", "@type", "serviceContext"} & set(line)


@pytest.fixture
def hooks() -> Iterator[None]:
    before = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = before


@pytest.mark.usefixtures("hooks")
def test_uncaught_exception_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configured()
    logs.log_uncaught_exceptions()

    def fail() -> None:
        raise ValueError("in a thread")

    thread = threading.Thread(target=fail, name="failing")
    thread.start()
    thread.join()
    sys.excepthook(ValueError, ValueError("in the process"), None)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    found = lines(capsys)
    assert [line["severity"] for line in found] == ["CRITICAL", "CRITICAL"]
    assert [line["stack_trace"].splitlines()[-1] for line in found] == [
        "ValueError: in a thread",
        "ValueError: in the process",
    ]


class EmptyError(Exception):
    def __len__(self) -> int:
        return 0


@pytest.mark.usefixtures("hooks")
def test_uncaught_exception_that_is_false_has_its_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configured()
    logs.log_uncaught_exceptions()
    try:
        raise EmptyError("nothing")
    except EmptyError as exc:
        sys.excepthook(EmptyError, exc, exc.__traceback__)
    [line] = lines(capsys)
    assert line["stack_trace"].startswith("Traceback (most recent call last):")
    assert line["stack_trace"].endswith("EmptyError: nothing")


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


# Under the real gunicorn


def failing_app() -> Any:
    """Fail as a defect in the start of the service would. gunicorn calls this."""
    thread = threading.Thread(target=lambda: dict[str, int]()["missing"])
    thread.start()
    thread.join()
    raise RuntimeError("a defect")


def gunicorn(app: str, **environment: str) -> list[dict[str, Any]]:
    """Run gunicorn until it ends. Return the lines of its log. Each must be a JSON object."""
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--config", "python:service.server.gunicorn_conf", app],
        env=os.environ | {"PORT": str(free_port()), "PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,  # gunicorn repeats the error's text on standard error
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_wrong_setting_reaches_error_reporting() -> None:
    [line] = gunicorn("service.server.wsgi:build_app()", MAX_BATCH_SIZE="many")
    assert line["severity"] == "CRITICAL"
    assert line["message"].startswith("Cannot start: MAX_BATCH_SIZE")
    assert line["@type"] == ERROR_EVENT


def test_defect_at_the_start_reaches_error_reporting() -> None:
    found = gunicorn("tests.unit.test_logs:failing_app()")
    errors = [line for line in found if line["severity"] in ("ERROR", "CRITICAL")]
    traces = [line["stack_trace"] for line in errors if "stack_trace" in line]
    assert [trace.splitlines()[-1] for trace in traces] == [
        "KeyError: 'missing'",
        "RuntimeError: a defect",
    ]
    assert all(trace.startswith("Traceback (most recent call last):\n") for trace in traces)
    assert all("stack_trace" in line or line["@type"] == ERROR_EVENT for line in errors)


def test_defect_of_the_decoders_root_reaches_error_reporting() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from service.images.decoder_process import main; main()", "99"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert (done.returncode, line["severity"]) == (1, "CRITICAL")
    assert line["stack_trace"].startswith("Traceback (most recent call last):\n")
