"""The service's own messages through the official Pub/Sub emulator."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from service.deadline import NO_DEADLINE
from service.errors import PubSubRefusedError
from service.gcp.topic_publisher import TopicPublisher, connect_topic
from tests.fakes import PATIENCE_SECONDS


@pytest.fixture
def client() -> Iterator[pubsub_v1.PublisherClient]:
    with connect_topic() as client:
        yield client


def received(topic: str, count: int) -> dict[bytes, dict[str, str]]:
    """Return the attributes of this many messages, by their data."""
    messages: dict[bytes, dict[str, str]] = {}
    with pubsub_v1.SubscriberClient() as subscriber:
        subscription = topic.replace("/topics/", "/subscriptions/")
        while len(messages) < count:
            response = subscriber.pull(
                subscription=subscription, max_messages=100, timeout=PATIENCE_SECONDS
            )
            for each in response.received_messages:
                messages[each.message.data] = dict(each.message.attributes)
            subscriber.acknowledge(
                subscription=subscription,
                ack_ids=[each.ack_id for each in response.received_messages],
            )
    return messages


def test_messages_from_many_threads_arrive_with_attributes(
    client: pubsub_v1.PublisherClient, topic: str
) -> None:
    publisher = TopicPublisher(client, topic)

    def publish(number: int) -> None:
        publisher.publish(f"{number}".encode(), {"number": f"{number}"}, NO_DEADLINE)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(publish, range(200)))
    expected = {f"{number}".encode(): {"number": f"{number}"} for number in range(200)}
    assert received(topic, 200) == expected


def test_largest_message_arrives(client: pubsub_v1.PublisherClient, topic: str) -> None:
    data = b"x" * 2**20
    TopicPublisher(client, topic).publish(data, {"a": "é" * 512}, NO_DEADLINE)
    assert received(topic, 1) == {data: {"a": "é" * 512}}


def test_missing_topic_is_refused_until_it_exists(
    client: pubsub_v1.PublisherClient, project: str
) -> None:
    name = client.topic_path(project, f"late-{uuid.uuid4().hex}")
    publisher = TopicPublisher(client, name)
    with pytest.raises(PubSubRefusedError, match="topic does not exist"):
        publisher.publish(b"{}", {}, NO_DEADLINE)
    client.create_topic(name=name)
    publisher.publish(b"{}", {}, NO_DEADLINE)
