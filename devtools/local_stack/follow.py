"""One upload followed: to a row, an alert at a webhook, and the images that are made from it."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from google.cloud import pubsub_v1, storage  # type: ignore[attr-defined]  # published without types

from devtools.demo_model.shapes import write_samples
from devtools.local_stack.errors import LocalStackError
from devtools.local_stack.processes import Child, Processes, free_port, is_answering
from devtools.local_stack.stack import Stack, StackOptions
from devtools.warehouse import Warehouse
from service.cli.output import Column, say_table
from service.domain import ImageRef
from service.gcp.clients import build_reader, build_source_store
from service.operate.watch import watch
from service.settings import Settings
from service.sources.schema import Sources, parse
from service.stored_json import json_line

EXAMPLES = Path(__file__).parents[2] / "examples"
_BUCKET = "uploads"
_NAME = "gate/street-1.jpg"
_LABEL = "star"
_RESULTS_TOPIC, _ALERTS_TOPIC, _RESULTS_BUCKET = "results", "alerts", "results"
_ENVIRONMENT = {
    "RESULTS_TOPIC": _RESULTS_TOPIC,
    "ALERTS_TOPIC": _ALERTS_TOPIC,
    "RESULTS_BUCKET": _RESULTS_BUCKET,
}
_SECONDS = 120.0  # for each wait, on a busy machine
_COLUMNS = (Column("kind"), Column("pixels"), Column("bytes", is_number=True), Column("file"))
_ROW = "SELECT name, status, source_id, labels, num_detections, top_label FROM `p.d.results`"


def follow(output: Path) -> None:
    """Start a stack, upload one drawn image, and show everything that comes of it.

    Args:
        output: the folder for the image, its document and the images that were made from it.

    Raises:
        MissingRequirementsError: an emulator could not be downloaded.
        LocalStackError: a process did not start, or the image has no result.
    """
    output.mkdir(parents=True, exist_ok=True)
    image = _draw(output)
    options = StackOptions(bucket=_BUCKET, with_service=False, service_environment=_ENVIRONMENT)
    click.echo("Starting the emulators, the service and a webhook ...")
    with Stack(options) as stack, Processes(stack.directory / "logs") as processes:
        os.environ.update(stack.environment)  # for the clients below
        settings = replace(Settings.from_env(), firestore_timeout_seconds=_SECONDS)
        build_source_store(settings).write(_sources(), unless_changed_since=None)
        webhook = _start_webhook(processes, stack)
        try:
            stack.start_service()
            _follow(image, settings, stack, webhook, output)
        finally:
            stack.stop_service()


def _draw(output: Path) -> Path:
    """Draw images, and return the first one with the label. The others are removed."""
    samples = write_samples(output)
    chosen = next(
        path for path, scene in samples if _LABEL in {each.label for each in scene.objects}
    )
    for path, _ in samples:
        if path != chosen:
            path.unlink()
    return chosen.rename(output / "original.jpg")


def _sources() -> Sources:
    return parse(
        {
            "sources": [
                {
                    "id": "gate",
                    "bucket": _BUCKET,
                    "prefix": "gate/",
                    "alerts": [{"name": "star-at-the-gate", "labels": [_LABEL]}],
                    "derived": {
                        "annotated": True,
                        "redacted": {"labels": [_LABEL]},
                        "normalized": {},
                    },
                }
            ]
        }
    )


def _start_webhook(processes: Processes, stack: Stack) -> Child:
    """Start the example's webhook, and a subscription that pushes alerts to it."""
    url = f"http://127.0.0.1:{free_port()}"
    command: list[str | Path] = [
        sys.executable,
        EXAMPLES / "alert_webhook.py",
        "--port",
        url.rpartition(":")[2],
    ]
    webhook = processes.start("webhook", command, os.environ)
    webhook.wait_until(lambda: is_answering(url, 405), timeout_seconds=_SECONDS)
    with pubsub_v1.SubscriberClient() as subscriber:
        subscriber.create_subscription(
            name=subscriber.subscription_path(stack.project, "webhook"),
            topic=subscriber.topic_path(stack.project, _ALERTS_TOPIC),
            push_config={"push_endpoint": url},
        )
    return webhook


def _follow(image: Path, settings: Settings, stack: Stack, webhook: Child, output: Path) -> None:
    bucket = storage.Client().bucket(_BUCKET)
    blob = bucket.blob(_NAME)
    blob.upload_from_filename(image)
    click.echo(f"Uploaded gs://{_BUCKET}/{_NAME}\n")
    reader = build_reader(settings)
    ref = ImageRef(_BUCKET, _NAME, blob.generation)
    if watch(lambda: [[ref]], reader, interval_seconds=0.2, timeout_seconds=_SECONDS).missing:
        raise LocalStackError("The image has no result. The log of the service says why.")
    document = reader.document(ref.document_id) or {}
    click.echo(f"The document {ref.document_id}:")
    click.echo(f"  status {document['status']}, {_found(document)}\n")
    message, *_ = _pull(stack, _RESULTS_TOPIC)  # a redelivery publishes it again
    [row] = Warehouse([message]).query(_ROW)
    click.echo("Its message as a row of the view `results` of BigQuery:")
    click.echo(f"  {row}\n")
    webhook.wait_until(lambda: "}\n" in webhook.log_text(), timeout_seconds=_SECONDS)
    alert = next(line for line in webhook.log_text().splitlines() if line.startswith('{"'))
    (output / "alert.json").write_text(alert + "\n", encoding="utf-8")
    alert_fields = json.loads(alert)
    click.echo("The alert at the webhook:")
    for name in ("severity", "text", "thumbnail_uri"):
        click.echo(f"  {name}: {alert_fields[name]}")
    click.echo(f"\nThe objects in gs://{_RESULTS_BUCKET} that were made from it:")
    say_table(_COLUMNS, [_saved(each, output) for each in document["derived"]])
    (output / "document.json").write_text(f"{json_line(document)}\n", encoding="utf-8")
    (output / "message.json").write_bytes(message + b"\n")
    click.echo(f"\nAll of them are in {output}/, with document.json, message.json and alert.json.")


def _found(document: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {label}" for label, count in document["counts"].items())


def _pull(stack: Stack, name: str) -> Sequence[bytes]:
    """Return the messages of a subscription. Wait for the first one."""
    with pubsub_v1.SubscriberClient() as subscriber:
        path = subscriber.subscription_path(stack.project, name)
        response = subscriber.pull(subscription=path, max_messages=10, timeout=_SECONDS)
        return [each.message.data for each in response.received_messages]


def _saved(derived: Mapping[str, Any], output: Path) -> Sequence[str]:
    """Download an object. Return a row of the table."""
    bucket, _, name = derived["uri"].removeprefix("gs://").partition("/")
    file = output / f"{derived['kind']}{Path(name).suffix}"
    storage.Client().bucket(bucket).blob(name).download_to_filename(file)
    size = f"{derived['width']} x {derived['height']}" if derived["width"] else ""
    return derived["kind"], size, f"{derived['size']:,}", file.name
