"""`yolo-batch-dev chaos`: uploads under faults, each of them audited."""

import signal
import time
from pathlib import Path

import click


@click.command()
@click.option(
    "--uploads", default=200, show_default=True, type=click.IntRange(40), help="How many."
)
@click.option("--seed", default=1, show_default=True, help="The same one does the same.")
@click.option(
    "--services",
    type=click.IntRange(1, 20),
    help="Processes side by side.  [default: 3 to 10, drawn from the seed]",
)
@click.option(
    "--without",
    multiple=True,
    metavar="FAULT",
    help="A fault to leave out, as the table names it; several times for several.",
)
@click.option(
    "--answer-seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(1, 600),
    help="Ack deadline of a delivery; a stopped service is stopped for two seconds more.",
)
@click.option(
    "--patience",
    default=180.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds without any acknowledgement until what is under way counts as stuck.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for logs and uploads; they are removed when it is not given.",
)
def chaos(
    uploads: int, seed: int, services: int | None, without: tuple[str, ...], answer_seconds: float,
    patience: float, keep: Path | None,
) -> None:  # fmt: skip
    """Upload images to a local stack while faults strike it, and audit every one of them.

    Ends with an error when something was lost, duplicated, crossed, wrong, stuck, unexpected or
    wasted, or a service process was killed by an image.
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
    click.echo(
        f"Seed {seed}: {uploads:,} uploads, {plan.services} services, {len(plan.faults)} faults. "
        "Starting the stack ..."
    )
    started = time.monotonic()
    try:
        with Run(plan, options) as run:
            with click.progressbar(length=uploads, label="Uploads", show_pos=True) as bar:
                run.upload_all(bar.update)
            with click.progressbar(length=1, label="Answers") as bar:
                run.settle(lambda left: bar.update(int(left <= 0)))
            run.stop_services()
            report, struck = run.audit(), run.struck
    except KeyboardInterrupt:
        raise click.ClickException("Stopped; nothing was audited") from None
    faults = ", ".join(f"{count} x {kind}" for kind, count in sorted(struck.items()))
    click.echo(f"\nservices                  {plan.services}\n{report.table()}")
    click.echo(f"faults struck: {faults}")
    click.echo(f"after {time.monotonic() - started:.0f} s")
    if not report.is_clean:
        raise click.ClickException(f"The audit of seed {seed} found problems")
