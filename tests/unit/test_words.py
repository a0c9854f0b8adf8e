"""The project's words: retired terms stay out, and test names are short enough to read."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
GLOSSARY = REPOSITORY / "docs" / "glossary.md"
FOLDERS = ("service", "devtools", "tests", "terraform", "docs", "container", "examples", "models")
# These name the retired terms: the glossary, and the page that shows sentences before and after.
EXEMPT = ("docs/glossary.md", "docs/evidence/plain-words.md", "tests/unit/test_words.py")
EXEMPT_FILES = ("CHANGELOG.md", "LICENSE")
# A path outside the repository, by the name that it has there.
EXEMPT_TEXT = re.compile(r"shared/tools/\w+|\"shared\" / \"tools\" / \"\w+\"")
BINARY = (".bin", ".png", ".jpg", ".gif", ".tif", ".xml", ".pyc", ".so")
MAX_NAME = 60


@cache
def retired() -> dict[str, str]:
    """The retired terms of the glossary, and what to say instead."""
    section = GLOSSARY.read_text(encoding="utf-8").partition("\n## Retired terms\n")[2]
    rows = re.findall(r"^\| *(.+?) *\| *(.+?) *\|$", section, re.MULTILINE)
    return {term.strip("`"): instead for term, instead in rows[2:]}


@cache
def pattern(term: str) -> re.Pattern[str]:
    """A term as a whole word, in any case and number, joined by `-` or `_` too.

    `stand-in` is not `stand in`, which is ordinary English.
    """
    words = re.split(r"[ _-]", term)
    between = r"[ _-]" if " " in term else r"[_-]"
    ending = r"(?:s|es|ed|ing)?" if len(words) == 1 and term.islower() else "s?"
    return re.compile(
        rf"(?<![A-Za-z]){between.join(map(re.escape, words))}{ending}(?![A-Za-z])", re.IGNORECASE
    )


def split_words(line: str) -> str:
    """Join the words of CamelCase by `_`, as snake_case has them."""
    line = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", line)
    return re.sub(r"(?<=[A-Z])(?=[A-Z][a-z])", "_", line)


def retired_terms_in(line: str) -> list[str]:
    line = split_words(EXEMPT_TEXT.sub("", line))
    return [term for term in retired() if pattern(term).search(line)]


def broken_terms_in(text: str) -> list[str]:
    """The retired terms of two words that a line break divides; a comment's mark may follow it."""
    text = re.sub(r"[ \t]*\n[ \t]*(?:#|//|>|\*)?[ \t]*", "\n", text)
    divided = {term: term.replace(" ", "\n") for term in retired() if " " in term}
    return [
        term
        for term, lines in divided.items()
        if re.search(rf"(?<![A-Za-z]){lines}(?![A-Za-z])", text, re.IGNORECASE)
    ]


def texts() -> Iterator[tuple[str, str]]:
    """Every text file of the project, by its path in the repository."""
    paths = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*")]
    paths += [
        path for path in REPOSITORY.glob("*") if path.suffix in (".md", ".toml", ".yaml", ".yml")
    ]
    paths += [REPOSITORY / "Makefile", REPOSITORY / "Dockerfile"]
    for path in sorted(paths):
        name = str(path.relative_to(REPOSITORY))
        is_hidden = any(part.startswith((".", "__pycache__")) for part in path.parts[-3:])
        if not path.is_file() or is_hidden or path.suffix in BINARY:
            continue
        if ".egg-info" in name or name in EXEMPT or path.name in EXEMPT_FILES:
            continue
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a sample of a malformed file


def test_glossary_names_the_retired_terms() -> None:
    assert len(retired()) >= 15
    assert retired()["picture"] == "image"


def test_retired_terms_are_in_no_text_of_the_project() -> None:
    faults = []
    any_term = re.compile("|".join(pattern(term).pattern for term in retired()), re.IGNORECASE)
    for name, text in texts():
        faults += [
            f"{name}: {term!r} in the file's name: say {retired()[term]!r}"
            for term in retired_terms_in(name)
        ]
        faults += [
            f"{name}: {term!r} over two lines: say {retired()[term]!r}"
            for term in broken_terms_in(text)
        ]
        if not any_term.search(split_words(text)):
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            faults += [
                f"{name}:{number}: {term!r}: say {retired()[term]!r}"
                for term in retired_terms_in(line)
            ]
    assert not faults, "\n".join([f"{len(faults)} retired terms", *faults])


@pytest.mark.parametrize(
    ("line", "terms"),
    [
        ("a picture of a cat", ["picture"]),
        ("Pictures: 12", ["picture"]),
        ("calibration_pictures = 3", ["picture"]),
        ("class PictureStream:", ["picture"]),
        ("PICTURE.jpg", ["picture"]),
        ("a picturesque village", []),
        ("it was given back", ["given back"]),
        ("a stand-in for it", ["stand-in"]),
        ("class StandIn:", ["stand-in"]),
        ("figures that stand in the table", []),
        ("MAX_QUEUE=3", ["MAX_QUEUE"]),
        ("CHECKER = shared/tools/terraform_standin", []),
    ],
)
def test_retired_term_is_found_in_a_line(line: str, terms: list[str]) -> None:
    assert retired_terms_in(line) == terms


def test_retired_term_is_found_over_two_lines() -> None:
    assert broken_terms_in("It was given\n    # back.") == ["given back"]
    assert broken_terms_in("It was given.\nBack then, it was not.") == []


def is_too_long(name: str) -> bool:
    return name.startswith("test_") and len(name) > MAX_NAME


def test_names_of_tests_have_at_most_60_characters() -> None:
    faults = []
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and is_too_long(node.name):
                faults.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}: {node.name}")
    assert not faults, "\n".join(["", *faults])
