"""`yolo-batch sources`: the settings of buckets and prefixes."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.commands import argument, group, option
from service.cli.exit_codes import ExitCode
from service.cli.options import json_lines_option, json_option, objects_argument
from service.cli.output import Column, can_ask, note, progress, say, say_json, say_table
from service.cli.report import no_results_note
from service.errors import SourcesError
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.operate.preview import SettingsOf, Summary
    from service.sources.schema import Sources

file_argument = argument(
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML file that lists all sources.",
)
_COLUMNS = (
    Column("id"),
    Column("prefix"),
    Column("enabled"),
    Column("min_confidence", is_number=True),
    Column("zones", is_number=True),
)
_CHANGES = (
    Column("label"),
    Column("kept", is_number=True),
    Column("dropped", is_number=True),
)


@group(
    "sources",
    panel="Operate",
    examples=[
        "yolo-batch sources check sources.yaml",
        "yolo-batch sources preview sources.yaml gs://my-bucket/cam1/",
        "yolo-batch sources apply sources.yaml",
    ],
)
def sources() -> None:
    """Show and change the settings of sources.

    A source is a bucket and prefix with settings of its own, for example the uploads of one camera.
    All sources are in one Firestore document, config/sources.
    """


@sources.command(examples=["yolo-batch sources check sources.yaml"])
@file_argument
def check(file: Path) -> None:
    """Check a file of sources, without connecting to Google Cloud.

    Prints the first fault of each source, with its line.
    """
    settings = Settings.from_env()
    loaded = load_file(file, settings)
    say(f"{file}: {len(loaded.sources):,} sources, no faults")
    note_floor(loaded, settings)


@sources.command(
    examples=[
        "yolo-batch sources apply sources.yaml --dry-run",
        "yolo-batch sources apply sources.yaml --yes",
    ],
)
@file_argument
@option("--dry-run", is_flag=True, help="Show what changes, and write nothing.")
@option("--yes", is_flag=True, help="Do not ask before writing.")
def apply(file: Path, dry_run: bool, yes: bool) -> None:
    """Replace all stored sources with those of a file.

    Shows what changes, and asks before it writes. If somebody else changed the sources meanwhile,
    nothing is written. A source in RESULTS_BUCKET is refused. The service uses the new sources
    within SOURCES_REFRESH_SECONDS. A file with an empty list removes all sources.
    """
    from service.gcp.clients import build_source_store
    from service.sources.changes import changes
    from service.sources.schema import Sources, parse

    settings = Settings.from_env()
    new = load_file(file, settings)
    note_floor(new, settings)
    store = build_source_store(settings)
    stored = store.read()
    lines: list[str] | None = None
    try:
        lines = changes(parse(stored.data) if stored else Sources(sources=()), new)
    except SourcesError as exc:
        note(f"The stored sources are broken, so they cannot be compared: {exc}")
    for line in lines or ():
        say(line)
    if stored and lines == []:
        say("Nothing changes")
        return
    if dry_run:
        return
    if not yes:
        if not can_ask():
            raise click.UsageError("Standard input is not a terminal: give --yes or --dry-run")
        click.confirm("Write these sources?", abort=True, err=True)
    version = store.write(new, stored.version if stored else None)
    say(f"Wrote {len(new.sources):,} sources, version {_time(version)}")


@sources.command("list", examples=["yolo-batch sources list", "yolo-batch sources list --json"])
@json_lines_option("each source")
def list_sources(as_json: bool) -> None:
    """List the stored sources."""
    from service.sources.schema import to_plain

    stored, version = stored_sources()
    if as_json:
        for source in stored.sources:
            say_json(to_plain(source))
        return
    say_table(
        _COLUMNS,
        [
            (
                source.id,
                source.uri,
                "yes" if source.enabled else "no",
                "" if source.min_confidence is None else f"{source.min_confidence:g}",
                str(len(source.zones)),
            )
            for source in stored.sources
        ],
    )
    note(f"Version {_time(version)}" if version else "There are no sources")


@sources.command(examples=["yolo-batch sources show cam1"])
@argument("name", metavar="ID", help="Id of the source.")
@json_option("the fields of the source")
def show(name: str, as_json: bool) -> None:
    """Print one stored source as YAML."""
    import yaml

    from service.sources.schema import to_plain

    stored, _ = stored_sources()
    found = next((source for source in stored.sources if source.id == name), None)
    if not found:
        raise SourcesError(f"There is no source {name}. `yolo-batch sources list` lists them.")
    plain = to_plain(found)
    if as_json:
        say_json(plain)
    else:
        text = yaml.safe_dump([plain], sort_keys=False, allow_unicode=True, default_flow_style=None)
        say(text.rstrip())


@sources.command(
    examples=[
        "yolo-batch sources preview sources.yaml gs://my-bucket/cam1/",
        "# after `sources apply sources.yaml`",
        "yolo-batch sources preview sources.yaml gs://my-bucket/cam1/ --apply --yes",
    ],
)
@file_argument
@objects_argument
@json_option(
    "uri, documents, changed, unchanged, incomplete, large, disabled, not_done, unreadable, "
    "unstorable, kept, dropped, rewritten"
)
@option(
    "--apply",
    "is_applied",
    is_flag=True,
    help="Rewrite the documents that change. The file must be the stored one: run `sources apply` "
    "first.",
)
@option("--yes", is_flag=True, help="Do not ask before rewriting.")
def preview(file: Path, uri: tuple[str, str], as_json: bool, is_applied: bool, yes: bool) -> None:
    """Show what a file of sources would change in stored results.

    No image is read, and the model does not run. The settings are applied to the stored detections
    and faint detections. A document is incomplete if it lacks faint detections that the new
    settings might keep. It is never rewritten.
    """
    from service.gcp.clients import build_rewriter
    from service.operate.preview import Verdict
    from service.operate.preview import preview as compare

    bucket, prefix = uri
    settings = Settings.from_env()
    new = load_file(file, settings)
    note_floor(new, settings)
    version = _version_of(new) if is_applied else None
    rewriter = build_rewriter(settings)
    run = partial(
        compare,
        settings_of=new_settings(new, version, settings),
        store_confidence=settings.store_confidence,
    )
    if is_applied and not yes:
        if as_json:
            raise click.UsageError("--json prints no changes to confirm: give --yes with --apply")
        if not can_ask():
            raise click.UsageError("Standard input is not a terminal: give --yes")
        with _progress() as progressed:
            _show(run(rewriter.versions(bucket, prefix), progressed=progressed), uri)
        click.confirm("Rewrite the documents that change?", abort=True, err=True)
    with _progress() as progressed:
        summary = run(
            rewriter.versions(bucket, prefix),
            progressed=progressed,
            rewriter=rewriter if is_applied else None,
        )
    if as_json:
        say_json(_report(summary, uri))
    elif is_applied and not yes:
        say(f"Rewrote {summary.rewritten:,} documents")
    else:
        _show(summary, uri, is_applied=is_applied)
    if not summary.documents:
        note(no_results_note(bucket, prefix))
    if summary.rewritten:
        note(
            "The rewritten results are not published. If the deployment has a results topic, "
            "`yolo-batch submit` publishes them again, without running the model."
        )
    if incomplete := summary.verdicts[Verdict.INCOMPLETE]:
        note(
            f"{incomplete:,} documents are incomplete, so they stay as they are: they lack faint "
            "detections that the new settings might keep. To change them, delete them, and run "
            "`yolo-batch reconcile --enqueue missing`, which processes their images again."
        )
    if unreadable := summary.verdicts[Verdict.UNREADABLE]:
        note(
            f"{unreadable:,} documents are unreadable, so they stay as they are: another version "
            "of the service wrote them, or somebody edited them. `yolo-batch reconcile --enqueue "
            "stale` processes the images of another version again."
        )
    if summary.verdicts[Verdict.UNREADABLE] or summary.verdicts[Verdict.UNSTORABLE]:
        click.get_current_context().exit(ExitCode.FAILED)


def load_file(file: Path, settings: Settings) -> "Sources":
    """Read a file of sources.

    Raises:
        SourcesError: it has faults, its document would be too large, or a source has the bucket
            RESULTS_BUCKET.
        OSError: it cannot be read.
    """
    from service.gcp.document_size import document_bytes
    from service.sources.files import load
    from service.sources.schema import MAX_BYTES, check_buckets, to_document

    loaded = load(file)
    if (size := document_bytes(to_document(loaded))) > MAX_BYTES:
        raise SourcesError(f"{file}: the sources have {size:,} bytes, more than {MAX_BYTES:,}")
    check_buckets(loaded, settings.results_bucket)
    return loaded


def stored_sources() -> "tuple[Sources, datetime | None]":
    """Return the stored sources and their version. There may be none.

    Raises:
        SourcesError: they are broken.
    """
    from service.gcp.clients import build_source_store
    from service.sources.schema import Sources, parse

    stored = build_source_store(Settings.from_env()).read()
    if not stored:
        return Sources(sources=()), None
    try:
        return parse(stored.data), stored.version
    except SourcesError as exc:
        raise SourcesError(
            f"The stored sources are broken, so the service uses the last good ones: {exc}"
        ) from exc


def _version_of(new: "Sources") -> datetime:
    """Return the version of the stored sources.

    Raises:
        SourcesError: they are not those of the file.
    """
    stored, version = stored_sources()
    if version is None or stored != new:
        raise SourcesError(
            "The stored sources are not those of the file: run `yolo-batch sources apply` first"
        )
    return version


def new_settings(new: "Sources", version: datetime | None, settings: Settings) -> "SettingsOf":
    """Return what gives an image the settings of new sources.

    Args:
        new: the sources.
        version: when Firestore last changed them. None: they are not stored.
        settings: has the thresholds of sources that have none.
    """
    from service.sources.current import settings_of

    return partial(
        settings_of,
        sources=new,
        version=version,
        min_confidence=settings.min_confidence,
        store_confidence=settings.store_confidence,
    )


@contextmanager
def _progress() -> "Iterator[Callable[[Summary], None]]":
    from service.operate.preview import Verdict

    with progress("Comparing") as bar:

        def progressed(summary: "Summary") -> None:
            changed = summary.verdicts[Verdict.CHANGED]
            bar.describe(f"Comparing: {summary.documents:,} documents, {changed:,} change")

        yield progressed


def _show(summary: "Summary", uri: tuple[str, str], *, is_applied: bool = False) -> None:
    from service.operate.preview import Verdict

    counts = " + ".join(
        f"{summary.verdicts[verdict]:,} {verdict.replace('_', ' ')}"
        for verdict in Verdict
        if summary.verdicts[verdict] or verdict in (Verdict.CHANGED, Verdict.UNCHANGED)
    )
    say(f"gs://{uri[0]}/{uri[1]}: {summary.documents:,} documents = {counts}")
    labels = sorted(summary.kept.keys() | summary.dropped.keys())
    if labels:
        say_table(
            _CHANGES,
            [
                (label, f"{summary.kept[label]:,}", f"{summary.dropped[label]:,}")
                for label in labels
            ],
        )
    if is_applied:
        say(f"Rewrote {summary.rewritten:,} documents")


def _report(summary: "Summary", uri: tuple[str, str]) -> dict[str, Any]:
    from service.operate.preview import Verdict

    return {
        "uri": f"gs://{uri[0]}/{uri[1]}",
        "documents": summary.documents,
        **{str(verdict): summary.verdicts[verdict] for verdict in Verdict},
        "kept": dict(sorted(summary.kept.items())),
        "dropped": dict(sorted(summary.dropped.items())),
        "rewritten": summary.rewritten,
    }


def note_floor(loaded: "Sources", settings: Settings) -> None:
    """Print a note for each source whose threshold is lower than what is recorded."""
    for source in loaded.sources:
        own = [source.min_confidence or 1.0, *source.min_confidence_by_label.values()]
        if min(own) < settings.store_confidence:
            note(
                f"Warning: the source {source.id} has a threshold below STORE_CONFIDENCE="
                f"{settings.store_confidence:g}, which applies instead"
            )


def _time(version: datetime) -> str:
    return version.isoformat().replace("+00:00", "Z")
