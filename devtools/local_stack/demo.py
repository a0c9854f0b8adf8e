"""The demo: start the stack, upload images, wait for their documents, and print them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from google.cloud import storage

from devtools.local_stack.client_environment import upload_command
from devtools.local_stack.errors import LocalStackError
from devtools.local_stack.programs import find_programs
from devtools.local_stack.resources import JOBS_TOPIC
from devtools.local_stack.stack import Stack, StackOptions
from service.cli.gallery import show
from service.cli.output import can_ask, is_terminal, progress
from service.cli.report import say_results
from service.gcp.clients import build_reader
from service.gcp.result_reader import ResultReader
from service.operate.detect import annotated_name, save_annotated
from service.settings import Settings
from service.stored_json import json_line

_PREFIX = "demo"
_DOCUMENTS = "documents.jsonl"
_POLL_SECONDS = 0.5
_READ_SECONDS = 60.0  # on a busy machine the emulator's first response is slow
_PATIENCE_SECONDS = 90.0  # the wait ends after this time without a new document
_SHOWN_NAMES = 5
_UPLOAD_SECONDS = 600.0


class DemoError(LocalStackError):
    """The demo failed. The message says why."""


@dataclass(frozen=True)
class Upload:
    """An image of the demo: its file, and the name of its object in the bucket."""

    file: Path
    name: str


def run_demo(images: Path, model: Path | None, output: Path) -> None:
    """Upload images to a new stack, then show and save their documents and annotated copies.

    On a terminal, offer the gallery at the end, while the stack still runs.

    Args:
        images: an image, or a folder of images.
        model: the model that the service loads, or None for the bundled model.
        output: the folder for the annotated images and the documents.

    Raises:
        MissingRequirementsError: an emulator could not be downloaded.
        DemoError: an upload failed, or an image has no document.
    """
    uploads = plan_uploads(images)
    names = {upload.name for upload in uploads}
    output.mkdir(parents=True, exist_ok=True)  # before the work: it may be read-only
    find_programs()  # a download is shown before the next line
    click.echo("Starting the Pub/Sub, Firestore and Cloud Storage emulators and the service ...")
    with Stack(StackOptions(model_path=model)) as stack:
        os.environ.update(stack.environment)  # for the clients below, and for gcloud
        click.echo(f"Uploaded with {upload_images(stack.bucket, images, uploads)}")
        settings = replace(Settings.from_env(), firestore_timeout_seconds=_READ_SECONDS)
        reader = build_reader(settings)
        with progress("Waiting for documents", len(names)) as bar:
            documents = wait_for_documents(
                reader, stack.bucket, names, on_progress=bar.advance, check=stack.raise_if_dead
            )
        _show(uploads, documents, output)
        if not names - documents.keys():
            offer_gallery()
    if missing := sorted(names - documents.keys()):
        shown = ", ".join(missing[:_SHOWN_NAMES])
        more = f" and {len(missing) - _SHOWN_NAMES} more" if len(missing) > _SHOWN_NAMES else ""
        raise DemoError(f"No document for {shown}{more}")


def offer_gallery() -> None:
    """Open the gallery, until Ctrl-C, if a person at the terminal presses Enter."""
    if not (can_ask() and is_terminal(sys.stdout)):
        return
    try:
        click.echo("\nPress Enter to look at the results in a browser, Ctrl-C to stop.")
        input()
        show(topic=JOBS_TOPIC, is_opened=True)
    except (EOFError, KeyboardInterrupt):
        click.echo()


def _show(
    uploads: Collection[Upload], documents: Mapping[str, Mapping[str, Any]], output: Path
) -> None:
    """Print the documents, and save them with annotated copies of the images."""
    click.echo()
    say_results(documents[name] for name in sorted(documents))
    saved = save_annotated_images(uploads, documents, output)
    lines = (f"{json_line(documents[name])}\n" for name in sorted(documents))
    (output / _DOCUMENTS).write_text("".join(lines), encoding="utf-8")
    click.echo(f"\n{len(documents)} of {len(uploads)} uploads have their document.")
    click.echo(f"{saved} annotated images are in {output}/")
    click.echo(f"The documents are in {output / _DOCUMENTS}")


def plan_uploads(source: Path) -> list[Upload]:
    """List the objects that copying a file or folder to `gs://BUCKET/demo/` creates.

    Raises:
        DemoError: the folder has no files.
    """
    if source.is_file():
        return [Upload(source, f"{_PREFIX}/{source.name}")]
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if not files:
        raise DemoError(f"There are no images in {source}")
    return [Upload(file, f"{_PREFIX}/{file.relative_to(source.parent)}") for file in files]


def upload_images(bucket: str, source: Path, uploads: Iterable[Upload]) -> str:
    """Upload with `gcloud storage cp`, or with the Python client where `gcloud` cannot do it.

    Returns:
        What was used, for the user to read.

    Raises:
        DemoError: `gcloud` failed. The message has its output.
    """
    command = upload_command([source], f"gs://{bucket}/{_PREFIX}/")
    if command is None:
        client = storage.Client()
        for upload in uploads:
            client.bucket(bucket).blob(upload.name).upload_from_filename(upload.file)
        if shutil.which("gcloud"):
            return f"the Python client: gcloud would read {source.name!r} as a pattern"
        return "the Python client: gcloud is not installed"
    completed = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_UPLOAD_SECONDS,
        check=False,
    )
    if completed.returncode:
        raise DemoError(f"{' '.join(command[:3])} failed:\n{completed.stdout.strip()}")
    return " ".join(command)


def wait_for_documents(
    reader: ResultReader,
    bucket: str,
    names: set[str],
    *,
    on_progress: Callable[[int], None],
    check: Callable[[], None],
) -> dict[str, Mapping[str, Any]]:
    """Wait until every object has its document, or until no new document comes for 90 seconds.

    Args:
        reader: reads the documents.
        bucket: the bucket of the uploads.
        names: the names of the objects.
        on_progress: called with the number of new documents.
        check: called repeatedly. Raises if waiting has become useless.

    Returns:
        The documents by object name. Some are missing if no new document came for too long.
    """
    documents: dict[str, Mapping[str, Any]] = {}
    last_progress_at = time.monotonic()
    while len(documents) < len(names) and time.monotonic() - last_progress_at < _PATIENCE_SECONDS:
        stored = {document["name"]: document for document in reader.results(bucket, f"{_PREFIX}/")}
        new = {name: stored[name] for name in names & stored.keys() - documents.keys()}
        if new:
            documents.update(new)
            on_progress(len(new))
            last_progress_at = time.monotonic()
        else:
            check()
            time.sleep(_POLL_SECONDS)
    return documents


def save_annotated_images(
    uploads: Iterable[Upload], documents: Mapping[str, Mapping[str, Any]], output: Path
) -> int:
    """Write an annotated copy of each image whose document is `done`. Return their number."""
    count = 0
    for upload in uploads:
        document = documents.get(upload.name)
        if document and document["status"] == "done":
            folder = output / Path(upload.name).relative_to(_PREFIX).parent
            save_annotated(
                upload.file, document, folder / annotated_name(upload.file, [upload.file])
            )
            count += 1
    return count
