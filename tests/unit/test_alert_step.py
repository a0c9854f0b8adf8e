"""Alerts around the commit: the cooldown that an instance knows, and what is called when."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.alerts.matching import to_document
from service.alerts.step import AlertStep
from service.deadline import NO_DEADLINE, Deadline
from service.domain import (
    Alert,
    AlertState,
    Box,
    Detection,
    ErrorCode,
    Event,
    ImageRef,
    ImageResult,
    LastAlert,
    Outcome,
    Severity,
    SourceVersion,
    StoredAlert,
)
from service.errors import (
    BadImageError,
    ObjectGoneError,
    PubSubUnavailableError,
    StoredResultError,
    TooLateError,
)
from service.pipeline import Pipeline
from service.publish.after_commit import AfterCommit, RecordedImage
from service.sources.current import SourceSettings
from service.sources.rules import AlertRules
from service.sources.schema import AlertRule
from service.stored_result import listed_alerts
from tests.fakes import FakeDetector, FakeStorage, FakeStore, FakeTopic, bmp_image, pipeline_of
from tests.loglines import logged_by

COOLDOWN_SECONDS = 900.0
RULES = AlertRules("gate", (AlertRule(name="any"),))
ALERT = Alert("id-1", "any", "v1", Severity.WARNING, "1 person", {"person": 1}, 900)


class FakeAlerts:
    """Alerts in memory. `calls` has the names of the methods that were called."""

    def __init__(self) -> None:
        self.last: LastAlert | None = None
        self.stored: dict[str, StoredAlert] = {}
        self.calls: list[str] = []
        self.errors: list[Exception] = []  # each decision raises the next one, if there is one

    def last_alert(self, source_id: str, rule: str, deadline: Deadline) -> LastAlert | None:
        self.calls.append("last_alert")
        return self.last

    def read(self, alert_id: str, deadline: Deadline) -> StoredAlert | None:
        self.calls.append("read")
        return self.stored.get(alert_id)

    def decide(
        self,
        alert_id: str,
        source_id: str,
        rule: str,
        cooldown_seconds: float,
        deadline: Deadline,
        *,
        active: LastAlert | None,
    ) -> tuple[StoredAlert | None, LastAlert | None]:
        self.calls.append("decide")
        if self.errors:
            raise self.errors.pop(0)
        alert = self.stored.get(alert_id)
        if alert and not active:
            self.stored[alert_id] = alert = replace(alert, state=AlertState.PUBLISHED)
            self.last = LastAlert(alert_id, 0.0)
        elif alert:
            self.stored[alert_id] = alert = replace(alert, state=AlertState.SUPPRESSED)
        return alert, active or self.last

    def confirm(self, alert_id: str, deadline: Deadline) -> None:
        self.calls.append("confirm")
        now = datetime(2026, 1, 1, tzinfo=UTC)
        self.stored[alert_id] = replace(self.stored[alert_id], published_at=now)

    def count_suppressed(self, alert_id: str, deadline: Deadline) -> int:
        self.calls.append("count_suppressed")
        return 12

    def add(self, result: ImageResult, **fields: Any) -> None:
        """Store the alerts of a result, as its commit does."""
        for alert in result.alerts:
            document = to_document(result, alert) | {"created_at": datetime(2026, 1, 1, tzinfo=UTC)}
            self.stored[alert.id] = StoredAlert(
                id=alert.id,
                source_id=document["source_id"],
                rule=alert.rule,
                cooldown_seconds=alert.cooldown_seconds,
                state=alert.state,
                suppressed_by=None,
                previous_alert=None,
                published_at=None,
                fields=document | fields,
            )


class World:
    """A pipeline with alerts, and fakes around it."""

    def __init__(self, rules: AlertRules | None = RULES, *, with_topic: bool = True) -> None:
        self.now = datetime.now(UTC)
        self.seconds = 0.0
        self.built = 0
        self.storage, self.store, self.topic = FakeStorage(), FakeStore(), FakeTopic()
        self.alerts = FakeAlerts()
        self.step = AlertStep(
            self.alerts,
            self.topic if with_topic else None,
            lambda document_id: f"page/{document_id}",
            self.resolve,
            now=lambda: self.now,
            clock=lambda: self.seconds,
        )
        self.settings = SourceSettings(version=SourceVersion("gate"), alerts=rules)
        self.pipeline: Pipeline = pipeline_of(
            self.storage,
            self.store,
            FakeDetector(),
            sources=self,
            after_commit=AfterCommit([], self.read_document, self.build),
            alerts=self.build,
        )
        commit = self.store.commit

        def commit_with_alerts(results: Sequence[ImageResult], deadline: Deadline) -> Any:
            for result in results:
                self.alerts.add(result)
            return commit(results, deadline)

        self.store.commit = commit_with_alerts  # type: ignore[method-assign]
        self.reads = 0
        self.object_created_at: datetime | Exception = self.now

    def settings_of(self, ref: ImageRef, deadline: Deadline) -> SourceSettings:
        return self.settings

    def resolve(self, ref: ImageRef, deadline: Deadline) -> ImageRef:
        if isinstance(self.object_created_at, Exception):
            raise self.object_created_at
        resolved = self.storage.resolve(ref, deadline)
        metadata = replace(resolved.metadata, created_at=self.object_created_at)
        return replace(resolved, metadata=metadata)

    def build(self) -> AlertStep:
        self.built += 1
        return self.step

    def read_document(self, document_id: str, deadline: Deadline) -> dict[str, Any] | None:
        self.reads += 1
        return self.store.read_document(document_id, deadline)

    def handle(self, name: str, *, attempt: int = 1) -> Outcome:
        ref = self.storage.put(name, bmp_image())
        return self.pipeline.handle(
            Event(ref, event_time=self.now, delivery_attempt=attempt), NO_DEADLINE
        )


@pytest.fixture
def world() -> World:
    return World()


# Without rules, nothing


def test_sources_without_rules_cost_nothing() -> None:
    world = World(rules=None)
    assert world.handle("a.bmp") is Outcome.DONE
    assert world.handle("a.bmp", attempt=2) is Outcome.ALREADY_RECORDED
    assert (world.built, world.reads, world.alerts.calls) == (0, 0, [])
    assert world.store.document("a.bmp")["alerts"] == []


def test_image_that_matches_no_rule_reads_nothing() -> None:
    world = World(AlertRules("gate", (AlertRule(name="none", labels=frozenset({"unicorn"})),)))
    assert world.handle("a.bmp") is Outcome.DONE
    assert (world.alerts.calls, world.topic.messages) == ([], [])


# One alert


def test_alert_is_published_logged_and_confirmed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.handle("a.bmp")
    assert world.alerts.calls == ["last_alert", "decide", "confirm"]
    [message] = world.topic.messages
    [alert] = world.store.document("a.bmp")["alerts"]
    assert (message["id"], message["rule"], message["source"]) == (alert["id"], "any", "gate")
    assert message["console_url"] == f"page/{message['document_id']}"
    assert world.topic.attributes == [{"severity": "warning", "rule": "any", "source": "gate"}]
    [line] = logged_by(caplog, "service.alerts.step")
    assert line.getMessage() == "Alert"
    assert line.levelname == "WARNING"
    assert vars(line)["alert_id"] == alert["id"]
    assert vars(line)["alert_severity"] == "warning"


def test_without_a_topic_alerts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    world = World(with_topic=False)
    world.handle("a.bmp")
    assert [line.getMessage() for line in logged_by(caplog, "service.alerts.step")] == ["Alert"]
    assert world.alerts.calls == ["last_alert", "decide", "confirm"]


@pytest.mark.parametrize(
    ("severity", "level"), [("info", "INFO"), ("warning", "WARNING"), ("critical", "WARNING")]
)
def test_log_line_of_an_alert_is_never_an_error(
    severity: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = World(replace(RULES, rules=(AlertRule(name="any", severity=Severity(severity)),)))
    world.handle("a.bmp")
    [line] = logged_by(caplog, "service.alerts.step")
    assert (line.levelname, vars(line)["alert_severity"]) == (level, severity)


def test_topic_that_fails_keeps_the_message_back(world: World) -> None:
    world.topic.errors = [PubSubUnavailableError("down")]
    with pytest.raises(PubSubUnavailableError):
        world.handle("a.bmp")
    assert world.handle("a.bmp", attempt=2) is Outcome.ALREADY_RECORDED
    assert len(world.topic.messages) == 1
    assert world.handle("a.bmp", attempt=3) is Outcome.ALREADY_RECORDED
    assert len(world.topic.messages) == 1


# The cooldown that this instance knows


def test_cooldown_is_read_again_when_it_seems_over(world: World) -> None:
    world.handle("a.bmp")
    world.alerts.calls.clear()
    world.seconds = COOLDOWN_SECONDS - 1
    world.handle("b.bmp")
    assert world.alerts.calls == []
    world.seconds = COOLDOWN_SECONDS
    world.alerts.last = None
    world.handle("c.bmp")
    assert world.alerts.calls[:2] == ["last_alert", "decide"]
    assert len(world.topic.messages) == 2


def test_cooldown_of_another_instance_counts(world: World) -> None:
    world.alerts.last = LastAlert("theirs", 100.0)
    person = Detection("person", 0, 0.9, Box(0.0, 0.0, 1.0, 1.0))
    ref = ImageRef("uploads", "a.jpg", 1)
    found = ImageResult(ref, detections=(person,), event_time=world.now)
    [alert] = world.step.fired(RULES, found)
    assert (alert.state, alert.suppressed_by) == (AlertState.SUPPRESSED, "theirs")
    world.seconds = COOLDOWN_SECONDS - 100 - 1
    world.step.fired(RULES, found)
    assert world.alerts.calls == ["last_alert"]
    world.seconds = COOLDOWN_SECONDS - 100
    world.alerts.last = LastAlert("theirs", COOLDOWN_SECONDS)
    [alert] = world.step.fired(RULES, found)
    assert (alert.state, world.alerts.calls) == (AlertState.PENDING, ["last_alert"] * 2)


def test_wait_for_another_decision_ends_with_the_deadline(world: World) -> None:
    document = {"source": {"id": "gate"}}
    with world.step._locked("gate", "any", NO_DEADLINE), pytest.raises(TooLateError):
        world.step.publish(RecordedImage("d", document, (ALERT,)), Deadline.after(0.01))
    assert world.alerts.calls == []


def test_ids_that_no_alert_can_have_are_ignored() -> None:
    """Firestore refuses them, so no delivery could end, and no removal."""
    ids = ["d-1", "d-" + "x" * 1499, "d-" + "é" * 750, "d-/", "e-1", 7]
    listed = listed_alerts("d", {"alerts": [{"id": each} for each in ids]})
    assert [alert.id for alert in listed] == ["d-1"]
    [longest] = listed_alerts("d", {"alerts": [{"id": "d-" + "x" * 1498}]})
    assert len(longest.id) == 1500


def test_edited_documents_are_logged_and_not_retried(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.alerts.errors = [StoredResultError("another form")]
    assert world.handle("a.bmp") is Outcome.DONE
    [line] = logged_by(caplog, "service.alerts.step")
    assert line.levelname == "ERROR"
    assert world.topic.messages == []


@pytest.mark.parametrize(
    ("created", "alerts"),
    [
        (timedelta(minutes=59), 1),
        (timedelta(minutes=61), 0),
        (ObjectGoneError("overwritten"), 0),
        (BadImageError(ErrorCode.UNREADABLE_OBJECT, "refused"), 0),
    ],
)
def test_job_alerts_if_its_object_is_young(
    world: World, created: timedelta | Exception, alerts: int
) -> None:
    world.object_created_at = created if isinstance(created, Exception) else world.now - created
    ref = world.storage.put("job.bmp", bmp_image())
    job = Event(ref, is_job=True)
    assert world.pipeline.handle(job, NO_DEADLINE) is Outcome.DONE
    assert len(world.topic.messages) == alerts
    assert len(world.store.document("job.bmp")["alerts"]) == alerts


def test_cloud_storage_is_asked_only_for_a_job_that_matches(world: World) -> None:
    world.handle("upload.bmp")
    assert world.storage.resolved == []
    ref = world.storage.put("job.bmp", bmp_image())
    world.settings = replace(
        world.settings,
        alerts=AlertRules("gate", (AlertRule(name="none", labels=frozenset({"unicorn"})),)),
    )
    assert world.pipeline.handle(Event(ref, is_job=True), NO_DEADLINE) is Outcome.DONE
    assert world.storage.resolved == []


def test_old_upload_creates_no_alert(world: World) -> None:
    ref = world.storage.put("old.bmp", bmp_image())
    event = Event(ref, event_time=world.now - timedelta(hours=2), delivery_attempt=1)
    assert world.pipeline.handle(event, NO_DEADLINE) is Outcome.DONE
    assert world.store.document("old.bmp")["alerts"] == []
    assert world.alerts.calls == []
