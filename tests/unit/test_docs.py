"""What the documents point to is there."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [
    *REPOSITORY.glob("*.md"),
    *(REPOSITORY / "docs").glob("*.md"),
    *(REPOSITORY / "benchmarks").glob("*.md"),
    *(REPOSITORY / "terraform").glob("*.md"),
    *(REPOSITORY / "models").glob("*.md"),
]


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


@pytest.mark.parametrize(
    ("document", "target"), pointers(), ids=lambda value: getattr(value, "name", value)
)
def test_document_points_to_what_exists(document: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (document.parent / path).resolve() if path else document
    assert file.exists()
    if anchor:
        assert anchor in anchors(file)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_document_has_nothing_left_to_fill_in(document: Path) -> None:
    assert not re.search(r"<!--|TODO|FIXME|XXX", document.read_text(encoding="utf-8"))


def test_there_are_documents_to_check() -> None:
    assert len(DOCUMENTS) > 5
    assert len(pointers()) > 5
