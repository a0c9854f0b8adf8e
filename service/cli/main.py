"""The command line: `yolo-batch`."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from service.cli.check_model import check_model
from service.cli.commands import Commands
from service.cli.dead_letters import dead_letters
from service.cli.detect import detect
from service.cli.export import export
from service.cli.options import bucket_argument
from service.cli.reconcile import reconcile
from service.cli.smoke import smoke
from service.cli.submit import submit
from service.settings import Settings


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="yolo-batch")
def main() -> None:
    """YOLO26 over every picture uploaded to a bucket."""
    # What a command has to say it prints; log lines belong to the service.
    logging.getLogger("service").addHandler(logging.NullHandler())


for command in (
    check_model, dead_letters, detect, export, reconcile, smoke, submit
):  # fmt: skip
    main.add_command(command)


@main.command()
def serve() -> None:
    """Run the service as the container does; settings come from the environment."""
    Settings.from_env()  # a wrong one is told before the server starts
    command = [
        "gunicorn",
        "--config",
        "python:service.server.gunicorn_conf",
        "service.server.wsgi:build_app()",
    ]
    os.execv(sys.executable, [sys.executable, "-m", *command])


@main.command()
@bucket_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
def results(uri: tuple[str, str], as_json: bool) -> None:
    """Print the results of gs://bucket/prefix from Firestore."""
    from service.cli.report import pattern_note, table
    from service.gcp.clients import build_reader

    bucket, prefix = uri
    count = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count
        for document in build_reader(Settings.from_env()).results(bucket, prefix):
            count += 1
            yield document

    if as_json:
        for document in counted():
            click.echo(json.dumps(document, ensure_ascii=False, default=_plain))
    else:
        click.echo(table(counted()))
    if not count and (note := pattern_note(prefix)):
        click.echo(note, err=True)


def _plain(value: object) -> str:
    """Write a Firestore timestamp as RFC 3339."""
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")
