"""What commands print: text and tables for people, JSON for programs, progress on a terminal."""

import io
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

import click

from service.stored_json import json_line

_GAP = 2  # blanks between two columns
_PAGES_PER_LINE = 20  # pages for each line of progress in a log


class Column(NamedTuple):
    """A column of a table."""

    header: str
    is_number: bool = False


def printable(text: str) -> str:
    """Replace with `?` every character that a terminal could obey or that breaks a line.

    These are control characters, escape sequences, overrides of the text's direction, and bytes
    of a file name that are not UTF-8.
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def say(text: str = "") -> None:
    """Print text on standard output. Control characters other than line feeds become `?`."""
    _write(text, sys.stdout)


def note(text: str = "") -> None:
    """Print a message for a person on standard error. Characters are replaced as by `say`."""
    _write(text, sys.stderr)


def say_json(value: object) -> None:
    """Print a value on standard output as `json_line` writes it.

    Characters that the output's encoding does not have become JSON escapes, and so do bytes of a
    file name that are not UTF-8.
    """
    is_unicode = _encoding(sys.stdout).lower().replace("-", "") == "utf8"
    text = json_line(value, ensure_ascii=not is_unicode)
    # Only surrogates are left to replace, and JSON has the same escape for them as Python.
    click.echo(text.encode(errors="backslashreplace").decode())


def say_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on standard output.

    On a terminal, the table fits the width, and long values are folded. Elsewhere, every row is
    one line with complete values.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    render = _folded if is_terminal(sys.stdout) else _whole
    _echo(render(columns, cells), sys.stdout)


class Progress:
    """A progress bar. This base class shows nothing, for output that is not a terminal."""

    def advance(self, count: int = 1) -> None:
        """Count further items."""

    def describe(self, text: str) -> None:
        """Replace the text before the bar."""

    def show(self, text: str, completed: int, total: int) -> None:
        """Replace the text and both counts."""


@contextmanager
def progress(text: str, total: int | None = None, *, is_shown: bool = True) -> Iterator[Progress]:
    """Show progress on standard error, if it is a terminal. The bar disappears at the end.

    Args:
        text: what is done.
        total: how many items there are. None: unknown, so only the elapsed time is shown.
        is_shown: False for a command that prints to the same terminal meanwhile.
    """
    if not is_shown or not is_terminal(sys.stderr):
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False)]
    if total is None:
        columns = [SpinnerColumn("line"), *columns, TimeElapsedColumn()]
    else:
        columns += [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    # Standard output may be a pipe: it must not be redirected to the bar's own console.
    with RichProgress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False
    ) as bars:
        task = bars.add_task(printable(text), total=total)

        class Shown(Progress):
            def advance(self, count: int = 1) -> None:
                bars.advance(task, count)

            def describe(self, text: str) -> None:
                bars.update(task, description=printable(text))

            def show(self, text: str, completed: int, total: int) -> None:
                bars.update(task, description=printable(text), completed=completed, total=total)

        yield Shown()


@contextmanager
def page_progress(text: str, counts: Callable[[Any], str]) -> Iterator[Callable[[Any], None]]:
    """Show what was counted: on a terminal as a line that changes, else as a line for 20 pages.

    Args:
        text: what is done.
        counts: returns the counts as text.

    Yields:
        What to call after each page, with what was counted.
    """
    pages = 0
    with progress(text) as bar:

        def progressed(tally: Any) -> None:
            nonlocal pages
            pages += 1
            bar.describe(f"{text}: {counts(tally)}")
            if not is_terminal(sys.stderr) and pages % _PAGES_PER_LINE == 0:
                note(counts(tally))

        yield progressed


def counted(items: Iterable[Any], advance: Callable[[int], None]) -> Iterator[Any]:
    """Yield items. Call `advance(1)` when the consumer has finished an item."""
    for item in items:
        yield item
        advance(1)


def can_ask() -> bool:
    """Return whether a person can answer a question: whether standard input is a terminal."""
    return is_terminal(sys.stdin)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal. None is a closed stream, so it is not."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _write(text: str, stream: TextIO | None) -> None:
    _echo("\n".join(map(printable, text.split("\n"))), stream)


def _echo(text: str, stream: TextIO | None) -> None:
    if stream is None:  # closed by the shell
        return
    encoding = _encoding(stream)
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _encoding(stream: TextIO | None) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _whole(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Align rows without folding. Rich would be slow with a hundred thousand rows."""
    from rich.cells import cell_len

    lines = [[column.header for column in columns], *rows]
    lengths = [[cell_len(cell) for cell in line] for line in lines]
    widths = [max(column) for column in zip(*lengths, strict=True)]
    gap = " " * _GAP
    return "\n".join(
        gap.join(
            " " * (width - length) + cell if column.is_number else cell + " " * (width - length)
            for column, cell, length, width in zip(columns, line, used, widths, strict=True)
        ).rstrip()
        for line, used in zip(lines, lengths, strict=True)
    )


def _folded(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rendered = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in columns:
        rendered.add_column(
            column.header, justify="right" if column.is_number else "left", overflow="fold"
        )
    for row in rows:
        rendered.add_row(*map(Text, row))
    # Rich finds out about colours and NO_COLOR by itself.
    text = io.StringIO()
    width = shutil.get_terminal_size().columns
    Console(file=text, force_terminal=True, width=width).print(rendered)
    return text.getvalue().rstrip("\n")
