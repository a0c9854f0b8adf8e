"""`yolo-batch-dev simulate`: latency, backlog, instances and cost by load."""

import math
import signal
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from service.cli.commands import command, option
from service.cli.output import note

_LOAD = "What is simulated"
_MOST_UPLOADS = 10_000_000  # of a run
# Of the other assumptions, 0 is a possible value.
_ABOVE_ZERO = frozenset(
    {"first_window", "pause_seconds", "deadline_seconds", "attempts", "target", "queue_seconds"}
    | {"evaluation_seconds", "max_instances", "vcpu", "memory_gib", "slots", "cpu_ms"}
)
_CHECK_RATES, _CHECK_BURST, _CHECK_SECONDS = "2,5,10,20", 300, 30.0

T = TypeVar("T")


def _rates(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float] | None:
    """Parse rates such as `10,300`.

    Raises:
        click.BadParameter: a rate is not a positive number.
    """
    try:
        rates = [float(text) for text in value.split(",")] if value is not None else None
    except ValueError:
        rates = []
    if rates is not None and not (rates and all(0 < rate <= 20_000 for rate in rates)):
        raise click.BadParameter("must be numbers above 0, such as 10,300", ctx, param)
    return rates


@command(
    panel="Measure and test",
    examples=[
        "yolo-batch-dev simulate --seed 26 --plots docs/explanation",
        "yolo-batch-dev simulate --rates 50 --set cpu_ms=120 --set max_instances=20",
        "yolo-batch-dev simulate --check",
    ],
)
@option(
    "--rates", panel=_LOAD, callback=_rates, help="Images per second. By default, 10 to 10,000."
)
@option(
    "--burst",
    panel=_LOAD,
    type=click.IntRange(1, _MOST_UPLOADS),
    help="Uploads in a burst: 100,000.",
)
@option(
    "--seconds",
    panel=_LOAD,
    type=click.IntRange(10, 86_400),
    help="Duration of each rate: 300 s.",
)
@option(
    "--set",
    "assumed",
    panel=_LOAD,
    multiple=True,
    metavar="NAME=VALUE",
    help="Change an assumption, such as cpu_ms=32. gpu.NAME is that of an instance with a GPU. "
    "If max_instances is set, it limits all loads.",
)
@option("--seed", default=26, show_default=True, type=int, help="Seed of the random numbers.")
@option(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for the plots. They need matplotlib.",
)
@option("--check", is_flag=True, help="Compare the simulation with the local stack.")
def simulate(
    rates: list[float] | None,
    burst: int | None,
    seconds: int | None,
    assumed: tuple[str, ...],
    seed: int,
    plots: Path | None,
    check: bool,
) -> None:
    """Simulate a deployment: latency, backlog, instances and cost by load.

    Prints Markdown. It needs no cloud project: every figure of Google's services is an assumption,
    which docs/explanation/scaling.md lists.
    """
    from devtools.bench.curve import require_matplotlib
    from devtools.simulation import check as checking
    from devtools.simulation import report
    from devtools.simulation.assumptions import CPU, GPU, Platform, Push

    if check:
        # SIGTERM stops everything that was started, as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        table = checking.check(
            rates or [float(rate) for rate in _CHECK_RATES.split(",")], burst or _CHECK_BURST,
            seconds=seconds or _CHECK_SECONDS, seed=seed, progress=note,
        )  # fmt: skip
        click.echo(table)
        return
    if plots:
        require_matplotlib()
    rates = rates or list(report.RATES)
    duration: float = seconds or report.SECONDS
    if not max(rates) * duration <= _MOST_UPLOADS:  # also true for NaN
        raise click.BadParameter(
            f"rate x seconds must be at most {_MOST_UPLOADS:,}", param_hint="--seconds"
        )
    of_instance = {each.name: each.type for each in fields(CPU)}
    kinds = {each.name: each.type for part in (Push, Platform) for each in fields(part)}
    kinds |= of_instance | {f"gpu.{name}": kind for name, kind in of_instance.items()}
    given = [_assumption(text, kinds) for text in assumed]
    names = [name for name, _ in given]
    gpu = [(name.removeprefix("gpu."), number) for name, number in given if "gpu." in name]
    click.echo(
        report.report(
            [_changed(CPU, given), _changed(GPU, gpu)], _changed(Platform(), given),
            _changed(Push(), given), rates=rates, count=burst or report.BURST,
            seconds=duration, seed=seed,
            is_limited="max_instances" in names, plots=plots, progress=note,
        )
    )  # fmt: skip


def _assumption(text: str, kinds: Mapping[str, Any]) -> tuple[str, float]:
    """Parse `NAME=NUMBER`. `kinds` has the type of each assumption by its name.

    Raises:
        click.BadParameter: there is no such assumption, or it cannot have this value.
    """
    name, _, value = text.partition("=")
    if kinds.get(name) not in (int, float, bool):
        raise click.BadParameter(f"{name!r} is not an assumption", param_hint="--set")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    is_above_zero = name.removeprefix("gpu.") in _ABOVE_ZERO
    is_whole = kinds[name] is not int or number.is_integer()
    if not (is_whole and 0 <= number < math.inf) or (is_above_zero and not number):
        kind = "a whole number" if kinds[name] is int else "a number"
        least = "above 0" if is_above_zero else "of at least 0"
        raise click.BadParameter(f"{text!r} must be NAME={kind} {least}", param_hint="--set")
    return name, number


def _changed(part: T, given: list[tuple[str, float]]) -> T:
    """Return a copy with the values that it has, each of its own type."""
    own = {each.name: each.type for each in fields(part)}  # type: ignore[arg-type]
    values = {name: own[name](number) for name, number in given if name in own}  # type: ignore[operator]
    return replace(part, **values)  # type: ignore[type-var]
