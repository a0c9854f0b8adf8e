"""`yolo-batch alerts`: rules tried on stored results, alerts listed, and silent sources."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.commands import group, option
from service.cli.exit_codes import ExitCode
from service.cli.options import (
    json_lines_option,
    json_option,
    objects_argument,
    since_option,
)
from service.cli.output import Column, counted, note, progress, say, say_json, say_table
from service.cli.report import no_results_note
from service.cli.sources import (
    file_argument,
    load_file,
    new_settings,
    note_floor,
    stored_sources,
)
from service.domain import AlertState
from service.errors import StoredResultError
from service.settings import Settings

if TYPE_CHECKING:
    from service.operate.alert_preview import AlertPreview, RuleTally
    from service.operate.silence import Silence

_EXAMPLES = 3  # images that are named for each rule, without --json
_DAY = "1d"
_ALERTS = (
    Column("created"),
    Column("source"),
    Column("rule"),
    Column("severity"),
    Column("state"),
    Column("text"),
    Column("image"),
)
_RULES = (
    Column("source"),
    Column("rule"),
    Column("severity"),
    Column("alerts", is_number=True),
    Column("messages", is_number=True),
    Column("suppressed", is_number=True),
)


@group(
    "alerts",
    panel="Operate",
    examples=[
        "yolo-batch alerts preview sources.yaml gs://my-bucket/cam1/ --since 7d",
        "yolo-batch alerts list --since 1d",
        "yolo-batch alerts check-silence --dry-run",
    ],
)
def alerts() -> None:
    """Try alert rules, list alerts, and report silent sources.

    The rules are a part of the sources. `yolo-batch sources apply` switches them on.
    """


@alerts.command(
    examples=[
        "yolo-batch alerts preview sources.yaml gs://my-bucket/cam1/ --since 7d",
        "yolo-batch alerts preview sources.yaml gs://my-bucket --json > alerts.json",
    ],
)
@file_argument
@objects_argument
@since_option(
    "Only results that were recorded since then. The command reads all results since then, of "
    "every prefix. Without this option, it reads all results of the prefix."
)
@json_option("uri, since, documents, evaluated, without_rules, unanswered, undated, rules")
def preview(file: Path, uri: tuple[str, str], since: datetime | None, as_json: bool) -> None:
    """Show how often the rules of a file of sources would have fired for stored results.

    No image is read, the model does not run, and nothing is written or sent. For each rule, it
    counts the images that would have fired it, the messages that the cooldown would have let
    through, and the suppressed alerts. --json names all of these images. Rules look at stored
    results of any age: max_age_minutes does not apply.
    """
    from service.operate.alert_preview import AlertPreview
    from service.operate.preview import Verdict

    settings = Settings.from_env()
    new = load_file(file, settings)
    note_floor(new, settings)
    if not any(source.alerts for source in new.sources):
        raise click.UsageError(f"{file} has no alert rules: no source has the field alerts")
    tried = AlertPreview(
        new,
        new_settings(new, None, settings),
        store_confidence=settings.store_confidence,
        max_examples=None if as_json else _EXAMPLES,
    )
    with progress("Trying rules") as bar:
        for document in _documents(settings, uri, since):
            tried.add(document)
            bar.describe(f"Trying rules: {tried.documents:,} documents")
    if as_json:
        say_json(_report(tried, uri, since))
    else:
        _show(tried, uri, since)
    if not tried.documents:
        note(no_results_note(*uri, since))
    if incomplete := tried.unanswered[Verdict.INCOMPLETE]:
        note(
            f"{incomplete:,} documents are incomplete: they lack faint detections that the "
            "settings of the file might keep. So the rules were not applied to them."
        )
    if tried.undated:
        note(
            f"{tried.undated:,} images have neither captured_at nor event_time, because a job "
            "processed them. Rules with `between` do not fire for them here."
        )
    if unreadable := tried.unanswered[Verdict.UNREADABLE]:
        note(
            f"{unreadable:,} documents are unreadable: another version of the service wrote them, "
            "or somebody edited them."
        )
        click.get_current_context().exit(ExitCode.FAILED)


@alerts.command(
    "list",
    examples=[
        "yolo-batch alerts list --since 7d --source cam1",
        "yolo-batch alerts list --state published --json > alerts.jsonl",
    ],
)
@since_option("Only alerts that were created since then.", default=_DAY)
@option("--source", metavar="ID", help="Only alerts of this source.")
@option("--rule", metavar="NAME", help="Only alerts of this rule. The others are read, too.")
@option(
    "--state",
    type=click.Choice([str(state) for state in AlertState]),
    help="Only alerts in this state. The others are read, too.",
)
@json_lines_option("each alert document")
def list_alerts(
    since: datetime, source: str | None, rule: str | None, state: str | None, as_json: bool
) -> None:
    """List alerts, the newest first.

    An alert is pending until its rule's cooldown is looked up. Then it is published or suppressed.
    """
    from service.gcp.clients import build_alert_reader

    reader = build_alert_reader(Settings.from_env())
    wanted = {"rule": rule, "state": state}
    found = (
        alert
        for alert in reader.since(since, source)
        if all(value in (None, alert.get(key)) for key, value in wanted.items())
    )
    if as_json:
        for alert in found:
            say_json(alert)
        return
    with progress("Reading alerts") as bar:
        rows = [_row(alert) for alert in counted(found, bar.advance)]
    say_table(_ALERTS, rows)
    note(f"{len(rows):,} alerts since {_time(since)}")


@alerts.command(
    examples=[
        "yolo-batch alerts check-silence --dry-run",
        "ALERTS_TOPIC=alerts yolo-batch alerts check-silence",
    ],
)
@option("--dry-run", is_flag=True, help="Show the silent sources, and alert nobody.")
@json_option("checked, silent, published")
def check_silence(dry_run: bool, as_json: bool) -> None:
    """Alert about enabled sources from which nothing came for silent_minutes.

    Run it on a schedule. Each silence is one alert: a document, a message on ALERTS_TOPIC if it is
    set, and a log line on standard error. A source is silent if its newest result is older than
    silent_minutes. A source without a result is silent if the sources were applied earlier than
    that. A source whose bucket is not in ALLOWED_BUCKETS is not checked.
    """
    from service.gcp.clients import build_reader
    from service.operate.silence import silences, watched

    settings = Settings.from_env()
    stored, version = stored_sources()
    checked = watched(stored, settings.allowed_buckets)
    found: list[Silence] = []
    if version and checked:
        newest = build_reader(settings).newest_of_source
        found = list(silences(checked, version, newest, datetime.now(UTC)))
    done = [] if dry_run else _report_silences(found, settings)
    published = done.count(True)
    if as_json:
        silent = [
            {"source": each.source.id, "since": each.since, "alert": each.alert_id}
            for each in found
        ]
        say_json({"checked": len(checked), "silent": silent, "published": published})
    else:
        for each in found:
            say(each.text)
        say(
            f"{len(checked):,} sources with silent_minutes, {len(found):,} silent, "
            f"{published:,} new alerts"
        )
    if None in done:
        click.get_current_context().exit(ExitCode.FAILED)


def _report_silences(found: "Sequence[Silence]", settings: Settings) -> list[bool | None]:
    """Publish and log the alerts of silences, unless that is done.

    Returns:
        For each silence, whether its alert is new. None: a person has edited its document.
    """
    import logging.config

    from service import logs
    from service.gcp.clients import build_silence_store, build_topic
    from service.operate.silence import report

    if not found:
        return []
    logging.config.dictConfig(logs.config(settings.log_level, stream="stderr"))
    store = build_silence_store(settings)
    topic = (
        build_topic(settings.alerts_topic, settings, store.project)
        if settings.alerts_topic
        else None
    )
    done: list[bool | None] = []
    for each in found:
        try:
            done.append(report(each, store, topic))
        except StoredResultError as exc:  # the other sources must not wait for a repair
            note(f"Source {each.source.id} alerts nobody. Remove its alert. {exc}")
            done.append(None)
    return done


def _documents(
    settings: Settings, uri: tuple[str, str], since: datetime | None
) -> Iterator[dict[str, Any]]:
    """Yield the stored documents of a prefix, page by page."""
    from service.gcp.clients import build_reader

    bucket, prefix = uri
    reader = build_reader(settings)
    if since is None:
        yield from reader.results(bucket, prefix)
        return
    for document in reader.since(since):
        if document.get("bucket") == bucket and str(document.get("name")).startswith(prefix):
            yield document


def _show(tried: "AlertPreview", uri: tuple[str, str], since: datetime | None) -> None:
    counts = {
        "with rules": tried.evaluated,
        "without rules": tried.without_rules,
        **{name.replace("_", " "): count for name, count in sorted(tried.unanswered.items())},
    }
    recorded = f" recorded since {_time(since)}" if since else ""
    shown = " + ".join(
        f"{count:,} {name}" for name, count in counts.items() if count or name == "with rules"
    )
    say(f"gs://{uri[0]}/{uri[1]}: {tried.documents:,} documents{recorded} = {shown}")
    say_table(
        _RULES,
        [
            (
                tally.source,
                tally.rule.name,
                tally.rule.severity,
                f"{tally.alerts:,}",
                f"{tally.messages:,}",
                f"{tally.alerts - tally.messages:,}",
            )
            for tally in tried.rules
        ],
    )
    for tally in tried.rules:
        if tally.examples:
            say(f"\nExamples of {tally.source} {tally.rule.name}:")
        for example in tally.examples:
            say(f"  {_time(example.time)}  {example.uri}  {example.text}")


def _report(tried: "AlertPreview", uri: tuple[str, str], since: datetime | None) -> dict[str, Any]:
    return {
        "uri": f"gs://{uri[0]}/{uri[1]}",
        "since": since,
        "documents": tried.documents,
        "evaluated": tried.evaluated,
        "without_rules": tried.without_rules,
        "unanswered": {str(verdict): count for verdict, count in sorted(tried.unanswered.items())},
        "undated": tried.undated,
        "rules": [_rule(tally) for tally in tried.rules],
    }


def _rule(tally: "RuleTally") -> dict[str, Any]:
    return {
        "source": tally.source,
        "rule": tally.rule.name,
        "severity": str(tally.rule.severity),
        "alerts": tally.alerts,
        "messages": tally.messages,
        "suppressed": tally.alerts - tally.messages,
        "images": [
            {
                "time": example.time,
                "uri": example.uri,
                "generation": example.generation,
                "text": example.text,
            }
            for example in tally.examples
        ],
    }


def _row(alert: Mapping[str, Any]) -> list[str]:
    created_at = alert.get("created_at")
    texts = (alert.get(key) for key in ("source_id", "rule", "severity", "state", "text", "uri"))
    return [
        _time(created_at) if isinstance(created_at, datetime) else str(created_at),
        *("" if text is None else str(text) for text in texts),
    ]


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
