"""The reference of alerts: their documents, and their messages with the JSON Schema."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from devtools.docs.document import ALERTING, RECORDED_AT, Meaning, document_text, type_of
from devtools.docs.markdown import code, table
from devtools.docs.result_message import json_schema, message_text, schema_text
from service.alerts.matching import to_document
from service.alerts.message import AlertMessage, console_urls, encode, message_of
from service.domain import AlertState, DerivedKind, StoredAlert

JSON_SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "alert-message.schema.json"
_CONSOLE = console_urls("my-project", "(default)", "detections")
_ALERT = ALERTING.alerts[0]
_THUMBNAIL = f"gs://my-results/{ALERTING.ref.document_id}-thumbnail-1f0c2d9b.jpg"
_PUBLISHED: dict[str, Any] = to_document(ALERTING, _ALERT) | {
    "state": str(AlertState.PUBLISHED),
    "created_at": RECORDED_AT,
    "published_at": RECORDED_AT + timedelta(seconds=1),
}
_SUPPRESSED: dict[str, Any] = _PUBLISHED | {
    "state": str(AlertState.SUPPRESSED),
    "suppressed_by": f"{'0' * 40}-{'1' * 20}",
    "previous_alert": f"{'0' * 40}-{'1' * 20}",
}

MEANINGS: Mapping[str, Meaning] = {
    "document_id": Meaning(
        "Id of the image's [document](document.md).", "null for a silent source"
    ),
    "uri": Meaning("Address of the image.", "null for a silent source"),
    "bucket": Meaning("Name of its bucket, or of the silent source's."),
    "name": Meaning("Name of its object.", "null for a silent source"),
    "generation": Meaning("Generation of the object.", "null for a silent source"),
    "source_id": Meaning("Name of the source."),
    "rule": Meaning("Name of the rule. `silent_minutes` for a silent source."),
    "rule_version": Meaning(
        "Hash of the rule's fields, labels and time zone. `silent_minutes` of a silent source."
    ),
    "severity": Meaning("`info`, `warning` or `critical`."),
    "text": Meaning("A sentence for a person."),
    "labels": Meaning("How many detections matched, by label."),
    "num": Meaning("How many detections matched."),
    "cooldown_seconds": Meaning("Cooldown of the rule.", "", "seconds"),
    "state": Meaning(
        "`pending`: not decided yet. `published`: its message is published, or will be by a "
        "redelivery. `suppressed`: it is within a cooldown."
    ),
    "suppressed_by": Meaning(
        "Id of the alert whose cooldown suppresses this one.", "null if not suppressed"
    ),
    "previous_alert": Meaning(
        "Id of the alert of the rule that was published before this one.",
        "null if none is known, or if it is not published",
    ),
    "event_time": Meaning("When the upload finished.", "null if not known"),
    "captured_at": Meaning("When the image was taken, by its EXIF data.", "null if not known"),
    "published_at": Meaning("When its message was confirmed.", "null until then"),
    "shard": Meaning("0 to 9, from the id of the image's document. Queries by time use it."),
    "created_at": Meaning("When Firestore created the document, by Firestore's clock."),
}


def files() -> dict[Path, str]:
    """Return the text of the JSON Schema, by file."""
    return {JSON_SCHEMA: schema_text(json_schema(AlertMessage))}


def document_fields() -> str:
    """Return a table of the fields of an alert document.

    Raises:
        LookupError: MEANINGS has other fields than the document.
    """
    if differing := sorted(set(_PUBLISHED) ^ set(MEANINGS)):
        raise LookupError(f"devtools/docs/alerts.py: MEANINGS and the document differ: {differing}")
    both = {key: _PUBLISHED[key] or _SUPPRESSED[key] for key in MEANINGS}
    rows = [
        (code(path), type_of(both[path]), each.unit, each.text, each.null)
        for path, each in MEANINGS.items()
    ]
    return table(("field", "type", "unit", "meaning", "null"), rows)


def document_examples() -> str:
    """Return an alert document as JSON."""
    return document_text(_PUBLISHED)


def message_fields() -> str:
    """Return a table of the fields of the alert message."""
    schema = json_schema(AlertMessage)
    rows = [
        (
            code(name),
            each["type"],
            "yes" if name in schema["required"] else "",
            each["description"],
        )
        for name, each in schema["properties"].items()
    ]
    return table(("field", "type", "always there", "meaning"), rows)


def message_examples() -> str:
    """Return an alert message as JSON."""
    stored = StoredAlert(
        id=_ALERT.id,
        source_id="cam1",
        rule=_ALERT.rule,
        cooldown_seconds=_ALERT.cooldown_seconds,
        state=AlertState.PUBLISHED,
        suppressed_by=None,
        previous_alert=None,
        published_at=None,
        fields=_PUBLISHED,
    )
    document = {"derived": [{"kind": str(DerivedKind.THUMBNAIL), "uri": _THUMBNAIL}]}
    page = _CONSOLE(ALERTING.ref.document_id)
    return message_text(encode(message_of(stored, document, suppressed=12, console_url=page)))
