"""Results are published after their commit: at least once, and never without a commit."""

import base64
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from google.api_core import exceptions
from google.auth.exceptions import RefreshError

from service.deadline import NO_DEADLINE, Deadline
from service.deletion import Deletion
from service.domain import Event, ImageRef, Outcome, Replace
from service.errors import (
    FirestoreUnavailableError,
    PubSubRefusedError,
    PubSubUnavailableError,
    TooLateError,
)
from service.events import parse_event
from service.gcp.topic_publisher import TopicPublisher
from service.pipeline import Pipeline
from service.publish.after_commit import AfterCommit, RecordedImage
from service.publish.results_step import ResultsStep
from tests.fakes import (
    BUCKET,
    PATIENCE_SECONDS,
    FakeCounter,
    FakeDetector,
    FakeStorage,
    FakeStore,
    FakeTopic,
    bmp_image,
    pipeline_of,
)
from tests.loglines import logged_by

UNAVAILABLE = PubSubUnavailableError("Pub/Sub is unavailable.")


class World:
    """A pipeline with fakes around it, and the messages that it published."""

    def __init__(self, **options: Any) -> None:
        self.storage, self.store, self.topic = FakeStorage(), FakeStore(), FakeTopic()
        self.objects: set[int | None] = set()
        after_commit = AfterCommit([ResultsStep(self.topic)], self.store.read_document)
        self.pipeline: Pipeline = pipeline_of(
            self.storage,
            self.store,
            FakeDetector(),
            after_commit=after_commit,
            deletion=Deletion(self, self, with_overwritten=False, after_commit=after_commit),
            **options,
        )
        self.ref = self.storage.put("cat.bmp", bmp_image())

    def exists(self, ref: ImageRef, deadline: Deadline) -> bool:
        return ref.generation in self.objects

    def delete(self, document_ids: Sequence[str], deadline: Deadline) -> datetime:
        for document_id in document_ids:
            self.store.documents.pop(document_id, None)
        return datetime(2026, 11, 30, tzinfo=UTC)

    def handle(self, ref: ImageRef | None = None, **options: Any) -> Outcome:
        return self.pipeline.handle(Event(ref or self.ref, **options), NO_DEADLINE)

    @property
    def published(self) -> list[tuple[str, str]]:
        return [(message["name"], message["status"]) for message in self.topic.messages]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


def test_result_is_published_with_the_time_of_its_document(world: World) -> None:
    assert world.handle() is Outcome.DONE
    [message] = world.topic.messages
    assert message["document_id"] == world.ref.document_id
    assert message["labels"] == world.store.document("cat.bmp")["labels"]
    created = world.store.created[world.ref.document_id]
    assert datetime.fromisoformat(message["created_at"]) == created
    assert world.topic.attributes[0]["status"] == "done"


def test_failed_image_is_published_too(world: World) -> None:
    broken = world.storage.put("bad.bmp", b"no image")
    assert world.handle(broken) is Outcome.FAILED
    [message] = world.topic.messages
    assert (message["status"], message["error_code"]) == ("failed", "unsupported_media")


def test_published_message_is_never_a_job(world: World) -> None:
    """Otherwise, a results topic that is also the jobs topic would feed the service for ever."""
    world.handle()
    world.handle(is_deletion=True)
    assert [status for _, status in world.published] == ["done", "deleted"]
    for message, attributes in zip(world.topic.messages, world.topic.attributes, strict=True):
        body = json.dumps(message).encode()
        data = base64.b64encode(body).decode()
        pushed = {"message": {"data": data, "attributes": dict(attributes)}}
        for event in (parse_event({}, body), parse_event({}, json.dumps(pushed).encode())):
            assert (event.ref, event.ignored is None) == (None, False)


def test_uncommitted_result_is_never_published(world: World) -> None:
    world.store.errors.append(FirestoreUnavailableError("Firestore is unavailable."))
    with pytest.raises(FirestoreUnavailableError):
        world.handle()
    assert world.published == []


def test_failed_publish_is_repeated_from_the_document(world: World) -> None:
    world.topic.errors.append(UNAVAILABLE)
    with pytest.raises(PubSubUnavailableError):
        world.handle()
    assert (world.published, len(world.store.commits)) == ([], 1)
    assert world.handle() is Outcome.ALREADY_RECORDED
    assert (world.published, len(world.store.commits)) == ([("cat.bmp", "done")], 1)


def test_failed_publish_is_repeated_after_the_object_is_gone(world: World) -> None:
    world.topic.errors.append(UNAVAILABLE)
    with pytest.raises(PubSubUnavailableError):
        world.handle(delivery_attempt=1)
    world.storage.objects.clear()
    # The redelivery looks like a first delivery, so it downloads before it looks for a document.
    assert world.handle(delivery_attempt=1) is Outcome.GONE
    assert world.published == [("cat.bmp", "done")]


def test_repeated_message_is_the_same(world: World) -> None:
    world.handle()
    world.handle()
    first, second = world.topic.messages
    assert first == second


def test_superseded_result_is_published_as_it_is_stored(world: World) -> None:
    world.handle()
    # An upload's first delivery does not look for a document: its commit finds it.
    assert world.handle(delivery_attempt=1) is Outcome.SUPERSEDED
    first, second = world.topic.messages
    assert first == second


