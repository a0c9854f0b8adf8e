"""The command line: `yolo-batch`."""

import logging
import os
import sys

from service.cli.alerts import alerts
from service.cli.check_model import check_model
from service.cli.commands import command, group, version_option
from service.cli.compare import compare
from service.cli.dead_letters import dead_letters
from service.cli.detect import detect
from service.cli.evaluate import evaluate
from service.cli.export import export
from service.cli.gallery import gallery
from service.cli.purge import purge
from service.cli.reconcile import reconcile
from service.cli.results import results
from service.cli.smoke import smoke
from service.cli.sources import sources
from service.cli.submit import submit
from service.cli.watch import watch
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


for each in (
    detect, submit, watch, results, gallery, reconcile, purge, export, check_model, evaluate,
    compare, smoke, sources, alerts, dead_letters, serve
):  # fmt: skip
    main.add_command(each)
