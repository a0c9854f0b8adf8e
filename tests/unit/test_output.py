"""What commands print: tables, JSON and progress, in a pipe and on a terminal."""

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.cloud.firestore_v1 import GeoPoint as FirestorePlace

from service.cli.output import Column, note, page_progress, progress, say, say_json, say_table
from service.domain import GeoPoint

ROOT = Path(__file__).parents[2]
COLUMNS = (Column("image"), Column("status"), Column("ms", is_number=True))
LONG = "folder/" * 40 + "image.jpg"
HOSTILE = ["[bold]a[/bold]", "\x1b[2J\x1b[31mred", "a\u202egpj.exe", "a\nb\tc\x00", "\udcff.jpg"]
TABLE = """
from service.cli.output import *
from tests.unit.test_output import COLUMNS, HOSTILE, LONG
say_table(COLUMNS, [(name, "done", "7") for name in [*HOSTILE, LONG, "\u65e5\u672c"]])
"""


class Stream(io.TextIOWrapper):
    """A pipe of an encoding."""

    def __init__(self, encoding: str) -> None:
        self.written = io.BytesIO()
        super().__init__(self.written, encoding=encoding)


def printed_on_terminal(code: str, columns: int = 60, **environment: str) -> bytes:
    """Run Python code with all of its streams on a terminal; return what it wrote."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    own = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=child, stdout=child, stderr=child, env=inherited | own | environment,
    ) as process:  # fmt: skip
        os.close(child)
        written = b"".join(iter(lambda: _read(parent), b""))
    os.close(parent)
    assert process.returncode == 0, written
    return written


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: the other side is closed
        return b""


def test_piped_table_keeps_all_of_each_value_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say_table(COLUMNS, [(LONG, "done", "7"), ("b.jpg", "done", "1234")])
    header, long, short = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "status", "ms"]
    assert long.split() == [LONG, "done", "7"]
    assert short.split() == ["b.jpg", "done", "1234"]
    assert len(long) == len(short) == len(header)  # numbers end in the same column


def test_piped_columns_are_aligned_by_width_of_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say_table(COLUMNS, [("\u65e5\u672c", "done", "7"), ("abcd", "done", "7")])
    _, wide, narrow = capsys.readouterr().out.splitlines()
    assert wide == "\u65e5\u672c   done     7"
    assert narrow == "abcd   done     7"


def test_hostile_names_reach_a_pipe_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    say_table(COLUMNS, [(name, "done", "7") for name in HOSTILE])
    names = [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["[bold]a[/bold]", "?[2J?[31mred", "a?gpj.exe", "a?b?c?", "?.jpg"]


@pytest.fixture(scope="module")
def on_terminal() -> Iterator[str]:
    yield printed_on_terminal(TABLE).decode()


def test_terminal_table_fits_the_width(on_terminal: str) -> None:
    plain = on_terminal.replace("\x1b[1m", "").replace("\x1b[0m", "")
    lines = plain.split("\r\n")
    assert max(map(len, lines)) <= 60
    # The long name is folded, and nothing of it is lost.
    column = [line[: line.index("done")] if "done" in line else line for line in lines]
    assert LONG in "".join(part.strip() for part in column)


def test_terminal_obeys_no_name(on_terminal: str) -> None:
    sequences = on_terminal.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "\x1b" not in sequences  # only our own bold header
    assert "\u202e" not in sequences and "\x00" not in sequences
    assert "[bold]a[/bold]" in sequences
    assert "?[2J?[31mred" in sequences


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_makes_output_fail(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(encoding)
    monkeypatch.setattr("sys.stdout", stream)
    say_table(COLUMNS, [("\u65e5.jpg", "done", "7")])
    say("caf\u00e9 \U0001f600")
    say_json({"name": "caf\u00e9 \u65e5 \U0001f600 \udcff"})
    stream.flush()
    *_, line = stream.written.getvalue().decode("utf-8", "replace").splitlines()
    assert json.loads(line) == {"name": "caf\u00e9 \u65e5 \U0001f600 \udcff"}


def test_times_in_json_are_rfc_3339(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"at": datetime(2026, 11, 30, tzinfo=UTC)})
    assert capsys.readouterr().out == '{"at": "2026-11-30T00:00:00+00:00"}\n'


@pytest.mark.parametrize("place", [GeoPoint(48.1, 11.5), FirestorePlace(48.1, 11.5)], ids=repr)
def test_bytes_in_json_are_base64_and_places_have_names(
    place: object, capsys: pytest.CaptureFixture[str]
) -> None:
    say_json({"faint": b"\x01\xff", "location": place})
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"faint": "Af8=", "location": {"latitude": 48.1, "longitude": 11.5}}


def test_messages_keep_lines_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    note("one\n  two \x1b[2J")
    assert capsys.readouterr().err == "one\n  two ?[2J\n"


def test_closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    say("text")
    note("text")
    say_json({})
    say_table(COLUMNS, [])
    with progress("Working", 1) as bar:
        bar.advance()


def test_progress_prints_nothing_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Working", 2) as bar:
        bar.advance()
        bar.describe("Still working")
        bar.show("Still working", 1, 3)
    assert capsys.readouterr() == ("", "")


def test_log_has_a_line_for_every_20_pages(capsys: pytest.CaptureFixture[str]) -> None:
    with page_progress("Comparing", "{} objects".format) as progressed:
        for page in range(1, 46):
            progressed(300 * page)
    assert capsys.readouterr() == ("", "6000 objects\n12000 objects\n")


def test_progress_on_a_terminal_leaves_standard_output_alone(tmp_path: Path) -> None:
    code = f"""
import sys
sys.stdout = open({str(tmp_path / "out")!r}, "w")
from service.cli.output import *
with progress("Work [bold]x", 3) as bar:
    say_json({{"a": 1}})
    bar.advance(3)
    note("a message")
with progress("Waiting") as bar:
    bar.describe("Waiting \\x1b[2J: 7")
with progress("Looking", 0) as bar:
    bar.show("11 missing \\x1b[2J", 5, 16)
"""
    written = printed_on_terminal(code, columns=100).decode()
    assert (tmp_path / "out").read_text() == '{"a": 1}\n'
    assert "Work [bold]x" in written and "3/3" in written
    assert "a message" in written
    assert "11 missing ?[2J" in written and "5/16" in written
    assert "\x1b[2J" not in written


def test_no_color_is_respected(tmp_path: Path) -> None:
    code = 'from service.cli.output import *\nwith progress("Work", 3) as bar: bar.advance(3)'
    assert b"\x1b[38" in printed_on_terminal(code)
    assert b"\x1b[3" not in printed_on_terminal(code, NO_COLOR="1").replace(b"\x1b[3A", b"")
