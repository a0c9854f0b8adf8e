"""The tables and plots of docs/explanation/scaling.md."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from devtools.bench.figures import digits
from devtools.bench.monthly_cost import PRICES
from devtools.bench.prices import DEFAULT_PRICES, Prices
from devtools.simulation.assumptions import Instance, Platform, Push
from devtools.simulation.model import Result, Simulation

RATES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
SECONDS = 300.0
BURST = 100_000
BURST_PER_SECOND = 1000.0  # a bucket's first limit: about 1,000 writes a second
BURST_INSTANCES = {False: (1, 10, 100, 1000), True: (1, 3, 10, 30)}  # without and with a GPU
_ENOUGH = 10_000  # instances: no limit
_PATIENCE_SECONDS = 48 * 3600.0


@dataclass(frozen=True)
class Steady:
    """A constant rate, from zero instances.

    Instances, quantiles and USD are of the second half. Idle instances from the start, which Cloud
    Run removes later, are not included.
    """

    rate: float
    instances: float
    quantiles: Sequence[float]  # seconds: p50, p95, p99
    slowest: float  # seconds, of the whole run
    max_backlog: int
    rejected: int
    dead: int
    usd_per_million: float


@dataclass(frozen=True)
class Burst:
    """Many uploads at once, until the last document."""

    limit: int  # max_instances
    result: Result
    quantiles: Sequence[float]  # seconds: p50, p95, p99
    drained: float  # seconds
    per_second: float  # documents a second, most in ten seconds
    usd: float


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Return the ascending times of `count` uploads, in seconds."""
    generator = random.Random(seed)
    return list(accumulate(generator.expovariate(rate) for _ in range(count)))


def quantiles(seconds: Sequence[float]) -> list[float]:
    """Return p50, p95 and p99. NaN if there is no value."""
    return [float(q) for q in np.percentile(seconds or [math.nan], [50, 95, 99])]


def usd(instance: Instance, billed_seconds: float, requests: int) -> float:
    """Return USD of Cloud Run. Requests are billed without a GPU only."""
    if instance.is_billed_idle:
        return billed_seconds / 3600 * PRICES["Cloud Run with GPU"].usd
    prices = replace(
        Prices.read(DEFAULT_PRICES), vcpus=instance.vcpu, memory_gib=instance.memory_gib
    )
    return prices.usd_per_million(billed_seconds / requests) * requests / 1e6 if requests else 0.0


def steady(
    rate: float, instance: Instance, platform: Platform, push: Push, *, seconds: float, seed: int
) -> Steady:
    """Simulate a constant rate (a Poisson process) for some seconds."""
    arrivals = poisson(rate, max(1, round(rate * seconds)), seed)
    result = Simulation(arrivals, instance, platform, push, seed=seed).run(until=seconds)
    late = [s for a, s in zip(result.arrived, result.latencies, strict=True) if a > seconds / 2]
    half = [sample for sample in result.samples if sample.elapsed >= seconds / 2]
    done = half[-1].done - half[0].done
    instances = float(np.mean([min(sample.instances, sample.wanted) for sample in half]))
    billed = half[-1].billed_seconds - half[0].billed_seconds
    if instance.is_billed_idle:
        billed = instances * (half[-1].elapsed - half[0].elapsed)
    return Steady(
        rate, instances, quantiles(late),
        max(result.latencies, default=math.nan), result.max_backlog, result.rejected, result.dead,
        usd(instance, billed, done) / done * 1e6 if done else math.nan,
    )  # fmt: skip


def burst(
    count: int, limit: int, instance: Instance, platform: Platform, push: Push, *, seed: int
) -> Burst:
    """Simulate a burst of uploads, from zero instances."""
    arrivals = poisson(BURST_PER_SECOND, count, seed)
    limited = replace(platform, max_instances=limit)
    result = Simulation(arrivals, instance, limited, push, seed=seed).run(_PATIENCE_SECONDS)
    done = [sample.done for sample in result.samples]
    most = max((late - early for early, late in zip(done, done[10:], strict=False)), default=0)
    cost = usd(instance, result.billed_seconds, result.done)
    return Burst(limit, result, quantiles(result.latencies), result.ended, most / 10, cost)


