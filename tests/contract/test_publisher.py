"""Jobs through the official Pub/Sub emulator."""

import json
import uuid

import pytest
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from service.gcp.publisher import PublishError, connect, job_message, publish_jobs
from tests.fakes import PATIENCE_SECONDS


def test_publish_jobs_reach_a_subscriber(
    publisher: pubsub_v1.PublisherClient, project: str
) -> None:
    topic = publisher.topic_path(project, f"jobs-{uuid.uuid4().hex}")
    publisher.create_topic(name=topic)
    uris = sorted(f"gs://uploads/{i}.jpg" for i in range(2500))
    with pubsub_v1.SubscriberClient() as subscriber:
        subscription = subscriber.subscription_path(project, topic.rpartition("/")[2])
        subscriber.create_subscription(name=subscription, topic=topic)
        assert publish_jobs(connect(), topic, map(job_message, uris)) == len(uris)
        received: list[str] = []
        while len(received) < len(uris):
            response = subscriber.pull(
                subscription=subscription, max_messages=1000, timeout=PATIENCE_SECONDS
            )
            received += [
                json.loads(received.message.data)["uri"] for received in response.received_messages
            ]
            subscriber.acknowledge(
                subscription=subscription,
                ack_ids=[received.ack_id for received in response.received_messages],
                timeout=PATIENCE_SECONDS,
            )
    assert sorted(received) == uris


def test_publish_to_missing_topic_says_so(
    publisher: pubsub_v1.PublisherClient, project: str
) -> None:
    topic = publisher.topic_path(project, "never-made")
    with pytest.raises(PublishError, match="There is no topic .*never-made"):
        publish_jobs(publisher, topic, [b"{}"])
