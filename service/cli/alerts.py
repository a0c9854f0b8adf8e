"""`yolo-batch alerts`: rules tried on stored results, alerts listed, and silent sources."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.commands import group
from service.cli.exit_codes import ExitCode
from service.cli.options import json_option, objects_argument, since_option
from service.cli.output import Column, note, progress, say, say_json, say_table
from service.cli.sources import file_argument, load_file, new_settings, note_floor
from service.settings import Settings

if TYPE_CHECKING:
    from service.operate.alert_preview import AlertPreview, RuleTally

_EXAMPLES = 3  # images that are named for each rule, without --json
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
        "yolo-batch alerts preview sources.yaml gs://my-bucket --json | jq '.rules[].messages'",
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
    new = load_file(file)
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
    shown = " + ".join(f"{count:,} {name}" for name, count in counts.items())
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


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
