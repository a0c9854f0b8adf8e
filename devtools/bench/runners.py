"""Latency and CPU time of runners and group commit, compared with the earlier design.

    python -m devtools.bench.runners                         # the bundled model, about 5 minutes
    python -m devtools.bench.runners --image-size 640        # larger inputs

Three tables:

1. Latency in an open loop at 70 % of the barrier's capacity (or `--load`). Images arrive as a
   Poisson process, with the same arrivals for each way in a round. The ways are:
   - a barrier: one batch at a time, spread over one thread per core. It starts when the batch is
     full or its first image has waited for 20 ms. The service did this before it had runners;
   - a barrier without that delay;
   - runners: the service's `InferenceQueue`. Each of its runners, one per core, infers its share of
     the waiting images one by one;
   - runners that take one image at a time.
   A latency counts from the time when an image was due. The ways alternate within each round. A
   ratio is the median of the rounds' ratios.
2. CPU time of a runner's share, inferred as one tensor or image by image, at full load, with one
   thread per core.
3. Latency of commits with one, two and four committers. The simulated store takes 30 ms for a
   commit, and 300 ms for one commit in twenty.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from tabulate import tabulate

from devtools.demo_model.shapes import sample_scenes
from service.concurrency.group_commit import GroupCommit
from service.deadline import NO_DEADLINE, Deadline
from service.images.letterbox import letterbox
from service.inference.openvino import with_preprocessing
from service.inference.queue import InferenceQueue
from service.machine import cores
from service.settings import BUNDLED_MODEL

STRIDE = 32
MAX_BATCH_SIZE = 8
CALLERS = 64  # threads. Fewer than this wait at any time.
COMMIT_SECONDS, SLOW_COMMIT_SECONDS, SLOW_SHARE = 0.03, 0.3, 0.05

Pixels = NDArray[np.uint8]  # height x width x 3, BGR, letterboxed
Call = Callable[[Pixels], object]  # infers an image, and returns when it is done


class Model:
    """The model, compiled for each input shape, with one request per thread and shape."""

    def __init__(self, directory: Path) -> None:
        [file] = directory.glob("*.xml")
        self._core = ov.Core()
        self._model = with_preprocessing(self._core.read_model(file))
        self._compiled: dict[str, ov.CompiledModel] = {}
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        _ = ov.Tensor(np.zeros(1, np.uint8)).data  # as service/inference/openvino.py does

    def infer(self, images: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        """Infer images of one shape as one tensor. Return boxes x 6, float32, for each image."""
        request = self._request((len(images), *images[0].shape))
        tensor = request.get_input_tensor().data
        for row, pixels in zip(tensor, images, strict=True):
            row[:] = pixels
        request.infer()
        return [rows[rows[:, 4] > 0.25].copy() for rows in request.get_output_tensor().data]

    def infer_one_by_one(self, images: Sequence[Pixels]) -> Iterator[NDArray[np.float32]]:
        return (self.infer([pixels])[0] for pixels in images)

    def _request(self, shape: tuple[int, ...]) -> ov.InferRequest:
        requests = vars(self._of_thread)
        key = str(shape)
        if key not in requests:
            with self._lock:
                if key not in self._compiled:
                    model = self._model.clone()
                    model.reshape(list(shape))
                    options = {
                        "INFERENCE_PRECISION_HINT": ov.Type.f32,
                        "NUM_STREAMS": cores(),
                        "INFERENCE_NUM_THREADS": cores(),
                    }
                    self._compiled[key] = self._core.compile_model(model, "CPU", options)
            requests[key] = self._compiled[key].create_infer_request()
        return requests[key]


@contextmanager
def barrier(model: Model, *, delay_seconds: float = 0.0) -> Iterator[Call]:
    """Infer one batch at a time on one thread per core. Callers wait for the whole batch."""
    changed = threading.Condition()
    waiting: list[tuple[Pixels, Future[object]]] = []
    is_closed = False

    def is_full() -> bool:
        return len(waiting) >= MAX_BATCH_SIZE or is_closed

    def loop() -> None:
        with ThreadPoolExecutor(cores()) as threads:
            while True:
                with changed:
                    changed.wait_for(lambda: waiting or is_closed)
                    if not waiting:
                        return
                    if delay_seconds:
                        changed.wait_for(is_full, delay_seconds)
                    batch = waiting[:MAX_BATCH_SIZE]
                    del waiting[:MAX_BATCH_SIZE]
                results = list(threads.map(lambda item: model.infer([item[0]]), batch))
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)

    def call(pixels: Pixels) -> object:
        future: Future[object] = Future()
        with changed:
            waiting.append((pixels, future))
            changed.notify()
        return future.result()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield call
    finally:
        with changed:
            is_closed = True
            changed.notify()
        thread.join()


@contextmanager
def barrier_with_delay(model: Model) -> Iterator[Call]:
    with barrier(model, delay_seconds=0.02) as call:
        yield call


@contextmanager
def runners(model: Model, *, max_batch_size: int = MAX_BATCH_SIZE) -> Iterator[Call]:
    queue: InferenceQueue[Pixels, NDArray[np.float32]] = InferenceQueue(
        model.infer_one_by_one,
        runners=cores(),
        max_batch_size=max_batch_size,
        shape=lambda pixels: pixels.shape,
    )
    try:
        yield lambda pixels: queue.infer(pixels, NO_DEADLINE)
    finally:
        queue.close(timeout_seconds=10)


@contextmanager
def runners_one_at_a_time(model: Model) -> Iterator[Call]:
    with runners(model, max_batch_size=1) as call:
        yield call


WAYS = {
    "barrier, 20 ms of delay": barrier_with_delay,
    "barrier": barrier,
    "runners": runners,
    "runners, one at a time": runners_one_at_a_time,
}


@dataclass(frozen=True)
class Measured:
    p50_ms: float
    p90_ms: float
    p99_ms: float
    cpu_ms: float  # per image, of the whole process


def open_loop(call: Call, images: Sequence[Pixels], gaps: Sequence[float]) -> Measured:
    """Let an image arrive after each gap (seconds), even if earlier images are not done."""
    latencies: list[float] = []

    def arrive(pixels: Pixels, due: float) -> None:
        call(pixels)
        latencies.append(time.monotonic() - due)

    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(call, [images[0]] * CALLERS))  # starts every thread
        cpu, due = time.process_time(), time.monotonic()
        for index, gap in enumerate(gaps):
            due += gap
            time.sleep(max(0.0, due - time.monotonic()))
            callers.submit(arrive, images[index % len(images)], due)
    cpu_ms = (time.process_time() - cpu) * 1000 / len(gaps)
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99]) * 1000
    return Measured(float(p50), float(p90), float(p99), cpu_ms)


def capacity(call: Call, images: Sequence[Pixels], count: int) -> float:
    """Return images per second with as many callers as an instance has images in flight."""
    with ThreadPoolExecutor(32) as callers:
        list(callers.map(call, images))
        started = time.monotonic()
        list(callers.map(call, (images[i % len(images)] for i in range(count))))
        return count / (time.monotonic() - started)


def draw(image_size: int) -> list[Pixels]:
    """Return the demo's images, letterboxed to their input shapes."""
    images = []
    for _, scene in sample_scenes(count=24):
        height, width = scene.image.shape[:2]
        box = letterbox(width, height, image_size=image_size, stride=STRIDE)
        images.append(box.apply(scene.image))
    return images


