"""The service's processes, and the faults that strike them."""

import contextlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from devtools.chaos.excuses import HANG_TIMEOUT_SECONDS, Excuse, Replacement
from devtools.chaos.plan import FaultKind
from devtools.chaos.served import (
    BREAK_FILE,
    FAILED_ON,
    INFERRING,
    KILL_FILE,
    LOAD_SECONDS,
    Break,
    Moment,
)
from devtools.local_stack.errors import StartError
from devtools.local_stack.processes import Child, Processes, free_port, is_answering

COMMAND = (
    sys.executable, "-m", "gunicorn",
    "--config", "python:service.server.gunicorn_conf", "devtools.chaos.served:build_app()",
)  # fmt: skip
_READY_SECONDS = 300.0  # ten services start on two cores
_RECOVERY_SECONDS = 120.0
# The liveness probe is like Cloud Run's, but more frequent.
PROBE_SECONDS = 3.0  # between two probes
PROBE_FAILURES = 4  # in a row, after which the instance is replaced
# Longest time until an instance with a broken model is replaced: the hang time-out, the probes and
# the start of a new process. A failing model is detected after failures of different images.
_REPLACED_SECONDS = HANG_TIMEOUT_SECONDS + 120.0
_ENOUGH_FAILURES = 5  # images with a model failure. See `service.health.Health`.
_BATCH_SECONDS = 10.0  # how long a fault waits for the start of a batch
_ORPHAN_SECONDS = 30.0  # decoders must have ended this long after their service
_GRACE_SECONDS = 10.0  # Cloud Run sends SIGKILL ten seconds after SIGTERM
_SHORT_SECONDS = 3.0  # how long memory or disk is short
_POLL_SECONDS = 0.02
_SPARE_BYTES = 16 * 2**20  # address space left when memory is short
_LIMITED_WORKER = "linux"  # the platform that can set another process's limits


