"""The service's processes, and what is done to them."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from devtools.chaos.excuses import Excuse
from devtools.chaos.plan import FaultKind
from devtools.chaos.served import INFERRING, LOAD_SECONDS
from devtools.local_stack.errors import StartError
from devtools.local_stack.processes import Child, Processes, free_port, is_answering

COMMAND = (
    sys.executable, "-m", "gunicorn",
    "--config", "python:service.server.gunicorn_conf", "devtools.chaos.served:build_app()",
)  # fmt: skip
_READY_SECONDS = 180.0
_RECOVERY_SECONDS = 90.0
_BATCH_SECONDS = 10.0  # how long a fault waits for a batch to strike in
_GRACE_SECONDS = 10.0  # Cloud Run kills ten seconds after SIGTERM
_SHORT_SECONDS = 3.0  # of memory or disk
_POLL_SECONDS = 0.01
_SPARE_BYTES = 16 * 2**20  # what a process may still take when memory is short
_LIMITED_WORKER = "linux"  # where another process's limits can be set


@dataclass
class Service:
    """One process of the service (gunicorn and its worker), started again after each fault."""

    name: str
    processes: Processes
    log_path: Path
    environment: Mapping[str, str]
    stop_seconds: float  # of SIGSTOP
    slow_seconds: float  # more for a slow start
    leaving: threading.Event  # set to end every wait
    url: str = field(default_factory=lambda: f"http://127.0.0.1:{free_port()}")
    excuses: list[Excuse] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _child: Child | None = None

    def start(self, *, load_seconds: float = 0.0) -> None:
        """Start the process and wait until it is ready.

        Raises:
            StartError: it is not.
        """
        port = self.url.rpartition(":")[2]
        environment = {**self.environment, "PORT": port, LOAD_SECONDS: str(load_seconds)}
        child = self.processes.start(self.name, COMMAND, environment)
        self._child = child
        child.wait_until(self._is_ready, timeout_seconds=_READY_SECONDS)

    def suffer(self, kind: FaultKind) -> None:
        """Let a fault strike in the middle of a batch, and wait until the service is back.

        One that does not come back by itself is a failure, and started again.

        Raises:
            StartError: it did not start again.
        """
        self._wait_for_batch()
        started = time.time()
        _FAULTS[kind](self)
        over = time.time()
        try:
            self._running.wait_until(self._is_ready, timeout_seconds=_RECOVERY_SECONDS)
        except StartError:
            self.failures.append(f"{self.name} did not come back after: {kind}")
            self._kill()
        self.excuses.append(Excuse(self.name, kind, started, over, time.time()))

    def stop(self) -> None:
        """Stop the process as Cloud Run does."""
        if self._child:
            child, self._child = self._child, None
            self.processes.stop(child, grace_seconds=_GRACE_SECONDS)

    @property
    def _running(self) -> Child:
        assert self._child is not None, "the service was not started"
        return self._child

    def _is_ready(self) -> bool:
        return self.leaving.is_set() or is_answering(self.url + "/health/ready")

    def _wait_for_batch(self) -> None:
        """Wait for the log to say that a batch is about to run; not for ever, if there is none."""
        deadline = time.monotonic() + _BATCH_SECONDS
        with self.log_path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            while time.monotonic() < deadline and not self.leaving.is_set():
                if f'"{INFERRING}"'.encode() in log.read():
                    return
                time.sleep(_POLL_SECONDS)

    def _kill(self) -> None:
        self.processes.kill(self._running)
        self.start()

    def _kill_worker(self) -> None:
        killed = self._workers()
        for worker in killed:
            _signal(worker, signal.SIGKILL)
        # The server notices, and starts another.
        self._running.wait_until(
            lambda: self.leaving.is_set() or self._workers() not in ([], killed),
            timeout_seconds=_READY_SECONDS,
        )

    def _terminate(self) -> None:
        self.stop()
        self.start()

    def _start_slowly(self) -> None:
        self.stop()
        self.start(load_seconds=self.slow_seconds)

    def _freeze(self) -> None:
        group = self._running.process.pid
        os.killpg(group, signal.SIGSTOP)
        try:
            self.leaving.wait(self.stop_seconds)
        finally:
            os.killpg(group, signal.SIGCONT)

    def _starve(self) -> None:
        """Leave the worker little more address space than it has."""
        with contextlib.ExitStack() as limits:
            for worker in self._workers():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                    size = _virtual_bytes(worker) + _SPARE_BYTES
                    limits.enter_context(_limited(worker, resource.RLIMIT_AS, size))
            self.leaving.wait(_SHORT_SECONDS)

    def _fill_disk(self) -> None:
        """Refuse every write to a file, as a full disk does."""
        with contextlib.ExitStack() as limits:
            for worker in self._workers():
                limits.enter_context(_limited(worker, resource.RLIMIT_FSIZE, 0))
            self.leaving.wait(_SHORT_SECONDS)

    def _workers(self) -> list[int]:
        listed = subprocess.run(
            ["pgrep", "-P", str(self._running.process.pid)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return [int(line) for line in listed.stdout.split()]


_FAULTS: Mapping[FaultKind, Callable[[Service], None]] = {
    FaultKind.KILL: Service._kill,
    FaultKind.KILL_WORKER: Service._kill_worker,
    FaultKind.TERM: Service._terminate,
    FaultKind.STOP: Service._freeze,
    FaultKind.SLOW_START: Service._start_slowly,
    FaultKind.MEMORY: Service._starve,
    FaultKind.DISK: Service._fill_disk,
}


def impossible_faults() -> set[FaultKind]:
    """Those that this platform cannot do."""
    return set() if sys.platform == _LIMITED_WORKER else {FaultKind.MEMORY, FaultKind.DISK}


@contextmanager
def _limited(pid: int, limit: int, value: int) -> Iterator[None]:
    """Lower a limit of another process for a while; nothing if it has ended."""
    try:
        before = resource.prlimit(pid, limit)
        resource.prlimit(pid, limit, (value, before[1]))
    except ProcessLookupError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, limit, before)


def _virtual_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
