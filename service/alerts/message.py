"""The message on the alerts topic: what a person or a program needs to know about one alert.

A field without a value is absent.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.domain import DerivedKind, StoredAlert
from service.errors import StoredResultError
from service.publish.result_message import EncodedMessage

_Time = Annotated[datetime, Meta(tz=True)]
_Name = Annotated[str, Meta(max_length=63)]  # an attribute, which Pub/Sub limits


class AlertMessage(msgspec.Struct):
    """One alert. It can be published more than once, with the same `id`."""

    id: Annotated[str, Meta(description="Id of the alert's document. Drop duplicates by it.")]
    rule: Annotated[_Name, Meta(description="Name of the rule.")]
    source: Annotated[_Name, Meta(description="Name of the source.")]
    severity: Annotated[_Name, Meta(description="`info`, `warning` or `critical`.")]
    text: Annotated[str, Meta(description="A sentence for a person: what was found, and where.")]
    created_at: Annotated[
        _Time, Meta(description="When the alert was created, by Firestore's clock.")
    ]
    suppressed: Annotated[
        int,
        Meta(
            description="How many images the cooldown of the rule's previous alert has suppressed."
        ),
    ]
    document_id: Annotated[
        str | UnsetType, Meta(description="Id of the document of the image's result.")
    ] = UNSET
    uri: Annotated[str | UnsetType, Meta(description="Address of the image.")] = UNSET
    labels: Annotated[
        dict[str, int], Meta(description="How many detections matched, by label.")
    ] = {}
    num: Annotated[int, Meta(description="How many detections matched.")] = 0
    captured_at: Annotated[
        _Time | UnsetType, Meta(description="When the image was taken, by its EXIF data.")
    ] = UNSET
    event_time: Annotated[_Time | UnsetType, Meta(description="When the upload finished.")] = UNSET
    thumbnail_uri: Annotated[
        str | UnsetType, Meta(description="Address of the image's thumbnail in RESULTS_BUCKET.")
    ] = UNSET
    console_url: Annotated[
        str | UnsetType, Meta(description="Page of the result in the Google Cloud console.")
    ] = UNSET


def message_of(
    alert: StoredAlert, document: Mapping[str, Any], *, suppressed: int, console_url: str | None
) -> AlertMessage:
    """Return the message of an alert.

    Args:
        alert: the alert.
        document: the fields of its image's document.
        suppressed: how many alerts of the rule were suppressed since the last published alert.
        console_url: the page of the image's document. None: it is about no image.

    Raises:
        StoredResultError: a field of the alert has another type. A person may have edited it.
    """
    fields = {
        key: value
        for key, value in alert.fields.items()
        if key in AlertMessage.__struct_fields__ and value is not None
    }
    times = {
        key: datetime.combine(value.date(), value.timetz()).astimezone(UTC)
        for key, value in fields.items()
        if isinstance(value, datetime)  # Firestore's own class, which msgspec does not know
    }
    labels = fields.get("labels")
    # Firestore does not keep the order of a map. The log line has the first ones.
    ordered = {"labels": dict(sorted(labels.items()))} if isinstance(labels, dict) else {}
    try:
        return msgspec.convert(
            fields
            | times
            | ordered
            | {
                "id": alert.id,
                "source": alert.source_id,
                "suppressed": suppressed,
            }
            | ({"console_url": console_url} if console_url else {})
            | _thumbnail(document),
            AlertMessage,
        )
    except msgspec.ValidationError as exc:
        raise StoredResultError(
            f"The document of the alert {alert.id} has another form than the service writes: {exc}"
        ) from exc


def encode(message: AlertMessage) -> EncodedMessage:
    """Return a message as it is published, with attributes for the filters of subscriptions."""
    attributes = {
        "severity": message.severity,
        "rule": message.rule,
        "source": message.source,
    }
    return EncodedMessage(msgspec.json.encode(message), attributes)


def console_urls(project: str, database: str, collection: str) -> Callable[[str], str]:
    """Return a function that returns the page of a document in the Google Cloud console.

    Google does not document the addresses of these pages. This is the form of August 2026.

    Args:
        project: the database's project.
        database: its name, for example `(default)`, which the console writes as `-default-`.
        collection: the collection of the results.
    """
    base = "https://console.cloud.google.com/firestore/databases"
    name = "-default-" if database == "(default)" else quote(database, safe="")
    path = f"{base}/{name}/data/panel/{quote(collection, safe='')}"
    return lambda document_id: f"{path}/{document_id}?project={quote(project, safe='')}"


def _thumbnail(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the field with the thumbnail, if the document, which may be edited, has one."""
    derived = document.get("derived")
    for item in derived if isinstance(derived, list) else ():
        if isinstance(item, dict) and item.get("kind") == DerivedKind.THUMBNAIL:
            return {"thumbnail_uri": item.get("uri")}
    return {}
