"""The figures of a benchmark: rounds, medians with their spread, goals, tables. Pure functions."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate

# Names of the subjects. The goals refer to them.
MODEL = "model alone (images decoded)"
ENGINE = "engine (decode to detections)"
SERVICE = "whole service (HTTP, Storage, Firestore)"
NAIVE = "Flask + YOLO(.pt), one image per request"
LOOP = "YOLO(.pt), one by one"
BATCHES = "YOLO(.pt).predict(list)"
OPENVINO_LOOP = "YOLO(own OpenVINO export), one by one"
OPENVINO_BATCHES = "YOLO(own OpenVINO export).predict(list)"

# On an idle machine, two medians of the same program differ by up to this share.
SWEEP_TOLERANCE = 0.03


@dataclass(frozen=True)
class Round:
    """The work of one subject in one round."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def images_per_second(self) -> float:
        """Images per second of wall time."""
        return self.images / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU time per image, in milliseconds."""
        return self.cpu_seconds * 1000 / self.images


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of some rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Summarise values. At least one is needed."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known))

    def __str__(self) -> str:
        """Return `median (least-most)`, with three significant digits."""
        return f"{digits(self.median)} ({digits(self.least)}-{digits(self.most)})"


@dataclass(frozen=True)
class Measured:
    """All rounds of one subject."""

    name: str
    rounds: Sequence[Round]

    @property
    def speed(self) -> Spread:
        """Images per second."""
        return Spread.of(each.images_per_second for each in self.rounds)

    @property
    def cpu_ms(self) -> Spread:
        """CPU time per image, in milliseconds."""
        return Spread.of(each.cpu_ms for each in self.rounds)


@dataclass(frozen=True)
class Goal:
    """A goal and the measured figure."""

    text: str
    value: float
    limit: float
    at_most: bool

    @property
    def is_reached(self) -> bool:
        """Whether the figure is within the limit."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass(frozen=True)
class Section:
    """A part of the report: a table, notes, and the same figures as plain data."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Any
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self) -> str:
        """Return the section as Markdown."""
        align = ["left"] + ["right"] * (len(self.headers) - 1)
        table = tabulate(
            self.rows, self.headers, "github", disable_numparse=True, colalign=align if self.rows
            else None
        )  # fmt: skip
        parts = [f"### {self.title}", table, *self.notes]
        return "\n\n".join(parts)


def digits(value: float) -> str:
    """Return a number with three significant digits. Integers keep all digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def counted(cores: int) -> str:
    """Return "1 core" or "N cores"."""
    return f"{cores} core" + "s" * (cores != 1)


def main_section(measured: Sequence[Measured]) -> Section:
    """Tabulate the subjects, relative to the naive service or, without it, to the engine."""
    by_name = {each.name: each for each in measured}
    base = by_name.get(NAIVE) or by_name[ENGINE]
    rows = [
        (
            each.name,
            str(each.speed),
            str(each.cpu_ms),
            f"{each.speed.median / base.speed.median:.2f}",
            f"{each.cpu_ms.median / base.cpu_ms.median:.2f}",
        )
        for each in measured
    ]
    note = (
        "Medians of interleaved rounds (least-most). CPU: user and system time of the process, "
        f"decoder processes included. The last two columns are relative to '{base.name}'."
    )
    headers = ("", "images/s", "CPU-ms per image", "x speed", "x CPU")
    return Section("Speed and CPU time", headers, rows, [_plain(each) for each in measured], [note])


def sweep_section(measured: Sequence[Measured], cores: int) -> Section:
    """Tabulate the engine by batch size. A note reports whether batches were slower."""
    single = measured[0].speed.median
    rows = [
        (
            each.name,
            str(each.speed),
            str(each.cpu_ms),
            f"{each.speed.median / single:.2f}",
        )
        for each in measured
    ]
    worst = min(measured, key=lambda each: each.speed.median)
    ratio = worst.speed.median / single
    is_never_slower = ratio >= 1 - SWEEP_TOLERANCE
    verdict = "reached" if is_never_slower else "MISSED"
    note = (
        f"Batching is never slower than single images: {verdict} (slowest: batch size "
        f"{worst.name}, {ratio:.2f} of single images; tolerance {SWEEP_TOLERANCE:.0%})."
    )
    data = {"rows": [_plain(each) for each in measured], "is_never_slower": is_never_slower}
    headers = ("MAX_BATCH_SIZE", "images/s", "CPU-ms per image", "x one by one")
    title = f"Engine by batch size, mixed shapes, {counted(cores)}"
    return Section(title, headers, rows, data, [note])


def speed_goals(measured: Sequence[Measured]) -> list[Goal]:
    """Return the goals of the whole service whose baselines were measured."""
    by_name = {each.name: each for each in measured}
    service, engine = by_name.get(SERVICE), by_name.get(ENGINE)
    naive, batches = by_name.get(NAIVE), by_name.get(OPENVINO_BATCHES)
    goals: list[Goal] = []
    if service and engine:
        ratio = service.cpu_ms.median / engine.cpu_ms.median
        goals.append(Goal("service's CPU-ms / engine's", ratio, 1.25, at_most=True))
    if service and naive:
        speed = service.speed.median / naive.speed.median
        cpu = service.cpu_ms.median / naive.cpu_ms.median
        goals.append(Goal(f"service's images/s / '{NAIVE}'", speed, 4.0, at_most=False))
        goals.append(Goal(f"service's CPU-ms / '{NAIVE}'", cpu, 0.4, at_most=True))
    if service and batches:
        speed = service.speed.median / batches.speed.median
        goals.append(Goal(f"service's images/s / '{OPENVINO_BATCHES}'", speed, 2.0, False))
    return goals


def goals_section(goals: Sequence[Goal]) -> Section:
    """Tabulate the goals and the measured figures."""
    rows = [
        (
            goal.text,
            f"{'at most' if goal.at_most else 'at least'} {goal.limit:g}",
            digits(goal.value),
            "reached" if goal.is_reached else "MISSED",
        )
        for goal in goals
    ]
    data = [asdict(goal) | {"is_reached": goal.is_reached} for goal in goals]
    return Section("Goals", ("", "goal", "measured", ""), rows, data)


def _plain(measured: Measured) -> dict[str, Any]:
    return {
        "name": measured.name,
        "images_per_second": asdict(measured.speed),
        "cpu_ms_per_image": asdict(measured.cpu_ms),
        "rounds": [asdict(each) for each in measured.rounds],
    }
