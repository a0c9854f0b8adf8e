"""The developer's command line: `yolo-batch-dev`."""

import logging
import signal
import tempfile
import time
from pathlib import Path

import click

from devtools.cli.bench import bench
from devtools.cli.chaos import chaos
from service.cli.commands import Commands
from service.cli.detect import detect
from service.settings import BUNDLED_MODEL


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="yolo-batch")
def main() -> None:
    """The local stack, the benchmark, and uploads under faults."""
    logging.getLogger("service").addHandler(logging.NullHandler())
    logging.getLogger("devtools").addHandler(logging.NullHandler())


main.add_command(bench)
main.add_command(chaos)


@main.command()
@click.option(
    "--model", type=click.Path(path_type=Path), help="Model of the service; the bundled one."
)
@click.option("--bucket", default="uploads", show_default=True, help="Bucket for uploads.")
def up(model: Path | None, bucket: str) -> None:
    """Run the whole system on this machine until Ctrl-C: emulators, deliveries, service."""
    from devtools.local_stack.stack import Stack, StackOptions

    # Both stop everything. SIGINT too: a shell starts its background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # Log lines of the local Eventarc: failed deliveries, Pub/Sub unavailable.
    logging.getLogger("devtools.local_stack").addHandler(logging.StreamHandler())
    click.echo("Starting the Pub/Sub, Firestore and Cloud Storage emulators and the service ...")
    try:
        with Stack(StackOptions(model_path=model, bucket=bucket, echo=click.echo)) as stack:
            exports = "\n".join(stack.export_lines())
            click.echo(_UP.format(exports=exports, bucket=bucket, url=stack.service_url))
            while True:
                stack.raise_if_dead()
                time.sleep(1)
    except KeyboardInterrupt:
        click.echo("Stopped.")


_UP = """\
The stack is up. In another terminal, paste:

{exports}

then upload, submit and look:

gcloud storage cp PICTURE.jpg gs://{bucket}/
yolo-batch submit gs://{bucket}/PICTURE.jpg
yolo-batch results gs://{bucket}/

The service answers at {url}.
Ctrl-C stops everything. The service's log follows.
"""


@main.command()
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True),
    help="Picture or folder to upload; samples are drawn when not given.",
)
@click.option("--model", type=click.Path(path_type=Path), help="Exported directory, or a .pt file.")
@click.option(
    "--output",
    default=Path("demo-output"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for annotated pictures.",
)
def demo(images: Path | None, model: Path | None, output: Path) -> None:
    """Upload pictures to a local stack, and show their documents."""
    from devtools.local_stack.demo import run_demo
    from devtools.local_stack.errors import MissingRequirementsError

    with tempfile.TemporaryDirectory() as scratch:
        images = images or _drawn_samples(Path(scratch) / "shapes")
        model = _runnable(model, Path(scratch))
        try:
            run_demo(images.resolve(), model, output)
        except MissingRequirementsError as exc:
            click.echo(f"{exc}\n\nUntil then, the detector alone, without the cloud's part:\n")
            context = click.get_current_context()
            context.invoke(detect, paths=(images,), model=model or BUNDLED_MODEL, save=output)
            context.exit(1)


def _drawn_samples(directory: Path) -> Path:
    from devtools.demo_model.shapes import write_samples

    click.echo(f"Drew {len(write_samples(directory))} sample pictures")
    return directory


def _runnable(model: Path | None, scratch: Path) -> Path | None:
    """Export weights that were given as a .pt file: the demo runs what a container runs."""
    if model is None or model.suffix != ".pt":
        return model
    from service.export.weights import export_openvino

    click.echo(f"Exporting {model} ...")
    return export_openvino(model, scratch / f"{model.stem}_openvino_model")
