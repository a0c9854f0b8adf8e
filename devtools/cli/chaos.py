"""`yolo-batch-dev chaos`: uploads images under faults, and audits every upload."""

import signal
import time
from pathlib import Path

import click

from service.cli.commands import command, option
from service.cli.options import json_option
from service.cli.output import note, progress, say, say_json

_DEADLINES = "Deadlines"


def _faults(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from devtools.chaos.plan import FaultKind

    return [kind for kind in FaultKind if kind.startswith(incomplete)]


@command(
    panel="Measure and test",
    examples=[
        "yolo-batch-dev chaos --uploads 200 --seed 7",
        "yolo-batch-dev chaos --without stop --keep logs",
    ],
)
@option(
    "--uploads",
    default=200,
    show_default=True,
    type=click.IntRange(40),
    help="Number of images to upload.",
)
@option(
    "--seed", default=1, show_default=True, help="The same seed makes the same uploads and faults."
)
@option(
    "--services",
    type=click.IntRange(1, 20),
    help="Number of service processes.  [default: 3 to 10, drawn from the seed]",
)
@option(
    "--without",
    multiple=True,
    metavar="FAULT",
    shell_complete=_faults,
    help="Leave out this fault. An unknown name prints all names. Can be repeated.",
)
@option(
    "--answer-seconds",
    panel=_DEADLINES,
    default=10.0,
    show_default=True,
    type=click.FloatRange(1, 600),
    help="Ack deadline of a delivery. The fault `stop` stops a service for two seconds longer.",
)
@option(
    "--patience",
    panel=_DEADLINES,
    default=180.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds without any acknowledgement after which the remaining uploads count as stuck.",
)
@option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep logs and uploads in this folder. By default, they are removed.",
)
@json_option("the figures, the problems, and the injected faults")
def chaos(
    uploads: int, seed: int, services: int | None, without: tuple[str, ...], answer_seconds: float,
    patience: float, keep: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Upload images to a local stack, inject faults, and audit every upload.

    Fails if an upload was lost, duplicated, crossed, wrong, stuck, unexpected or wasted, if an
    image crashed a service process, or if a message, an alert or a derived image is wrong.
    """
    from devtools.chaos.plan import FaultKind, make_plan
    from devtools.chaos.run import ChaosOptions, Run
    from devtools.chaos.services import impossible_faults

    unknown = set(without) - set(FaultKind)
    if unknown:
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))}: it must be one of " + ", ".join(FaultKind),
            param_hint="--without",
        )
    for number in (signal.SIGINT, signal.SIGTERM):  # both stop everything
        signal.signal(number, signal.default_int_handler)
    left_out = {FaultKind(name) for name in without} | impossible_faults()
    plan = make_plan(uploads, seed, without=left_out, services=services)
    options = ChaosOptions(answer_seconds=answer_seconds, patience_seconds=patience, directory=keep)
    show = note if as_json else say
    show(
        f"Seed {seed}: {uploads:,} uploads, {plan.services} services, {len(plan.faults)} faults. "
        "Starting the stack ..."
    )
    started = time.monotonic()
    try:
        with Run(plan, options) as run:
            show("Uploading ...")
            with progress("Uploading", uploads) as bar:
                run.upload_all(bar.advance)
            show("Waiting until every event is acknowledged ...")
            with progress("Waiting") as bar:
                run.settle(lambda left: bar.describe(f"{left:,} events are not acknowledged"))
            run.stop_services()
            report, struck = run.audit(), run.struck
    except KeyboardInterrupt:
        note("Nothing was audited.")
        raise
    seconds = time.monotonic() - started
    if as_json:
        say_json(
            {"seed": seed, "services": plan.services, "is_clean": report.is_clean}
            | vars(report)
            | {"wasted": report.wasted, "faults": dict(sorted(struck.items()))}
            | {"seconds": round(seconds)}
        )
    else:
        faults = ", ".join(f"{count} x {kind}" for kind, count in sorted(struck.items()))
        say(f"\nservices                  {plan.services}\n{report.table()}")
        say(f"faults injected: {faults}")
        say(f"after {seconds:.0f} s")
    if not report.is_clean:
        raise click.ClickException(f"The audit of seed {seed} found problems")
