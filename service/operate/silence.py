"""Alerts about sources from which nothing came for `silent_minutes`.

A source is silent if its newest result is older than that. A source without results is silent if
the sources were applied longer ago than that. One silence is one alert: its id is a hash of the
source and of the time from which the silence counts. So each run finds the same document.

The document is created first. Then the message is published and logged, and at last the document
notes that (`published_at`). If a run stops in between, the next run publishes the message again,
with the same id.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from service.alerts.message import encode, message_of
from service.alerts.step import log_alert
from service.deadline import NO_DEADLINE, Deadline
from service.document import shard_of
from service.domain import AlertState, Severity, StoredAlert
from service.publish.results_step import Topic
from service.sources.schema import Source, Sources

RULE = "silent_minutes"  # no rule of a source has this name, because names have no `_`


@dataclass(frozen=True)
class Silence:
    """A source from which nothing came for too long."""

    source: Source
    since: datetime  # when its newest result was created, or when the sources were applied
    has_results: bool

    @property
    def alert_id(self) -> str:
        """Id of the alert document. It is the same until a result is created."""
        key = f"{self.source.id}\n{self.since.astimezone(UTC).isoformat()}"
        return hashlib.sha256(key.encode()).hexdigest()[:40] + "-silence"

    @property
    def text(self) -> str:
        """A sentence for a person."""
        timezone = ZoneInfo(self.source.timezone) if self.source.timezone else UTC
        since = f"{self.since.astimezone(timezone):%Y-%m-%d %H:%M} ({timezone})"
        if self.has_results:
            return f"No image from source {self.source.id} since {since}"
        return f"Source {self.source.id} has no result. The sources were applied {since}"

    def to_document(self) -> dict[str, Any]:
        """Return the alert document. It has the fields of every alert document.

        The store adds `created_at`, the server's time.
        """
        return {
            "document_id": None,
            "uri": None,
            "bucket": self.source.bucket,
            "name": None,
            "generation": None,
            "source_id": self.source.id,
            "rule": RULE,
            "rule_version": str(self.source.silent_minutes),
            "severity": str(Severity.WARNING),
            "text": self.text,
            "labels": {},
            "num": 0,
            "cooldown_seconds": 0,
            "state": str(AlertState.PUBLISHED),
            "suppressed_by": None,
            "previous_alert": None,
            "event_time": None,
            "captured_at": None,
            "published_at": None,
            "shard": shard_of(self.alert_id[:40]),
        }


def watched(sources: Sources, allowed_buckets: Collection[str] = ()) -> list[Source]:
    """Return the enabled sources with `silent_minutes` whose bucket is allowed.

    Deployments that share a database share its sources. ALLOWED_BUCKETS has the buckets of this
    one. If it is empty, all buckets are allowed.
    """
    return [
        source
        for source in sources.sources
        if source.enabled
        and source.silent_minutes is not None
        and (not allowed_buckets or source.bucket in allowed_buckets)
    ]


def silences(
    sources: Iterable[Source],
    applied_at: datetime,
    newest: Callable[[str], datetime | None],
    now: datetime,
) -> Iterator[Silence]:
    """Yield the sources that are silent.

    Args:
        sources: those of `watched`.
        applied_at: when they were last changed, by Firestore's clock.
        newest: returns when the newest result of a source was created. None: it has none.
        now: the current time.
    """
    for source in sources:
        created_at = newest(source.id)
        since = created_at or applied_at
        if source.silent_minutes and now - since > timedelta(minutes=source.silent_minutes):
            yield Silence(source, since, has_results=created_at is not None)


class Alerts(Protocol):
    """Where alerts are stored. `service.gcp.silence_store.SilenceStore` implements it."""

    def create(self, alert_id: str, fields: Mapping[str, Any]) -> StoredAlert:
        """Create the document of an alert, unless there is one. Return what is stored."""

    def confirm(self, alert_id: str, deadline: Deadline) -> None:
        """Note that an alert's message was published."""


def report(silence: Silence, alerts: Alerts, topic: Topic | None) -> bool:
    """Publish and log the alert of a silence, unless that is done. Return whether it was done now.

    Args:
        silence: the silence.
        alerts: where its document is created.
        topic: where the message is published. None: it is only logged.

    Raises:
        StoredResultError: a person has edited the alert's document.
        FirestoreUnavailableError: Firestore did not respond.
        PubSubUnavailableError: the message may not be published. The next run publishes it again.
    """
    alert = alerts.create(silence.alert_id, silence.to_document())
    if alert.published_at:
        return False
    message = message_of(alert, {}, suppressed=0, console_url=None)
    if topic:
        encoded = encode(message)
        topic.publish(encoded.data, encoded.attributes, NO_DEADLINE)
    log_alert(message)
    alerts.confirm(alert.id, NO_DEADLINE)
    return True