def with_ratios(rounds: Mapping[str, list[Measured]]) -> list[list[object]]:
    """Return rows of medians. A ratio compares with the first way in the same round."""
    base = next(iter(rounds.values()))
    rows = []
    for name, measured in rounds.items():
        row: list[object] = [name]
        for field in ("p50_ms", "p90_ms", "p99_ms", "cpu_ms"):
            values = [getattr(each, field) for each in measured]
            ratios = [value / getattr(b, field) for value, b in zip(values, base, strict=True)]
            row.append(f"{statistics.median(values):.1f} ({statistics.median(ratios):.2f})")
        rows.append(row)
    return rows


def measure_latency(model: Model, images: list[Pixels], options: argparse.Namespace) -> None:
    with barrier(model) as call:
        for pixels in images:  # compiles each input shape
            call(pixels)
        rate = options.load * capacity(call, images, 400)
    rounds: dict[str, list[Measured]] = {name: [] for name in WAYS}
    for number in range(options.rounds):
        gaps = np.random.default_rng(number).exponential(1 / rate, int(rate * options.seconds))
        for name, way in WAYS.items():
            with way(model) as call:
                list(map(call, images))  # creates the requests of the threads
                rounds[name].append(open_loop(call, images, gaps.tolist()))
    print(
        f"\n{rate:.0f} images/s ({options.load:.0%} of the barrier's capacity), {cores()} cores\n"
    )
    headers = [
        "",
        "p50, ms (ratio)",
        "p90, ms (ratio)",
        "p99, ms (ratio)",
        "CPU-ms per image (ratio)",
    ]
    print(tabulate(with_ratios(rounds), headers, tablefmt="github"))


