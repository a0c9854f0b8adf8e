"""Keeps the coverage of processes that are killed: a plugin of coverage.py and of pytest.

The decoders' root process ends its decoders with SIGKILL, which leaves no time to save. While
coverage is measured, it sends SIGTERM first: coverage.py's handler (`sigterm = true`) saves and
ends the decoder. A decoder that hangs in native code never runs the handler, and its data is lost.

PYTEST_DONT_REWRITE: coverage.py imports this module before pytest does.
"""

import os
import signal
import sys
import time
from typing import Any

from coverage import Coverage

_ROOT_MODULES = {"service.images.decoder_process", "tests.hostile_decoder"}
_SAVE_SECONDS = 2.0
_POLL_SECONDS = 0.005

_kill = os.kill


def coverage_init(_registry: Any, _options: dict[str, str]) -> None:
    """Replace `os.kill` in a decoders' root process; coverage.py calls this in every process."""
    if _ROOT_MODULES.intersection(sys.orig_argv):
        os.kill = _end_then_kill


def _end_then_kill(pid: int, number: int) -> None:
    if number == signal.SIGKILL:
        _kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _SAVE_SECONDS
        # WNOWAIT leaves the zombie: its process id stays valid for the SIGKILL below.
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while not os.waitid(os.P_PID, pid, options) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    _kill(pid, number)


def pytest_sessionfinish() -> None:
    """Save before pytest-xdist kills a worker that takes more than ten seconds to end."""
    if coverage := Coverage.current():
        coverage.save()
