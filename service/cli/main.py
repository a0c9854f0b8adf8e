"""The command line: `yolo-batch`."""

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from service.cli.alerts import alerts
from service.cli.check_model import check_model
from service.cli.commands import command, group, version_option
from service.cli.dead_letters import dead_letters
from service.cli.detect import detect
from service.cli.export import export
from service.cli.gallery import gallery
from service.cli.options import json_lines_option, objects_argument
from service.cli.output import is_terminal, note, progress, say_json
from service.cli.purge import purge
from service.cli.reconcile import reconcile
from service.cli.smoke import smoke
from service.cli.sources import sources
from service.cli.submit import submit
from service.cli.watch import watch
from service.errors import ResultObjectError
from service.settings import Settings


@group(
    examples=[
        "yolo-batch detect photos --save annotated",
        "yolo-batch results gs://my-bucket/2026/ --json",
        "# the options and examples of a command",
        "yolo-batch reconcile --help",
    ]
)
@version_option(package_name="yolo-batch")
def main() -> None:
    """Run YOLO26 on every image that is uploaded to a Cloud Storage bucket."""
    # Log lines belong to the service. Commands print their messages.
    logging.getLogger("service").addHandler(logging.NullHandler())


@command(
    panel="Operate",
    examples=["MODEL_PATH=my_openvino_model PORT=8080 yolo-batch serve"],
)
def serve() -> None:
    """Run the service as the container does.

    Settings come from the environment.
    """
    Settings.from_env()  # a wrong setting is reported before the server starts
    server = [
        "gunicorn",
        "--config",
        "python:service.server.gunicorn_conf",
        "service.server.wsgi:build_app()",
    ]
    os.execv(sys.executable, [sys.executable, "-m", *server])


@command(
    panel="Data",
    examples=[
        "yolo-batch results gs://my-bucket/2026/",
        "yolo-batch results gs://my-bucket --json > results.jsonl",
    ],
)
@objects_argument
@json_lines_option("each document")
def results(uri: tuple[str, str], as_json: bool) -> None:
    """Print the documents of a bucket or prefix from Firestore.

    Large results are in objects of RESULTS_BUCKET. With --json, their detections are read from
    there, and `derived` has the addresses of the derived images.
    """
    from service.cli.report import no_results_note, say_results
    from service.gcp.clients import build_large_results, build_reader

    settings = Settings.from_env()
    bucket, prefix = uri
    count = 0

    def documents() -> Iterator[dict[str, Any]]:
        nonlocal count
        is_streaming = as_json and is_terminal(sys.stdout)
        with progress("Reading results", is_shown=not is_streaming) as bar:
            for document in build_reader(settings).results(bucket, prefix):
                count += 1
                bar.describe(f"Reading results: {count:,}")
                yield document

    if as_json:
        large_results = build_large_results(settings)
        for document in documents():
            try:
                say_json(document | {"detections": large_results.read(document)})
            except ResultObjectError as exc:
                note(f"Warning: {document['uri']} is printed as it is in Firestore. {exc}")
                say_json(document)
    else:
        say_results(documents())
    if not count:
        note(no_results_note(bucket, prefix))


for each in (
    detect, submit, watch, results, gallery, reconcile, purge, export, check_model, smoke, sources,
    alerts, dead_letters, serve
):  # fmt: skip
    main.add_command(each)
