"""CPU time and memory of processes, as the operating system counts them. Linux only.

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
    """A thread's name in the operating system, and its CPU seconds so far."""

    name: str
    seconds: float


def children_of(pid: int) -> list[int]:
    """Return the ids of the running children that any thread of a process has started."""
    children: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            children.extend(map(int, (task / "children").read_text().split()))
    return children


def tree_of(pid: int) -> list[int]:
    """Return the ids of a process and its running descendants, parents first."""
    tree = [pid]
    for process in tree:  # the list grows meanwhile
        tree.extend(children_of(process))
    return tree


def tree_seconds(pid: int) -> float:
    """Return the user and system seconds of a process and all descendants, running or ended.

    A process that has ended counts as soon as its parent has waited for it.
    """
    return sum(map(_seconds_with_ended, tree_of(pid)))


def own_tree_seconds() -> float:
    """Return `tree_seconds` of this process. Its own share is finer than the system's ticks."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = sum(map(_seconds_with_ended, tree_of(os.getpid())[1:]))
    return time.process_time() + ended.ru_utime + ended.ru_stime + running


def thread_times(pid: int) -> dict[int, ThreadTime]:
    """Return the CPU seconds of each running thread of a process, by the thread's id."""
    times: dict[int, ThreadTime] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            times[int(task.name)] = _stat(task / "stat")
    return times


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process now, in MB."""
    return _status_mb(pid, "VmRSS")


def peak_resident_mb(pid: int) -> float:
    """Return the highest resident memory of a process so far, in MB."""
    return _status_mb(pid, "VmHWM")


def tree_mb(pid: int) -> float:
    """Return the memory that a container is charged for a process and its descendants, in MB.

    A page that they share with each other counts once. A page that they share with other processes
    counts in full. A file in memory (memfd) counts although no process maps it.
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
    """Return an upper bound of `tree_mb` so far, in MB, as if all processes peaked at once.

    Processes that have ended are not included.
    """
    total = tree_mb(pid)
    for process in tree_of(pid):
        with contextlib.suppress(OSError):
            total += peak_resident_mb(process) - resident_mb(process)
    return total


def worker_of(master: int) -> int:
    """Return the id of the only child of a server's master process."""
    return children_of(master)[0]


@contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Run the calling thread, and all processes and threads that it starts, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _stat(path: Path) -> ThreadTime:
    """Read fields 2 (name), 14 and 15 (user and system ticks) of a stat file, see proc(5)."""
    head, _, tail = path.read_text().rpartition(")")
    user, system = tail.split()[11:13]
    return ThreadTime(head.partition("(")[2], (int(user) + int(system)) / _TICKS)


def _seconds_with_ended(pid: int) -> float:
    """Read fields 14 to 17 of a stat file, see proc(5). They include ended children."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0.0
    return sum(map(int, text.rpartition(")")[2].split()[11:15])) / _TICKS


def _mapped_files(pid: int) -> dict[str, float]:
    """Return the resident MB of each file that a process maps, without pages that it changed."""
    files: dict[str, float] = {}
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # address, permissions, offset, device, inode, path
            name = words[5] if len(words) > 5 and words[4] != "0" else ""
        elif name and words[0] in ("Rss:", "Anonymous:"):
            sign = 1 if words[0] == "Rss:" else -1
            files[name] = files.get(name, 0.0) + sign * _mb(line)
    return files


def _memfd_mb(processes: Iterable[int]) -> float:
    """Return the MB of the files in memory (memfd) that processes have open."""
    sizes: dict[int, int] = {}  # bytes by inode
    for process in processes:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(link.readlink()).startswith("/memfd:"):
                        status = link.stat()
                        sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values()) / 1e6


def _status_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    # A process that has ended and was not waited for (a zombie) has no such line.
    return next((_mb(line) for line in lines if line.startswith(name + ":")), 0.0)


def _mb(line: str) -> float:
    """Read a line such as `VmRSS:  1024 kB`. A kB of proc(5) is 1,024 bytes."""
    return int(line.split()[1]) * 1024 / 1e6