def test_replacement_is_published_with_a_newer_time(world: World) -> None:
    world.handle()
    permission = Replace(datetime(2027, 1, 1, tzinfo=UTC))
    assert world.handle(replace(world.ref, replace=permission)) is Outcome.DONE
    first, second = world.topic.messages
    assert first["created_at"] < second["created_at"]


def test_parked_image_is_not_published_until_it_is_done() -> None:
    counter = FakeCounter()
    world = World(limit=counter.limit(1))
    other = world.storage.put("dog.bmp", bmp_image())
    world.handle(other)
    assert world.handle() is Outcome.PARKED
    assert world.handle() is Outcome.PARKED
    assert world.published == [("dog.bmp", "done")]
    world.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


def test_edited_document_is_logged_and_acknowledged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.handle()
    world.store.documents[world.ref.document_id]["labels"] = "cat"
    assert world.handle() is Outcome.ALREADY_RECORDED
    assert len(world.topic.messages) == 1
    [line] = logged_by(caplog, "service.publish.results_step")
    assert (line.levelname, vars(line)["document_id"]) == ("ERROR", world.ref.document_id)


def test_deletion_is_published_after_the_removal(world: World) -> None:
    world.handle()
    world.topic.errors.append(UNAVAILABLE)
    with pytest.raises(PubSubUnavailableError):
        world.handle(is_deletion=True, is_overwritten=False)
    assert world.store.documents == {}
    assert world.handle(is_deletion=True, is_overwritten=False) is Outcome.DELETED
    assert world.published == [("cat.bmp", "done"), ("cat.bmp", "deleted")]


def test_deletion_of_an_existing_object_is_not_published(world: World) -> None:
    world.objects.add(world.ref.generation)
    assert world.handle(is_deletion=True, is_overwritten=False) is Outcome.IGNORED
    assert world.published == []


def test_removed_document_is_not_published(world: World) -> None:
    AfterCommit([ResultsStep(world.topic)], world.store.read_document).stored("x", NO_DEADLINE)
    assert world.published == []


def test_step_uses_the_document_and_not_its_name() -> None:
    topic = FakeTopic()
    document = {
        "uri": f"gs://{BUCKET}/a.jpg", "bucket": BUCKET, "name": "a.jpg", "generation": 7,
        "status": "done", "created_at": datetime(2026, 11, 30, tzinfo=UTC),
    }  # fmt: skip
    ResultsStep(topic).publish(RecordedImage("id", document), NO_DEADLINE)
    assert topic.messages[0]["document_id"] == "id"


# The publisher of one topic


class FakeClient:
    """The vendor's client, whose calls end as the test says."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.published: list[tuple[str, dict[str, Any], dict[str, str]]] = []

    def publish(
        self, topic: str, data: bytes, *, retry: Any, timeout: Any, **attributes: str
    ) -> "Future[str]":
        future: Future[str] = Future()
        self.published.append((topic, json.loads(data), attributes))
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result("1")
        return future


TOPIC = "projects/p/topics/results"


def test_publisher_returns_when_the_message_is_confirmed() -> None:
    client = FakeClient()
    TopicPublisher(client, TOPIC).publish(b"{}", {"status": "done"}, NO_DEADLINE)
    assert client.published == [(TOPIC, {}, {"status": "done"})]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (exceptions.NotFound("no topic"), "Create it"),
        (exceptions.PermissionDenied("no"), "roles/pubsub.publisher"),
        (exceptions.Unauthenticated("who?"), "credentials"),
        (RefreshError("expired"), "credentials"),
        (exceptions.InvalidArgument("schema"), "Remove the topic's schema"),
        (exceptions.FailedPrecondition("key"), "Cloud KMS"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refusal_is_logged_once_with_advice(
    error: Exception, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = TopicPublisher(FakeClient(error, error, None), TOPIC)
    for _ in range(2):
        with pytest.raises(PubSubRefusedError, match=advice) as caught:
            publisher.publish(b"{}", {}, NO_DEADLINE)
        assert caught.value.is_logged
    publisher.publish(b"{}", {}, NO_DEADLINE)
    refused, accepted = logged_by(caplog, "service.gcp.outages")
    assert vars(refused)["subject"] == TOPIC and advice in vars(refused)["reason"]
    assert accepted.getMessage() == "Messages are accepted again"


@pytest.mark.parametrize(
    "error",
    [exceptions.ServiceUnavailable("busy"), exceptions.RetryError("late", cause=None)],
    ids=lambda error: type(error).__name__,
)
def test_outage_of_pubsub_is_transient(error: Exception) -> None:
    with pytest.raises(PubSubUnavailableError) as caught:
        TopicPublisher(FakeClient(error), TOPIC).publish(b"{}", {}, NO_DEADLINE)
    assert not caught.value.is_logged


def test_message_that_is_never_confirmed_ends_with_the_deadline() -> None:
    class SilentClient(FakeClient):
        def publish(self, *args: Any, **named: Any) -> "Future[str]":
            return Future()

    with pytest.raises(PubSubUnavailableError):
        TopicPublisher(SilentClient(), TOPIC).publish(b"{}", {}, Deadline.after(0.01))


def test_nothing_is_published_after_the_deadline() -> None:
    client = FakeClient()
    with pytest.raises(TooLateError):
        TopicPublisher(client, TOPIC).publish(b"{}", {}, Deadline.after(0))
    assert client.published == []
