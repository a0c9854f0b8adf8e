"""Alerts against the official Firestore emulator: the commit, the cooldown, races and crashes."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.cloud import firestore

from service.alerts.step import AlertStep
from service.deadline import NO_DEADLINE
from service.domain import (
    Alert,
    AlertState,
    CommittedResult,
    ImageResult,
    LastAlert,
    Outcome,
    SourceVersion,
    Timings,
)
from service.errors import ObjectGoneError, PubSubUnavailableError, StoredResultError
from service.gcp.alert_store import AlertStore
from service.gcp.collection import ALERTS, COOLDOWNS
from service.gcp.deletions import ResultDeleter
from service.gcp.firestore import ResultStore
from service.publish.after_commit import AfterCommit
from service.sources.rules import AlertRules
from service.sources.schema import AlertRule
from tests.contract.test_store import done, of, read, recorded, seen
from tests.fakes import PATIENCE_SECONDS, FakeTopic

COOLDOWN_SECONDS = 900
RULES = AlertRules("gate", (AlertRule(name="people", labels=frozenset({"person"})),))


class Topic(FakeTopic):
    """Keeps the messages, or fails."""

    @property
    def ids(self) -> list[str]:
        return [message["id"] for message in self.messages]


class Crash(BaseException):
    """The process ends here."""


class Instance:
    """One instance of the service, from the evaluation of the rules to the published alert."""

    def __init__(self, collection: str, topic: Topic) -> None:
        client = firestore.Client()
        limits: dict[str, Any] = {"collection": collection, "timeout_seconds": PATIENCE_SECONDS}
        self.results = ResultStore(client, **limits)
        self.store = AlertStore(client, **limits)
        self.step = AlertStep(
            self.store, topic, lambda document_id: f"page/{document_id}", lambda ref, deadline: ref
        )
        self.after = AfterCommit([], self.results.read_document, lambda: self.step)

    def fire(self, result: ImageResult, rules: AlertRules = RULES) -> ImageResult:
        """Return the result with its alerts, as the pipeline commits it."""
        return replace(result, alerts=self.step.fired(rules, result))

    def handle(self, result: ImageResult, rules: AlertRules = RULES) -> Outcome:
        """Handle one delivery of an image."""
        [committed] = recorded(self.results.commit([self.fire(result, rules)]))
        if committed.created_at:
            self.after.committed(committed.result, committed.created_at, NO_DEADLINE)
        else:
            self.redeliver(result)
        return committed.outcome

    def redeliver(self, result: ImageResult) -> None:
        """Handle a delivery that finds the document of another delivery."""
        self.after.stored(result.ref.document_id, NO_DEADLINE, has_rules=True)


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def instance(collection: str, topic: Topic) -> Instance:
    return Instance(collection, topic)


def person(name: str, *others: str) -> ImageResult:
    return replace(
        done(name, "person", *others),
        event_time=datetime.now(UTC),
        source=SourceVersion("gate"),
    )


def stored(collection: str) -> list[dict[str, Any]]:
    """Return all alert documents."""
    return [
        {"id": snapshot.id, **(snapshot.to_dict() or {})}
        for snapshot in firestore.Client().collection(collection + ALERTS).stream()
    ]


def states(collection: str) -> Counter[str]:
    return Counter(alert["state"] for alert in stored(collection))


def end_cooldown(collection: str) -> None:
    """Let every cooldown have begun long ago."""
    for snapshot in firestore.Client().collection(collection + COOLDOWNS).stream():
        long_ago = datetime.now(UTC) - timedelta(seconds=COOLDOWN_SECONDS + 1)
        snapshot.reference.update({"decided_at": long_ago})


# One alert


def test_alert_is_created_with_its_result(
    instance: Instance, collection: str, topic: Topic
) -> None:
    result = person("a.jpg", "person", "dog")
    assert instance.handle(result) is Outcome.DONE
    document = read(collection, result)
    [alert] = stored(collection)
    assert document
    assert document["alerts"] == [{"id": alert["id"], "rule": "people", "severity": "warning"}]
    assert alert["id"].startswith(f"{result.ref.document_id}-")
    assert alert["document_id"] == result.ref.document_id
    assert (alert["labels"], alert["num"], alert["source_id"]) == ({"person": 2}, 2, "gate")
    assert (alert["state"], alert["suppressed_by"]) == ("published", None)
    assert alert["created_at"] == document["created_at"] < alert["published_at"]
    [message] = topic.messages
    assert (message["id"], message["num"], message["suppressed"]) == (alert["id"], 2, 0)
    assert message["console_url"] == f"page/{result.ref.document_id}"
    assert message["text"].startswith("2 person, source gate, ")
    assert message["document_id"] == result.ref.document_id


def test_image_without_a_match_has_no_alert(instance: Instance, collection: str) -> None:
    instance.handle(replace(done("a.jpg", "dog"), event_time=datetime.now(UTC)))
    assert not stored(collection)
    assert not list(firestore.Client().collection(collection + COOLDOWNS).stream())


def test_old_image_has_no_alert_document(instance: Instance, collection: str) -> None:
    old = replace(person("a.jpg"), event_time=datetime.now(UTC) - timedelta(minutes=61))
    instance.handle(old)
    assert not stored(collection)


# The cooldown


def test_flood_sends_one_alert_and_counts_the_others(
    instance: Instance, collection: str, topic: Topic
) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: instance.handle(person(f"{n}.jpg")), range(60)))
    assert states(collection) == {"published": 1, "suppressed": 59}
    assert len(topic.messages) == 1
    end_cooldown(collection)
    later = Instance(collection, topic)
    later.handle(person("later.jpg"))
    assert [message["suppressed"] for message in topic.messages] == [0, 59]
    later.handle(person("again.jpg"))
    assert len(topic.messages) == 2


def test_suppressed_image_costs_no_request(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.handle(person("a.jpg"))

    def refuse(*args: Any, **options: Any) -> Any:
        pytest.fail("a request although the cooldown is known to run")

    for name in ("last_alert", "decide", "count_suppressed", "confirm", "read"):
        monkeypatch.setattr(instance.store, name, refuse)
    fired = instance.fire(person("b.jpg")).alerts
    assert [alert.state for alert in fired] == [AlertState.SUPPRESSED]
    assert instance.handle(person("b.jpg")) is Outcome.DONE


def test_new_instance_reads_the_cooldown_once(
    instance: Instance, collection: str, topic: Topic
) -> None:
    instance.handle(person("a.jpg"))
    other = Instance(collection, topic)
    [alert] = other.fire(person("b.jpg")).alerts
    assert (alert.state, alert.suppressed_by) == (AlertState.SUPPRESSED, topic.ids[0])


def test_rules_and_sources_have_their_own_cooldowns(
    instance: Instance, collection: str, topic: Topic
) -> None:
    two = AlertRules("gate", (*RULES.rules, AlertRule(name="anything")))
    instance.handle(person("a.jpg"), two)
    elsewhere = replace(person("b.jpg"), source=SourceVersion("yard"))
    instance.handle(elsewhere, replace(RULES, source_id="yard"))
    assert sorted((m["source"], m["rule"]) for m in topic.messages) == [
        ("gate", "anything"),
        ("gate", "people"),
        ("yard", "people"),
    ]
    assert states(collection) == {"published": 3}


def test_shorter_cooldown_counts_at_once(instance: Instance, collection: str, topic: Topic) -> None:
    instance.handle(person("a.jpg"))
    reference = next(iter(firestore.Client().collection(collection + COOLDOWNS).stream()))
    two_minutes_ago = datetime.now(UTC) - timedelta(minutes=2)
    reference.reference.update({"decided_at": two_minutes_ago})
    shorter = replace(RULES, rules=(AlertRule(name="people", cooldown_minutes=1),))
    Instance(collection, topic).handle(person("b.jpg"), shorter)
    assert len(topic.messages) == 2


@pytest.mark.parametrize("instances", [2, 8])
def test_race_of_instances_publishes_one_alert(
    collection: str, topic: Topic, instances: int
) -> None:
    for number in range(5):
        name = f"rule-{number}"
        rules = replace(RULES, rules=(AlertRule(name=name),))
        pending = []
        for index in range(instances):
            one = Instance(collection, topic)
            result = one.fire(person(f"{number}-{index}.jpg"), rules)
            [committed] = recorded(one.results.commit([result]))
            pending.append((one, committed))
        barrier = threading.Barrier(instances, timeout=PATIENCE_SECONDS)

        def publish(
            each: tuple[Instance, CommittedResult], barrier: threading.Barrier = barrier
        ) -> None:
            one, committed = each
            assert committed.created_at
            barrier.wait()
            one.after.committed(committed.result, committed.created_at, NO_DEADLINE)

        with ThreadPoolExecutor(instances) as threads:
            list(threads.map(publish, pending))
        alerts = [alert for alert in stored(collection) if alert["rule"] == name]
        [published] = [alert for alert in alerts if alert["state"] == "published"]
        others = [alert for alert in alerts if alert["state"] == "suppressed"]
        assert len(others) == instances - 1
        assert {alert["suppressed_by"] for alert in others} == {published["id"]}
    assert len(topic.messages) == len(set(topic.ids)) == 5


# Crashes: the message is redelivered, and the alert is published once or again, never lost


@pytest.mark.parametrize("crash_in", ["decide", "count_suppressed", "publish", "confirm"])
@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
def test_crash_loses_no_alert(
    collection: str, topic: Topic, crash_in: str, is_after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Instance(collection, topic).handle(person("first.jpg"))
    end_cooldown(collection)
    crashing = Instance(collection, topic)
    part = topic if crash_in == "publish" else crashing.store
    work = getattr(part, crash_in)

    def crash(*args: Any, **options: Any) -> Any:
        if is_after:
            work(*args, **options)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(part, crash_in, crash)
        with pytest.raises(Crash):
            crashing.handle(person("a.jpg"))
    Instance(collection, topic).redeliver(person("a.jpg"))
    assert states(collection) == {"published": 2}
    assert all(alert["published_at"] for alert in stored(collection))
    assert len(set(topic.ids)) == 2
    is_repeated = (crash_in, is_after) in {("publish", True), ("confirm", False)}
    assert len(topic.messages) == 2 + is_repeated
    Instance(collection, topic).redeliver(person("a.jpg"))
    assert len(topic.messages) == 2 + is_repeated, "a confirmed alert is published again"


def test_redelivery_never_publishes_a_suppressed_alert(
    instance: Instance, collection: str, topic: Topic
) -> None:
    instance.handle(person("a.jpg"))
    instance.handle(person("b.jpg"))
    end_cooldown(collection)
    Instance(collection, topic).redeliver(person("b.jpg"))
    assert topic.ids == [alert["id"] for alert in stored(collection) if alert["published_at"]]
    assert states(collection) == {"published": 1, "suppressed": 1}


def test_crash_before_a_suppression_is_made_up_for(
    instance: Instance, collection: str, topic: Topic
) -> None:
    late = instance.fire(person("late.jpg"))
    assert [alert.state for alert in late.alerts] == [AlertState.PENDING]
    instance.results.commit([late])  # and then the process ended
    Instance(collection, topic).handle(person("a.jpg"))
    Instance(collection, topic).redeliver(late)
    assert states(collection) == {"published": 1, "suppressed": 1}
    assert len(topic.messages) == 1


def test_alert_that_was_not_published_is_redelivered(
    instance: Instance, collection: str, topic: Topic
) -> None:
    topic.errors = [PubSubUnavailableError("down")]
    with pytest.raises(PubSubUnavailableError):
        instance.handle(person("a.jpg"))
    [alert] = stored(collection)
    assert (alert["state"], alert["published_at"]) == ("published", None)
    instance.redeliver(person("a.jpg"))
    assert topic.ids == [alert["id"]]


# Replacements


def rerun(result: ImageResult, instance: Instance) -> ImageResult:
    again = replace(result, timings=Timings(queue_ms=2.0))
    return of(again, seen(instance.results, result))


def test_replacement_creates_no_alert_twice(
    instance: Instance, collection: str, topic: Topic
) -> None:
    result = person("a.jpg")
    instance.handle(result)
    before = stored(collection)
    end_cooldown(collection)
    other = Instance(collection, topic)
    assert other.handle(rerun(result, other)) is Outcome.DONE
    assert stored(collection) == before
    document = read(collection, result)
    assert document and document["timings"]["queue_ms"] == 2.0  # type: ignore[index]
    assert [alert["id"] for alert in document["alerts"]] == topic.ids  # type: ignore[attr-defined]
    assert len(topic.messages) == 1


def test_replacement_keeps_and_adds_alerts(
    instance: Instance, collection: str, topic: Topic
) -> None:
    result = person("a.jpg")
    instance.handle(result)
    changed = replace(RULES, rules=(AlertRule(name="people", min_count=2),))
    again = rerun(person("a.jpg", "person"), instance)
    end_cooldown(collection)
    Instance(collection, topic).handle(again, changed)
    document = read(collection, result)
    assert document
    assert [alert["id"] for alert in document["alerts"]] == topic.ids  # type: ignore[attr-defined]
    assert len(set(topic.ids)) == 2
    assert states(collection) == {"published": 2}
    # A replacement that matches no rule lists them too, so that they are removed with it.
    Instance(collection, topic).handle(rerun(replace(result, detections=()), instance))
    document = read(collection, result)
    assert document and len(document["alerts"]) == 2  # type: ignore[arg-type]


def test_alert_whose_result_a_person_removed_is_found_again(
    instance: Instance, collection: str, topic: Topic
) -> None:
    result = person("a.jpg")
    instance.handle(result)
    firestore.Client().collection(collection).document(result.ref.document_id).delete()
    end_cooldown(collection)
    assert Instance(collection, topic).handle(result) is Outcome.DONE
    document = read(collection, result)
    assert document
    assert [alert["id"] for alert in document["alerts"]] == topic.ids  # type: ignore[attr-defined]
    assert len(stored(collection)) == 1


def test_alert_found_again_is_published_after_a_crash(
    instance: Instance, collection: str, topic: Topic
) -> None:
    result = person("a.jpg")
    instance.results.commit([instance.fire(result)])  # and crashes before it decides
    firestore.Client().collection(collection).document(result.ref.document_id).delete()
    assert Instance(collection, topic).handle(result) is Outcome.DONE
    assert len(topic.messages) == 1
    assert states(collection) == {"published": 1}


def test_racing_deliveries_create_one_alert(collection: str, topic: Topic) -> None:
    barrier = threading.Barrier(4, timeout=PATIENCE_SECONDS)

    def deliver(number: int) -> Outcome:
        one = Instance(collection, topic)
        result = one.fire(replace(person("a.jpg"), timings=Timings(queue_ms=number)))
        barrier.wait()
        return one.handle(result)

    with ThreadPoolExecutor(4) as threads:
        outcomes = Counter(threads.map(deliver, range(4)))
    assert outcomes == {Outcome.DONE: 1, Outcome.SUPERSEDED: 3}
    assert states(collection) == {"published": 1}
    assert len(set(topic.ids)) == 1


def test_refused_neighbour_keeps_no_alert_back(instance: Instance, collection: str) -> None:
    refused = replace(
        person("bad.jpg"), detections=done("bad.jpg", *["x" * 50_000] * 300).detections
    )
    batch = [instance.fire(person("a.jpg")), instance.fire(refused), instance.fire(person("c.jpg"))]
    outcomes = recorded(instance.results.commit(batch))
    assert [each.outcome for each in outcomes] == [Outcome.DONE, Outcome.FAILED, Outcome.DONE]
    assert sorted(alert["name"] for alert in stored(collection)) == ["a.jpg", "c.jpg"]


def test_large_group_of_alerts_is_committed(instance: Instance, collection: str) -> None:
    rules = replace(RULES, rules=tuple(AlertRule(name=f"r{n}") for n in range(20)))
    results = [instance.fire(person(f"{n}.jpg"), rules) for n in range(30)]
    assert all(len(result.alerts) == 20 for result in results)
    assert [each.outcome for each in recorded(instance.results.commit(results))] == [
        Outcome.DONE
    ] * 30
    assert len(stored(collection)) == 600


# Removal


@pytest.fixture
def deleter(collection: str) -> ResultDeleter:
    return ResultDeleter(
        firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS
    )


def test_alerts_are_removed_with_their_result(
    instance: Instance, collection: str, deleter: ResultDeleter, topic: Topic
) -> None:
    instance.handle(person("a.jpg"))
    instance.handle(person("b.jpg"))
    deleter.delete([person("a.jpg").ref.document_id])
    assert [alert["name"] for alert in stored(collection)] == ["b.jpg"]
    # A late redelivery, and a late decision, publish nothing.
    instance.redeliver(person("a.jpg"))
    assert instance.store.decide(topic.ids[0], "gate", "people", 0)[0] is None
    assert len(topic.messages) == 1


def test_late_commit_after_a_removal_creates_no_alert(
    instance: Instance, collection: str, deleter: ResultDeleter
) -> None:
    store = ResultStore(
        firestore.Client(),
        collection=collection,
        timeout_seconds=PATIENCE_SECONDS,
        with_tombstones=True,
    )
    late = instance.fire(person("a.jpg"))
    deleter.delete([late.ref.document_id])
    [outcome] = store.commit([late])
    assert isinstance(outcome, ObjectGoneError)
    assert not stored(collection)


def test_edited_document_removes_no_other_alert(
    instance: Instance, collection: str, deleter: ResultDeleter
) -> None:
    instance.handle(person("a.jpg"))
    instance.handle(person("b.jpg"))
    [other] = [alert["id"] for alert in stored(collection) if alert["name"] == "b.jpg"]
    ref = person("a.jpg").ref
    reference = firestore.Client().collection(collection).document(ref.document_id)
    entries = [{"id": other}, {"id": f"{ref.document_id}-x/y"}, {"id": 1}, "text"]
    reference.update({"alerts": firestore.ArrayUnion(entries)})
    deleter.delete([ref.document_id])
    assert [alert["name"] for alert in stored(collection)] == ["b.jpg"]


# Documents that a person has edited


def test_edited_alert_is_reported_as_such(instance: Instance, collection: str) -> None:
    instance.results.commit([instance.fire(person("a.jpg"))])
    [alert] = stored(collection)
    reference = firestore.Client().collection(collection + ALERTS).document(alert["id"])
    reference.update({"state": "maybe"})
    with pytest.raises(StoredResultError, match="another form"):
        instance.store.decide(alert["id"], "gate", "people", 900)
    with pytest.raises(StoredResultError, match="another form"):
        instance.store.read(alert["id"])


def test_edited_alert_keeps_no_other_alert_back(
    instance: Instance, collection: str, topic: Topic
) -> None:
    rules = AlertRules("gate", (AlertRule(name="any"), AlertRule(name="other")))
    instance.results.commit([instance.fire(person("a.jpg"), rules)])
    edited, intact = stored(collection)
    alerts = firestore.Client().collection(collection + ALERTS)
    alerts.document(edited["id"]).update({"state": "maybe"})
    instance.redeliver(person("a.jpg"))
    assert topic.ids == [intact["id"]]


@pytest.mark.parametrize("entry", ["text", {}, {"id": 1}, {"id": "x/y"}, {"id": "another-image"}])
def test_edited_list_keeps_no_alert_back(
    instance: Instance, collection: str, topic: Topic, entry: Any
) -> None:
    result = person("a.jpg")
    instance.results.commit([instance.fire(result)])
    reference = firestore.Client().collection(collection).document(result.ref.document_id)
    reference.update({"alerts": firestore.ArrayUnion([entry])})
    instance.redeliver(result)
    assert len(topic.messages) == 1
    reference.update({"alerts": "text"})
    instance.redeliver(result)


@pytest.mark.parametrize("decided_at", [None, "yesterday", 5, datetime(2999, 1, 1, tzinfo=UTC)])
def test_edited_cooldown_counts_as_over(
    instance: Instance, collection: str, topic: Topic, decided_at: Any
) -> None:
    instance.handle(person("a.jpg"))
    for snapshot in firestore.Client().collection(collection + COOLDOWNS).stream():
        snapshot.reference.update({"decided_at": decided_at})
    other = Instance(collection, topic)
    assert other.store.last_alert("gate", "people") is None
    other.handle(person("b.jpg"))
    assert len(topic.messages) == 2


def test_slower_instance_changes_no_decision(
    instance: Instance, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the pending alert, and then another instance decides it."""
    result = instance.fire(person("a.jpg"))
    instance.results.commit([result])
    [alert] = result.alerts
    client = firestore.Client()
    slower = AlertStore(client, collection=collection, timeout_seconds=PATIENCE_SECONDS)
    get_all = client.get_all

    def read_and_wait(*args: Any, **options: Any) -> Any:
        snapshots = list(get_all(*args, **options))
        instance.store.decide(alert.id, "gate", "people", 900)
        return snapshots

    monkeypatch.setattr(client, "get_all", read_and_wait)
    known = LastAlert("another", 1.0)
    decided, _ = slower.decide(alert.id, "gate", "people", 900, active=known)
    assert decided and decided.state is AlertState.PUBLISHED
    assert states(collection) == {"published": 1}


def test_decision_is_made_once(instance: Instance, collection: str) -> None:
    result = instance.fire(person("a.jpg"))
    instance.results.commit([result])
    [alert] = result.alerts
    assert isinstance(alert, Alert)
    first, last = instance.store.decide(alert.id, "gate", "people", 900)
    again, _ = instance.store.decide(
        alert.id, "gate", "people", 900, active=LastAlert("another", 1.0)
    )
    assert first and again
    assert (first.state, again.state) == (AlertState.PUBLISHED, AlertState.PUBLISHED)
    assert last == LastAlert(alert.id, 0.0)
