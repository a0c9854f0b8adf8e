"""`yolo-batch reconcile`: what a bucket holds against what is recorded."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.commands.options import topic_option
from service.errors import YoloBatchError
from service.report import bucket_note, pattern_note
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.domain import Replace
    from service.pace import Pace
    from service.reconcile import Publish, Scope, Tally

_CALL_SECONDS = 60.0  # how long Firestore is retried; nobody's request waits for us
_PAGES_A_LINE = 20  # of the progress where it is a log, not a terminal


@click.command()
@click.argument("uri")
@click.option(
    "--enqueue",
    type=click.Choice(["missing", "failed", "stale", "all"]),
    help="Publish jobs for pictures without a document, for failed ones, for those that another "
    "model recorded, or for all three.",
)
@click.option(
    "--dry-run", is_flag=True, help="Only say what --enqueue would publish, take and cost."
)
@click.option("--yes", is_flag=True, help="Publish without being asked, and in one pass.")
@topic_option
@click.option(
    "--model-sha256",
    help="The deployed model, as its documents name it; by default the one at MODEL_PATH, if set.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File that keeps the place: given again after a stop, the run goes on from there.",
)
@click.option(
    "--cpu-ms",
    default=80.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="CPU time of one picture in the service, in milliseconds.",
)
@click.option(
    "--vcpu",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="vCPUs of one instance.",
)
@click.option(
    "--pictures-per-second",
    type=click.FloatRange(0.001),
    help="Of one instance; by default what --cpu-ms and --vcpu allow. Messages are sized by it.",
)
@click.option(
    "--concurrency",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Requests that one instance gets at once. Messages are sized by it.",
)
@click.option(
    "--instances",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Instances at work at once.",
)
@click.option(
    "--instance-price",
    type=click.FloatRange(0),
    help="USD an hour of one instance; by default Cloud Run's in us-central1 for --vcpu and a GiB "
    "each, at least two.",
)
@click.option(
    "--picture-price",
    default=0.0000016,
    show_default="1.6e-06",
    type=click.FloatRange(0),
    help="USD that Firestore and Cloud Storage take for one picture.",
)
def reconcile(
    uri: str,
    enqueue: str | None,
    dry_run: bool,
    yes: bool,
    topic: str,
    model_sha256: str | None,
    resume: Path | None,
    **pace_options: Any,
) -> None:
    """Compare gs://bucket[/prefix] with Firestore; publish jobs for what is to be done.

    Says how many of the live objects are done, failed, missing and ignored. Safe to run twice and
    beside uploads.
    """
    from service.pace import Pace
    from service.reconcile import Enqueue, Scope, Tally, load

    settings = Settings.from_env()
    bucket, _, prefix = uri.removeprefix("gs://").partition("/")
    if not uri.startswith("gs://") or not bucket:
        raise click.BadParameter("it must be gs://bucket or gs://bucket/prefix", param_hint="URI")
    wanted = Enqueue(enqueue) if enqueue else None
    if dry_run and not wanted:
        raise click.UsageError("--dry-run needs --enqueue: without it nothing is published anyway")
    is_publishing = wanted is not None and not dry_run
    if is_publishing and not yes and not _can_ask():
        raise click.UsageError("Nobody can be asked here: give --yes to publish, or --dry-run")
    model = _model(model_sha256, settings)
    if wanted and wanted.asks_for_model and not model:
        raise click.UsageError(
            f"--enqueue {wanted} needs the deployed model: give --model-sha256, or set MODEL_PATH"
        )
    scope = Scope(bucket, prefix, model, wanted)
    tally = load(resume, scope) if resume else Tally()
    run = _Run(scope, settings, topic, Pace(**pace_options))
    if tally.after:
        click.echo(f"Going on after {tally.after!r}, {tally.objects:,} objects", err=True)
    try:
        if not is_publishing:
            run.show(run.count(tally))
            return
        if not yes:
            counted = run.count(replace(tally))
            run.show(counted)
            if counted.selected > tally.selected:
                click.confirm(f"Publish these jobs to {run.topic}?", abort=True)
        final = run.publish(tally, resume)
    except YoloBatchError as exc:
        hint = f"\nGo on with the same command: {resume} keeps the place." if resume else ""
        raise click.ClickException(f"{exc}{hint}") from exc
    if resume:
        resume.unlink(missing_ok=True)
    if yes:
        run.show(final)
    click.echo(
        f"Published {final.selected:,} pictures in {final.messages:,} messages to {run.topic}"
    )


class _Run:
    """The parts of one run, connected."""

    def __init__(self, scope: "Scope", settings: Settings, topic: str, pace: "Pace") -> None:
        from service.main import build_store
        from service.publisher import topic_path
        from service.storage import connect_lister

        self._scope = scope
        self._pace = pace
        self._objects = connect_lister(settings.google_cloud_project)
        self._store = build_store(replace(settings, firestore_timeout_seconds=_CALL_SECONDS))
        project = settings.google_cloud_project or self._store.project
        self.topic = topic_path(topic, project)
        if note := bucket_note(scope.bucket, settings.allowed_buckets):
            click.echo(note, err=True)

    def count(self, tally: "Tally") -> "Tally":
        """Compare, and publish nothing."""
        from service.reconcile import reconcile as compare

        return compare(self._scope, self._objects, self._store, tally=tally, progressed=_progress())

    def publish(self, tally: "Tally", resume: Path | None) -> "Tally":
        """Compare, and publish jobs."""
        from service.reconcile import reconcile as compare
        from service.reconcile import save

        if resume:
            save(resume, self._scope, tally)  # before anything is published: it may be refused
        return compare(
            self._scope,
            self._objects,
            self._store,
            tally=tally,
            publish=self._publisher(),
            uris_per_message=self._pace.uris_per_message,
            progressed=_progress(),
            checkpoint=lambda now: save(resume, self._scope, now) if resume else None,
        )

    def _publisher(self) -> "Publish":
        from service.publisher import connect, job_messages, publish_jobs

        client = connect()

        def publish(uris: "Sequence[str]", rerun: "Replace | None") -> int:
            messages = job_messages(uris, uris_per_message=self._pace.uris_per_message, rerun=rerun)
            return len(publish_jobs(client, self.topic, messages))

        return publish

    def show(self, tally: "Tally") -> None:
        """Print the counts, and what jobs for them take."""
        scope = self._scope
        if sys.stderr.isatty():
            click.echo(err=True)  # the end of the progress's line
        click.echo(
            f"{scope.uri}: {tally.objects:,} objects = {tally.done:,} done + {tally.failed:,} "
            f"failed + {tally.missing:,} missing + {tally.ignored:,} ignored"
        )
        if not tally.objects and (note := pattern_note(scope.prefix)):
            click.echo(note, err=True)
        if scope.model:
            click.echo(f"{tally.stale:,} of the done are by another model than {scope.model}")
        if scope.enqueue:
            estimate = self._pace.estimate(tally.selected)
            click.echo(
                f"--enqueue {scope.enqueue}: {estimate.pictures:,} pictures, about "
                f"{estimate.messages:,} messages, {estimate.minutes:,.1f} minutes on "
                f"{self._pace.instances} instances of {self._pace.rate:g} pictures/s, "
                f"{estimate.dollars:,.2f} USD"
            )


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _model(sha256: str | None, settings: Settings) -> str | None:
    """Return the deployed model's sha256; None where nothing names it.

    The bundled model, MODEL_PATH's default, is nobody's deployed one.
    """
    from service.detector.identity import sha256_of_model
    from service.events import is_sha256

    if sha256:
        if not is_sha256(sha256):
            raise click.BadParameter(
                "it must be 64 hexadecimal digits in small letters", param_hint="--model-sha256"
            )
        return sha256
    return sha256_of_model(settings.model_path) if os.environ.get("MODEL_PATH") else None


def _progress() -> "Callable[[Tally], None]":
    """Say on stderr how far the listing is: its length is known only at its end."""
    is_terminal = sys.stderr.isatty()
    pages = 0

    def show(tally: "Tally") -> None:
        nonlocal pages
        pages += 1
        if is_terminal:
            click.echo(f"\r{_short(tally)} ", nl=False, err=True)
        elif pages % _PAGES_A_LINE == 0:
            click.echo(_short(tally), err=True)

    return show


def _short(tally: "Tally") -> str:
    return f"{tally.objects:,} objects, {tally.missing:,} missing, {tally.failed:,} failed"
