"""`yolo-batch reconcile`: the objects of a bucket compared with their documents."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.commands import command, option
from service.cli.options import (
    deployment_options,
    json_option,
    objects_argument,
    price_options,
    topic_option,
)
from service.cli.output import can_ask, note, page_progress, progress, say, say_json
from service.cli.report import bucket_note, pace_note, pattern_note
from service.deadline import NO_DEADLINE
from service.errors import YoloBatchError
from service.settings import Settings
from service.sources.current import current_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.domain import ImageRef, Replace
    from service.gcp.last_run import LastRun
    from service.operate.backfill import Deployment, Estimate
    from service.operate.reconcile import Enqueue, Publish, Scope, Tally

_CALL_SECONDS = 60.0  # Firestore is retried longer than in the service, which has a deadline
_PUBLISH = "Publish jobs"


@command(
    panel="Data",
    examples=[
        "yolo-batch reconcile gs://my-bucket/2026/ --enqueue missing --dry-run",
        "yolo-batch reconcile gs://my-bucket --enqueue failed --yes --resume state",
        "yolo-batch reconcile gs://my-bucket --enqueue parked --limit 10000 --yes",
    ],
)
@objects_argument
@option(
    "--since",
    help="Compare only objects created since then: an age such as 2d or 12h, a time (RFC 3339), or "
    "gs://bucket/object. A successful --enqueue run writes its start time to this object. The "
    "next run compares from that time on, or from two days ago if that is earlier.  "
    "[default: compare all objects]",
)
@option(
    "--model-sha256",
    help="SHA-256 of the deployed model, as its documents name it. By default, that of the model "
    "at MODEL_PATH, if MODEL_PATH is set.",
)
@json_option("the counts, since, model_sha256, enqueue, estimate, published, topic")
@option(
    "--enqueue",
    panel=_PUBLISH,
    multiple=True,
    type=click.Choice(["missing", "failed", "stale", "parked", "all"]),
    help="Publish jobs for images without a document (missing), with a failed document (failed), "
    "with a document by another model or in another schema (stale), that were parked by "
    "DAILY_IMAGE_LIMIT (parked), or for all four. Beside another value, parked may be given too. "
    "Alone, it compares nothing: it reads only the documents of parked images.",
)
@option(
    "--limit",
    panel=_PUBLISH,
    type=click.IntRange(0),
    help="Publish jobs for at most this many parked images, the oldest first. By default, what "
    "DAILY_IMAGE_LIMIT leaves of the day, if it is set, after the other jobs.",
)
@option(
    "--dry-run",
    panel=_PUBLISH,
    is_flag=True,
    help="Publish nothing: print what --enqueue would publish, how long it takes and what it "
    "costs.",
)
@option("--yes", panel=_PUBLISH, is_flag=True, help="Publish in one pass, and do not ask first.")
@topic_option(_PUBLISH)
@option(
    "--resume",
    panel=_PUBLISH,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the position of the run in this file. If the run stops, the same command continues "
    "from this position.",
)
@deployment_options(*price_options)
def reconcile(
    uri: tuple[str, str],
    enqueue: tuple[str, ...],
    limit: int | None,
    since: str | None,
    dry_run: bool,
    yes: bool,
    topic: str,
    model_sha256: str | None,
    resume: Path | None,
    as_json: bool,
    **deployed: Any,
) -> None:
    """Find objects without a result, and publish jobs for them.

    Compares a bucket with Firestore, and counts the objects that are done, failed, parked, missing,
    disabled and ignored. An object is disabled if its source is. Objects older than --since are
    counted, but not compared. It is safe to run it twice, or while images are uploaded.
    """
    from service.operate.backfill import Deployment
    from service.operate.reconcile import Scope, Tally, last_run, load

    started_at = datetime.now(UTC)
    settings = Settings.from_env()
    bucket, prefix = uri
    wanted = _wanted(enqueue)
    is_parked_wanted = bool({"parked", "all"} & set(enqueue))
    if dry_run and not enqueue:
        raise click.UsageError("--dry-run needs --enqueue: without it nothing is published anyway")
    if limit is not None and not is_parked_wanted:
        raise click.UsageError("--limit needs --enqueue parked")
    if since and enqueue and not wanted:
        raise click.UsageError("--since has no effect: --enqueue parked alone compares nothing")
    is_publishing = bool(enqueue) and not dry_run
    if is_publishing and not yes and not can_ask():
        raise click.UsageError(
            "Standard input is not a terminal, so you cannot be asked: give --yes to publish, or "
            "--dry-run"
        )
    model = _model(model_sha256, settings)
    if wanted and wanted.needs_model and not model:
        raise click.UsageError(
            f"--enqueue {wanted} needs the deployed model: give --model-sha256, or set MODEL_PATH"
        )
    scope = Scope(bucket, prefix, model, wanted, is_parked_wanted, since)
    tally = Tally()
    if resume:
        started_at, tally = load(resume, scope, started_at)
    kept = _last_run(since, settings)
    oldest = _oldest(scope, kept, started_at)
    run = _Run(scope, settings, topic, Deployment(**deployed), oldest, limit)
    show = note if as_json else say
    if tally.after:
        note(f"Continuing after {tally.after!r}, {tally.objects:,} objects")
    hint = f"To continue, run the same command again: {resume} has the position." if resume else ""
    try:
        if not is_publishing:
            counted = run.count(tally)
            if as_json:
                run.note_pattern(counted)
                say_json(run.report(counted, published=None))
            else:
                run.show(counted, show)
            return
        if not yes:
            counted = run.count(replace(tally))
            run.show(counted, show)
            if counted.selected > tally.selected:
                click.confirm(f"Publish these jobs to {run.topic}?", abort=True, err=True)
        final = run.publish(tally, resume, started_at)
        if kept:
            kept.write(last_run(scope, started_at))
    except (YoloBatchError, KeyboardInterrupt):
        if hint:
            note(f"\n{hint}")
        raise
    if resume:
        resume.unlink(missing_ok=True)
    if as_json:
        say_json(run.report(final, published=final.selected))
        return
    if yes:
        run.show(final, show)
    say(f"Published {final.selected:,} jobs to {run.topic}")


class _Run:
    """One run, connected to Cloud Storage, Firestore and Pub/Sub."""

    def __init__(
        self,
        scope: "Scope",
        settings: Settings,
        topic: str,
        deployment: "Deployment",
        oldest: datetime | None,
        limit: int | None,
    ) -> None:
        from service.gcp.clients import build_reader, build_source_store
        from service.gcp.listing import connect_lister
        from service.gcp.publisher import topic_path
        from service.operate.parked import LOOKUPS

        self._scope = scope
        self._deployment = deployment
        self._oldest = oldest
        self._limit = limit
        self._settings = replace(settings, firestore_timeout_seconds=_CALL_SECONDS)
        self._objects = connect_lister(settings.google_cloud_project, connections=LOOKUPS)
        self._store = build_reader(self._settings)
        self._sources = current_sources(build_source_store(self._settings), settings)
        project = settings.google_cloud_project or self._store.project
        self.topic = topic_path(topic, project)
        if warning := bucket_note(scope.bucket, settings.allowed_buckets):
            note(warning)
        self._ttl = _results_ttl(scope, settings, project)

    def count(self, tally: "Tally") -> "Tally":
        """Compare without publishing. Return the counts."""
        tally = self._compare("Comparing", tally)
        tally.selected += len(self._parked(tally))
        return tally

    def publish(self, tally: "Tally", resume: Path | None, started_at: datetime) -> "Tally":
        """Compare, publish jobs, and keep the position in `resume`. Return the counts."""
        from service.operate.reconcile import save

        if resume:
            # Write the file before the first job is published, because it may not be writable.
            save(resume, self._scope, started_at, tally)

        def checkpoint(current: "Tally") -> None:
            if resume:
                save(resume, self._scope, started_at, current)

        publish = self._publisher()
        tally = self._compare(
            "Comparing and publishing", tally, publish=publish, checkpoint=checkpoint
        )
        if uris := self._parked(tally):
            publish(uris, None)
        tally.selected += len(uris)
        return tally

    def _compare(self, text: str, tally: "Tally", **hooks: Any) -> "Tally":
        """Compare the bucket with the documents, unless only parked images get jobs."""
        from service.operate.reconcile import reconcile as compare

        if not self._scope.is_compared:
            return tally
        with page_progress(text, _counts) as progressed:
            return compare(
                self._scope,
                self._objects,
                self._store,
                since=self._oldest,
                results_ttl=self._ttl,
                is_enabled=self._is_enabled,
                tally=tally,
                progressed=progressed,
                **hooks,
            )

    def _parked(self, tally: "Tally") -> list[str]:
        """Return the URIs of the parked images that get a job, beside those of the tally."""
        from service.operate.parked import continuable

        if not self._scope.parked:
            return []
        limit = self._limit
        if limit is None and self._settings.daily_image_limit:
            from service.gcp.clients import build_daily_count

            counted = build_daily_count(self._settings).read(datetime.now(UTC).date())
            limit = max(0, self._settings.daily_image_limit - counted - tally.selected)
        if limit == 0:  # do not pay for reading every parked document
            return []
        with progress("Looking up parked images"):
            parked = ((at, ref) for at, ref in self._store.parked() if self._is_enabled(ref))
            refs = continuable(
                parked,
                self._objects.exists,
                bucket=self._scope.bucket,
                prefix=self._scope.prefix,
                limit=limit,
            )
        return [f"{ref.uri}#{ref.generation}" for ref in refs]

    def _is_enabled(self, ref: "ImageRef") -> bool:
        return self._sources.settings_of(ref, NO_DEADLINE).is_enabled

    def _publisher(self) -> "Publish":
        from service.gcp.publisher import connect, job_message, publish_jobs
        from service.operate.backfill import token_bucket

        client, tokens = connect(), token_bucket(self._deployment)

        def publish(uris: "Sequence[str]", permission: "Replace | None") -> None:
            jobs = (job_message(uri, permission) for uri in tokens.paced(uris))
            publish_jobs(client, self.topic, jobs)

        return publish

    def show(self, tally: "Tally", show: "Callable[[str], None]") -> None:
        """Print the counts, and how long jobs for them take and what they cost."""
        scope = self._scope
        if scope.is_compared:
            parked = f" + {tally.parked:,} parked" if tally.parked else ""
            disabled = f" + {tally.disabled:,} disabled" if tally.disabled else ""
            older = f" + {tally.older:,} older" if self._oldest or self._ttl else ""
            show(
                f"{scope.uri}: {tally.objects:,} objects = {tally.done:,} done + {tally.failed:,} "
                f"failed{parked} + {tally.missing:,} missing{disabled} + "
                f"{tally.ignored:,} ignored{older}"
            )
            self.note_pattern(tally)
        if self._oldest:
            show(
                f"Objects created before {self._oldest:%Y-%m-%dT%H:%M:%SZ} were not compared. "
                "Without --since, all objects are compared."
            )
        if scope.model and scope.is_compared:
            show(
                f"{tally.stale:,} of the done objects are by another model than {scope.model}, or "
                "in another schema"
            )
        if scope.enqueued:
            estimate = self._estimate(tally)
            show(
                f"--enqueue {scope.enqueued}: {estimate.images:,} images, about "
                f"{estimate.minutes:,.1f} minutes on {self._deployment.instances} instances of "
                f"{self._deployment.instance_rate:g} images/s, {estimate.dollars:,.2f} USD"
            )
            if pace := pace_note(estimate, self._deployment):
                show(pace)

    def note_pattern(self, tally: "Tally") -> None:
        """Print a note if no object has the prefix, and the prefix looks like a pattern."""
        if not tally.objects and (hint := pattern_note(self._scope.prefix)):
            note(hint)

    def report(self, tally: "Tally", published: int | None) -> dict[str, object]:
        """Return what `show` prints, for JSON. `published` is None without publishing."""
        scope = self._scope
        estimate = None
        if scope.enqueued:
            estimated = self._estimate(tally)
            estimate = {
                "images": estimated.images,
                "minutes": round(estimated.minutes, 2),
                "usd": round(estimated.dollars, 4),
            }
        return {
            "uri": scope.uri,
            "objects": tally.objects,
            "done": tally.done,
            "failed": tally.failed,
            "parked": tally.parked,
            "missing": tally.missing,
            "disabled": tally.disabled,
            "ignored": tally.ignored,
            "older": tally.older,
            "stale": tally.stale if scope.model else None,  # among the done
            "since": self._oldest,
            "model_sha256": scope.model,
            "enqueue": scope.enqueued,
            "estimate": estimate,
            "published": published,
            "topic": self.topic if published is not None else None,
        }

    def _estimate(self, tally: "Tally") -> "Estimate":
        from service.operate.backfill import backfill_estimate

        return backfill_estimate(tally.selected, self._deployment)


def _last_run(since: str | None, settings: Settings) -> "LastRun | None":
    """Connect to the object that `--since` names, or return None if it names no object.

    Raises:
        click.BadParameter: it names a bucket, or a generation of an object.
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
    """Return the creation time from which objects are compared, or None to compare all.

    Raises:
        click.BadParameter: `--since` is neither an age nor a time.
        ResumeError: the object that `--since` names was written by a run of another scope.
    """
    from service.operate.reconcile import last_started_at, parse_since, since_last

    if kept:
        last = last_started_at(scope, kept.read())
        if not last:
            note(
                "No successful run is recorded: the last two days are compared. Run it once "
                "without --since to compare all objects."
            )
        return since_last(last, started_at)
    if scope.since is None:
        return None
    try:
        since = parse_since(scope.since)
        return started_at - since if isinstance(since, timedelta) else since
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(
            "it must be an age (2d, 12h), a time with its zone (2026-11-21T00:00:00Z) or "
            "gs://bucket/object",
            param_hint="--since",
        ) from exc


