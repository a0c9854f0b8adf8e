"""The operating system's own accounting of a process, and which cores it may use. Linux only."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ThreadTime:
    """A thread's name for the operating system, and its CPU seconds so far."""

    name: str
    seconds: float


def process_seconds(pid: int) -> float:
    """User and system seconds of all threads of a process, ended ones included."""
    return _stat(Path(f"/proc/{pid}/stat")).seconds


def thread_times(pid: int) -> dict[int, ThreadTime]:
    """CPU seconds of each living thread of a process, by its number."""
    found: dict[int, ThreadTime] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found[int(task.name)] = _stat(task / "stat")
    return found


def resident_mb(pid: int) -> float:
    """Resident memory of a process now, in MB."""
    return _status_mb(pid, "VmRSS")


def peak_resident_mb(pid: int) -> float:
    """Highest resident memory of a process so far, in MB."""
    return _status_mb(pid, "VmHWM")


def private_mb(pid: int) -> float:
    """Memory that a process shares with no other, in MB; all of it where that cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return resident_mb(pid)
    return sum(_mb(line) for line in lines if line.startswith("Private_"))


def worker_of(master: int) -> int:
    """Find the only child of a server's master process."""
    return int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])


@contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Let the calling thread, and every process and thread that it starts, run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _stat(path: Path) -> ThreadTime:
    """Read the fields 2 (name), 14 and 15 (user and system ticks) of proc(5)'s stat."""
    head, _, tail = path.read_text().rpartition(")")
    user, system = tail.split()[11:13]
    return ThreadTime(head.partition("(")[2], (int(user) + int(system)) / _TICKS)


def _status_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(_mb(line) for line in lines if line.startswith(name + ":"))


def _mb(line: str) -> float:
    """Read a row such as `VmRSS:  1024 kB`; proc(5)'s kB are KiB."""
    return int(line.split()[1]) * 1024 / 1e6
