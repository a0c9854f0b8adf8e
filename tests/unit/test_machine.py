"""The cores and the memory that the process may use."""

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


CPU_INFO = """\
processor\t: 0
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu avx512_vnni amx_int8
processor\t: 1
model name\t: Another
"""


def test_cpu_is_what_the_system_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPU", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(CPU_INFO, encoding="utf-8")
    assert machine.cpu_name() == "Some CPU @ 2 GHz"
    assert machine.cpu_flags() == {"fpu", "avx512_vnni", "amx_int8"}


def test_unreported_cpu_has_a_name_but_no_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CPU", tmp_path / "cpuinfo")
    assert machine.cpu_name()
    assert machine.cpu_flags() == frozenset()
