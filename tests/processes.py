"""Processes on Linux, read from /proc."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from devtools.bench.accounting import peak_resident_mb
from service.images import decoders
from tests import hostile_decoder

LIBRARIES_MB = 100  # memory of a decoder without a file
_ROOTS = frozenset(module.COMMAND[-1].encode() for module in (decoders, hostile_decoder))


def children_of(pid: int) -> list[int]:
    """Return the ids of the processes that any thread of a process has started, sorted."""
    children: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            children += map(int, file.read_text().split())
    return sorted(children)


def root_of(worker: int) -> int:
    """Return the process that forks a worker's decoders, see service/images/decoders.py."""
    [root] = [pid for pid in children_of(worker) if _ROOTS.intersection(command_of(pid))]
    return root


def decoders_of(worker: int) -> list[int]:
    """Return the decoder processes of a worker."""
    return children_of(root_of(worker))


def command_of(pid: int) -> list[bytes]:
    """Return the command line of a process. Empty if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def name_of(pid: int) -> str:
    """Return the short name of a process, which it may change. Empty if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def is_running(pid: int) -> bool:
    """Return whether a process has not ended. A zombie has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def peaks_of(pids: Iterable[int]) -> list[float]:
    """Return the highest resident memory of each process so far, in MB, without ended processes."""
    peaks: list[float] = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError, StopIteration):
            peaks.append(peak_resident_mb(pid))
    return peaks
