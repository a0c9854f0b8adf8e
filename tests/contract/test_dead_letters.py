"""`dead-letters --replay` against the official Pub/Sub emulator."""

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types
from google.pubsub_v1 import PublisherClient

from service.cli.dead_letters import dead_letters
from service.gcp.publisher import PublishError
from service.gcp.subscriber import SubscriptionError
from tests.contract.conftest import topic_with_subscription
from tests.fakes import PATIENCE_SECONDS

DELETION = {
    "eventType": "OBJECT_DELETE",
    "bucketId": "uploads",
    "objectId": "a.jpg",
    "objectGeneration": "7",
}


@pytest.fixture
def dead(publisher: pubsub_v1.PublisherClient, project: str) -> str:
    return topic_with_subscription(publisher, project).rpartition("/")[2]


@pytest.fixture
def jobs(publisher: pubsub_v1.PublisherClient, project: str) -> str:
    return topic_with_subscription(publisher, project).rpartition("/")[2]


def put(
    publisher: pubsub_v1.PublisherClient, project: str, dead: str, data: bytes, **attributes: str
) -> str:
    """Publish a dead letter, and return its id."""
    topic = publisher.topic_path(project, dead)
    return str(publisher.publish(topic, data, **attributes).result(PATIENCE_SECONDS))


def run(dead: str, *options: str, limit: int, exit_code: int = 0) -> Result:
    """Run the command with the number of dead letters as its limit, so that it need not wait."""
    arguments = ["--subscription", dead, "--limit", str(limit), *options]
    done = CliRunner().invoke(dead_letters, arguments)
    assert done.exit_code == exit_code, done.output
    return done


def ids_in(dead: str) -> set[str]:
    lines = run(dead, "--json", limit=10).stdout.splitlines()
    return {json.loads(line)["id"] for line in lines}


def published(project: str, jobs: str) -> list[bytes]:
    with pubsub_v1.SubscriberClient() as client:
        response = client.pull(
            subscription=client.subscription_path(project, jobs),
            max_messages=10,
            timeout=PATIENCE_SECONDS,
        )
    return [received.message.data for received in response.received_messages]


def test_dead_letter_without_an_image_is_not_counted_replayed(
    publisher: pubsub_v1.PublisherClient, project: str, dead: str, jobs: str
) -> None:
    deletion = put(publisher, project, dead, b"", **DELETION)
    job = put(publisher, project, dead, b'{"uri": "gs://uploads/a.jpg"}')
    done = run(dead, "--replay", "--topic", jobs, limit=2)
    assert "Replayed 1 of 2 messages" in done.stdout
    assert f"{deletion} stays: it names no image" in done.stderr
    assert ids_in(dead) == {deletion}
    assert published(project, jobs) == [b'{"uri": "gs://uploads/a.jpg"}']
    assert job not in done.stderr


def test_dead_letter_without_an_image_can_be_replayed_as_is(
    publisher: pubsub_v1.PublisherClient, project: str, dead: str, jobs: str
) -> None:
    put(publisher, project, dead, b"{}", **DELETION)
    done = run(dead, "--replay", "--as-is", "--topic", jobs, limit=1)
    assert "Replayed 1 of 1 messages" in done.stdout
    assert ids_in(dead) == set()
    assert published(project, jobs) == [b"{}"]


def test_dead_letter_with_reserved_attributes_stays(
    publisher: pubsub_v1.PublisherClient, project: str, dead: str, jobs: str
) -> None:
    message: Any = {"data": b"reserved", "attributes": {"timeout": "5"}}
    topic = publisher.topic_path(project, dead)
    # The base class of the client, which accepts any attributes.
    response = PublisherClient.publish(publisher, topic=topic, messages=[message])
    [reserved] = response.message_ids
    put(publisher, project, dead, b"good")
    done = run(dead, "--replay", "--as-is", "--topic", jobs, limit=2, exit_code=1)
    assert "Replayed 1 of 2 messages" in done.stdout
    assert f"{reserved} stays: Attributes with these names" in done.stderr
    assert ids_in(dead) == {reserved}


def from_source(name: str, project: str) -> dict[str, str]:
    """Return the attributes that Pub/Sub adds to a dead letter of a subscription."""
    source = "CloudPubSubDeadLetterSourceSubscription"
    return {source: name, f"{source}Project": project}


def test_failed_replay_does_not_stop_the_other_replays(
    publisher: pubsub_v1.PublisherClient, project: str, dead: str, jobs: str
) -> None:
    lost = topic_with_subscription(publisher, project).rpartition("/")[2]
    publisher.delete_topic(topic=publisher.topic_path(project, lost))
    stay = [
        put(publisher, project, dead, b"x", **from_source(name, project))
        for name in ("gone", "gone", lost, "in/valid")
    ]
    unknown = put(publisher, project, dead, b"x")
    put(publisher, project, dead, b"good", **from_source(jobs, project))
    done = run(dead, "--replay", "--as-is", limit=6, exit_code=1)
    assert done.stderr.count("stays: There is no subscription") >= 2
    assert f"{unknown} stays: it does not name the subscription" in done.stderr
    assert "Replayed 1 of 6 messages" in done.stdout
    assert published(project, jobs) == [b"good"]
    assert ids_in(dead) == {*stay, unknown}


def test_replay_to_no_topic_asks_once_and_keeps_all(
    publisher: pubsub_v1.PublisherClient,
    project: str,
    dead: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def no_topic(client: object, topic: str, messages: object) -> None:
        asked.append(topic)
        raise PublishError("There is no topic")

    monkeypatch.setattr("service.gcp.publisher.publish_jobs", no_topic)
    job = b'{"uri": "gs://uploads/a.jpg"}'
    message_ids = {put(publisher, project, dead, job) for _ in range(3)}
    done = run(dead, "--replay", limit=3, exit_code=1)
    assert len(asked) == 1
    assert done.stderr.count("stays: There is no topic") == 3
    assert ids_in(dead) == message_ids


def test_replay_that_is_interrupted_says_how_many(
    publisher: pubsub_v1.PublisherClient,
    project: str,
    dead: str,
    jobs: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first error is printed, even if the other messages cannot be released."""
    for _ in range(3):
        put(publisher, project, dead, b'{"uri": "gs://uploads/a.jpg"}')
    sent: list[object] = []

    def interrupted(*call: object) -> None:
        if sent:
            raise KeyboardInterrupt
        sent.append(call)

    def unavailable(*call: object) -> None:
        raise SubscriptionError("unavailable")

    monkeypatch.setattr("service.gcp.publisher.publish_jobs", interrupted)
    monkeypatch.setattr("service.gcp.subscriber.Subscription.release", unavailable)
    stopped = run(dead, "--replay", "--topic", jobs, limit=3, exit_code=130)
    assert "Replayed 1 of 3 messages" in stopped.stdout
    assert "Interrupted" in stopped.stderr
    assert "unavailable" not in stopped.output
