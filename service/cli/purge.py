"""`yolo-batch purge`: the results of deleted objects removed."""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from service.cli.commands import command, option
from service.cli.options import json_option, objects_argument
from service.cli.output import can_ask, note, page_progress, say, say_json
from service.cli.report import no_results_note
from service.errors import YoloBatchError
from service.settings import Settings

if TYPE_CHECKING:
    from service.operate.purge import Tally

_CALL_SECONDS = 60.0  # services are retried longer than in the service, which has a deadline
_AGAIN = "What was removed stays removed. To continue, run the same command again."


@command(
    panel="Data",
    examples=[
        "yolo-batch purge gs://my-bucket/visitors/ --before 2026-11-01 --dry-run",
        "yolo-batch purge gs://my-bucket/visitors/ --before 2026-11-01",
        "yolo-batch purge gs://my-bucket --before 90d --yes --json",
    ],
)
@objects_argument
@option(
    "--before",
    required=True,
    help="Only results whose created_at is earlier: a date (UTC), a time (RFC 3339), or an age "
    "such as 90d or 12h.",
)
@option(
    "--overwritten",
    is_flag=True,
    help="Remove the results of overwritten objects too. Otherwise the results of an object whose "
    "name has a newer generation stay.",
)
@option("--dry-run", is_flag=True, help="Remove nothing: print how many results would be removed.")
@option("--yes", is_flag=True, help="Do not ask first.")
@json_option("uri, before, results, existing, overwritten, deleted, newer, selected, removed")
def purge(
    uri: tuple[str, str], before: str, overwritten: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove the results of images whose objects were deleted.

    Looks up the object of each result. A result is removed only if Cloud Storage responds that the
    object does not exist. Its document and the objects derived from it are removed, but never an
    image. It is safe to run it twice, or while images are uploaded and processed. If
    RESULTS_TOPIC is set, each removal is published there.
    """
    from service.operate.purge import parse_before

    bucket, prefix = uri
    try:
        until = parse_before(before, datetime.now(UTC))
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(
            "it must be a date (2026-11-21), a time with its zone (2026-11-21T00:00:00Z) or an age "
            "(90d, 12h)",
            param_hint="--before",
        ) from exc
    if not (dry_run or yes or can_ask()):
        raise click.UsageError(
            "Standard input is not a terminal, so you cannot be asked: give --yes to remove "
            "results, or --dry-run"
        )
    _check_emulators()
    run = _Run(bucket, prefix, until, with_overwritten=overwritten)
    show = note if as_json else say
    if dry_run:
        tally = run.run("Looking up objects", is_removing=False)
    else:
        if not yes:
            tally = run.run("Looking up objects", is_removing=False)
            run.show(tally, show)
            if tally.selected:
                click.confirm(
                    f"Remove these {tally.selected:,} results? They cannot be restored.",
                    abort=True,
                    err=True,
                )
        try:
            tally = run.run("Removing results", is_removing=True)
        except (YoloBatchError, KeyboardInterrupt):
            note(f"\n{_AGAIN}")
            raise
    if as_json:
        say_json(run.report(tally, removed=None if dry_run else tally.selected))
        return
    if dry_run or yes:
        run.show(tally, show)
    say(
        f"{tally.selected:,} results would be removed"
        if dry_run
        else f"Removed {tally.selected:,} results"
    )


class _Run:
    """One run, connected to Cloud Storage and Firestore."""

    def __init__(
        self, bucket: str, prefix: str, before: datetime, *, with_overwritten: bool
    ) -> None:
        from service.gcp.clients import build_deleter, build_reader, build_storage, build_topic
        from service.operate.purge import LOOKUPS, Remover

        settings = replace(
            Settings.from_env(),
            firestore_timeout_seconds=_CALL_SECONDS,
            storage_timeout_seconds=_CALL_SECONDS,
            max_in_flight=LOOKUPS,
        )
        self._bucket, self._prefix, self._before = bucket, prefix, before
        self._with_overwritten = with_overwritten
        self._results_bucket = settings.results_bucket
        self._reader = build_reader(settings)
        self._objects = build_storage(settings)
        topic = settings.results_topic
        self._remover = Remover(
            build_deleter(settings),
            build_topic(topic, settings, self._reader.project) if topic else None,
        )

    def run(self, text: str, *, is_removing: bool) -> "Tally":
        """Look up the objects of all results, and remove results. Return the counts."""
        from service.operate.purge import purge as remove_deleted

        with page_progress(text, _counts) as progressed:
            return remove_deleted(
                self._reader.images(self._bucket, self._prefix),
                self._objects,
                before=self._before,
                with_overwritten=self._with_overwritten,
                results_bucket=self._results_bucket,
                remove=self._remover.remove if is_removing else None,
                progressed=progressed,
            )

    def show(self, tally: "Tally", show: Callable[[str], None]) -> None:
        """Print the counts, and what to do about the results that stay."""
        if not tally.results:
            note(no_results_note(self._bucket, self._prefix))
            return
        newer = f" + {tally.newer:,} newer than {self._before:%Y-%m-%dT%H:%M:%SZ}"
        show(
            f"gs://{self._bucket}/{self._prefix}: {tally.results:,} results = {tally.deleted:,} of "
            f"deleted objects + {tally.overwritten:,} of overwritten objects + "
            f"{tally.existing:,} of existing objects{newer}"
        )
        if tally.existing:
            show(
                "The results of existing objects stay. To remove them, first delete their objects, "
                "for example with `gcloud storage rm`, and run this again."
            )
        if tally.overwritten and not self._with_overwritten:
            show("The results of overwritten objects stay. --overwritten removes them too.")

    def report(self, tally: "Tally", removed: int | None) -> dict[str, object]:
        """Return what `show` prints, for JSON. `removed` is None if nothing was to be removed."""
        return {
            "uri": f"gs://{self._bucket}/{self._prefix}",
            "before": self._before,
            "results": tally.results,
            **asdict(tally),
            "removed": removed,
        }


def _check_emulators() -> None:
    """Check that all services are emulators, or none.

    Raises:
        click.UsageError: some are. In an empty emulator no object exists, so all results of the
            other service would be removed. And no real topic must report a removal in an emulator.
    """
    names = ["FIRESTORE_EMULATOR_HOST", "STORAGE_EMULATOR_HOST"]
    if os.environ.get("RESULTS_TOPIC"):
        names.append("PUBSUB_EMULATOR_HOST")
    if len({bool(os.environ.get(name)) for name in names}) > 1:
        raise click.UsageError(f"Set all of {', '.join(names)}, or none of them")


def _counts(tally: "Tally") -> str:
    return f"{tally.results:,} results, {tally.selected:,} without an object"
