"""Every claim of the threat model names a test; tests/unit/test_docs.py sees that it exists."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "explanation" / "threat-model.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def claims() -> list[tuple[str, str, str]]:
    """The rows of the tables: may or may not, what, and the tests."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [(one[0], one[1], one[2]) for one in cells if one[0] in ("may", "may not")]


@pytest.mark.parametrize(("verb", "what", "shown_by"), claims(), ids=lambda text: text[:40])
def test_claim_names_tests(verb: str, what: str, shown_by: str) -> None:
    assert TEST.findall(shown_by), f"{what}: no test"
    assert re.sub(TEST, "", shown_by).strip(", ") == "", "something that is no test"


def test_there_are_claims_of_each_kind() -> None:
    verbs = [verb for verb, _, _ in claims()]
    assert verbs.count("may") >= 3 and verbs.count("may not") >= 10


def test_tests_are_named_only_where_they_are_checked() -> None:
    everywhere = TEST.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(everywhere) == sum(len(TEST.findall(shown_by)) for _, _, shown_by in claims())
