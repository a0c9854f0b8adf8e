"""Compare two revisions of the service: latency, CPU time, cold start, lines of code.

    git worktree add /tmp/old d065efe
    python -m devtools.bench.revisions /tmp/old . --rounds 7 --json revisions.json

Both services run on the same cores (all, or `--cores`) with the same emulators and model. They
alternate within each round, so that other load on the machine affects both. Only the ratios are
meaningful. A ratio is the median of the rounds' ratios. The benchmark posts the events directly to
the service. The service reads the image from the Storage emulator and writes the document to the
Firestore emulator.

- capacity: images per second with 16 callers (closed loop);
- latency and CPU time at `--load` of the first revision's capacity. Requests are a Poisson process,
  the same for both. A latency counts from the time when the request was due;
- cold start: process start to the first stored document, warm page cache;
- lines of code that gunicorn imports, without comments, docstrings and blank lines.

CPU time includes all processes of a service, decoders and ended processes too.
"""

import argparse
import base64
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from devtools.bench import load
from devtools.bench.accounting import on_cores
from devtools.bench.cloud import Cloud, running_cloud
from devtools.bench.curve import needed_requests
from devtools.bench.errors import BenchError
from devtools.bench.load import Request
from devtools.bench.machine import choose_cores
from devtools.bench.startup import Start, measure_start
from devtools.bench.subjects import CLIENTS, Process, Server, check_responses, service_settings
from devtools.count_lines import code_lines
from devtools.demo_model.shapes import write_samples
from devtools.local_stack.errors import LocalStackError
from devtools.local_stack.processes import Processes
from service.operate.detect import find_files
from service.settings import BUNDLED_MODEL

_CAPACITY_IMAGES = 200
_REJECTED = 429


@dataclass(frozen=True)
class Layout:
    """What gunicorn imports in a revision."""

    config: str
    application: str
    modules: Sequence[str]  # imported until the server is ready, late imports included

    def command(self, tree: Path) -> tuple[str, ...]:
        """Return the server's command. It imports from the tree, its working directory."""
        return (
            "env", "-C", str(tree), f"PYTHONPATH={tree}", sys.executable, "-m", "gunicorn",
            "--config", f"python:{self.config}", self.application,
        )  # fmt: skip


