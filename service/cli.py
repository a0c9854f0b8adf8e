"""The command line: `yolo-batch`."""

import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from service.commands.bench import bench
from service.commands.chaos import chaos
from service.commands.check_model import check_model
from service.commands.dead_letters import dead_letters
from service.commands.detect import detect
from service.commands.export import export
from service.commands.reconcile import reconcile
from service.commands.smoke import smoke
from service.commands.submit import submit
from service.errors import YoloBatchError
from service.settings import BUNDLED_MODEL, Settings


class _Group(click.Group):
    """Shows our own errors as one sentence, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as exc:
            if (exc.name or "").startswith("service."):  # the container leaves local tools out
                raise click.ClickException(
                    "This command is not in the container: run it from a checkout of yolo-batch"
                ) from exc
            raise click.ClickException(f"{exc}: install yolo-batch with its extras") from exc
        except BrokenPipeError:  # nobody reads on, as behind `| head`: click ends quietly
            raise
        except (YoloBatchError, OSError) as exc:
            raise click.ClickException(str(exc)) from exc


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="yolo-batch")
def main() -> None:
    """YOLO26 over every picture uploaded to a bucket."""
    # What a command has to say it prints; log lines belong to the service.
    logging.getLogger("service").addHandler(logging.NullHandler())


for command in (
    bench, chaos, check_model, dead_letters, detect, export, reconcile, smoke, submit
):  # fmt: skip
    main.add_command(command)


@main.command()
def serve() -> None:
    """Run the service as the container does; settings come from the environment."""
    Settings.from_env()  # a wrong one is told before the server starts
    command = ["gunicorn", "--config", "python:service.gunicorn_conf", "service.main:build_app()"]
    os.execv(sys.executable, [sys.executable, "-m", *command])


@main.command()
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
def results(uri: str, as_json: bool) -> None:
    """Print the results of gs://bucket/prefix from Firestore."""
    from service.main import build_store
    from service.report import pattern_note, table

    bucket, _, prefix = uri.removeprefix("gs://").partition("/")
    if not uri.startswith("gs://") or not bucket:
        raise click.BadParameter("it must be gs://bucket or gs://bucket/prefix", param_hint="URI")
    count = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count
        for document in build_store(Settings.from_env()).results(bucket, prefix):
            count += 1
            yield document

    if as_json:
        for document in counted():
            click.echo(json.dumps(document, ensure_ascii=False, default=_plain))
    else:
        click.echo(table(counted()))
    if not count and (note := pattern_note(prefix)):
        click.echo(note, err=True)


@main.command()
@click.option(
    "--model", type=click.Path(path_type=Path), help="Model of the service; the bundled one."
)
@click.option("--bucket", default="uploads", show_default=True, help="Bucket for uploads.")
def up(model: Path | None, bucket: str) -> None:
    """Run the whole system on this machine until Ctrl-C: emulators, deliveries, service."""
    from service.local.stack import Stack, StackOptions

    # Both stop everything. SIGINT too: a shell starts its background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # What the stand-in for Eventarc has to say: deliveries that failed, Pub/Sub away.
    logging.getLogger("service.local").addHandler(logging.StreamHandler())
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
    from service.local.demo import run_demo
    from service.local.errors import MissingRequirementsError

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
    from service.demo.shapes import write_samples

    click.echo(f"Drew {len(write_samples(directory))} sample pictures")
    return directory


def _runnable(model: Path | None, scratch: Path) -> Path | None:
    """Export weights that were given as a .pt file: the demo runs what a container runs."""
    if model is None or model.suffix != ".pt":
        return model
    from service.detector.export import export_openvino

    click.echo(f"Exporting {model} ...")
    return export_openvino(model, scratch / f"{model.stem}_openvino_model")


def _plain(value: object) -> str:
    """Write a Firestore timestamp as RFC 3339."""
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")
