"""Overload: several times the service's capacity, until retries have delivered every image.

    python -m devtools.bench.overload --seconds 60 --times 10 --plot overload.png

Starts the emulators, and the service on one core. Uploads large images, and measures the capacity
in a closed loop. Then images arrive `--times` as fast for `--seconds`, as a Poisson process. Each
image is delivered like a Pub/Sub push. A message that is not acknowledged is redelivered after one
second. The delay then doubles up to 60 s, with 25 % jitter. Redeliveries add to the arrivals.

The run ends when every image is acknowledged. It fails if an image is lost, if an accepted image
took longer than its ack deadline, or if a response or a log line is unexpected.
"""

import argparse
import contextlib
import json
import math
import random
import sched
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import cv2
import urllib3

from devtools.bench import curve, load, worker
from devtools.bench.accounting import on_cores, thread_times
from devtools.bench.cloud import Cloud, running_cloud
from devtools.bench.errors import BenchError
from devtools.bench.figures import Section, digits
from devtools.bench.load import Request, Response
from devtools.bench.machine import choose_cores, header
from devtools.bench.subjects import PINNED, Process, Server, check_responses
from devtools.demo_model.shapes import write_samples
from devtools.local_stack.errors import LocalStackError
from devtools.local_stack.eventarc import EventarcOptions
from devtools.local_stack.processes import Processes
from devtools.local_stack.stack import SERVICE_COMMAND
from service.settings import BUNDLED_MODEL, Settings

MEGAPIXELS = 24
JPEG_QUALITY = 80
# Decoded in full, so that an image takes much CPU time and memory.
SETTINGS = {"REDUCED_DECODE": "false"}

_CAPACITY_SECONDS = 15.0
_CAPACITY_CLIENTS = 8  # enough to keep the service busy, too few to reach a deadline
_WARM_UP_IMAGES = 32
_PUSH_CLIENTS = 96  # more than the service's slots, so that few deliveries wait for a client
_JITTER = 0.25
_TICK_SECONDS = 0.01
_PATIENCE_SECONDS = 180.0
_ACCEPTED, _NONE = 204, 0
_EXPECTED = (_ACCEPTED, 429, 503, _NONE)


@dataclass(frozen=True)
class Sample:
    """The service at one moment."""

    elapsed_seconds: float
    pid: int  # of gunicorn's worker
    memory_mb: float
    peak_mb: float
    threads: int


@dataclass(frozen=True)
class Capacity:
    """The throughput of the saturated service without rejections."""

    per_second: float
    cpu_ms: float  # CPU time per image


@dataclass(frozen=True)
class Run:
    """One overload: its load, its responses and its measurements."""

    capacity: Capacity
    seconds: float  # duration of the arrivals
    images: int
    deadline_seconds: float
    responses: Sequence[Response]
    samples: Sequence[Sample]
    before: Sample
    service_cpu: float  # seconds
    load_cpu: float  # seconds of the load generator
    most_deliveries: int  # most deliveries of one image

    @property
    def ended(self) -> float:
        """Time of the last response, in seconds."""
        return max(response.completed for response in self.responses)

    def having(self, *statuses: int) -> list[Response]:
        """Return the responses with these statuses."""
        return [response for response in self.responses if response.status in statuses]


