"""What is measured, as processes on named cores: in-process work, and services behind HTTP."""

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar

import requests

from devtools.bench import load, worker
from devtools.bench.accounting import (
    on_cores,
    peak_tree_mb,
    tree_mb,
    tree_seconds,
    worker_of,
)
from devtools.bench.errors import BenchError
from devtools.bench.figures import Measured, Round
from devtools.local_stack.processes import Child, Processes, free_port, is_answering
from devtools.local_stack.stack import SERVICE_COMMAND

CLIENTS = 16  # of a closed load: two batches of eight, half of the service's slots
NAIVE_COMMAND = (
    sys.executable, "-m", "gunicorn", "--workers", "1", "--threads", str(CLIENTS),
    "--timeout", "0", "--keep-alive", "620", "devtools.bench.naive_service:build_app()",
)  # fmt: skip
PROFILED_COMMAND = (*SERVICE_COMMAND[:-1], "devtools.bench.served:build_app()")
# Settings of the measured service, whatever the user's environment says; empty: their defaults.
PINNED = {
    "DEVICE": "cpu",
    "FIRESTORE_DATABASE": "(default)",  # the one whose documents are deleted between two rounds
    "FIRESTORE_COLLECTION": "detections",
    "ALLOWED_BUCKETS": "",
    "PUSH_AUDIENCE": "",
    "PUSH_SERVICE_ACCOUNTS": "",
}
_READY_SECONDS = 300.0
_HEALTH_SECONDS = 10.0

P = ParamSpec("P")
R = TypeVar("R")


class Subject(Protocol):
    """Something that can be measured, round by round."""

    @property
    def name(self) -> str:
        """Its row's name."""

    def round(self) -> Round:
        """Let it work for some seconds."""


class Process:
    """A process of its own, which ends with this one, for functions of importable modules."""

    def __init__(self, cores: frozenset[int]) -> None:
        """Start nothing yet."""
        self._cores = cores
        # Spawned: a fork would inherit threads' locks, and this process's memory.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare)

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function there.

        Raises:
            BenchError: the process died.
        """
        with on_cores(self._cores):  # the process is started by its first call, and inherits them
            call = self._pool.submit(function, *args, **kwargs)
        try:
            return call.result()
        except BrokenProcessPool as exc:
            raise BenchError(f"The process of {function.__name__} died: {exc}") from exc

    def __enter__(self) -> Self:
        """Nothing more."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self._pool.shutdown(cancel_futures=True)


class InProcess:
    """Work in a process of its own, without HTTP."""

    def __init__(
        self, name: str, process: Process, task: worker.Task, *, least_seconds: float
    ) -> None:
        """Load the model and make a first pass."""
        self.name = name
        self._process = process
        self._least_seconds = least_seconds
        process.call(worker.load, task)

    def round(self) -> Round:
        """Go over the images for at least the seconds that were given."""
        return self._process.call(worker.measure, self._least_seconds)


class Server:
    """A gunicorn on the measured cores, ready to answer."""

    def __init__(
        self,
        processes: Processes,
        command: Sequence[str],
        settings: Mapping[str, str],
        cores: frozenset[int],
    ) -> None:
        """Start it and wait until it is ready.

        Raises:
            StartError: it ended, or was not ready in time; with the end of its log.
        """
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        own = {"BIND_ADDRESS": "127.0.0.1", "PORT": str(port), "PYTHONUNBUFFERED": "1"}
        with on_cores(cores):
            self.child: Child = processes.start(
                f"server-{port}", (*command, "--bind", f"127.0.0.1:{port}"),
                {**os.environ, **own, **settings},
            )  # fmt: skip
        self.child.wait_until(self._is_ready, timeout_seconds=_READY_SECONDS)

    @property
    def pid(self) -> int:
        """The worker of gunicorn, whose descendants decode."""
        return worker_of(self._master)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all of the service's processes so far."""
        return tree_seconds(self._master)

    @property
    def memory_mb(self) -> float:
        """What a container would pay for now: gunicorn, its worker and the decoders."""
        return tree_mb(self._master)

    @property
    def peak_memory_mb(self) -> float:
        """The most that a container may have paid for so far."""
        return peak_tree_mb(self._master)

    def check_model(self, precision: str) -> None:
        """Make sure that the service runs the model that was asked for.

        Raises:
            BenchError: it runs another one, in place of one that failed.
        """
        with requests.Session() as session:
            session.trust_env = False  # no proxy knows our loopback
            answer = session.get(self.url + "/health/ready", timeout=_HEALTH_SECONDS)
        check_health(answer.json(), precision)

    @property
    def _master(self) -> int:
        return self.child.process.pid

    def _is_ready(self) -> bool:
        return is_answering(self.url + "/health/ready")