NEW = Layout(
    "service.server.gunicorn_conf",
    "service.server.wsgi:build_app()",
    (
        "service.server.gunicorn_conf", "service.server.gunicorn_worker", "service.server.wsgi",
        "service.gcp.clients", "service.gcp.push_auth", "service.inference.openvino",
        "service.images.decoder_process",
    ),
)  # fmt: skip
OLD = Layout(
    "service.gunicorn_conf",
    "service.main:build_app()",
    (
        "service.gunicorn_conf", "service.gunicorn_worker", "service.main", "service.storage",
        "service.store", "service.tokens", "service.detector.openvino",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Revision:
    """A checked-out tree."""

    name: str
    tree: Path
    layout: Layout

    @classmethod
    def of(cls, tree: Path) -> "Revision":
        """Detect the layout of a tree.

        Raises:
            BenchError: the tree has neither layout.
        """
        tree = tree.resolve()
        described = subprocess.run(
            ["git", "-C", tree, "describe", "--always", "--dirty"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        for layout in (NEW, OLD):
            file = tree / (layout.config.replace(".", "/") + ".py")
            if file.is_file():
                return cls(described.stdout.strip() or tree.name, tree, layout)
        raise BenchError(f"{tree} is not a checkout of yolo-batch")

    def lines(self) -> int:
        """Count the lines of code that gunicorn imports from `service/`."""
        code = (
            f"import sys, {', '.join(self.layout.modules)}; "
            "print(*{m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'service'})"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.tree, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(self.tree)}, check=True,
        )  # fmt: skip
        files = map(Path, done.stdout.split())
        return sum(code_lines(file.read_text(encoding="utf-8")) for file in files)


@dataclass(frozen=True)
class Loaded:
    """Figures of one revision under one load."""

    p50_ms: float
    p90_ms: float
    cpu_ms: float  # CPU time per image
    rejected_percent: float  # 429: other load has slowed the machine down


class Comparison:
    """Two services with the same emulated cloud."""

    def __init__(
        self,
        revisions: Sequence[Revision],
        cloud: Cloud,
        processes: Processes,
        generator: Process,
        settings: Mapping[str, str],
        cores: frozenset[int],
        images: Sequence[Path],
        *,
        with_pushes: bool,
    ) -> None:
        self._revisions = revisions
        self._cloud = cloud
        self._processes = processes
        self._generator = generator
        self._settings = settings
        self._cores = cores
        self._images = images
        self._with_pushes = with_pushes
        self._events: list[Request] = []

    def start(self) -> list[Server]:
        """Start a service of each revision."""
        return [
            Server(self._processes, r.layout.command(r.tree), self._settings, self._cores)
            for r in self._revisions
        ]

    def closed(self, server: Server) -> tuple[float, float]:
        """Return images per second with 16 callers, and CPU milliseconds per image."""
        events = self.upload(_CAPACITY_IMAGES)
        self._cloud.forget()
        cpu = server.cpu_seconds
        responses = self._generator.call(load.send_closed, server.url, events, clients=CLIENTS)
        cpu = server.cpu_seconds - cpu
        check_responses(responses, server.child)
        self._cloud.check_results(len(events))
        seconds = max(response.completed for response in responses)
        return len(events) / seconds, cpu * 1000 / len(events)

    def open(self, server: Server, rate: float, seconds: float, seed: int) -> Loaded:
        """Offer `rate` requests per second for `seconds`."""
        events = self.upload(needed_requests(rate, seconds))
        self._cloud.forget()
        cpu = server.cpu_seconds
        responses = self._generator.call(load.send_open, server.url, events, rate=rate, seed=seed)
        cpu = server.cpu_seconds - cpu
        good = [response for response in responses if response.is_good]
        check_responses([a for a in responses if a.status != _REJECTED], server.child)
        self._cloud.check_results(len(good))
        latencies = [(response.completed - response.due) * 1000 for response in good]
        p50, p90 = np.percentile(latencies, [50, 90])
        rejected = 100 * (1 - len(good) / len(responses))
        return Loaded(float(p50), float(p90), cpu * 1000 / len(good), rejected)

    def cold_start(self, revision: Revision) -> Start:
        """Start a service and measure until its first document."""
        events = self.upload(CLIENTS)
        self._cloud.forget()
        command = revision.layout.command(revision.tree)
        start = measure_start(
            self._processes, self._generator, command, self._settings, events, self._cores
        )
        self._cloud.check_results(len(events))
        return start

    def upload(self, count: int) -> list[Request]:
        """Return `count` events, uploading more images if needed."""
        if (missing := count - len(self._events)) > 0:
            events = self._cloud.upload(self._images, missing)
            self._events += [push_of(event) for event in events] if self._with_pushes else events
        return self._events[:count]


def push_of(event: Request) -> Request:
    """Wrap an upload's event as the first push of a Cloud Storage notification."""
    image = json.loads(event.body)
    message = {
        "attributes": {
            "eventType": "OBJECT_FINALIZE", "bucketId": image["bucket"], "objectId": image["name"],
            "objectGeneration": image["generation"],
        },
        "data": base64.b64encode(event.body).decode(),
        "messageId": "1",
    }  # fmt: skip
    push = {"message": message, "subscription": "uploads", "deliveryAttempt": 1}
    return Request({"content-type": "application/json"}, json.dumps(push).encode())


def in_turns(
    rounds: int, subjects: Sequence[Callable[[int], Mapping[str, float]]]
) -> list[list[Mapping[str, float]]]:
    """Call each subject with the round's number. Every other round runs in reverse order.

    Returns the figures of each subject, one mapping for each round.
    """
    results: list[list[Mapping[str, float]]] = [[] for _ in subjects]
    for number in range(rounds):
        order = list(range(len(subjects)))
        for index in order[:: -1 if number % 2 else 1]:
            results[index].append(subjects[index](number))
            latest = results[index][-1].items()
            figures = ", ".join(f"{name} {value:.1f}" for name, value in latest)
            print(f"round {number + 1}/{rounds}: {index}: {figures}", file=sys.stderr, flush=True)
    return results


def rows_of(results: Sequence[Sequence[Mapping[str, float]]]) -> list[list[str]]:
    """Tabulate medians with minimum and maximum, and the median of the rounds' ratios."""
    rows = []
    for name in results[0][0]:
        columns = [[each[name] for each in rounds] for rounds in results]
        ratios = [new / old if old else math.nan for old, new in zip(*columns, strict=True)]
        rows.append(
            [
                name,
                *(f"{statistics.median(c):.1f} ({min(c):.1f}-{max(c):.1f})" for c in columns),
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            ]
        )
    return rows


def measure(options: argparse.Namespace) -> tuple[list[list[str]], dict[str, object]]:
    """Measure everything. Return the rows of the table, and all rounds.

    Raises:
        BenchError: a part could not be measured.
    """
    revisions = [Revision.of(tree) for tree in (options.old, options.new)]
    lines = [float(revision.lines()) for revision in revisions]
    cores = choose_cores(options.cores).service if options.cores else choose_cores(None).usable
    with ExitStack() as cleanup:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="revisions-")))
        (directory / "logs").mkdir()
        if options.images is None:
            options.images = directory / "samples"
            write_samples(options.images)
        images = find_files([options.images])
        cloud = cleanup.enter_context(running_cloud())
        processes = cleanup.enter_context(Processes(directory / "logs"))
        comparison = Comparison(
            revisions, cloud, processes,
            cleanup.enter_context(Process(choose_cores(None).usable)),
            service_settings(options.model, options.batch_size), cores, images,
            with_pushes=options.pushes,
        )  # fmt: skip
        data: dict[str, object] = {"revisions": [r.name for r in revisions], "lines": lines}
        with on_cores(choose_cores(None).usable):
            rows = _measured(comparison, revisions, processes, options, data)
    rows.append(
        ["lines that gunicorn imports", *(f"{n:,.0f}" for n in lines), f"{lines[1] / lines[0]:.2f}"]
    )
    return rows, data


