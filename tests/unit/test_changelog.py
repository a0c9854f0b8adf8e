"""CHANGELOG.md has the form of Keep a Changelog 1.1.0."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LINES = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
RELEASES = [line for line in LINES if line.startswith("## ")]
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def versions() -> list[tuple[str, date]]:
    """The releases, the newest first."""
    found = [re.fullmatch(r"## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", line) for line in RELEASES]
    return [(match[1], date.fromisoformat(match[2])) for match in found if match]


def test_changelog_has_unreleased_first_and_dated_versions() -> None:
    assert RELEASES[0] == "## [Unreleased]"
    assert len(versions()) == len(RELEASES) - 1


def test_changelog_lists_the_newest_release_first() -> None:
    numbers = [tuple(map(int, version.split("."))) for version, _ in versions()]
    dates = [released for _, released in versions()]
    assert numbers == sorted(set(numbers), reverse=True)
    assert dates == sorted(dates, reverse=True)


def test_changelog_sections_are_those_of_the_format() -> None:
    assert {line.removeprefix("### ") for line in LINES if line.startswith("### ")} <= SECTIONS


@pytest.mark.parametrize("project", [".", "devtools"])
def test_newest_release_is_the_version_of_each_package(project: str) -> None:
    with (REPOSITORY / project / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == versions()[0][0]
