"""Functions that write Markdown, for all generated parts."""

import re
from collections.abc import Iterable, Sequence


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table. A `|` or a line break in a cell does not end the cell."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def fence(language: str, text: str) -> str:
    """Return a fenced code block."""
    return f"```{language}\n{text.strip()}\n```"


def code(value: object) -> str:
    """Return inline code."""
    return f"`{value}`"


def codes(values: Iterable[object]) -> str:
    """Return a list of inline code, separated by commas."""
    return ", ".join(map(code, values))


def plain(text: str) -> str:
    """Return plain text as one line, with the characters escaped that Markdown interprets."""
    return re.sub(r"([*<`\[])", r"\\\1", " ".join(text.split()))


def first_paragraph(docstring: str | None) -> str:
    """Return the first paragraph of a docstring as one line."""
    return " ".join((docstring or "").strip().partition("\n\n")[0].split())


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