def _measured(
    comparison: Comparison,
    revisions: Sequence[Revision],
    processes: Processes,
    options: argparse.Namespace,
    data: dict[str, object],
) -> list[list[str]]:
    servers = comparison.start()
    for server in servers:  # warm up: compile every input shape, start every thread
        comparison.closed(server)

    def closed(server: Server) -> Callable[[int], Mapping[str, float]]:
        def measured(number: int) -> Mapping[str, float]:
            speed, cpu_ms = comparison.closed(server)
            return {"capacity, images/s": speed, "CPU-ms per image, 16 callers": cpu_ms}

        return measured

    busy = in_turns(options.rounds, [closed(server) for server in servers])
    rate = options.load * statistics.median(each["capacity, images/s"] for each in busy[0])

    def opened(server: Server) -> Callable[[int], Mapping[str, float]]:
        def measured(number: int) -> Mapping[str, float]:
            loaded = comparison.open(server, rate, options.seconds, number)
            load_text = f"at {options.load:.0%}"
            return {
                f"p50 {load_text}, ms": loaded.p50_ms,
                f"p90 {load_text}, ms": loaded.p90_ms,
                f"CPU-ms per image {load_text}": loaded.cpu_ms,
                f"rejected {load_text}, %": loaded.rejected_percent,
            }

        return measured

    loaded = in_turns(options.rounds, [opened(server) for server in servers])
    memory = [[{"memory, MB": server.memory_mb}] for server in servers]
    processes.stop(*(server.child for server in servers), grace_seconds=10)

    def started(revision: Revision) -> Callable[[int], Mapping[str, float]]:
        def measured(number: int) -> Mapping[str, float]:
            start = comparison.cold_start(revision)
            return {
                "start to ready, ms": start.ready_seconds * 1000,
                "start to the first stored result, ms": start.first_result_seconds * 1000,
            }

        return measured

    for revision in revisions:  # warm the page cache
        comparison.cold_start(revision)
    starts = in_turns(options.rounds, [started(revision) for revision in revisions])
    data |= {"rate": rate, "closed": busy, "open": loaded, "starts": starts, "memory": memory}
    return [row for part in (busy, loaded, starts, memory) for row in rows_of(part)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="checkout of the first revision")
    parser.add_argument("new", type=Path, help="checkout of the second revision")
    parser.add_argument("--images", type=Path, help="folder of images; by default drawn samples")
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL, help="exported model")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=15.0, help="duration of each open loop")
    parser.add_argument(
        "--load", type=float, default=0.7, help="share of the first revision's capacity"
    )
    parser.add_argument(
        "--pushes", action="store_true", help="send Pub/Sub pushes instead of Eventarc's events"
    )
    parser.add_argument("--cores", help="cores of the services, such as 0-1; by default all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    try:
        rows, data = measure(options)
    except (BenchError, LocalStackError) as exc:
        sys.exit(f"Error: {exc}")
    names = data["revisions"]
    assert isinstance(names, list)
    print(tabulate(rows, ["", *names, "ratio"], tablefmt="github", disable_numparse=True))
    print(f"\n{time.monotonic() - started:.0f} s; {os.cpu_count()} cores; {data['rate']:.0f}/s")
    if options.json:
        options.json.write_text(json.dumps(data, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
