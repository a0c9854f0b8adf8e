"""The CPU time of each stage of the service, measured without a change of the product.

`devtools.bench.served` counts the stages on the threads that do the work. The operating system
counts the decoder processes, and each thread. The remaining time of a Python thread is
HTTP (gunicorn's threads), or the passing of images from thread to thread. A thread that Python does
not know belongs to OpenVINO or gRPC. OpenVINO's threads have the name of the process. gRPC's have
names of their own.
"""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devtools.bench.accounting import ThreadTime, children_of, thread_times, tree_seconds
from devtools.bench.errors import BenchError
from devtools.bench.figures import Section, digits
from devtools.bench.served import COMMIT, DOWNLOAD, HAND_OVER, INFERENCE, MESSAGE, READ
from devtools.bench.subjects import Http, Server

DECODE = "decoder processes"
GRPC = "store: gRPC's threads"
STAGES = (READ, DOWNLOAD, HAND_OVER, DECODE, INFERENCE, COMMIT, GRPC)
HTTP = "HTTP"
BETWEEN = "queues, threads"
BY_DIFFERENCE = (HTTP, BETWEEN)  # a thread's time minus the time of its stages
AGREEMENT = 0.10  # largest difference between the sum and the system's figure
# The smallest valid share of a stage. Below it, the clock counted more than the threads spent.
LEAST_SHARE = -0.01
MOST_BY_DIFFERENCE = 0.25  # share of the system's figure

_LINE_SECONDS = 60.0
# Names of the main thread, and of gunicorn's pool.
_HTTP_THREADS = ("MainThread", "ThreadPoolExecutor")


@dataclass(frozen=True)
class PythonThread:
    """A Python thread, with its CPU seconds by stage."""

    name: str
    stages: Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """CPU seconds of a service since its start, at one moment."""

    tree: float  # the worker and its descendants, as the operating system counts them
    decoders: float  # only the worker's descendants
    threads: Mapping[int, ThreadTime]
    python: Mapping[int, PythonThread]
    stages: Mapping[str, float]


@dataclass(frozen=True)
class Profile:
    """CPU seconds by stage, and the system's figure for all processes."""

    images: int
    seconds: Mapping[str, float]
    tree_seconds: float

    @property
    def attributed_seconds(self) -> float:
        """Sum of the stages."""
        return sum(self.seconds.values())

    @property
    def seconds_by_difference(self) -> float:
        """The part of the sum that was not measured directly: thread time outside of stages."""
        return sum(self.seconds.get(name, 0.0) for name in BY_DIFFERENCE)

    @property
    def agrees(self) -> bool:
        """Whether the sum agrees with the system's figure, and most of it was measured directly.

        The rows by difference absorb any error of the clock, so the sum alone proves little.
        """
        difference = abs(self.attributed_seconds - self.tree_seconds)
        return (
            difference <= AGREEMENT * self.tree_seconds
            and min(self.seconds.values()) >= LEAST_SHARE * self.tree_seconds
            and self.seconds_by_difference <= MOST_BY_DIFFERENCE * self.tree_seconds
        )


def attribute(before: Sample, after: Sample, images: int) -> Profile:
    """Attribute the CPU time between two samples to stages."""
    seconds = dict.fromkeys((*STAGES, HTTP, BETWEEN), 0.0)
    seconds[DECODE] = after.decoders - before.decoders
    for stage, total in after.stages.items():
        seconds[stage] = seconds.get(stage, 0.0) + total - before.stages.get(stage, 0.0)
    main = next((after.threads[i].name for i, t in after.python.items() if t.name == "MainThread"
                 and i in after.threads), "")  # fmt: skip
    for number, thread in after.threads.items():
        earlier = before.threads.get(number)
        spent = thread.seconds - (earlier.seconds if earlier else 0.0)
        known = after.python.get(number)
        if known is None:
            seconds[INFERENCE if thread.name == main else GRPC] += spent
            continue
        counted_before = before.python.get(number)
        counted = sum(known.stages.values())
        counted -= sum(counted_before.stages.values()) if counted_before else 0.0
        seconds[HTTP if known.name.startswith(_HTTP_THREADS) else BETWEEN] += spent - counted
    return Profile(images, seconds, after.tree - before.tree)


def take_sample(server: Server) -> Sample:
    """Request the stages from the service (SIGUSR1), and read all else from the system.

    Raises:
        BenchError: the service did not log its stages.
    """
    seen = len(_stage_lines(server.child.log_text()))
    os.kill(server.pid, signal.SIGUSR1)
    deadline = time.monotonic() + _LINE_SECONDS
    while len(lines := _stage_lines(server.child.log_text())) <= seen:
        server.child.raise_if_dead()
        if time.monotonic() > deadline:
            raise BenchError(server.child.failure("did not log its stages"))
        time.sleep(0.05)
    return sample_of(lines[-1], server.pid)


def sample_of(line: Mapping[str, Any], pid: int) -> Sample:
    """Combine the log line of a process with the system's accounting of its process tree."""
    python = {
        int(number): PythonThread(thread["name"], thread["cpu_seconds"])
        for number, thread in line["threads"].items()
    }
    # The figure of a child includes its own children that have ended. The worker itself waits only
    # for the root process, which hardly ever ends.
    decoders = sum(tree_seconds(child) for child in children_of(pid))
    return Sample(tree_seconds(pid), decoders, thread_times(pid), python, line["cpu_seconds"])


def run_profile(server: Server, subject: Http, rounds: int) -> Section:
    """Profile some rounds of a warm service."""
    before = take_sample(server)
    images = sum(subject.round().images for _ in range(rounds))
    return profile_section(attribute(before, take_sample(server), images))


def profile_section(profile: Profile) -> Section:
    """Tabulate CPU milliseconds per image by stage, and check the sum."""

    def row(name: str, seconds: float) -> tuple[str, str, str]:
        share = seconds / profile.tree_seconds
        return name, digits(seconds * 1000 / profile.images), f"{share:.1%}"

    rows: Sequence[tuple[str, str, str]] = [
        *(row(name, seconds) for name, seconds in profile.seconds.items()),
        row(
            "sum of the measured parts: by clock, by process, by thread name",
            profile.attributed_seconds - profile.seconds_by_difference,
        ),
        row(f"sum by difference: {' and '.join(BY_DIFFERENCE)}", profile.seconds_by_difference),
        row("sum", profile.attributed_seconds),
        row("the system's accounting of all processes", profile.tree_seconds),
        row("not attributed", profile.tree_seconds - profile.attributed_seconds),
    ]
    verdict = "reached" if profile.agrees else "MISSED"
    note = (
        "The sum agrees with the system's accounting of all processes within "
        f"{AGREEMENT:.0%}, no row is below {LEAST_SHARE:.0%}, and at most "
        f"{MOST_BY_DIFFERENCE:.0%} is by difference: {verdict}."
    )
    data = {
        "images": profile.images,
        "cpu_ms_per_image": {
            name: seconds * 1000 / profile.images for name, seconds in profile.seconds.items()
        },
        "tree_cpu_ms_per_image": profile.tree_seconds * 1000 / profile.images,
        "by_difference_cpu_ms_per_image": profile.seconds_by_difference * 1000 / profile.images,
        "agrees": profile.agrees,
    }
    title = "CPU time of the whole service by stage"
    return Section(title, ("stage", "CPU-ms per image", "share"), rows, data, [note])


def _stage_lines(log: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in log.splitlines() if f'"{MESSAGE}"' in line)
    return [line for line in lines if line.get("message") == MESSAGE]
