"""Throughput, latency and cost against offered load, and their plot."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from devtools.bench import load
from devtools.bench.errors import BenchError
from devtools.bench.figures import Round, Section, digits
from devtools.bench.prices import Prices, billed_seconds
from devtools.bench.subjects import Process, Server

# Shares of the load that saturates the service.
LOADS = (0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.2)
QUICK_LOADS = (0.5, 1.0)


@dataclass(frozen=True)
class Point:
    """The figures at one offered load."""

    offered_per_second: float
    served_per_second: float
    rejected_share: float
    p50_ms: float
    p95_ms: float
    cpu_seconds_per_million: float
    usd_per_million: float


@dataclass(frozen=True)
class Level:
    """The cost of another, saturated service, for comparison."""

    name: str
    served_per_second: float
    cpu_seconds_per_million: float
    usd_per_million: float


def point_of(responses: Sequence[load.Response], cpu_seconds: float, prices: Prices) -> Point:
    """Summarise the responses to one load.

    Latencies count from the time when a request was due, for successful requests only.

    Raises:
        BenchError: no request succeeded.
    """
    offered = len(responses) / max(response.due for response in responses)
    good = [response for response in responses if response.is_good]
    if not good:
        raise BenchError(f"At {offered:.1f} images/s no request succeeded")
    latencies = sorted((response.completed - response.due) * 1000 for response in good)
    billed = billed_seconds((response.sent, response.completed) for response in responses)
    return Point(
        offered_per_second=offered,
        served_per_second=len(good) / max(response.completed for response in responses),
        rejected_share=1 - len(good) / len(responses),
        p50_ms=statistics.median(latencies),
        p95_ms=latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))],
        cpu_seconds_per_million=cpu_seconds * 1e6 / len(good),
        usd_per_million=prices.usd_per_million(billed / len(good)),
    )


def level_of(name: str, result: Round, prices: Prices) -> Level:
    """Return the throughput and cost of a saturated service."""
    return Level(
        name,
        result.images_per_second,
        result.cpu_seconds * 1e6 / result.images,
        prices.usd_per_million(result.seconds / result.images),
    )


def measure_curve(
    server: Server,
    generator: Process,
    requests: Sequence[load.Request],
    rates: Sequence[float],
    *,
    seconds: float,
    prices: Prices,
    before: Callable[[], None],
    after: Callable[[int], None],
) -> list[Point]:
    """Offer the rates one after the other.

    Args:
        server: the service.
        generator: the process of the load generator.
        requests: at least `needed_requests` of the highest rate.
        rates: requests per second.
        seconds: duration of each rate.
        prices: prices of CPU and memory.
        before: called before each rate, and not measured.
        after: called after each rate with the number of images served, and not measured.
    """
    points = []
    for rate in rates:
        before()
        offered = requests[: needed_requests(rate, seconds)]
        cpu = server.cpu_seconds
        responses = generator.call(load.send_open, server.url, offered, rate=rate)
        points.append(point_of(responses, server.cpu_seconds - cpu, prices))
        after(sum(response.is_good for response in responses))
    return points


def needed_requests(rate: float, seconds: float) -> int:
    """Return the number of requests for one rate."""
    return max(2, round(rate * seconds))


def curve_section(points: Sequence[Point], levels: Sequence[Level], prices: Prices) -> Section:
    """Tabulate the loads."""
    rows = [
        (
            digits(point.offered_per_second),
            digits(point.served_per_second),
            f"{point.rejected_share:.0%}",
            f"{point.p50_ms:.0f}",
            f"{point.p95_ms:.0f}",
            f"{point.cpu_seconds_per_million:.0f}",
            f"{point.usd_per_million:.2f}",
        )
        for point in points
    ]
    notes = [
        f"Prices: {prices.name}. {prices.vcpus:g} vCPU and {prices.memory_gib:g} GiB are billed "
        "while a request is in flight. The fee per request is included. Storage, Firestore, "
        "Eventarc and the free tier are not. Rejected: the response was 429, and Pub/Sub delivers "
        "the image again."
    ]
    notes += [
        f"'{level.name}', kept busy: {digits(level.served_per_second)} images/s, "
        f"{level.cpu_seconds_per_million:.0f} CPU-s and {level.usd_per_million:.2f} USD per "
        "million images."
        for level in levels
    ]
    data: dict[str, Any] = {
        "points": [asdict(point) for point in points],
        "levels": [asdict(level) for level in levels],
        "prices": asdict(prices),
    }
    headers = (
        "offered/s", "served/s", "rejected", "p50, ms", "p95, ms", "CPU-s per million",
        "USD per million",
    )  # fmt: skip
    return Section("Throughput, latency and cost by load", headers, rows, data, notes)


def require_matplotlib() -> None:
    """Check that a plot can be drawn.

    Raises:
        BenchError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise BenchError("The plot needs matplotlib: pip install -e './devtools[bench]'") from exc


def draw(points: Sequence[Point], levels: Sequence[Level], title: str, file: Path) -> None:
    """Write the plot as PNG."""
    # Not pyplot: it would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    figure = Figure(figsize=(8, 10), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    speed, latency, cost = figure.subplots(3, 1, sharex=True)
    offered = [point.offered_per_second for point in points]
    limits = [0, max(offered)]

    speed.plot(limits, limits, ":", color="grey", label="offered")
    speed.plot(offered, [point.served_per_second for point in points], "o-", label="served")
    speed.set_ylabel("images/s")
    latency.plot(offered, [point.p50_ms for point in points], "o-", label="p50")
    latency.plot(offered, [point.p95_ms for point in points], "s-", label="p95")
    latency.set_yscale("log")
    latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latency.yaxis.set_minor_locator(NullLocator())
    latency.yaxis.set_major_formatter(ScalarFormatter())
    latency.set_ylabel("latency, ms")
    cost.plot(offered, [point.usd_per_million for point in points], "o-", label="US dollars")
    cost.set_ylabel("US dollars per million images")
    cost.set_xlabel("offered load, images/s")
    processor = cost.twinx()
    processor.plot(
        offered,
        [point.cpu_seconds_per_million / 1000 for point in points],
        "s--", color="tab:green", label="CPU",
    )  # fmt: skip
    processor.set_ylabel("thousand CPU-seconds per million images")
    for level in levels:
        speed.axhline(
            level.served_per_second, color="tab:red", ls="--", label=f"{level.name}, busy"
        )
        cost.axhline(level.usd_per_million, color="tab:red", ls="--", label=f"{level.name}, busy")
    for axes in (cost, processor):
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    for axes in (speed, latency, cost):
        axes.grid(visible=True, alpha=0.3)
    for axes in (speed, latency):
        axes.legend(fontsize=8, loc="upper left")
    handles = [*cost.get_lines(), *processor.get_lines()]
    cost.legend(handles=handles, fontsize=8, loc="center right")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png", dpi=120)