class Pusher:
    """Delivers each request until it is acknowledged, as a push subscription does."""

    def __init__(
        self, url: str, *, deadline_seconds: float, options: EventarcOptions, seed: int = 26
    ) -> None:
        self.responses: list[Response] = []
        self.left = 0  # requests not acknowledged yet
        self.most_deliveries = 0  # most deliveries of one request
        self._url = url
        self._options = options
        self._random = random.Random(seed)
        self._pool = urllib3.PoolManager(
            maxsize=_PUSH_CLIENTS, retries=False, timeout=deadline_seconds
        )
        self._threads = ThreadPoolExecutor(_PUSH_CLIENTS)
        self._start = time.monotonic()
        self._scheduler = sched.scheduler(self.now)
        self._changed = threading.Lock()
        self._last_success = 0.0

    def now(self) -> float:
        """Seconds since the deliveries began."""
        return time.monotonic() - self._start

    def push(
        self,
        requests: Sequence[Request],
        rate: float,
        *,
        every_second: Callable[[], None],
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        """Deliver all requests, at `rate` per second. Give up if none is acknowledged any more."""
        self.left, self._start = len(requests), time.monotonic()
        arrivals = accumulate(self._random.expovariate(rate) for _ in requests)
        for due, request in zip(arrivals, requests, strict=True):
            self._deliver_at(due, request, failures=0)
        self._repeat(every_second)
        while self.left and self.now() < self._last_success + patience_seconds:
            self._scheduler.run(blocking=False)
            time.sleep(_TICK_SECONDS)
        self._threads.shutdown(cancel_futures=True)
        self._pool.clear()

    def _repeat(self, action: Callable[[], None]) -> None:
        action()
        self._scheduler.enter(1.0, 0, self._repeat, (action,))

    def _deliver_at(self, due: float, request: Request, *, failures: int) -> None:
        call = (self._deliver, request, due, failures)
        self._scheduler.enterabs(due, 1, self._threads.submit, call)

    def _deliver(self, request: Request, due: float, failures: int) -> None:
        sent = self.now()
        status = self._post(request)
        response = Response(due, sent, self.now(), status)
        with self._changed:
            self.responses.append(response)
            self.most_deliveries = max(self.most_deliveries, failures + 1)
            if response.is_good:
                self.left -= 1
                self._last_success = response.completed
                return
            delay = delay_seconds(failures + 1, self._options, self._random)
        self._deliver_at(response.completed + delay, request, failures=failures + 1)

    def _post(self, request: Request) -> int:
        """Return the response's status; 0 if there is none."""
        body, headers = request.body, request.headers
        try:
            return self._pool.request("POST", self._url, body=body, headers=headers).status
        except urllib3.exceptions.HTTPError:
            return 0


def delay_seconds(failures: int, options: EventarcOptions, generator: random.Random) -> float:
    """Return the delay before the next delivery, after `failures` failed ones (1 or more)."""
    return options.delay_seconds(failures) * generator.uniform(1 - _JITTER, 1 + _JITTER)


def per_second(moments: Iterable[float], seconds: int) -> list[int]:
    """Count the moments in each of the first `seconds` seconds."""
    counts = Counter(int(moment) for moment in moments)
    return [counts[second] for second in range(seconds)]


def took(responses: Iterable[Response]) -> list[float]:
    """Return the seconds from sending to the response, for each delivery."""
    return [response.completed - response.sent for response in responses]


def problems(run: Run) -> list[str]:
    """Return a sentence for each broken promise."""
    statuses = Counter(response.status for response in run.responses)
    lost = run.images - statuses[_ACCEPTED]
    late = sum(seconds > run.deadline_seconds for seconds in took(run.having(_ACCEPTED)))
    unexpected = {status: n for status, n in statuses.items() if status not in _EXPECTED}
    workers = {sample.pid for sample in (run.before, *run.samples)}
    broken = {
        f"{lost} images were not delivered": lost,
        f"{late} accepted images took longer than {run.deadline_seconds:g} s": late,
        f"{statuses[_NONE]} deliveries had no response": statuses[_NONE],
        f"unexpected responses: {unexpected}": unexpected,
        f"the service restarted its worker {len(workers) - 1} times": len(workers) > 1,
    }
    return [text for text, is_broken in broken.items() if is_broken]


def section(run: Run) -> Section:
    """Tabulate the run."""
    rows = [*_load_rows(run), *_response_rows(run), *_process_rows(run)]
    return Section("Overload", ("", "measured"), rows, None)


def _load_rows(run: Run) -> list[tuple[str, str]]:
    meanwhile = sum(response.sent < run.seconds for response in run.responses) / run.seconds
    waits = [response.sent - response.due for response in run.responses]
    return [
        ("capacity, images/s", digits(run.capacity.per_second)),
        ("images", f"{run.images:,}"),
        (f"arrivals/s for {run.seconds:g} s", digits(run.images / run.seconds)),
        ("deliveries/s meanwhile, with redeliveries", digits(meanwhile)),
        (
            "deliveries; most deliveries of one image",
            f"{len(run.responses):,}, {run.most_deliveries}",
        ),
        ("longest delay of the load generator, s", f"{max(waits):.2f}"),
    ]


def _response_rows(run: Run) -> list[tuple[str, str]]:
    counts = [f"{len(run.having(status)):,}" for status in _EXPECTED]
    accepted = took(run.having(_ACCEPTED)) or [math.nan]
    return [
        ("responses 204; 429; 503; none", ", ".join(counts)),
        ("time of an accepted image, s: median", f"{statistics.median(accepted):.2f}"),
        (f"slowest; the deadline is {run.deadline_seconds:g} s", f"{max(accepted):.2f}"),
        ("slowest 429, s", f"{max(took(run.having(429)), default=0.0):.2f}"),
        ("all delivered after, s", f"{run.ended:.0f}"),
        ("accepted/s until then", digits(len(run.having(_ACCEPTED)) / run.ended)),
    ]


def _process_rows(run: Run) -> list[tuple[str, str]]:
    peak = max(sample.peak_mb for sample in run.samples)
    threads = max(sample.threads for sample in run.samples)
    cpu_ms = 1000 * run.service_cpu / max(1, len(run.having(_ACCEPTED)))
    return [
        ("CPU-ms per accepted image before the overload", f"{run.capacity.cpu_ms:.0f}"),
        ("CPU-ms per accepted image, rejections included", f"{cpu_ms:.0f}"),
        ("CPU-s of the load generator", f"{run.load_cpu:.0f}"),
        ("peak memory before, MB", f"{run.before.peak_mb:.0f}"),
        ("peak memory during the overload, MB", f"{peak:.0f}"),
        ("threads before; most", f"{run.before.threads}, {threads}"),
    ]


def draw(run: Run, title: str, file: Path) -> None:
    """Write the plot as PNG."""
    # Not pyplot: it would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 10), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2, 3, 2))
    for axes, drawer in zip(
        panels, (_draw_rates, _draw_delivered, _draw_latencies, _draw_process), strict=True
    ):
        drawer(axes, run)
        axes.axvspan(0, run.seconds, color="tab:red", alpha=0.08, lw=0)
        axes.grid(visible=True, alpha=0.3)
    panels[-1].set_xlabel("seconds; shaded: images arrive")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png", dpi=120)


def _draw_rates(axes: Any, run: Run) -> None:
    seconds = math.floor(run.ended) + 1
    rejected = run.having(429, 503)
    for label, moments in (
        ("offered", [response.sent for response in run.responses]),
        ("rejected (429, 503)", [response.completed for response in rejected]),
        ("accepted (204)", [response.completed for response in run.having(_ACCEPTED)]),
    ):
        axes.step(range(seconds), per_second(moments, seconds), where="post", lw=1, label=label)
    axes.axhline(run.capacity.per_second, color="grey", ls=":", label="capacity")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("deliveries/s")
    axes.legend(fontsize=8, loc="upper right")


def _draw_delivered(axes: Any, run: Run) -> None:
    ends = sorted(response.completed for response in run.having(_ACCEPTED))
    axes.plot([0, run.seconds], [0, run.images], ":", color="grey", label="arrived")
    axes.plot([0, *ends], range(len(ends) + 1), color="tab:green", label="accepted")
    axes.set_ylabel("images")
    axes.legend(fontsize=8, loc="lower right")


def _draw_latencies(axes: Any, run: Run) -> None:
    for status, colour in ((429, "tab:orange"), (503, "tab:red"), (_ACCEPTED, "tab:green")):
        if responses := run.having(status):
            moments = [response.completed for response in responses]
            axes.plot(
                moments, took(responses), ".", ms=2, alpha=0.5, color=colour, label=f"{status}"
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("seconds to the response")
    axes.legend(fontsize=8, loc="upper right", markerscale=5)


def _draw_process(axes: Any, run: Run) -> None:
    moments = [sample.elapsed_seconds for sample in run.samples]
    axes.plot(moments, [sample.memory_mb for sample in run.samples], label="memory")
    axes.plot(moments, [sample.peak_mb for sample in run.samples], "--", label="peak so far")
    axes.set_ylabel("service, MB")
    axes.set_ylim(0)
    counts = axes.twinx()
    threads = [sample.threads for sample in run.samples]
    counts.plot(moments, threads, color="tab:purple", lw=1, label="threads")
    counts.set_ylabel("threads")
    counts.set_ylim(0, 2 * max(threads))
    handles = [*axes.get_lines(), *counts.get_lines()]
    axes.legend(handles=handles, fontsize=8, loc="lower right")


def enlarge_samples(directory: Path) -> list[Path]:
    """Draw the demo's images, enlarged to MEGAPIXELS."""
    files = []
    for file, scene in write_samples(directory):
        scale = math.sqrt(MEGAPIXELS * 1e6 / (scene.image.shape[0] * scene.image.shape[1]))
        large = cv2.resize(scene.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(file), large, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        files.append(file)
    return files


def sample(server: Server, elapsed_seconds: float) -> Sample:
    """Return the state of the service now."""
    pid = server.pid
    return Sample(
        elapsed_seconds, pid, server.memory_mb, server.peak_memory_mb, len(thread_times(pid))
    )


class Overload:
    """The load on one service: capacity first, then a multiple of it."""

    def __init__(self, cloud: Cloud, server: Server, images: Sequence[Path]) -> None:
        self._cloud = cloud
        self._server = server
        self._images = images
        self._events: list[Request] = []

    def capacity(self) -> Capacity:
        """Measure the throughput of a closed loop, after a short loop that warms up the service."""
        rate = self._closed(_WARM_UP_IMAGES, clients=1).per_second
        count = max(_WARM_UP_IMAGES, round(rate * _CAPACITY_SECONDS))
        return self._closed(count, clients=_CAPACITY_CLIENTS)

    def run(self, capacity: Capacity, times: float, seconds: float, deadline: float) -> Run:
        """Offer a multiple of the capacity, until every image is delivered."""
        rate = capacity.per_second * times
        count = round(rate * seconds)
        events = self._upload(count)
        self._cloud.forget()
        pusher = Pusher(self._server.url, deadline_seconds=deadline, options=EventarcOptions())
        before, samples = sample(self._server, 0.0), []
        service_cpu, load_cpu = self._server.cpu_seconds, time.process_time()

        def take_sample() -> None:
            with contextlib.suppress(IndexError, OSError):  # the worker has just ended
                samples.append(sample(self._server, pusher.now()))
            if len(samples) % 10 == 1:
                report(f"{pusher.now():.0f} s: {count - pusher.left:,} of {count:,} delivered")

        pusher.push(events, rate, every_second=take_sample)
        self._cloud.check_results(count - pusher.left)  # each acknowledged image has its document
        return Run(
            capacity, seconds, count, deadline, pusher.responses, samples, before,
            self._server.cpu_seconds - service_cpu, time.process_time() - load_cpu,
            pusher.most_deliveries,
        )  # fmt: skip

    def _closed(self, count: int, *, clients: int) -> Capacity:
        events = self._upload(count)
        self._cloud.forget()
        cpu = self._server.cpu_seconds
        responses = load.send_closed(self._server.url, events, clients=clients)
        check_responses(responses, self._server.child)
        cpu = self._server.cpu_seconds - cpu
        seconds = max(response.completed for response in responses)
        return Capacity(len(responses) / seconds, 1000 * cpu / len(responses))

    def _upload(self, count: int) -> list[Request]:
        if count > len(self._events):
            report(f"uploading {count - len(self._events):,} images")
            self._events += self._cloud.upload(self._images, count - len(self._events))
        return self._events[:count]


def errors_logged(log: str) -> list[str]:
    """Return the messages of all errors in the service's log."""
    lines = [json.loads(line) for line in log.splitlines()]
    return [line["message"] for line in lines if line["severity"] in ("ERROR", "CRITICAL")]


def report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(arguments: argparse.Namespace) -> list[str]:
    """Measure, print and draw. Return a sentence for each broken promise.

    Raises:
        BenchError: the overload could not be measured, or a document is missing.
    """
    cores = choose_cores(None)
    with on_cores(cores.others), ExitStack() as cleanup:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="overload-")))
        with Process(cores.others) as helper:
            info = helper.call(worker.describe, arguments.model)
        cloud = cleanup.enter_context(running_cloud())
        processes = cleanup.enter_context(Processes(directory))
        settings = SETTINGS | PINNED | {
            "MODEL_PATH": str(arguments.model.resolve()),
            "ACK_DEADLINE_SECONDS": str(arguments.deadline),
        }  # fmt: skip
        server = Server(processes, SERVICE_COMMAND, settings, cores.service)
        overload = Overload(cloud, server, enlarge_samples(directory))
        capacity = overload.capacity()
        report(f"capacity: {capacity.per_second:.1f} images/s")
        run = overload.run(capacity, arguments.times, arguments.seconds, arguments.deadline)
        errors = errors_logged(server.child.log_text())
    drawn = {"images": f"drawn, of {MEGAPIXELS} megapixels, decoded in full"}
    head = header(info, cores, drawn)
    print("\n".join(f"- {name}: {text}" for name, text in head.items()))
    print("\n" + section(run).markdown())
    if arguments.plot:
        draw(run, f"{arguments.times:g} times the capacity for {arguments.seconds:g} s, "
             f"{cores}", arguments.plot)  # fmt: skip
    return problems(run) + [f"the service logged: {error}" for error in errors[:10]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="duration of the arrivals")
    parser.add_argument("--times", type=float, default=10, help="multiple of the capacity")
    deadline = Settings().ack_deadline_seconds
    parser.add_argument("--deadline", type=float, default=deadline, help="ack deadline, seconds")
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL, help="exported model")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    arguments = parser.parse_args()
    try:
        if arguments.plot:
            curve.require_matplotlib()
        broken_promises = measure(arguments)
    except (BenchError, LocalStackError) as exc:
        sys.exit(f"Error: {exc}")
    if broken_promises:
        sys.exit("\n".join(f"PROBLEM: {problem}" for problem in broken_promises))


if __name__ == "__main__":
    main()
