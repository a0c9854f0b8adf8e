"""Cold start: process start to the first result. Memory: over thousands of images."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from devtools.bench import load
from devtools.bench.figures import NAIVE, Goal, Section, Spread, counted, digits
from devtools.bench.subjects import CLIENTS, Http, Process, Server, check_responses
from devtools.local_stack.processes import Processes

READY_GOAL_SECONDS = 2.0
RATIO_GOAL = 0.25  # cold start, as a share of the alternative's cold start
MEMORY_GOAL_MB = 350.0
MAX_GROWTH = 0.05  # growth of the memory, as a share
_OURS = "yolo-batch"
_MEMORY_NOTE = "Memory: gunicorn, its worker and the decoder processes. Shared pages count once."


@dataclass(frozen=True)
class Start:
    """One start of one service, with a warm page cache."""

    ready_seconds: float  # process start to the first 200 of /health/ready
    first_result_seconds: float  # process start to the first stored document, or response
    peak_mb: float  # peak of all processes together


def measure_start(
    processes: Processes,
    generator: Process,
    command: Sequence[str],
    settings: Mapping[str, str],
    requests: Sequence[load.Request],
    cores: frozenset[int],
    *,
    precision: str | None = None,
) -> Start:
    """Start a service, send one image, then all others, and stop the service.

    If `precision` is given, check that the service runs a model of this precision.
    """
    started = time.monotonic()
    server = Server(processes, command, settings, cores)
    try:
        ready = time.monotonic() - started
        responses = generator.call(load.send_closed, server.url, requests[:1], clients=1)
        first = time.monotonic() - started
        responses += generator.call(load.send_closed, server.url, requests[1:], clients=CLIENTS)
        check_responses(responses, server.child)
        if precision:
            server.check_model(precision)
        return Start(ready, first, server.peak_memory_mb)
    finally:
        processes.stop(server.child, grace_seconds=10)


def start_section(
    ours: Sequence[Start], naive: Sequence[Start], cores: int
) -> tuple[Section, list[Goal]]:
    """Tabulate the starts beside those of the alternative, if measured. Also return the goals."""
    names = {
        "ready_seconds": "process start to /health/ready, s",
        "first_result_seconds": "process start to the first result, s",
        "peak_mb": "peak memory of all processes, MB",
    }
    rows = []
    spreads: dict[str, list[Spread]] = {}
    for field, name in names.items():
        columns = [
            Spread.of(getattr(start, field) for start in starts)
            for starts in (ours, naive)
            if starts
        ]
        spreads[field] = columns
        ratio = [digits(columns[0].median / columns[1].median)] if naive else []
        rows.append((name, *map(str, columns), *ratio))
    medians = [spread.median for spread in spreads["first_result_seconds"]]
    goals = [
        Goal(
            f"process start to the first stored result on {counted(cores)}, s",
            medians[0],
            READY_GOAL_SECONDS,
            at_most=True,
        ),
        Goal("peak memory, MB", spreads["peak_mb"][0].median, MEMORY_GOAL_MB, at_most=True),
    ]
    if naive:
        text = f"first result / '{NAIVE}'"
        goals.append(Goal(text, medians[0] / medians[1], RATIO_GOAL, at_most=True))
    data = {
        _OURS: [asdict(start) for start in ours],
        "alternative": [asdict(start) for start in naive],
        "cores": cores,
    }
    headers = ("", _OURS, *((NAIVE, "ratio") if naive else ()))
    note = (
        f"Medians of {len(ours)} starts (least-most), warm page cache, {counted(cores)}. The first "
        "result is a stored document for yolo-batch, and an HTTP response for the alternative. "
        + _MEMORY_NOTE
    )
    return Section("Cold start and memory", headers, rows, data, [note]), goals


@dataclass(frozen=True)
class Level:
    """Memory of all processes after a number of images."""

    images: int
    resident_mb: float


def measure_memory(
    server: Server, subject: Http, images: int, progress: Callable[[str], None]
) -> list[Level]:
    """Send at least `images` images to a warm service, and sample its memory after each round."""
    levels = [Level(0, server.memory_mb)]
    while levels[-1].images < images:
        done = levels[-1].images + subject.round().images
        levels.append(Level(done, server.memory_mb))
        progress(f"{done} of {images} images: {levels[-1].resident_mb:.0f} MB")
    return levels


def memory_section(
    levels: Sequence[Level], peak_mb: float, batch_size: int
) -> tuple[Section, list[Goal]]:
    """Tabulate memory by number of images. Also return the goals: no growth, and a peak."""
    growth = max(level.resident_mb for level in levels) / levels[0].resident_mb - 1
    step = max(1, len(levels) // 10)
    shown = [*levels[:-1:step], levels[-1]]
    rows = [(str(level.images), f"{level.resident_mb:.0f}") for level in shown]
    goals = [
        Goal(f"growth of memory over {levels[-1].images} images", growth, MAX_GROWTH, True),
        Goal(f"peak memory at batch {batch_size}, MB", peak_mb, MEMORY_GOAL_MB, at_most=True),
    ]
    data = {"levels": [asdict(level) for level in levels], "peak_mb": peak_mb}
    note = (
        f"Peak: {peak_mb:.0f} MB. MAX_BATCH_SIZE={batch_size}. Measured after two warm rounds. "
        + _MEMORY_NOTE
    )
    headers = ("images", "resident memory, MB")
    return Section("Memory over many images", headers, rows, data, [note]), goals
