"""What the documents point to is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [
    *REPOSITORY.glob("*.md"),
    *(REPOSITORY / "docs").rglob("*.md"),
    *(REPOSITORY / "devtools").rglob("*.md"),
    *(REPOSITORY / "terraform").glob("*.md"),
    *(REPOSITORY / "models").glob("*.md"),
]


TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def pointers() -> list[tuple[Path, str]]:
    """Links to files and sections of the project, by the document that has them."""
    return [
        (document, target)
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
        if "://" not in target
    ]


def named_tests() -> list[tuple[str, str]]:
    """Tests that documents name, as file and function."""
    return sorted(
        {found for one in DOCUMENTS for found in TEST.findall(one.read_text(encoding="utf-8"))}
    )


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("document", "target"), pointers(), ids=lambda value: getattr(value, "name", value)
)
def test_document_points_to_what_exists(document: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (document.parent / path).resolve() if path else document
    assert file.exists()
    if anchor:
        assert anchor in anchors(file)


@pytest.mark.parametrize(("file", "name"), named_tests())
def test_test_that_a_document_names_exists(file: str, name: str) -> None:
    assert name.startswith("test_") and name in functions(file)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_document_has_nothing_left_to_fill_in(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.search(r"<!--(?! Written by)|TODO|FIXME|XXX", text)


def test_there_are_documents_to_check() -> None:
    assert len(DOCUMENTS) > 5
    assert len(pointers()) > 5
    assert len(named_tests()) > 20


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_table_of_a_document_is_whole(document: Path) -> None:
    """A blank line inside a table cuts it: the rest is shown as text."""
    lines = ["", *document.read_text(encoding="utf-8").splitlines(), ""]
    is_code = False
    for number, line in enumerate(lines):
        is_code ^= line.startswith("```")
        begins = line.startswith("|") and not lines[number - 1].startswith("|")
        if begins and not is_code:
            assert re.fullmatch(r"[|:\- ]+", lines[number + 1]), f"line {number}: {line[:60]}"
