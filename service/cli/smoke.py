"""`yolo-batch smoke`: one image through a deployed system."""

import time

import click

from service.cli.commands import command, option
from service.cli.options import bucket_argument, json_option
from service.cli.output import note, progress, say, say_json
from service.errors import YoloBatchError
from service.settings import Settings


@command(
    panel="Operate",
    examples=["yolo-batch smoke gs://PROJECT-yolo-batch-uploads --timeout 300"],
)
@bucket_argument("Bucket to upload the image to. With a prefix: the image's name begins with it.")
@option(
    "--timeout",
    default=120.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    help="How long to wait for the document, in seconds.",
)
@option("--keep", is_flag=True, help="Leave the image in the bucket.")
@json_option("uri, generation, document_id, status, seconds, num_detections, model")
def smoke(uri: tuple[str, str], timeout: float, keep: bool, as_json: bool) -> None:
    """Test a deployment with one image.

    Uploads a drawn image, waits for its document in Firestore, and deletes the image. The document
    stays, unless the service removes results with their objects.
    """
    from service.gcp.clients import build_reader
    from service.gcp.samples import connect
    from service.operate.smoke import draw_sample, sample_name, wait_for_result

    bucket, prefix = uri
    settings = Settings.from_env()
    store, samples = build_reader(settings), connect(settings.google_cloud_project)
    ref = samples.upload(bucket, sample_name(prefix), draw_sample())
    started = time.monotonic()
    uploaded = f"Uploaded {ref.uri}, generation {ref.generation}"
    if as_json:
        note(uploaded)
    else:
        say(uploaded)
    try:
        with progress("Waiting for the document"):
            document = wait_for_result(ref, store, timeout_seconds=timeout)
    finally:
        if not keep:
            try:
                samples.remove(ref)
            except YoloBatchError as exc:  # an image that is left does not fail the test
                note(f"Warning: {exc}")
    seconds = time.monotonic() - started
    model = document["model"]
    if as_json:
        say_json(
            {
                "uri": ref.uri,
                "generation": ref.generation,
                "document_id": ref.document_id,
                "status": document["status"],
                "seconds": round(seconds, 1),
                "num_detections": document["num_detections"],
                "model": {name: model[name] for name in ("name", "precision", "sha256", "runtime")},
            }
        )
        return
    say(
        f"{document['status']} after {seconds:.1f} s: "
        f"document {ref.document_id}, {document['num_detections']} detections by {model['name']} "
        f"({model['precision']}, {model['runtime']})"
    )
