"""The developer's command line: `yolo-batch-dev`."""

import logging
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from devtools.cli.bench import bench
from devtools.cli.chaos import chaos
from devtools.cli.simulate import simulate
from service.cli.commands import command, group, option, version_option
from service.cli.detect import detect
from service.cli.output import progress, say
from service.errors import EnvelopeError
from service.events import parse_uri
from service.settings import BUNDLED_MODEL

_RUN = "Run the system"


@group(examples=["yolo-batch-dev demo", "yolo-batch-dev up"])
@version_option(package_name="yolo-batch")
def main() -> None:
    """Run the whole system on this machine, measure it, and break it."""
    logging.getLogger("service").addHandler(logging.NullHandler())
    logging.getLogger("devtools").addHandler(logging.NullHandler())


def _bucket_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Check a bucket's name.

    Raises:
        click.BadParameter: Cloud Storage does not permit it.
    """
    try:
        parse_uri(f"gs://{value}/object")
    except EnvelopeError as exc:
        raise click.BadParameter(f"{value!r}: {exc}", ctx, param) from exc
    return value


@command(
    panel=_RUN,
    examples=["yolo-batch-dev up", "yolo-batch-dev up --model my_openvino_model"],
)
@option(
    "--model",
    type=click.Path(path_type=Path, exists=True),
    help="Model of the service. By default, the bundled model.",
)
@option(
    "--bucket",
    default="uploads",
    show_default=True,
    callback=_bucket_name,
    help="Bucket for uploads.",
)
def up(model: Path | None, bucket: str) -> None:
    """Run the emulators, the deliveries and the service until Ctrl-C.

    Settings of the service come from the environment. The topics and the bucket that RESULTS_TOPIC,
    ALERTS_TOPIC and RESULTS_BUCKET name are created.
    """
    from devtools.local_stack.client_environment import upload_line
    from devtools.local_stack.stack import Stack, StackOptions

    # Both signals stop everything. SIGINT is set because a shell starts background jobs with SIGINT
    # ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # Show the log lines of the local Eventarc, for example about failed deliveries.
    logging.getLogger("devtools.local_stack").addHandler(logging.StreamHandler())
    say("Starting the Pub/Sub, Firestore and Cloud Storage emulators and the service ...")
    try:
        with Stack(StackOptions(model_path=model, bucket=bucket, echo=click.echo)) as stack:
            say(
                _UP.format(
                    exports="\n".join(stack.export_lines()),
                    programs=shlex.quote(str(Path(sys.executable).parent)),
                    upload=upload_line(bucket),
                    bucket=bucket,
                    url=stack.service_url,
                )
            )
            for topic in stack.published_topics:
                say(f"The service publishes to {topic}. A pull subscription has the same name.")
            if stack.results_bucket:
                say(f"The service writes to gs://{stack.results_bucket}.")
            say("Ctrl-C stops everything. The log of the service follows.\n")
            while True:
                stack.raise_if_dead()
                time.sleep(1)
    except KeyboardInterrupt:
        say("Stopped.")


_UP = """\
The stack is up. In another terminal, paste:

{exports}
export PATH={programs}:"$PATH"

Then upload an image, submit it once more, and print its result:

{upload}
yolo-batch submit gs://{bucket}/IMAGE.jpg
yolo-batch results gs://{bucket}/

To look at the results in a browser, and have failed images tried again:

yolo-batch gallery --topic jobs --open

The service listens at {url}.\
"""


def _existing_model(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Check that a model exists. Weights may be missing, because ultralytics downloads them.

    Raises:
        click.BadParameter: it does not exist.
    """
    if value and value.suffix != ".pt" and not value.exists():
        raise click.BadParameter(f"Path {str(value)!r} does not exist.", ctx, param)
    return value


@command(
    panel=_RUN,
    examples=[
        "yolo-batch-dev demo --task segment",
        "yolo-batch-dev demo --follow",
        "yolo-batch-dev demo --images photos --model yolo26n.pt",
    ],
)
@option(
    "--images",
    type=click.Path(path_type=Path, exists=True),
    help="Image or folder to upload. By default, drawn samples.",
)
@option(
    "--task",
    type=click.Choice(["detect", "segment"]),
    help="Task of the demo model for the drawn samples: boxes (the bundled model) or masks.",
)
@option(
    "--model",
    type=click.Path(path_type=Path),
    callback=_existing_model,
    help="Directory of an exported model, or a .pt file. By default, the bundled model.",
)
@option(
    "--output",
    default=Path("demo-output"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for annotated images and documents.",
)
@option(
    "--follow",
    is_flag=True,
    help="Follow one drawn image to a row of BigQuery's view, an alert at a webhook, a thumbnail, "
    "an annotated and a redacted copy, and a normalized image with its label file.",
)
def demo(
    images: Path | None, task: str | None, model: Path | None, output: Path, follow: bool
) -> None:
    """Upload images to a local stack, and show their documents."""
    from devtools.demo_model.shapes import SEGMENTATION_MODEL
    from devtools.local_stack.demo import run_demo
    from devtools.local_stack.errors import MissingRequirementsError

    if task and model:
        raise click.UsageError("--task chooses a demo model: give either --task or --model.")
    if follow:
        from devtools.local_stack.follow import follow as follow_one

        if images or task or model:
            raise click.UsageError("--follow uses a drawn image and the bundled model.")
        try:
            follow_one(output)
        except MissingRequirementsError as exc:
            raise click.ClickException(str(exc)) from exc
        return
    if task == "segment":
        model = SEGMENTATION_MODEL
    with tempfile.TemporaryDirectory() as scratch:
        images = images or _drawn_samples(Path(scratch) / "shapes")
        model = _runnable(model, Path(scratch))
        try:
            run_demo(images.resolve(), model, output)
        except MissingRequirementsError as exc:
            say(f"{exc}\n\nUntil then, the same images without the local stack:\n")
            context = click.get_current_context()
            context.invoke(detect, paths=(images,), model=model or BUNDLED_MODEL, save=output)
            context.exit(1)


def _drawn_samples(directory: Path) -> Path:
    from devtools.demo_model.shapes import write_samples

    say(f"Drew {len(write_samples(directory))} sample images")
    return directory


def _runnable(model: Path | None, scratch: Path) -> Path | None:
    """Export weights that were given as a .pt file: the demo runs what a container runs."""
    if model is None or model.suffix != ".pt":
        return model
    from service.export.weights import export_openvino

    say(f"Exporting {model} ...")
    with progress("Exporting"):
        return export_openvino(model, scratch / f"{model.stem}_openvino_model")


for each in (demo, up, bench, chaos, simulate):
    main.add_command(each)
