"""The locks in requirements/ match the bounds in pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ("build", "cpu", "export", "gpu")
# Omitted on purpose: never imported, or replaced by a headless package (Makefile, target lock).
LEFT_OUT = {"gpu": {"openvino"}}


def lock_text(name: str) -> str:
    return (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8")


def entries(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Return requirement and hashes of each line of a lock, by package name."""
    found: dict[str, tuple[Requirement, list[str]]] = {}
    for line in lock_text(name).replace("\\\n", " ").splitlines():
        code = line.partition("#")[0].strip()
        if code:
            requirement, *hashes = re.split(r"\s+--hash=", code)
            parsed = Requirement(requirement)
            found[canonicalize_name(parsed.name)] = (parsed, hashes)
    return found


def version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return specifier.version


def required(name: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if name == "build":
        return [Requirement(line) for line in project["build-system"]["requires"]]
    lines = list(project["project"]["dependencies"])
    extra = project["project"]["optional-dependencies"]["export"]
    if name == "export":
        lines += extra
    if name == "gpu":
        lines += [line for line in extra if line.startswith("ultralytics")]
    left_out = LEFT_OUT.get(name, set())
    return [found for found in map(Requirement, lines) if found.name not in left_out]


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_has_one_version_and_hashes(name: str) -> None:
    for requirement, hashes in entries(name).values():
        assert version(requirement)
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in hashes)


@pytest.mark.parametrize("name", LOCKS)
def test_lock_names_no_index(name: str) -> None:
    assert "://" not in lock_text(name)
    assert "index" not in lock_text(name)


@pytest.mark.parametrize("name", LOCKS)
def test_lock_is_within_the_bounds_of_the_project(name: str) -> None:
    locked = entries(name)
    for requirement in required(name):
        found = locked.get(canonicalize_name(requirement.name))
        assert found, f"{requirement} is not in requirements/{name}.txt: make lock"
        assert version(found[0]) in requirement.specifier, f"{found[0]} is not {requirement}"


def test_export_and_runtime_have_the_same_versions() -> None:
    versions: dict[str, set[str]] = {}
    for name in LOCKS:
        for package, (requirement, _) in entries(name).items():
            versions.setdefault(package, set()).add(version(requirement))
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def test_cpu_lock_holds_no_torch() -> None:
    assert not [
        name for name in entries("cpu") if re.match("torch|nvidia|triton|ultralytics", name)
    ]


def test_locks_were_made_by_the_python_of_the_container() -> None:
    base = re.search(r"^ARG BASE=python:(3\.\d+)-", (ROOT / "Dockerfile").read_text(), re.M)
    assert base
    for name in LOCKS:
        assert f"by pip-compile with Python {base[1]}\n" in lock_text(name)
