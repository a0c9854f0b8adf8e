"""Child processes that never outlive the process that started them."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from devtools.local_stack.errors import StartError

_LOG_TAIL_LINES = 20
_POLL_SECONDS = 0.05
_KILL_WAIT_SECONDS = 30.0  # long enough for a busy machine
_PORTS = range(20_000, 32_768)
# Each process tries them in another order, whatever seed a program has.
_ports = cycle(random.SystemRandom().sample(_PORTS, len(_PORTS)))


class Child:
    """A running program and its log file."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], log_path: Path, log_start: int
    ) -> None:
        """Take the log's size at the start in bytes: the log may have lines of earlier runs."""
        self.name = name
        self.process = process
        self._log_path = log_path
        self._log_start = log_start

    def log_text(self) -> str:
        """Return everything that this run has logged."""
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def failure(self, what: str) -> str:
        """Return a message: the name, what happened, and the last lines of the log."""
        lines = self.log_text().splitlines()[-_LOG_TAIL_LINES:]
        shown = "\n".join(f"  | {line}" for line in lines) or "  | (nothing)"
        return f"{self.name} {what}. The end of its log:\n{shown}"

    def raise_if_dead(self) -> None:
        """Raise a StartError if the program has ended."""
        code = self.process.poll()
        if code is not None:
            raise StartError(self.failure(f"ended with exit code {code}"))

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Wait until the probe returns True.

        Raises:
            StartError: the program ended, or the timeout passed. The message has the log's end.
        """
        deadline = time.monotonic() + timeout_seconds
        while not is_ready():
            self.raise_if_dead()
            if time.monotonic() > deadline:
                raise StartError(self.failure(f"was not ready after {timeout_seconds:g} s"))
            time.sleep(_POLL_SECONDS)
        self.raise_if_dead()  # another program may have responded to the probe


class Processes:
    """Starts and stops children. If this process is killed, the reaper stops them."""

    def __init__(self, log_directory: Path) -> None:
        """Start the reaper before any child."""
        self._log_directory = log_directory
        self._lock = threading.Lock()
        self._children: list[Child] = []
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", Path(__file__).with_name("reaper.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # an inherited pipe would keep its reader waiting
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return this object. The reaper is already running."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop all children at the same time. The reaper then removes directories and ends."""
        self.stop(*self.children, grace_seconds=5)
        # communicate() closes the pipe, which ends the reaper.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._reaper.communicate(timeout=_KILL_WAIT_SECONDS)

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str]) -> Child:
        """Start a program in a session of its own, and append its output to `NAME.log`."""
        path = self._log_directory / f"{name}.log"
        with self._lock, path.open("ab") as log:
            log_start = log.tell()
            try:
                process = subprocess.Popen(
                    command,
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches only this process
                )
            except OSError as exc:
                raise StartError(f"{name} cannot be started: {exc}") from exc
            self._send_to_reaper(f"+{process.pid}")
            child = Child(name, process, path, log_start)
            self._children.append(child)
        return child

    def stop(self, *children: Child, grace_seconds: float) -> None:
        """Send SIGTERM to the children's process groups. After the grace period, send SIGKILL.

        Until a child is waited for, the kernel does not reuse its id, so no signal can reach an
        unrelated process. Only this method, `kill` and `Child.raise_if_dead` wait for children.
        After an error of `raise_if_dead`, the caller stops all children at once.
        """
        for child in children:
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
        self.kill(*children)

    def kill(self, *children: Child) -> None:
        """Send SIGKILL to the children's process groups."""
        for child in children:
            _signal_group(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(_KILL_WAIT_SECONDS)
        with self._lock:
            for child in children:
                self._send_to_reaper(f"-{child.process.pid}")
            self._children = [child for child in self._children if child not in children]

    @property
    def children(self) -> list[Child]:
        """The children that were started and not stopped."""
        with self._lock:
            return list(self._children)

    def raise_if_dead(self) -> None:
        """Raise a StartError if a child has ended by itself."""
        for child in self.children:
            child.raise_if_dead()

    def remove_at_the_end(self, directory: Path) -> None:
        """Let the reaper remove a directory, even if this process is killed."""
        with self._lock:
            self._send_to_reaper(f"rm {directory}")

    def _send_to_reaper(self, line: str) -> None:
        if self._reaper.stdin is None:
            raise StartError("The reaper was started without a pipe.")
        # If somebody killed the reaper, this process still stops the children.
        with contextlib.suppress(BrokenPipeError):
            self._reaper.stdin.write(line + "\n")
            self._reaper.stdin.flush()


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago.

    It stays free while a program that uses it is restarted: the system gives connections the ports
    from 32768 upwards (Linux's default `ip_local_port_range`), and this port is lower. Two calls in
    one process return different ports.

    Raises:
        StartError: no port is free.
    """
    for port in islice(_ports, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise StartError(f"All ports from {_PORTS[0]} to {_PORTS[-1]} are taken.")


def is_answering(url: str, status: int = 200) -> bool:
    """Return whether a GET request gets this status within two seconds."""
    with requests.Session() as session:
        session.trust_env = (
            False  # a proxy from the environment cannot reach this machine's loopback
        )
        try:
            return session.get(url, timeout=2, allow_redirects=False).status_code == status
        except requests.RequestException:
            return False


def _signal_group(child: Child, number: signal.Signals) -> None:
    # It has ended, or is a zombie (macOS).
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)