@dataclass
class Service:
    """One instance of the service (gunicorn and its worker), replaced when its liveness fails."""

    name: str
    processes: Processes
    log_path: Path
    environment: Mapping[str, str]
    stop_seconds: float  # how long SIGSTOP lasts
    slow_seconds: float  # added to the model's load time in a slow start
    leaving: threading.Event  # set to end every wait
    url: str = field(default_factory=lambda: f"http://127.0.0.1:{free_port()}")
    excuses: list[Excuse] = field(default_factory=list)
    replacements: list[Replacement] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _child: Child | None = None
    # Held during starts and stops: faults and the liveness probe run in different threads.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def start(self, *, load_seconds: float = 0.0) -> None:
        """Start the process and wait until it is ready, as a startup probe does.

        Raises:
            StartError: it does not become ready.
        """
        port = self.url.rpartition(":")[2]
        environment = {
            **self.environment,
            "PORT": port,
            LOAD_SECONDS: str(load_seconds),
            BREAK_FILE: str(self._break_file),
            KILL_FILE: str(self._kill_file),
        }
        with self._lock:
            for file in (self._break_file, self._kill_file):
                file.unlink(missing_ok=True)
            child = self.processes.start(self.name, COMMAND, environment)
            self._child = child
            child.wait_until(self._is_ready, timeout_seconds=_READY_SECONDS)

    def strike(self, kind: FaultKind) -> None:
        """Cause a fault in the middle of a batch, and wait until the service is ready again.

        A service that does not recover by itself is reported as a failure and restarted.

        Raises:
            StartError: the restart failed.
        """
        self._wait_for_batch()
        started = time.time()
        _FAULTS[kind](self)
        over = time.time()
        if not self._wait(self._is_ready, _RECOVERY_SECONDS):
            self.failures.append(f"{self.name} did not recover after: {kind}")
            self._kill()
        self.excuses.append(Excuse(self.name, kind, started, over, time.time()))

    def keep_alive(self) -> None:
        """Probe liveness as Cloud Run does, and replace a failed instance, until the run ends."""
        failures, probed = 0, self._child
        while not self.leaving.wait(PROBE_SECONDS):
            # Do not probe while a fault starts, stops or pauses the service.
            if not self._lock.acquire(blocking=False):
                failures = 0
                continue
            try:
                is_same, probed = self._child is probed, self._child
                if probed is None or self._is_live():
                    failures = 0
                    continue
                failures = failures + 1 if is_same else 1
                if failures == PROBE_FAILURES:
                    self._replace()
                    failures = 0
            finally:
                self._lock.release()

    def _replace(self) -> None:
        """Kill the instance, and start another."""
        started = time.time()
        try:
            self._kill()
        except StartError as exc:
            self.failures.append(f"{self.name} was not replaced: {exc}")
        self.replacements.append(Replacement(self.name, started, time.time()))

    def stop(self) -> None:
        """Stop the process as Cloud Run does."""
        with self._lock:
            if self._child:
                decoders = self._decoders()
                child, self._child = self._child, None
                self.processes.stop(child, grace_seconds=_GRACE_SECONDS)
                self._check_ended(decoders)

    @property
    def _running(self) -> Child:
        assert self._child is not None, "the service was not started"
        return self._child

    @property
    def _break_file(self) -> Path:
        return self.log_path.with_name(f"{self.name}.break")

    @property
    def _kill_file(self) -> Path:
        return self.log_path.with_name(f"{self.name}.kill")

    def _is_ready(self) -> bool:
        return self.leaving.is_set() or is_answering(self.url + "/health/ready")

    def _is_live(self) -> bool:
        return self.leaving.is_set() or is_answering(self.url + "/health/live")

    def _wait(self, is_over: Callable[[], bool], timeout_seconds: float) -> bool:
        """Wait for a condition or the end of the run. Return False if neither came in time."""
        deadline = time.monotonic() + timeout_seconds
        while not (self.leaving.is_set() or is_over()):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _wait_for_batch(self) -> None:
        """Wait until the log reports that a batch is about to run, for ten seconds at most."""
        deadline = time.monotonic() + _BATCH_SECONDS
        with self.log_path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            while time.monotonic() < deadline and not self.leaving.is_set():
                if f'"{INFERRING}"'.encode() in log.read():
                    return
                time.sleep(_POLL_SECONDS)

    def _kill(self) -> None:
        with self._lock:
            decoders = self._decoders()
            self.processes.kill(self._running)
            self._check_ended(decoders)
            self.start()

    def _check_ended(self, decoders: list[int]) -> None:
        """Report decoder processes that outlive their service."""
        if not self._wait(lambda: not any(map(_is_running, decoders)), _ORPHAN_SECONDS):
            self.failures.append(f"{self.name} ended, and its decoder processes did not")

    def _kill_worker(self) -> None:
        killed = self._workers()
        for worker in killed:
            _signal(worker, signal.SIGKILL)
        # gunicorn notices and starts a new worker.
        self._wait(lambda: self._workers() not in ([], killed), _READY_SECONDS)

    def _kill_after_upload(self) -> None:
        self._kill_at(Moment.UPLOADED)

    def _kill_after_commit(self) -> None:
        self._kill_at(Moment.COMMITTED)

    def _kill_at(self, moment: Moment) -> None:
        """Let the worker kill itself at the next such moment."""
        killed = self._workers()
        self._kill_file.write_text(moment)
        self._wait(lambda: not self._kill_file.exists(), _BATCH_SECONDS)
        if self._kill_file.exists():  # it did not come
            self._kill_file.unlink(missing_ok=True)
        else:
            self._wait(lambda: self._workers() not in ([], killed), _READY_SECONDS)

    def _terminate(self) -> None:
        with self._lock:
            self.stop()
            self.start()

    def _start_slowly(self) -> None:
        with self._lock:
            self.stop()
            self.start(load_seconds=self.slow_seconds)

    def _freeze(self) -> None:
        """Pause all processes for a while, like an instance without CPU."""
        with self._lock:
            group = self._running.process.pid
            decoders = self._decoders()
            os.killpg(group, signal.SIGSTOP)
            for decoder in decoders:
                _signal(decoder, signal.SIGSTOP)
            try:
                self.leaving.wait(self.stop_seconds)
            finally:
                for decoder in decoders:
                    _signal(decoder, signal.SIGCONT)
                os.killpg(group, signal.SIGCONT)

    def _kill_decoders(self) -> None:
        for root in self._decoder_roots():
            for decoder in _children(root):
                _signal(decoder, signal.SIGKILL)

    def _kill_decoder_root(self) -> None:
        for root in self._decoder_roots():
            _signal(root, signal.SIGKILL)

    def _hang_model(self) -> None:
        self._break_model(Break.HANGS)

    def _fail_model(self) -> None:
        self._break_model(Break.FAILS)

    def _break_model(self, how: Break) -> None:
        """Break the model, and wait until the liveness probe has replaced the instance.

        If too few different images arrived meanwhile, the service need not detect the fault.
        """
        broken, log_end = self._running, self.log_path.stat().st_size
        self._break_file.write_text(how)
        if self._wait(lambda: self._child is not broken and self._is_ready(), _REPLACED_SECONDS):
            return
        is_taken = not self._break_file.exists()
        self._break_file.unlink(missing_ok=True)
        with self.log_path.open("rb") as log:
            log.seek(log_end)
            enough = f'"{FAILED_ON}": {_ENOUGH_FAILURES}'.encode() in log.read()
        if is_taken and (enough or how is Break.HANGS):
            self.failures.append(f"{self.name} was not replaced though its model {how}")
        if is_taken:
            self._kill()

    def _starve(self) -> None:
        """Limit the worker's address space to little more than it uses."""
        with contextlib.ExitStack() as limits:
            for worker in self._workers():
                with contextlib.suppress(
                    FileNotFoundError, ProcessLookupError
                ):  # the worker has ended
                    size = _virtual_bytes(worker) + _SPARE_BYTES
                    limits.enter_context(_limited(worker, resource.RLIMIT_AS, size))
            self.leaving.wait(_SHORT_SECONDS)

    def _fill_disk(self) -> None:
        """Make every write to a file fail, like a full disk."""
        with contextlib.ExitStack() as limits:
            for worker in self._workers():
                limits.enter_context(_limited(worker, resource.RLIMIT_FSIZE, 0))
            self.leaving.wait(_SHORT_SECONDS)

    def _workers(self) -> list[int]:
        return _children(self._running.process.pid)

    def _decoder_roots(self) -> list[int]:
        return [root for worker in self._workers() for root in _children(worker)]

    def _decoders(self) -> list[int]:
        """Return the decoder processes and the root processes that fork them."""
        roots = self._decoder_roots()
        return [*roots, *(decoder for root in roots for decoder in _children(root))]


