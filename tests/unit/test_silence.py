"""Alerts about silent sources."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.alerts import matching as alerts
from service.deadline import Deadline
from service.domain import Alert, ImageRef, ImageResult, Severity, StoredAlert
from service.errors import PubSubUnavailableError
from service.operate.silence import RULE, Silence, report, silences, watched
from service.sources.schema import Sources, parse

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
APPLIED = NOW - timedelta(hours=1)


def sources(*plain: dict[str, Any]) -> Sources:
    return parse({"sources": [{"id": "cam1", "bucket": "uploads"} | each for each in plain]})


def silent(minutes: int | None, newest: datetime | None = None, **fields: Any) -> list[Silence]:
    """The silence of cam1, if its newest result was created then."""
    source = fields if minutes is None else {"silent_minutes": minutes, **fields}
    return list(silences(watched(sources(source)), APPLIED, lambda source_id: newest, NOW))


def minutes_ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("newest", "is_silent"), [(29, False), (30, False), (30.1, True), (10_000, True)]
)
def test_source_is_silent_if_its_newest_result_is_old(newest: float, is_silent: bool) -> None:
    assert bool(silent(30, minutes_ago(newest))) is is_silent


@pytest.mark.parametrize(("minutes", "is_silent"), [(59, True), (60, False), (61, False)])
def test_source_without_results_counts_from_the_sources(minutes: int, is_silent: bool) -> None:
    assert bool(silent(minutes)) is is_silent


def test_only_enabled_sources_with_silent_minutes_are_watched() -> None:
    assert silent(None, minutes_ago(10_000)) == []
    assert silent(1, minutes_ago(10_000), enabled=False) == []


def test_sources_of_another_deployment_are_not_watched() -> None:
    own, other = {"silent_minutes": 1}, {"id": "cam2", "bucket": "theirs", "silent_minutes": 1}
    assert [each.id for each in watched(sources(own, other), ("uploads",))] == ["cam1"]
    assert [each.id for each in watched(sources(own, other))] == ["cam1", "cam2"]


def test_one_silence_has_one_id_and_the_next_has_another() -> None:
    [first], [again] = silent(30, minutes_ago(60)), silent(40, minutes_ago(60))
    [later] = silent(30, minutes_ago(50))
    [other] = silent(30, minutes_ago(60), id="cam2")
    assert first.alert_id == again.alert_id
    assert len({first.alert_id, later.alert_id, other.alert_id}) == 3


def test_text_names_the_time_of_the_source() -> None:
    [found] = silent(30, minutes_ago(60), timezone="Asia/Tokyo")
    assert found.text == "No image from source cam1 since 2026-11-30 20:00 (Asia/Tokyo)"
    [never] = silent(30)
    assert never.text == (
        "Source cam1 has no result. The sources were applied 2026-11-30 11:00 (UTC)"
    )


def test_document_of_a_silence_has_the_fields_of_every_alert() -> None:
    ref = ImageRef("uploads", "a.jpg", 1)
    alert = Alert("id", "person", "v", Severity.INFO, "text", {}, 60)
    [found] = silent(30)
    assert found.to_document().keys() == alerts.to_document(ImageResult(ref), alert).keys()


@dataclass
class FakeAlerts:
    """Alert documents in memory. `errors` are raised by the next confirmations."""

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)

    def create(self, alert_id: str, fields: Mapping[str, Any]) -> StoredAlert:
        known = self.documents.setdefault(alert_id, {**fields, "created_at": NOW})
        return StoredAlert(
            id=alert_id,
            source_id=known["source_id"],
            rule=known["rule"],
            cooldown_seconds=known["cooldown_seconds"],
            state=known["state"],
            suppressed_by=None,
            previous_alert=None,
            published_at=known["published_at"],
            fields=known,
        )

    def confirm(self, alert_id: str, deadline: Deadline) -> None:
        if self.errors:
            raise self.errors.pop()
        self.documents[alert_id]["published_at"] = NOW


@dataclass
class FakeTopic:
    """Messages in memory. `errors` are raised by the next calls."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    attributes: list[Mapping[str, str]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def publish(self, data: bytes, attributes: Mapping[str, str], deadline: Deadline) -> None:
        if self.errors:
            raise self.errors.pop()
        self.messages.append(json.loads(data))
        self.attributes.append(attributes)


def test_silence_is_published_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stored, topic = FakeAlerts(), FakeTopic()
    [found] = silent(30, minutes_ago(60))
    assert [report(found, stored, topic) for _ in range(3)] == [True, False, False]
    assert topic.messages == [
        {
            "id": found.alert_id,
            "rule": RULE,
            "source": "cam1",
            "severity": "warning",
            "text": found.text,
            "created_at": "2026-11-30T12:00:00Z",
            "suppressed": 0,
            "labels": {},
            "num": 0,
        }
    ]
    assert topic.attributes == [{"severity": "warning", "rule": RULE, "source": "cam1"}]
    [line] = [record for record in caplog.records if record.message == "Alert"]
    assert (line.source, line.text) == ("cam1", found.text)  # type: ignore[attr-defined]


def test_silence_without_a_topic_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    stored = FakeAlerts()
    [found] = silent(30)
    assert [report(found, stored, None) for _ in range(2)] == [True, False]
    assert [record.message for record in caplog.records] == ["Alert"]


def test_crash_repeats_a_message_and_loses_none() -> None:
    """The first run cannot publish. The second one publishes, but stops before it notes that."""
    outage = PubSubUnavailableError("Pub/Sub is unavailable.")
    stored, topic = FakeAlerts(errors=[outage]), FakeTopic(errors=[outage])
    [found] = silent(30)
    for messages in (0, 1):
        with pytest.raises(PubSubUnavailableError):
            report(found, stored, topic)
        assert len(topic.messages) == messages
    assert report(found, stored, topic)
    assert not report(found, stored, topic)
    assert [message["id"] for message in topic.messages] == [found.alert_id] * 2