class Http:
    """A service behind HTTP, kept busy by a load generator of its own."""

    def __init__(
        self,
        name: str,
        server: Server,
        generator: Process,
        requests: Sequence[load.Request],
        *,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the service and the requests of one round; make two rounds, so that all is warm.

        Args:
            name: its row's name.
            server: the service.
            generator: where the load comes from.
            requests: of one round.
            before: called before each round, and not measured.
            after: likewise after each round.
        """
        self.name = name
        self._server = server
        self._generator = generator
        self._requests = requests
        self._before = before
        self._after = after
        for _ in range(2):
            self.round()

    def round(self) -> Round:
        """Send all requests, with `CLIENTS` at once.

        Raises:
            BenchError: one was not answered with success.
        """
        self._before()
        cpu = self._server.cpu_seconds
        answers = self._generator.call(
            load.send_closed, self._server.url, self._requests, clients=CLIENTS
        )
        cpu = self._server.cpu_seconds - cpu
        check_answers(answers, self._server.child)
        self._after()
        return Round(len(answers), max(answer.answered for answer in answers), cpu)


def check_answers(answers: Sequence[load.Answer], child: Child) -> None:
    """Refuse to measure a service that does not do its work.

    Raises:
        BenchError: some answer was none, or no success.
    """
    bad = [answer.status for answer in answers if not answer.is_good]
    if bad:
        raise BenchError(child.failure(f"answered {len(bad)} of {len(answers)} with {bad[0]}"))


def check_health(health: Mapping[str, Any], precision: str) -> None:
    """Refuse to measure another model than the one that was asked for.

    Raises:
        BenchError: the service tells of a fallback, or of another precision.
    """
    if reason := health.get("fallback"):
        raise BenchError(f"The service does not run the model that was asked for: {reason}")
    if health.get("precision") != precision:
        raise BenchError(
            f"The service runs a model of precision {health.get('precision')}, not {precision}"
        )


def measure(
    subjects: Sequence[Subject], rounds: int, progress: Callable[[str], None]
) -> list[Measured]:
    """Measure the subjects in turn, and all of them again and again."""
    found: dict[str, list[Round]] = {subject.name: [] for subject in subjects}
    for number in range(1, rounds + 1):
        for subject in subjects:
            result = subject.round()
            found[subject.name].append(result)
            progress(
                f"round {number}/{rounds}: {subject.name}: "
                f"{result.images_per_second:.1f} images/s, {result.cpu_ms:.1f} CPU-ms"
            )
    return [Measured(name, results) for name, results in found.items()]


def service_settings(model: Path, batch_size: int) -> dict[str, str]:
    """Environment of the measured service; the rest is as the user's environment says."""
    return {
        **PINNED,
        "MODEL_PATH": str(model.resolve()),
        "MAX_BATCH_SIZE": str(batch_size),
        # An emulator that is slow once must not end the benchmark.
        "STORAGE_TIMEOUT_SECONDS": "60",
        "FIRESTORE_TIMEOUT_SECONDS": "60",
    }


def image_requests(images: Sequence[Path], count: int) -> list[load.Request]:
    """Requests that carry the images themselves, as the naive service takes them."""
    bodies = [path.read_bytes() for path in images]
    return [load.Request({}, bodies[i % len(bodies)]) for i in range(count)]


def _prepare() -> None:
    """Keep what libraries print out of the report, and end with the process that started this."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)
    logging.disable(logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's end, which may be a kill: the pool itself would wait for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