def measure_tensors(model: Model, images: list[Pixels], options: argparse.Namespace) -> None:
    """Print the CPU and wall milliseconds per image, by the number of images in one tensor."""
    image, count = images[0], 320
    sizes = (1, 2, 4, 8)

    def work(size: int) -> None:
        for _ in range(count // size // cores()):
            model.infer([image] * size)

    measured: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    with ThreadPoolExecutor(cores()) as threads:
        for _ in range(options.rounds + 1):
            for size in sizes:
                cpu, wall = time.process_time(), time.monotonic()
                list(threads.map(work, [size] * cores()))
                measured[size].append((time.process_time() - cpu, time.monotonic() - wall))
    rows = []
    for size, all_rounds in measured.items():
        pairs = list(zip(all_rounds[1:], measured[1][1:], strict=True))  # the first one compiles
        rows.append(
            [
                size,
                statistics.median(own[0] for own, _ in pairs) * 1000 / count,
                statistics.median(own[1] for own, _ in pairs) * 1000 / count,
                statistics.median(own[0] / base[0] for own, base in pairs),
            ]
        )
    print("\nImages in one tensor, one thread per core\n")
    headers = ["images", "CPU-ms per image", "wall ms per image", "CPU ratio"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))


def measure_commits(options: argparse.Namespace) -> None:
    """Print latencies of commits at several rates, against the simulated store."""
    rows = []
    for rate in (20, 60, 200):
        for committers in (1, 2, 4):
            rows.append(_commits(rate, committers, options.commit_seconds))
    print(f"\nA commit takes {COMMIT_SECONDS} s, and {SLOW_COMMIT_SECONDS} s one time in twenty\n")
    headers = ["images/s", "committers", "p50, ms", "p90, ms", "p99, ms", "commits per image"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))


def _commits(rate: float, committers: int, seconds: float) -> list[float]:
    random, lock = np.random.default_rng(0), threading.Lock()
    commits = 0

    def commit(results: Sequence[int], deadline: Deadline) -> Sequence[int]:
        nonlocal commits
        with lock:
            commits += 1
            is_slow = random.random() < SLOW_SHARE
        time.sleep(SLOW_COMMIT_SECONDS if is_slow else COMMIT_SECONDS)
        return results

    group_commit: GroupCommit[int, int] = GroupCommit(commit, committers=committers)
    latencies: list[float] = []

    def arrive(due: float) -> None:
        group_commit.commit(0, NO_DEADLINE)
        latencies.append(time.monotonic() - due)

    with ThreadPoolExecutor(2 * CALLERS) as callers:
        due = time.monotonic()
        for gap in np.random.default_rng(1).exponential(1 / rate, int(rate * seconds)).tolist():
            due += gap
            time.sleep(max(0.0, due - time.monotonic()))
            callers.submit(arrive, due)
    group_commit.close(timeout_seconds=10)
    return [
        rate,
        committers,
        *(np.percentile(latencies, [50, 90, 99]) * 1000),
        commits / len(latencies),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--image-size", type=int, default=320, help="longer side, in pixels")
    parser.add_argument("--load", type=float, default=0.7, help="share of the barrier's capacity")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="duration of each way in a round"
    )
    parser.add_argument(
        "--commit-seconds", type=float, default=10.0, help="duration of each row of commits"
    )
    options = parser.parse_args()
    model, images = Model(options.model), draw(options.image_size)
    measure_latency(model, images, options)
    measure_tensors(model, images, options)
    measure_commits(options)


if __name__ == "__main__":
    main()
