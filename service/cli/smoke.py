"""`yolo-batch smoke`: one picture through a deployed system."""

import time

import click

from service.cli.options import bucket_argument
from service.errors import SmokeError
from service.settings import Settings


@click.command()
@bucket_argument
@click.option(
    "--timeout",
    default=120.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    help="How long to wait for the document, in seconds.",
)
@click.option("--keep", is_flag=True, help="Leave the picture in the bucket.")
def smoke(uri: tuple[str, str], timeout: float, keep: bool) -> None:
    """Upload a drawn picture to gs://bucket[/prefix], wait for its document, delete the picture.

    Its document stays: the results are only ever added to.
    """
    from service.gcp.clients import build_reader
    from service.gcp.samples import connect
    from service.operate.smoke import draw_sample, sample_name, wait_for_result

    bucket, prefix = uri
    settings = Settings.from_env()
    store, samples = build_reader(settings), connect(settings.google_cloud_project)
    ref = samples.upload(bucket, sample_name(prefix), draw_sample())
    started = time.monotonic()
    click.echo(f"Uploaded {ref.uri}, generation {ref.generation}")
    try:
        document = wait_for_result(ref, store, timeout_seconds=timeout)
    finally:
        if not keep:
            try:
                samples.remove(ref)
            except SmokeError as exc:  # the result counts, not what is left over
                click.echo(f"Warning: {exc}", err=True)
    model = document["model"]
    click.echo(
        f"{document['status']} after {time.monotonic() - started:.1f} s: "
        f"document {ref.document_id}, {document['num_detections']} detections by {model['name']} "
        f"({model['precision']}, {model['runtime']})"
    )