_FAULTS: Mapping[FaultKind, Callable[[Service], None]] = {
    FaultKind.KILL: Service._kill,
    FaultKind.KILL_WORKER: Service._kill_worker,
    FaultKind.KILL_UPLOADED: Service._kill_after_upload,
    FaultKind.KILL_COMMITTED: Service._kill_after_commit,
    FaultKind.TERM: Service._terminate,
    FaultKind.STOP: Service._freeze,
    FaultKind.SLOW_START: Service._start_slowly,
    FaultKind.MEMORY: Service._starve,
    FaultKind.DISK: Service._fill_disk,
    FaultKind.DECODERS: Service._kill_decoders,
    FaultKind.DECODER_ROOT: Service._kill_decoder_root,
    FaultKind.MODEL_HANGS: Service._hang_model,
    FaultKind.MODEL_FAILS: Service._fail_model,
}


def impossible_faults() -> set[FaultKind]:
    """Return the faults that this platform cannot cause."""
    return set() if sys.platform == _LIMITED_WORKER else {FaultKind.MEMORY, FaultKind.DISK}


@contextmanager
def _limited(pid: int, limit: int, value: int) -> Iterator[None]:
    """Lower a limit of another process for a while. Does nothing if the process has ended."""
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


def _children(pid: int) -> list[int]:
    """Return the ids of a process's children. Empty if it has ended."""
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def _is_running(pid: int) -> bool:
    """Return whether a process is running. A zombie is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _virtual_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
