"""Stops the stack's processes when the process that started them has ended, for any reason.

It runs as a script with a pipe as standard input. Only the starter has the other end. The kernel
closes that end even on SIGKILL, so end-of-file is a sign that works on every platform.

Lines of the input: `+PGID` adds a process group, `-PGID` removes it, `rm PATH` adds a directory
that is removed at the end. Imports only the standard library, to start fast and isolated.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable

_GRACE_SECONDS = 2.0


def main(lines: Iterable[str]) -> None:
    """Read until end-of-file. Then stop the remaining groups and remove the directories."""
    # A signal to all processes must not end this process before it has stopped the others.
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
    except (ProcessLookupError, PermissionError):  # ended, or a zombie (macOS)
        return False
    return True


if __name__ == "__main__":
    main(sys.stdin)
