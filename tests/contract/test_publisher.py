"""Jobs through the official Pub/Sub emulator."""

import json
import uuid

import pytest
from google.cloud import pubsub_v1

from service.gcp.publisher import PublishError, job_messages, publish_jobs
from tests.fakes import PATIENCE_SECONDS


def test_publish_jobs_reach_a_subscriber(
    publisher: pubsub_v1.PublisherClient, project: str
) -> None:
    topic = publisher.topic_path(project, f"jobs-{uuid.uuid4().hex}")
    publisher.create_topic(name=topic)
    uris = [f"gs://uploads/{i}.jpg" for i in range(5)]
    with pubsub_v1.SubscriberClient() as subscriber:
        subscription = subscriber.subscription_path(project, topic.rpartition("/")[2])
        subscriber.create_subscription(name=subscription, topic=topic)
        ids = publish_jobs(publisher, topic, job_messages(uris, uris_per_message=2))
        received: list[str] = []
        while len(received) < len(uris):
            answer = subscriber.pull(
                subscription=subscription, max_messages=10, timeout=PATIENCE_SECONDS
            )
            for message in answer.received_messages:
                received += json.loads(message.message.data)["uris"]
    assert len(ids) == 3
    assert sorted(received) == uris


def test_publish_to_missing_topic_says_so(
    publisher: pubsub_v1.PublisherClient, project: str
) -> None:
    topic = publisher.topic_path(project, "never-made")
    with pytest.raises(PublishError, match="There is no topic .*never-made"):
        publish_jobs(publisher, topic, [b"{}"])
