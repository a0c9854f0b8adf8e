"""Linux' processes, as /proc shows them."""

from contextlib import suppress
from pathlib import Path

from service.images import sandbox

SANDBOX = sandbox.COMMAND[-1].encode()


def children_of(pid: int) -> list[int]:
    """Processes that any thread of a process has started, sorted."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += map(int, children.read_text().split())
    return sorted(found)


def decoders_of(worker: int) -> list[int]:
    """The processes that decode for a worker; see service/images/sandbox.py."""
    return [pid for pid in children_of(worker) if SANDBOX in command_of(pid)]


def command_of(pid: int) -> bytes:
    """A process's command line; empty of one that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
