"""How many cores and how much memory the process takes itself to have."""

from pathlib import Path

import pytest

from service import machine


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", 8),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("3200000 100000", 8),
        ("", 8),
        ("nonsense", 8),
    ],
    ids=["none", "one", "rounded-up", "a-tenth", "more-than-there-are", "empty", "nonsense"],
)
def test_cores_are_those_of_the_groups_quota(quota: Path, text: str, expected: int) -> None:
    quota.write_text(text, encoding="ascii")
    assert machine.cores() == expected


def test_cores_without_a_group_are_those_of_the_affinity(quota: Path) -> None:
    assert machine.cores() == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max", 8000), ("5000", 5000), ("9000", 8000), ("", 8000)],
    ids=["none", "less", "more-than-there-is", "empty"],
)
def test_memory_is_that_of_the_group(
    text: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 80, "SC_PAGE_SIZE": 100}.__getitem__)
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "memory.max")
    assert machine.memory_bytes() == 8000
    (tmp_path / "memory.max").write_text(text, encoding="ascii")
    assert machine.memory_bytes() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu amx_bf16 amx_tile amx_int8 flush_l1d\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile amx_int8\n", True),
        ("flags\t\t: fpu avx512_vnni\n", False),
        (None, False),
    ],
    ids=["amid", "last", "without", "no file"],
)
def test_amx_is_among_the_cpus_flags(
    text: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CPU", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert machine.has_amx() == expected
