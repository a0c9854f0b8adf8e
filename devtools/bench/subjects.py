"""The subjects of the benchmark: in-process work and HTTP services, on pinned cores."""

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

CLIENTS = 16  # in a closed loop: two batches of eight, half of the slots
NAIVE_COMMAND = (
    sys.executable, "-m", "gunicorn", "--workers", "1", "--threads", str(CLIENTS),
    "--timeout", "0", "--keep-alive", "620", "devtools.bench.naive_service:build_app()",
)  # fmt: skip
PROFILED_COMMAND = (*SERVICE_COMMAND[:-1], "devtools.bench.served:build_app()")
# Settings of the measured service that override the user's environment. Empty: the default.
PINNED = {
    "DEVICE": "cpu",
    "FIRESTORE_DATABASE": "(default)",  # its documents are deleted between rounds
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
        """Name of the row in the table."""

    def round(self) -> Round:
        """Measure one round."""


class Process:
    """A separate process that runs functions of importable modules. Ends with this process."""

    def __init__(self, cores: frozenset[int]) -> None:
        """Take the cores of the process. The first call starts it."""
        self._cores = cores
        # Spawned, because a fork would inherit locks and memory of this process.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare)

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function in the process, and return its result.

        Raises:
            BenchError: the process crashed.
        """
        with on_cores(self._cores):  # the first call starts the process, and it inherits the cores
            call = self._pool.submit(function, *args, **kwargs)
        try:
            return call.result()
        except BrokenProcessPool as exc:
            raise BenchError(f"The process of {function.__name__} crashed: {exc}") from exc

    def __enter__(self) -> Self:
        """Return the process."""
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
    """Work in a separate process, without HTTP."""

    def __init__(
        self, name: str, process: Process, task: worker.Task, *, least_seconds: float
    ) -> None:
        """Load the model and make a first pass."""
        self.name = name
        self._process = process
        self._least_seconds = least_seconds
        process.call(worker.load, task)

    def round(self) -> Round:
        """Repeat all images for at least `least_seconds`."""
        return self._process.call(worker.measure, self._least_seconds)


class Server:
    """A gunicorn server on the measured cores."""

    def __init__(
        self,
        processes: Processes,
        command: Sequence[str],
        settings: Mapping[str, str],
        cores: frozenset[int],
    ) -> None:
        """Start the server and wait until it is ready.

        Raises:
            StartError: it ended, or was not ready in time. The message ends with its log.
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
        """Process id of gunicorn's worker, the parent of the decoder processes."""
        return worker_of(self._master)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all processes of the service so far."""
        return tree_seconds(self._master)

    @property
    def memory_mb(self) -> float:
        """Memory now, as a container counts it: gunicorn, its worker and the decoders."""
        return tree_mb(self._master)

    @property
    def peak_memory_mb(self) -> float:
        """Peak memory so far, as a container counts it."""
        return peak_tree_mb(self._master)

    def check_model(self, precision: str) -> None:
        """Check that the service runs the requested model.

        Raises:
            BenchError: it runs a fallback.
        """
        with requests.Session() as session:
            session.trust_env = False  # a proxy cannot reach the loopback interface
            response = session.get(self.url + "/health/ready", timeout=_HEALTH_SECONDS)
        check_health(response.json(), precision)

    @property
    def _master(self) -> int:
        return self.child.process.pid

    def _is_ready(self) -> bool:
        return is_answering(self.url + "/health/ready")


class Http:
    """A service behind HTTP, kept busy by a load generator in a separate process."""

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
        """Take the service and the requests of one round, and run two rounds to warm up.

        Args:
            name: name of the row.
            server: the service.
            generator: the process of the load generator.
            requests: the requests of one round.
            before: called before each round, and not measured.
            after: called after each round, and not measured.
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
            BenchError: a request did not succeed.
        """
        self._before()
        cpu = self._server.cpu_seconds
        responses = self._generator.call(
            load.send_closed, self._server.url, self._requests, clients=CLIENTS
        )
        cpu = self._server.cpu_seconds - cpu
        check_responses(responses, self._server.child)
        self._after()
        return Round(len(responses), max(response.completed for response in responses), cpu)


def check_responses(responses: Sequence[load.Response], child: Child) -> None:
    """Check that all requests succeeded.

    Raises:
        BenchError: a request failed or had no response.
    """
    bad = [response.status for response in responses if not response.is_good]
    if bad:
        raise BenchError(
            child.failure(f"returned {bad[0]} for {len(bad)} of {len(responses)} requests")
        )


def check_health(health: Mapping[str, Any], precision: str) -> None:
    """Check that the service runs the requested model.

    Raises:
        BenchError: it reports a fallback or another precision.
    """
    if reason := health.get("fallback"):
        raise BenchError(f"The service does not run the requested model: {reason}")
    if health.get("precision") != precision:
        raise BenchError(
            f"The service runs a model of precision {health.get('precision')}, not {precision}"
        )


def measure(
    subjects: Sequence[Subject], rounds: int, progress: Callable[[str], None]
) -> list[Measured]:
    """Measure the subjects one after the other, `rounds` times."""
    results: dict[str, list[Round]] = {subject.name: [] for subject in subjects}
    for number in range(1, rounds + 1):
        for subject in subjects:
            result = subject.round()
            results[subject.name].append(result)
            progress(
                f"round {number}/{rounds}: {subject.name}: "
                f"{result.images_per_second:.1f} images/s, {result.cpu_ms:.1f} CPU-ms"
            )
    return [Measured(name, all_rounds) for name, all_rounds in results.items()]


def service_settings(model: Path, batch_size: int) -> dict[str, str]:
    """Return the settings of the measured service that the benchmark fixes."""
    return {
        **PINNED,
        "MODEL_PATH": str(model.resolve()),
        "MAX_BATCH_SIZE": str(batch_size),
        # One slow response of an emulator must not end the benchmark.
        "STORAGE_TIMEOUT_SECONDS": "60",
        "FIRESTORE_TIMEOUT_SECONDS": "60",
    }


def image_requests(images: Sequence[Path], count: int) -> list[load.Request]:
    """Return requests with the image as the body, for the naive service."""
    bodies = [path.read_bytes() for path in images]
    return [load.Request({}, bodies[i % len(bodies)]) for i in range(count)]


def _prepare() -> None:
    """Silence the libraries, and make this process end with its parent."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)
    logging.disable(logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the parent ends, even if it was killed. The pool itself would wait for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
