"""Each result is published: the real service, with crashes, a missing topic and a deletion."""

import json
import os
import signal
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from google.cloud import firestore, pubsub_v1, storage  # type: ignore[attr-defined]  # published without types

from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from devtools.warehouse import Warehouse
from service.domain import ImageRef
from tests.fakes import PATIENCE_SECONDS
from tests.system import hooks
from tests.system.conftest import (
    COLLECTION,
    EVENT,
    Service,
    document,
    event_data,
    put_aside,
)

Samples = list[tuple[Path, Scene]]
StartService = Callable[..., Service]
MakeTopic = Callable[..., str]
IMAGES = 24


def received(stack: Stack, topic: str, is_complete: Callable[[list[bytes]], bool]) -> list[bytes]:
    """Return the messages of a topic, when they are complete."""
    messages: list[bytes] = []
    with pubsub_v1.SubscriberClient() as subscriber:
        subscription = subscriber.subscription_path(stack.project, topic)
        while not is_complete(messages):
            response = subscriber.pull(
                subscription=subscription, max_messages=100, timeout=PATIENCE_SECONDS
            )
            messages += [each.message.data for each in response.received_messages]
            subscriber.acknowledge(
                subscription=subscription,
                ack_ids=[each.ack_id for each in response.received_messages],
            )
    return messages


def ids(messages: list[bytes]) -> set[str]:
    return {json.loads(message)["document_id"] for message in messages}


def statuses(messages: list[bytes]) -> list[str]:
    return sorted(json.loads(message)["status"] for message in messages)


def documents(refs: list[ImageRef]) -> dict[str, Any]:
    """Return when the document of each image was created, by its id."""
    collection = firestore.Client().collection(COLLECTION)
    snapshots = [collection.document(ref.document_id).get() for ref in refs]
    return {each.id: each.get("created_at") for each in snapshots if each.exists}


def test_crash_after_the_commit_loses_no_message(
    start_service: StartService, stack: Stack, samples: Samples, make_topic: MakeTopic
) -> None:
    topic = make_topic()
    service = start_service(RESULTS_TOPIC=topic, **hooks.settings(hooks.CrashingAfterCommitWorker))
    ref = put_aside(stack, f"{topic}/a.jpg", samples[0][0].read_bytes())
    assert service.deliver(ref) == [0, 204]
    [message] = received(stack, topic, lambda messages: len(messages) == 1)
    fields = json.loads(message)
    stored = document(ref)
    assert stored and fields["labels"] == stored["labels"]
    assert ids([message]) == {ref.document_id}


def test_kills_lose_no_message_and_rows_are_documents(
    start_service: StartService, stack: Stack, samples: Samples, make_topic: MakeTopic
) -> None:
    topic = make_topic()
    service = start_service(RESULTS_TOPIC=topic)
    refs = [
        put_aside(stack, f"{topic}/{i}.jpg", samples[i % len(samples)][0].read_bytes())
        for i in range(IMAGES)
    ]
    with ThreadPoolExecutor(8) as callers:
        deliveries = [callers.submit(service.deliver, ref) for ref in [*refs, *refs[::2]]]
        for number in (3, 11):
            deliveries[number].result(PATIENCE_SECONDS)
            os.kill(service.worker, signal.SIGKILL)
        assert all(delivery.result()[-1] == 204 for delivery in deliveries)
    stored = documents(refs)
    messages = received(stack, topic, lambda messages: ids(messages) >= set(stored))
    assert len(stored) == IMAGES
    rows = Warehouse(messages).query("SELECT document_id, created_at FROM `p.d.results`")
    assert dict(rows) == stored and len(rows) == IMAGES


def test_missing_topic_rejects_until_it_exists(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    topic = f"late-{uuid.uuid4().hex}"
    service = start_service(RESULTS_TOPIC=topic)
    ref = put_aside(stack, f"{topic}/a.jpg", samples[0][0].read_bytes())
    response = service.post(ref)
    assert (response.status_code, document(ref) is not None) == (503, True)
    assert "topic does not exist" in response.text
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        path = publisher.topic_path(stack.project, topic)
        publisher.create_topic(name=path)
        name = subscriber.subscription_path(stack.project, topic)
        subscriber.create_subscription(name=name, topic=path)
    assert service.post(ref).status_code == 204
    messages = received(stack, topic, lambda messages: bool(messages))
    assert ids(messages) == {ref.document_id}


def test_deleted_image_is_published_and_has_no_row(
    start_service: StartService, stack: Stack, samples: Samples, make_topic: MakeTopic
) -> None:
    topic = make_topic()
    service = start_service(RESULTS_TOPIC=topic, DELETE_RESULTS_WITH_OBJECTS="true")
    ref = put_aside(stack, f"{topic}/a.jpg", samples[0][0].read_bytes())
    assert service.deliver(ref) == [204]
    storage.Client().bucket(ref.bucket).blob(ref.name).delete()
    deleted = EVENT | {"ce-type": "google.cloud.storage.object.v1.deleted"}
    for _ in range(2):  # a repeat publishes it again
        response = requests.post(
            service.url, json=event_data(ref), headers=deleted, timeout=PATIENCE_SECONDS
        )
        assert response.status_code == 204
    messages = received(stack, topic, lambda messages: len(messages) == 3)
    assert statuses(messages) == ["deleted", "deleted", "done"]
    assert Warehouse(messages).query("SELECT * FROM `p.d.results`") == []
