"""A log file is passed on line by line."""

import threading
from pathlib import Path

import pytest

from devtools.local_stack.log_echo import LogEcho
from tests.fakes import PATIENCE_SECONDS


def test_echo_passes_lines_written_after_its_start(tmp_path: Path) -> None:
    path, lines = tmp_path / "service.log", list[str]()
    path.write_text("old\n")
    echo = LogEcho(path, lines.append)
    with path.open("a") as log:
        log.write("one\ntwo é\nunfin")
    echo.stop()
    assert lines == ["one", "two é", "unfin"]


def test_closed_pipe_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    was_called = threading.Event()

    def closed_pipe(line: str) -> None:
        was_called.set()
        raise BrokenPipeError

    echo = LogEcho(path, closed_pipe)
    echo.raise_if_broken()
    path.write_text("one\n")
    assert was_called.wait(PATIENCE_SECONDS)
    echo.stop()
    with pytest.raises(BrokenPipeError):
        echo.raise_if_broken()


def test_echo_waits_for_the_file(tmp_path: Path) -> None:
    path, lines = tmp_path / "service.log", list[str]()
    echo = LogEcho(path, lines.append)
    path.write_text("one\n")
    echo.stop()
    assert lines == ["one"]
