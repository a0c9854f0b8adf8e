"""Linux' processes, as /proc shows them."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from devtools.bench.accounting import peak_resident_mb
from service.images import decoders
from tests import hostile_decoder

LIBRARIES_MB = 100  # that a decoder takes without a file
_ROOTS = frozenset(one.COMMAND[-1].encode() for one in (decoders, hostile_decoder))


def children_of(pid: int) -> list[int]:
    """Processes that any thread of a process has started, sorted."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += map(int, children.read_text().split())
    return sorted(found)


def root_of(worker: int) -> int:
    """The process that forks a worker's decoders; see service/images/decoders.py."""
    [root] = [pid for pid in children_of(worker) if _ROOTS.intersection(command_of(pid))]
    return root


def decoders_of(worker: int) -> list[int]:
    """The processes that decode for a worker."""
    return children_of(root_of(worker))


def command_of(pid: int) -> list[bytes]:
    """A process's command line; empty of one that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def name_of(pid: int) -> str:
    """A process's short name, which it may change; empty of one that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for yet has."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def peaks_of(pids: Iterable[int]) -> list[float]:
    """Highest resident memory of each process so far, in MB; none of one that has ended."""
    peaks: list[float] = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError, StopIteration):
            peaks.append(peak_resident_mb(pid))
    return peaks
