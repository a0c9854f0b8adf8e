"""Stops the stack's processes when the process that started them is gone, however it went.

Run as a script with a pipe as standard input, whose other end only the starter holds. The kernel
closes that end even on SIGKILL, so end-of-file is the one sign of death that needs nothing of the
platform. Lines: `+PGID` watch a process group, `-PGID` forget it, `rm PATH` a directory to remove.
Imports only the standard library: it runs isolated, and must start fast.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable

_GRACE_SECONDS = 2.0


def main(lines: Iterable[str]) -> None:
    """Read until end-of-file, then stop and remove what is still listed."""
    # Only end-of-file ends this process, or a signal meant for all would let the others live.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    directories: list[str] = []
    for line in lines:
        word = line.rstrip("\n")
        if word.startswith("+"):
            groups.add(int(word[1:]))
        elif word.startswith("-"):
            groups.discard(int(word[1:]))
        elif word.startswith("rm "):
            directories.append(word[3:])
    _stop(groups)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _stop(groups: set[int]) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    alive = {group for group in groups if _signal(group, signal.SIGTERM)}
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = {group for group in alive if _signal(group, 0)}
    for group in alive:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # gone, or (macOS) only a zombie is left
        return False
    return True


if __name__ == "__main__":
    main(sys.stdin)
