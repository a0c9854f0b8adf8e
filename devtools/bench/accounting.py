"""The operating system's own accounting of processes, and which cores they may use. Linux only.

The service is a tree: gunicorn's worker, the decoders' root process, and the decoders.
"""

import contextlib
import os
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ThreadTime:
    """A thread's name for the operating system, and its CPU seconds so far."""

    name: str
    seconds: float


def children_of(pid: int) -> list[int]:
    """Return the living children of a process, of all its threads."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            found.extend(map(int, (task / "children").read_text().split()))
    return found


def tree_of(pid: int) -> list[int]:
    """Return a process and its living descendants, parents first."""
    found = [pid]
    for process in found:  # grows meanwhile
        found.extend(children_of(process))
    return found


def tree_seconds(pid: int) -> float:
    """User and system seconds of a process and all its descendants, ended ones included.

    An ended process counts from the moment that its parent has waited for it.
    """
    return sum(map(_seconds_with_ended, tree_of(pid)))


def own_tree_seconds() -> float:
    """The same of this process; its own part is finer than the system's ticks."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(map(_seconds_with_ended, tree_of(os.getpid())[1:]))
    return time.process_time() + ended.ru_utime + ended.ru_stime + living


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


def tree_mb(pid: int) -> float:
    """Memory that a container is charged for a process and its descendants, in MB.

    A page that they share counts once, and that they share with other processes in full. Memory in
    files without a name (memfd) counts although no process maps it.
    """
    processes = tree_of(pid)
    anonymous, files = 0.0, dict[str, float]()
    for process in processes:
        with contextlib.suppress(OSError):  # it has just ended
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            anonymous += sum(_mb(line) for line in lines if line.startswith("Pss_Anon:"))
            for name, mb in _mapped_files(process).items():
                files[name] = max(files.get(name, 0.0), mb)
    return anonymous + sum(files.values()) + _memfd_mb(processes)


def peak_tree_mb(pid: int) -> float:
    """The most that `tree_mb` may have been so far, in MB: each process's peak, all at once.

    Of processes that have ended nothing is known.
    """
    now = tree_mb(pid)
    for process in tree_of(pid):
        with contextlib.suppress(OSError):
            now += peak_resident_mb(process) - resident_mb(process)
    return now


def worker_of(master: int) -> int:
    """Find the only child of a server's master process."""
    return children_of(master)[0]


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


def _seconds_with_ended(pid: int) -> float:
    """Read the fields 14 to 17 of proc(5)'s stat: those of children waited for, too."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0.0
    return sum(map(int, text.rpartition(")")[2].split()[11:15])) / _TICKS


def _mapped_files(pid: int) -> dict[str, float]:
    """Resident MB of each file that a process maps, without the pages that it has changed."""
    found: dict[str, float] = {}
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # address, permissions, offset, device, inode, path
            name = words[5] if len(words) > 5 and words[4] != "0" else ""
        elif name and words[0] in ("Rss:", "Anonymous:"):
            sign = 1 if words[0] == "Rss:" else -1
            found[name] = found.get(name, 0.0) + sign * _mb(line)
    return found


def _memfd_mb(processes: Iterable[int]) -> float:
    """MB of the anonymous files that processes have open."""
    found: dict[int, int] = {}  # bytes by inode
    for process in processes:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(link.readlink()).startswith("/memfd:"):
                        status = link.stat()
                        found[status.st_ino] = status.st_blocks * 512
    return sum(found.values()) / 1e6


def _status_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    # A process that has ended, and was not waited for, has no such line.
    return next((_mb(line) for line in lines if line.startswith(name + ":")), 0.0)


def _mb(line: str) -> float:
    """Read a row such as `VmRSS:  1024 kB`; proc(5)'s kB are KiB."""
    return int(line.split()[1]) * 1024 / 1e6
