"""The command `yolo-batch-dev bench`."""

import signal
import tempfile
import time
from pathlib import Path

import click

from service.settings import BUNDLED_MODEL

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("images", required=False, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True),
    default=BUNDLED_MODEL,
    help="Exported directory, or a .pt file, which is exported in float first.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The .pt file that the alternatives run; needs ultralytics.",
)
@click.option("--table", is_flag=True, help="Network, engine, service and alternatives.")
@click.option("--sweep", is_flag=True, help="The engine at several batch sizes.")
@click.option("--profile", is_flag=True, help="CPU time of the service by stage.")
@click.option("--plot", type=_FILE, help="PNG of throughput, latency and cost by load.")
@click.option("--cold-start", is_flag=True, help="From process start to the first result.")
@click.option("--memory", is_flag=True, help="Resident memory over many pictures.")
@click.option("--json", "json_file", type=_FILE, help="Write all figures here too.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 100))
@click.option("--cores", help="Of the measured process, such as 1 or 2-3; by default the last.")
@click.option(
    "--memory-pictures",
    default=5000,
    show_default=True,
    type=click.IntRange(1),
    help="How many pictures --memory sends.",
)
@click.option(
    "--prices",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Table of prices; by default devtools/bench/prices.yaml.",
)
@click.option("--quick", is_flag=True, help="One short round of few pictures: a trial.")
def bench(
    images: Path | None,
    model: Path,
    weights: Path | None,
    table: bool,
    sweep: bool,
    profile: bool,
    plot: Path | None,
    cold_start: bool,
    memory: bool,
    json_file: Path | None,
    rounds: int,
    cores: str | None,
    memory_pictures: int,
    prices: Path | None,
    quick: bool,
) -> None:
    """Measure the service beside its alternatives, on IMAGES or on drawn samples.

    Without an option that names a part: --table and --sweep. Prints Markdown.
    """
    from devtools.bench.prices import DEFAULT_PRICES, Prices
    from devtools.bench.run import Options, Part, run
    from devtools.demo_model.shapes import write_samples

    # As Ctrl-C does, let it stop everything that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = {
        Part.TABLE: table,
        Part.SWEEP: sweep,
        Part.PROFILE: profile,
        Part.PLOT: plot is not None,
        Part.COLD_START: cold_start,
        Part.MEMORY: memory,
    }
    parts = {part for part, is_wanted in wanted.items() if is_wanted}
    with tempfile.TemporaryDirectory() as scratch:
        if images is None:
            images = Path(scratch) / "samples"
            write_samples(images)
        options = Options(
            images=images,
            model=model,
            weights=weights,
            parts=frozenset(parts or {Part.TABLE, Part.SWEEP}),
            prices=Prices.read(prices or DEFAULT_PRICES),
            rounds=rounds,
            cores=cores,
            plot=plot,
            memory_images=memory_pictures,
            is_quick=quick,
        )
        started = time.monotonic()
        report = run(
            options,
            lambda text: click.echo(f"[{time.monotonic() - started:4.0f} s] {text}", err=True),
        )
    click.echo(report.markdown())
    if json_file:
        json_file.write_text(report.as_json() + "\n", encoding="utf-8")
