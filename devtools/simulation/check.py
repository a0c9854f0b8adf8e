"""Compares the simulation with the local stack on this machine.

Two measurements calibrate the simulation, before and after each load: the latency of images that
are uploaded one by one, and the throughput of a burst. Both run on the cores that also run the
emulators and the uploads, so the calibrated CPU time of an image includes theirs. Then the same
uploads, at the same moments, go through the stack and through the simulation.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from google.cloud import storage
from tabulate import tabulate

from devtools.bench.accounting import tree_seconds
from devtools.bench.cloud import environment_of
from devtools.bench.errors import BenchError
from devtools.bench.figures import digits
from devtools.bench.subjects import PINNED
from devtools.demo_model.shapes import write_samples
from devtools.local_stack.stack import Stack, StackOptions
from devtools.simulation.assumptions import Instance, Platform, Push
from devtools.simulation.model import Simulation
from devtools.simulation.report import poisson, quantiles
from service.gcp.clients import build_reader
from service.settings import Settings

_SLOTS = 32
_SINGLE, _SATURATED = 40, 150  # images of the two calibrating measurements
_UPLOADERS = 8
_DRAIN_SECONDS = 600.0
#: The local Eventarc: as many requests at once as slots, and a short back-off.
LOCAL_PUSH = Push(
    first_window=_SLOTS, full_window=_SLOTS, delivery_seconds=0.0, backoff_seconds=1,
    longest_backoff_seconds=60,
)  # fmt: skip
LOCAL_PLATFORM = Platform(max_instances=1, min_instances=1)


@dataclass(frozen=True)
class Load:
    """What happened to some uploads."""

    uploaded: Sequence[float]  # ascending, seconds since the first
    latencies: Sequence[float]  # upload to document, seconds
    cpu_ms: float  # of the service, per image

    @property
    def per_second(self) -> float:
        """Documents per second, from the first upload to the last document."""
        last = max(a + s for a, s in zip(self.uploaded, self.latencies, strict=True))
        return len(self.uploaded) / last


class LocalStack:
    """Uploads to the running stack, and reads when each document was created."""

    def __init__(self, stack: Stack, images: Sequence[Path]) -> None:
        """Take a running stack. Its environment must be set in this process."""
        self._stack = stack
        self._contents = [image.read_bytes() for image in images]
        self._bucket = storage.Client().bucket(stack.bucket)
        self._reader = build_reader(Settings.from_env({**os.environ, **PINNED}))
        self._pid = stack.service_pid
        self._rounds = 0

    def load(self, due: Sequence[float], *, one_by_one: bool = False) -> Load:
        """Upload an image at each of these times, and wait for the documents.

        Args:
            due: ascending times in seconds.
            one_by_one: upload the next image when the last one has its document.

        Raises:
            BenchError: documents are missing.
        """
        self._rounds += 1
        prefix, acked = f"round{self._rounds}/", self._stack.eventarc.counters.acked
        ended: dict[str, float] = {}
        cpu, start = tree_seconds(self._pid), time.monotonic()

        def upload(index: int) -> None:
            time.sleep(max(0.0, start + due[index] - time.monotonic()))
            blob = self._bucket.blob(f"{prefix}{index}.jpg")
            blob.upload_from_string(self._contents[index % len(self._contents)], "image/jpeg")
            ended[blob.name] = time.time()
            if one_by_one:
                self._wait(acked + index + 1)

        with ThreadPoolExecutor(1 if one_by_one else _UPLOADERS) as pool:
            list(pool.map(upload, range(len(due))))
        self._wait(acked + len(due))
        created = {
            document["name"]: document["created_at"].timestamp()
            for document in self._reader.results(self._stack.bucket, prefix)
        }
        if created.keys() != ended.keys():
            raise BenchError(f"{len(created)} of {len(ended)} uploads have a document")
        names = sorted(ended, key=ended.__getitem__)
        first = ended[names[0]]
        return Load(
            [ended[name] - first for name in names],
            # The event is sent before the upload's response arrives, so zero is possible.
            [max(0.0, created[name] - ended[name]) for name in names],
            1000 * (tree_seconds(self._pid) - cpu) / len(due),
        )

    def _wait(self, acked: int) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._stack.eventarc.counters.acked < acked:
            self._stack.raise_if_dead()
            if time.monotonic() > deadline:
                raise BenchError("The local stack did not deliver all uploads")
            time.sleep(0.002)


@dataclass(frozen=True)
class Calibration:
    """The measured speed of the machine."""

    per_second: float  # documents, in a burst
    single_ms: float  # upload to document, one by one: mean
    spread: float  # standard deviation of the latter, as a share of its mean

    @classmethod
    def of(cls, singles: Sequence[Load], bursts: Sequence[Load]) -> "Calibration":
        """Take loads of images one by one, and loads of bursts."""
        latencies = [seconds for load in singles for seconds in load.latencies]
        spread = statistics.pstdev(latencies) / statistics.mean(latencies)
        return cls(
            statistics.harmonic_mean([load.per_second for load in bursts]),
            1000 * statistics.mean(latencies),
            min(spread, 1.0),
        )

    def instance(self, cores: int) -> Instance:
        """Return an instance with this capacity and this latency of a single image.

        The capacity is measured, so nothing else limits it.
        """
        cpu_ms = min(1000 * cores / self.per_second, self.single_ms)
        return Instance(
            name="local stack", vcpu=cores, slots=_SLOTS, cpu_ms=cpu_ms,
            serial_ms=0, spread=self.spread,
            wait_ms=self.single_ms - cpu_ms, start_seconds=0, start_cpu_seconds=0,
        )  # fmt: skip


def simulate(load: Load, instance: Instance, seed: int) -> Load:
    """Simulate the same uploads at the same moments."""
    result = Simulation(load.uploaded, instance, LOCAL_PLATFORM, LOCAL_PUSH, seed=seed).run()
    pairs = sorted(zip(result.arrived, result.latencies, strict=True))
    return Load([a for a, _ in pairs], [s for _, s in pairs], instance.cpu_ms)


def check(
    rates: Sequence[float], count: int, *, seconds: float, seed: int,
    progress: Callable[[str], None],
) -> str:  # fmt: skip
    """Run the local stack, and return a table of measured and simulated figures."""
    cores = len(os.sched_getaffinity(0))
    named = {f"{rate:g}/s": poisson(rate, max(2, round(rate * seconds)), seed) for rate in rates}
    rows: list[list[str]] = []
    with (
        TemporaryDirectory() as scratch,
        Stack(StackOptions(concurrency=_SLOTS)) as stack,
        environment_of(stack),
    ):
        images = [file for file, _ in write_samples(Path(scratch))]
        local = LocalStack(stack, images)
        progress("warming up")
        local.load([0.0] * 40)
        for name, due in [*named.items(), (f"burst of {count}", [0.0] * count)]:
            progress(name)
            before = local.load([0.0] * _SINGLE, one_by_one=True), local.load([0.0] * _SATURATED)
            measured = local.load(due)
            after = local.load([0.0] * _SINGLE, one_by_one=True), local.load([0.0] * _SATURATED)
            calibration = Calibration.of(*zip(before, after, strict=True))
            simulated = simulate(measured, calibration.instance(cores), seed)
            rows.append(_row(name, calibration, measured, simulated))
    headers = (
        "load", "a burst, images/s", "a single image, ms", "images/s", "p50, ms", "p95, ms",
        "p99, ms", "service's CPU-ms",
    )  # fmt: skip
    note = (
        f"On {cores} cores. A burst of {_SATURATED} and {_SINGLE} single images before and after "
        "each load calibrate the simulation. The other columns are measured / simulated. Latency "
        "is from upload to document."
    )
    align = ["left"] + ["right"] * (len(headers) - 1)
    table = tabulate(rows, headers, "github", disable_numparse=True, colalign=align)
    return f"{table}\n\n{note}"


def _row(name: str, calibration: Calibration, measured: Load, simulated: Load) -> list[str]:
    pairs = zip(quantiles(measured.latencies), quantiles(simulated.latencies), strict=True)
    return [
        name,
        digits(calibration.per_second),
        f"{calibration.single_ms:.0f}",
        f"{digits(measured.per_second)} / {digits(simulated.per_second)}",
        *(f"{1000 * real:.0f} / {1000 * modelled:.0f}" for real, modelled in pairs),
        digits(measured.cpu_ms),
    ]
