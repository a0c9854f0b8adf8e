"""`yolo-batch reconcile`: what a bucket holds against what is recorded."""

import os
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import bucket_argument, deployment_options, topic_option
from service.cli.report import bucket_note, pace_note, pattern_note
from service.errors import YoloBatchError
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.domain import Replace
    from service.gcp.last_run import LastRun
    from service.operate.backfill import Deployment
    from service.operate.reconcile import Publish, Scope, Tally

_CALL_SECONDS = 60.0  # how long Firestore is retried; nobody's request waits for us
_PAGES_A_LINE = 20  # of the progress where it is a log, not a terminal


@click.command()
@bucket_argument
@click.option(
    "--enqueue",
    type=click.Choice(["missing", "failed", "stale", "all"]),
    help="Publish jobs for images without a document, for failed ones, for those that another "
    "model recorded, or for all three.",
)
@click.option(
    "--since",
    help="Compare only objects created since: an age such as 2d or 12h, a time (RFC 3339), or "
    "gs://bucket/object. This object keeps when the last successful run with --enqueue started, "
    "and is written by this option; the comparison goes back to it, but at least two days.  "
    "[default: compare all objects]",
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
@deployment_options
@click.option(
    "--instance-price",
    type=click.FloatRange(0),
    help="USD an hour of one instance; by default Cloud Run's in us-central1 for --vcpu and a GiB "
    "each, at least two.",
)
@click.option(
    "--image-price",
    default=0.0000016,
    show_default="1.6e-06",
    type=click.FloatRange(0),
    help="USD that Firestore and Cloud Storage take for one image.",
)
def reconcile(
    uri: tuple[str, str],
    enqueue: str | None,
    since: str | None,
    dry_run: bool,
    yes: bool,
    topic: str,
    model_sha256: str | None,
    resume: Path | None,
    **deployed: Any,
) -> None:
    """Compare gs://bucket[/prefix] with Firestore; publish jobs for what is to be done.

    Says how many of the live objects are done, failed, missing and ignored, and how many are older
    than --since and were not compared. Safe to run twice and beside uploads.
    """
    from service.operate.backfill import Deployment
    from service.operate.reconcile import Enqueue, Scope, Tally, last_run, load

    started_at = datetime.now(UTC)
    settings = Settings.from_env()
    bucket, prefix = uri
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
    scope = Scope(bucket, prefix, model, wanted, since)
    tally = Tally()
    if resume:
        started_at, tally = load(resume, scope, started_at)
    kept = _last_run(since, settings)
    oldest = _oldest(scope, kept, started_at)
    run = _Run(scope, settings, topic, Deployment(**deployed), oldest)
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
        final = run.publish(tally, resume, started_at)
        if kept:
            kept.write(last_run(scope, started_at))
    except YoloBatchError as exc:
        hint = f"\nGo on with the same command: {resume} keeps the place." if resume else ""
        raise click.ClickException(f"{exc}{hint}") from exc
    if resume:
        resume.unlink(missing_ok=True)
    if yes:
        run.show(final)
    click.echo(f"Published {final.selected:,} jobs to {run.topic}")


class _Run:
    """The parts of one run, connected."""

    def __init__(
        self,
        scope: "Scope",
        settings: Settings,
        topic: str,
        deployment: "Deployment",
        oldest: datetime | None,
    ) -> None:
        from service.gcp.clients import build_reader
        from service.gcp.listing import connect_lister
        from service.gcp.publisher import topic_path

        self._scope = scope
        self._deployment = deployment
        self._oldest = oldest
        self._objects = connect_lister(settings.google_cloud_project)
        self._store = build_reader(replace(settings, firestore_timeout_seconds=_CALL_SECONDS))
        project = settings.google_cloud_project or self._store.project
        self.topic = topic_path(topic, project)
        if note := bucket_note(scope.bucket, settings.allowed_buckets):
            click.echo(note, err=True)
        if note := _expiry_note(scope, settings, project):
            click.echo(note, err=True)

    def count(self, tally: "Tally") -> "Tally":
        """Compare, and publish nothing."""
        from service.operate.reconcile import reconcile as compare

        return compare(
            self._scope,
            self._objects,
            self._store,
            since=self._oldest,
            tally=tally,
            progressed=_progress(),
        )

    def publish(self, tally: "Tally", resume: Path | None, started_at: datetime) -> "Tally":
        """Compare, and publish jobs."""
        from service.operate.reconcile import reconcile as compare
        from service.operate.reconcile import save

        if resume:
            save(resume, self._scope, started_at, tally)  # before a job is: it may be refused

        def checkpoint(now: "Tally") -> None:
            if resume:
                save(resume, self._scope, started_at, now)

        return compare(
            self._scope,
            self._objects,
            self._store,
            since=self._oldest,
            tally=tally,
            publish=self._publisher(),
            progressed=_progress(),
            checkpoint=checkpoint,
        )

    def _publisher(self) -> "Publish":
        from service.gcp.publisher import connect, job_message, publish_jobs
        from service.operate.backfill import token_bucket

        client, tokens = connect(), token_bucket(self._deployment)

        def publish(uris: "Sequence[str]", wanted: "Replace | None") -> None:
            jobs = (job_message(uri, wanted) for uri in tokens.paced(uris))
            publish_jobs(client, self.topic, jobs)

        return publish

    def show(self, tally: "Tally") -> None:
        """Print the counts, and what jobs for them take."""
        from service.operate.backfill import backfill_estimate

        scope = self._scope
        if sys.stderr.isatty():
            click.echo(err=True)  # the end of the progress's line
        older = f" + {tally.older:,} older" if self._oldest else ""
        click.echo(
            f"{scope.uri}: {tally.objects:,} objects = {tally.done:,} done + {tally.failed:,} "
            f"failed + {tally.missing:,} missing + {tally.ignored:,} ignored{older}"
        )
        if self._oldest:
            click.echo(
                f"Objects created before {self._oldest:%Y-%m-%dT%H:%M:%SZ} were not compared. "
                "Without --since all are."
            )
        if not tally.objects and (note := pattern_note(scope.prefix)):
            click.echo(note, err=True)
        if scope.model:
            click.echo(f"{tally.stale:,} of the done are by another model than {scope.model}")
        if scope.enqueue:
            estimate = backfill_estimate(tally.selected, self._deployment)
            click.echo(
                f"--enqueue {scope.enqueue}: {estimate.images:,} images, about "
                f"{estimate.minutes:,.1f} minutes on {self._deployment.instances} instances of "
                f"{self._deployment.instance_rate:g} images/s, {estimate.dollars:,.2f} USD"
            )
            if note := pace_note(estimate, self._deployment):
                click.echo(note)


def _last_run(since: str | None, settings: Settings) -> "LastRun | None":
    """Connect to the object that `--since` names; None where it names none.

    Raises:
        click.BadParameter: it names a bucket, or an object's generation.
    """
    from service.errors import EnvelopeError
    from service.events import parse_uri
    from service.gcp.last_run import connect

    if not since or not since.startswith("gs://"):
        return None
    try:
        ref = parse_uri(since)
    except EnvelopeError:
        ref = None
    if not ref or ref.generation or ref.is_ignorable:
        raise click.BadParameter("it must be gs://bucket/object", param_hint="--since")
    return connect(ref, settings.google_cloud_project)


def _oldest(scope: "Scope", kept: "LastRun | None", started_at: datetime) -> datetime | None:
    """Return the creation time from which objects are compared; None: all are.

    Raises:
        click.BadParameter: `--since` is neither an age nor a time.
        ResumeError: the object that keeps the last run is of another one.
    """
    from service.operate.reconcile import last_started_at, parse_since, since_last

    if kept:
        last = last_started_at(scope, kept.read())
        if not last:
            click.echo(
                "No successful run is recorded: the last two days are compared. Run it once "
                "without --since to compare all objects.",
                err=True,
            )
        return since_last(last, started_at)
    if scope.since is None:
        return None
    try:
        found = parse_since(scope.since)
        return started_at - found if isinstance(found, timedelta) else found
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(
            "it must be an age (2d, 12h), a time with its zone (2026-11-21T00:00:00Z) or "
            "gs://bucket/object",
            param_hint="--since",
        ) from exc


def _expiry_note(scope: "Scope", settings: Settings, project: str) -> str | None:
    """Return a warning where jobs would bring back results that have expired; None if none would.

    Whether results expire is asked only where it matters: all objects, and missing ones enqueued.
    """
    from service.gcp.expiry import connect, results_expire
    from service.operate.reconcile import State

    if scope.since or not scope.enqueue or State.MISSING not in scope.enqueue.states:
        return None
    if not (client := connect()):
        return None
    expire = results_expire(
        client, project, settings.firestore_database, settings.firestore_collection
    )
    if expire is False:
        return None
    fact = "Results expire" if expire else "Results may expire (Firestore does not say)"
    return (
        f"Warning: {fact}. An image whose document has expired, or was deleted, counts as missing "
        "and is detected again. --since leaves old objects out."
    )


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _model(sha256: str | None, settings: Settings) -> str | None:
    """Return the deployed model's sha256; None where nothing names it.

    The bundled model, MODEL_PATH's default, is nobody's deployed one.
    """
    from service.events import is_sha256
    from service.inference.identity import sha256_of_model

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
