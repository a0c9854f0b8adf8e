"""The demo: upload pictures with the ordinary tool, wait for their documents, show them."""

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from devtools.local_stack.client_environment import upload_command
from devtools.local_stack.errors import LocalStackError
from devtools.local_stack.stack import Stack, StackOptions
from service.cli.report import table
from service.gcp.clients import build_reader
from service.gcp.result_reader import ResultReader
from service.operate.detect import annotated_name, save_annotated
from service.settings import Settings

_PREFIX = "demo"
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 90.0  # without one new document
_SHOWN_NAMES = 5
_UPLOAD_SECONDS = 600.0


class DemoError(LocalStackError):
    """The demo did not end as it should; the message says why."""


@dataclass(frozen=True)
class Upload:
    """One picture of the demo: its file, and the name of its object."""

    file: Path
    name: str


def run_demo(images: Path, model: Path | None, output: Path) -> None:
    """Run the whole way once: stack, upload, documents, table, annotated pictures.

    Args:
        images: a picture, or a folder of them.
        model: what the service loads; None for the bundled model.
        output: folder for annotated pictures.

    Raises:
        MissingRequirementsError: something must be installed first.
        DemoError: an upload failed, or has no document.
    """
    uploads = plan_uploads(images)
    names = {item.name for item in uploads}
    click.echo("Starting the Pub/Sub, Firestore and Cloud Storage emulators and the service ...")
    with Stack(StackOptions(model_path=model)) as stack:
        os.environ.update(stack.environment)  # for the clients below and the upload's tool
        click.echo(f"Uploaded with {upload(stack.bucket, images, uploads)}")
        store = build_reader(Settings.from_env())
        with click.progressbar(length=len(names), label="Documents", show_pos=True) as bar:
            documents = wait_for_documents(
                store, stack.bucket, names, on_progress=bar.update, check=stack.raise_if_dead
            )
    click.echo("\n" + table(documents[name] for name in sorted(documents)))
    saved = save_pictures(uploads, documents, output)
    click.echo(f"\n{len(documents)} of {len(names)} uploads have their document.")
    click.echo(f"{saved} annotated pictures are in {output}/")
    if missing := sorted(names - documents.keys()):
        shown = ", ".join(missing[:_SHOWN_NAMES])
        more = f" and {len(missing) - _SHOWN_NAMES} more" if len(missing) > _SHOWN_NAMES else ""
        raise DemoError(f"No document for {shown}{more}")


def plan_uploads(source: Path) -> list[Upload]:
    """List what copying a file or folder to `gs://BUCKET/demo/` uploads.

    Raises:
        DemoError: there is nothing to upload.
    """
    if source.is_file():
        return [Upload(source, f"{_PREFIX}/{source.name}")]
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if not files:
        raise DemoError(f"There are no pictures in {source}")
    return [Upload(file, f"{_PREFIX}/{file.relative_to(source.parent)}") for file in files]


def upload(bucket: str, source: Path, uploads: Iterable[Upload]) -> str:
    """Upload with `gcloud storage cp`, else `gsutil cp`, else the client; say with which.

    Raises:
        DemoError: the tool failed.
    """
    command = upload_command([source], f"gs://{bucket}/{_PREFIX}/")
    if command is None:
        _upload_with_client(bucket, uploads)
        return "the Python client (no gcloud or gsutil, or a name that they take as a pattern)"
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_UPLOAD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise DemoError(f"{' '.join(command[:3])} failed:\n{done.stdout.strip()}")
    return " ".join(command)


def _upload_with_client(bucket: str, uploads: Iterable[Upload]) -> None:
    from google.cloud import storage

    client = storage.Client()
    for item in uploads:
        client.bucket(bucket).blob(item.name).upload_from_filename(item.file)


def wait_for_documents(
    store: ResultReader,
    bucket: str,
    names: set[str],
    *,
    on_progress: Callable[[int], None],
    check: Callable[[], None],
) -> dict[str, Mapping[str, Any]]:
    """Wait until every name has its document, or none has come for a while.

    Args:
        store: the results.
        bucket: the bucket of the uploads.
        names: the objects' names.
        on_progress: called with how many documents are new.
        check: called now and then; raises when waiting has become useless.

    Returns:
        The documents by name; fewer than names if patience ran out.
    """
    found: dict[str, Mapping[str, Any]] = {}
    last_news = time.monotonic()
    while len(found) < len(names) and time.monotonic() - last_news < _PATIENCE_SECONDS:
        documents = {d["name"]: d for d in store.results(bucket, f"{_PREFIX}/")}
        news = {n: d for n, d in documents.items() if n in names and n not in found}
        if news:
            found.update(news)
            on_progress(len(news))
            last_news = time.monotonic()
        else:
            check()
            time.sleep(_POLL_SECONDS)
    return found


def save_pictures(
    uploads: Iterable[Upload], documents: Mapping[str, Mapping[str, Any]], output: Path
) -> int:
    """Write annotated copies of the pictures that have done documents; say how many."""
    count = 0
    for item in uploads:
        document = documents.get(item.name)
        if document and document["status"] == "done":
            place = Path(item.name).relative_to(_PREFIX).parent
            name = annotated_name(item.file, [item.file])
            save_annotated(item.file, document, output / place / name)
            count += 1
    return count
