"""Dead pulled through the official Pub/Sub emulator."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from service.errors import CredentialsError
from service.gcp.publisher import publish_jobs
from service.gcp.subscriber import Subscription, SubscriptionError, connect
from tests.fakes import wait_until


@pytest.fixture
def topic(publisher: pubsub_v1.PublisherClient, project: str) -> str:
    name = publisher.topic_path(project, f"dead-{uuid.uuid4().hex}")
    publisher.create_topic(name=name)
    return str(name)


@pytest.fixture
def subscription(topic: str, project: str) -> Iterator[Subscription]:
    with pubsub_v1.SubscriberClient() as client:
        name = client.subscription_path(project, topic.rpartition("/")[2])
        client.create_subscription(name=name, topic=topic, ack_deadline_seconds=600)
        yield Subscription(client, name)


def data(subscription: Subscription, limit: int = 1000) -> list[bytes]:
    """Return the data of all messages, and release them."""
    pulled = list(subscription.pull(limit))
    subscription.release()
    return sorted(message.data for message in pulled)


def test_pull_returns_all_dead_letters_and_keeps_them(
    subscription: Subscription, publisher: pubsub_v1.PublisherClient, topic: str
) -> None:
    messages = [f"{i:03}".encode() for i in range(250)]
    publish_jobs(publisher, topic, messages, attributes={"ce-type": "é", "b": "two\nlines"})
    pulled = list(subscription.pull(1000))
    assert sorted(message.data for message in pulled) == messages
    assert {tuple(sorted(message.attributes.items())) for message in pulled} == {
        (("b", "two\nlines"), ("ce-type", "é"))
    }
    subscription.release()
    assert data(subscription) == messages


def test_pull_returns_at_most_the_limit(
    subscription: Subscription, publisher: pubsub_v1.PublisherClient, topic: str
) -> None:
    publish_jobs(publisher, topic, [b"%d" % i for i in range(5)])
    assert len(list(subscription.pull(3))) == 3


class Extensions:
    """A client that counts how often leases are extended."""

    def __init__(self, client: pubsub_v1.SubscriberClient) -> None:
        self._client = client
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def modify_ack_deadline(self, **call: Any) -> None:
        self._client.modify_ack_deadline(**call)
        self.count += 1


def test_leases_of_dead_letters_are_extended(
    subscription: Subscription, publisher: pubsub_v1.PublisherClient, topic: str
) -> None:
    publish_jobs(publisher, topic, [b"1", b"2", b"3"])
    client = Extensions(subscription._client)
    # Long enough for a thread to be late by seconds on a busy machine.
    source = Subscription(client, subscription.name, lease_seconds=6)
    with source.leases():
        first, *_ = list(source.pull(10))
        source.acknowledge([first])
        # Once by `pull`, then after each third of a lease. So this many outlast one lease.
        wait_until(lambda: client.count >= 5, "the leases are not extended")
        assert data(subscription) == []
    assert len(data(subscription)) == 2


def test_dead_letter_delivered_twice_is_acknowledged(
    subscription: Subscription, publisher: pubsub_v1.PublisherClient, topic: str
) -> None:
    publish_jobs(publisher, topic, [b"1"])
    [first] = subscription.pull(1)
    subscription._set_deadline([first.ack_id], 0)  # as if its lease had ended
    [again] = subscription.pull(1)
    assert again.ack_id != first.ack_id
    subscription.acknowledge([first])
    assert data(subscription) == []


def test_acknowledged_dead_letters_are_gone(
    subscription: Subscription, publisher: pubsub_v1.PublisherClient, topic: str
) -> None:
    publish_jobs(publisher, topic, [b"stays", b"goes"])
    pulled = list(subscription.pull(10))
    subscription.acknowledge(message for message in pulled if message.data == b"goes")
    subscription.release()
    assert data(subscription) == [b"stays"]


def test_topic_of_a_subscription_is_its_topic(subscription: Subscription, topic: str) -> None:
    assert subscription.topic_of(subscription.name) == topic


def test_missing_subscription_is_named(project: str) -> None:
    source = connect("never-made", project)
    with pytest.raises(SubscriptionError, match="There is no subscription .*never-made"):
        list(source.pull(1))
    with pytest.raises(SubscriptionError, match="There is no subscription .*nor-this"):
        source.topic_of(f"projects/{project}/subscriptions/nor-this")


def test_connect_by_name_needs_a_project() -> None:
    with pytest.raises(CredentialsError):
        connect("jobs-dead-message", None)
    assert connect("projects/p/subscriptions/s", None).name == "projects/p/subscriptions/s"
