"""`yolo-batch-dev bench`: measures the service and its alternatives."""

import signal
import tempfile
import time
from pathlib import Path

import click

from service.cli.commands import argument, command, option
from service.cli.output import note
from service.settings import BUNDLED_MODEL

_FILE = click.Path(path_type=Path, dir_okay=False)
_PARTS = "What is measured"
_HOW = "How it is measured"


@command(
    panel="Measure and test",
    examples=[
        "yolo-batch-dev bench --quick",
        "yolo-batch-dev bench photos --table --cold-start --json figures.json",
    ],
)
@argument(
    "images",
    required=False,
    type=click.Path(path_type=Path, exists=True),
    help="Image or folder of images. By default, drawn samples.",
)
@option(
    "--model",
    type=click.Path(path_type=Path, exists=True),
    default=BUNDLED_MODEL,
    help="Directory of an exported model, or a .pt file, which is first exported as a float model. "
    "By default, the bundled model.",
)
@option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The .pt file that the alternatives run. It needs ultralytics.",
)
@option("--json", "json_file", type=_FILE, help="Write all figures to this JSON file too.")
@option("--table", panel=_PARTS, is_flag=True, help="Model, engine, service and alternatives.")
@option("--sweep", panel=_PARTS, is_flag=True, help="The engine at several batch sizes.")
@option("--profile", panel=_PARTS, is_flag=True, help="CPU time of the service by stage.")
@option(
    "--plot", panel=_PARTS, type=_FILE, help="PNG file of throughput, latency and cost by load."
)
@option(
    "--cold-start", panel=_PARTS, is_flag=True, help="Time from process start to the first result."
)
@option("--memory", panel=_PARTS, is_flag=True, help="Memory of the service over many images.")
@option(
    "--rounds",
    panel=_HOW,
    default=5,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Repetitions of each measurement.",
)
@option(
    "--cores",
    panel=_HOW,
    help="CPU cores of the measured process, such as 1 or 2-3. By default, the last core.",
)
@option(
    "--memory-images",
    panel=_HOW,
    default=5000,
    show_default=True,
    type=click.IntRange(1),
    help="Number of images that --memory sends.",
)
@option(
    "--prices",
    panel=_HOW,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Table of prices. By default, devtools/bench/prices.yaml.",
)
@option("--quick", panel=_HOW, is_flag=True, help="One short round with few images, as a trial.")
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
    memory_images: int,
    prices: Path | None,
    quick: bool,
) -> None:
    """Measure the service and its alternatives.

    Prints Markdown. If no option names what is measured, it measures --table and --sweep.
    """
    from devtools.bench.prices import DEFAULT_PRICES, Prices
    from devtools.bench.run import Options, Part, run
    from devtools.demo_model.shapes import write_samples

    # SIGTERM stops everything that was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    is_selected = {
        Part.TABLE: table,
        Part.SWEEP: sweep,
        Part.PROFILE: profile,
        Part.PLOT: plot is not None,
        Part.COLD_START: cold_start,
        Part.MEMORY: memory,
    }
    parts = {part for part, selected in is_selected.items() if selected}
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
            memory_images=memory_images,
            is_quick=quick,
        )
        started = time.monotonic()
        report = run(options, lambda text: note(f"[{time.monotonic() - started:4.0f} s] {text}"))
    click.echo(report.markdown())
    if json_file:
        json_file.write_text(report.as_json() + "\n", encoding="utf-8")