def steady_table(rows: Sequence[Steady]) -> str:
    """Return a Markdown table."""
    headers = (
        "images/s", "instances", "p50, s", "p95, s", "p99, s", "slowest at the start, s",
        "most waiting", "rejected", "dead letters", "USD per million",
    )  # fmt: skip
    cells = [
        (
            f"{row.rate:,.0f}", digits(row.instances), *map(_seconds, row.quantiles),
            digits(row.slowest), f"{row.max_backlog:,}", f"{row.rejected:,}", f"{row.dead:,}",
            f"{row.usd_per_million:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return _table(cells, headers)


def burst_table(rows: Sequence[Burst]) -> str:
    """Return a Markdown table."""
    headers = (
        "max_instances", "instances", "p50, s", "p95, s", "p99, s", "drained after, s",
        "most waiting", "rejected", "dead letters", "documents/s, most", "USD",
    )  # fmt: skip
    cells = [
        (
            f"{row.limit:,}", f"{row.result.max_instances:,}",
            *(f"{seconds:,.0f}" for seconds in row.quantiles), f"{row.drained:,.0f}",
            f"{row.result.max_backlog:,}", f"{row.result.rejected:,}", f"{row.result.dead:,}",
            f"{row.per_second:,.0f}", f"{row.usd:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return _table(cells, headers)


def _seconds(value: float) -> str:
    return digits(value) if math.isfinite(value) else "not reached"


def _table(cells: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    align = ["right"] * len(headers)
    return tabulate(cells, headers, "github", disable_numparse=True, colalign=align)


def report(
    instances: Sequence[Instance], platform: Platform, push: Push, *, rates: Sequence[float],
    count: int, seconds: float, seed: int, is_limited: bool, plots: Path | None,
    progress: Callable[[str], None],
) -> str:  # fmt: skip
    """Simulate all rates and bursts, and return the tables. Draw the plots into a directory.

    Without `is_limited`, constant rates get as many instances as they need, and bursts get several
    limits.
    """
    if plots:  # now, because the simulation takes minutes
        plots.mkdir(parents=True, exist_ok=True)
    parts: list[str] = []
    steadies: dict[str, list[Steady]] = {}
    bursts: dict[str, list[Burst]] = {}
    for instance in instances:
        enough = platform if is_limited else replace(platform, max_instances=_ENOUGH)
        rows = []
        for rate in rates:
            progress(f"{instance.name}: {rate:,.0f} images/s")
            rows.append(steady(rate, instance, enough, push, seconds=seconds, seed=seed))
        steadies[instance.name] = rows
        parts += [f"### {instance.name}: constant rates", steady_table(rows)]
        limits: tuple[int, ...] = BURST_INSTANCES[bool(instance.batch)]
        if is_limited:
            limits = (platform.max_instances,)
        progress(f"{instance.name}: bursts of {count:,} uploads")
        bursts[instance.name] = [
            burst(count, limit, instance, platform, push, seed=seed) for limit in limits
        ]
        table = burst_table(bursts[instance.name])
        parts += [f"### {instance.name}: a burst of {count:,} uploads", table]
    if plots:
        draw_steady(steadies, plots / "scaling-steady.png")
        draw_bursts(bursts, plots / "scaling-burst.png")
    return "\n\n".join(parts)


def _figure(rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    # Not pyplot: it would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def draw_steady(steadies: dict[str, list[Steady]], file: Path) -> None:
    """Write the plot of the constant rates as PNG."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, ((latency,), (count,), (cost,)) = _figure(3, 1, sharex=True)
    for (name, rows), colour in zip(steadies.items(), ("tab:blue", "tab:green"), strict=False):
        rates = [row.rate for row in rows]
        for index, (label, style) in enumerate((("p50", "o-"), ("p95", "s--"), ("p99", "^:"))):
            values = [row.quantiles[index] for row in rows]
            latency.plot(rates, values, style, color=colour, label=f"{name}, {label}")
        count.plot(rates, [row.instances for row in rows], "o-", color=colour, label=name)
        cost.plot(rates, [row.usd_per_million for row in rows], "o-", color=colour, label=name)
    for axes, label in (
        (latency, "upload to document, s"), (count, "instances"), (cost, "USD per million"),
    ):  # fmt: skip
        axes.set(xscale="log", yscale="log", ylabel=label)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=7)
    cost.set_xlabel("images/s")
    figure.savefig(file, format="png", dpi=100)


def draw_bursts(bursts: dict[str, list[Burst]], file: Path) -> None:
    """Write the plot of the bursts as PNG."""
    figure, panels = _figure(2, len(bursts), sharex="col")
    for column, (name, rows) in enumerate(bursts.items()):
        waiting, count = panels[0][column], panels[1][column]
        for row in rows:
            elapsed = [sample.elapsed for sample in row.result.samples]
            label = f"max_instances = {row.limit:,}"
            waiting.plot(elapsed, [sample.waiting for sample in row.result.samples], label=label)
            count.plot(elapsed, [sample.instances for sample in row.result.samples], label=label)
        waiting.set(title=name, xscale="log", xlim=(1, None), ylabel="images without a document")
        count.set(yscale="log", xlabel="seconds", ylabel="instances")
        for axes in (waiting, count):
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.grid(visible=True, alpha=0.3)
        waiting.legend(fontsize=7)
    figure.savefig(file, format="png", dpi=100)