def _wanted(enqueue: "Sequence[str]") -> "Enqueue | None":
    """Return which compared objects get a job: what `--enqueue` names beside parked images.

    Raises:
        click.UsageError: it names several of them.
    """
    from service.operate.reconcile import Enqueue

    compared = set(enqueue) - {"parked"}
    if len(compared) > 1:
        raise click.UsageError(
            "--enqueue can be given twice only if one value is parked. For all, give --enqueue all"
        )
    return Enqueue(compared.pop()) if compared else None


def _results_ttl(scope: "Scope", settings: Settings, project: str) -> timedelta | None:
    """Return when results expire after their creation, or None if they do not.

    Firestore is asked only if missing objects are enqueued. If it does not report it, a warning is
    printed, because jobs may process images again whose results expired.
    """
    from service.gcp.expiry import UnknownExpiryError, connect, results_ttl
    from service.operate.reconcile import State

    if not scope.enqueue or State.MISSING not in scope.enqueue.states:
        return None
    if not (client := connect()):
        return None
    try:
        ttl = results_ttl(
            client, project, settings.firestore_database, settings.firestore_collection
        )
    except UnknownExpiryError as exc:
        note(
            f"Warning: results may expire ({exc}). An image whose document has expired, or was "
            "deleted, counts as missing and is processed again. --since leaves old objects out."
        )
        return None
    if ttl is not None:
        note(
            f"Results expire after {ttl / timedelta(days=1):g} days, so older objects are not "
            "compared. `yolo-batch submit` processes them again."
        )
    return ttl


def _model(sha256: str | None, settings: Settings) -> str | None:
    """Return the sha256 of the deployed model, or None if neither option nor MODEL_PATH names it.

    Without MODEL_PATH, the bundled model is not assumed, because nobody deploys it.
    """
    from service.events import is_sha256
    from service.inference.identity import sha256_of_model

    if sha256:
        if not is_sha256(sha256):
            raise click.BadParameter(
                "it must be 64 hexadecimal digits in lower case", param_hint="--model-sha256"
            )
        return sha256
    return sha256_of_model(settings.model_path) if os.environ.get("MODEL_PATH") else None


def _counts(tally: "Tally") -> str:
    return f"{tally.objects:,} objects, {tally.missing:,} missing, {tally.failed:,} failed"
