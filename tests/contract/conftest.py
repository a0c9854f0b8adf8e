"""The official emulators, without the service: what the vendor's clients really do."""

import os
import uuid
from collections.abc import Iterator

import pytest
from google.cloud import firestore, pubsub_v1, storage  # type: ignore[attr-defined]  # published without types

from devtools.local_stack.stack import Stack, StackOptions
from service.deadline import NO_DEADLINE, Deadline
from service.domain import Download, ImageRef
from service.gcp.daily_count import DailyCount
from service.gcp.firestore import ResultStore
from service.gcp.large_results import LargeResults
from service.gcp.result_objects import ResultObjects
from service.gcp.result_reader import ResultReader
from service.gcp.result_uploads import ResultUploads
from service.gcp.storage import ImageStorage
from tests.fakes import PATIENCE_SECONDS

BUCKET = "uploads"
NOBODY = "http://127.0.0.1:9"  # the discard port: a push gets no response


@pytest.fixture(scope="session")
def emulators() -> Iterator[Stack]:
    options = StackOptions(
        with_service=False, with_eventarc=False, service_url=NOBODY, bucket=BUCKET
    )
    with Stack(options) as stack:
        yield stack


@pytest.fixture(autouse=True)
def emulator_environment(emulators: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in emulators.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket() -> storage.Bucket:
    return storage.Client().bucket(BUCKET)


@pytest.fixture
def image_storage() -> ImageStorage:
    return ImageStorage(
        storage.Client(), timeout_seconds=PATIENCE_SECONDS, max_bytes=1000, connections=4
    )


def fetched(service: ImageStorage, ref: ImageRef, deadline: Deadline = NO_DEADLINE) -> Download:
    """Download an object, without limiting the memory for its bytes."""
    with service.download(ref, deadline) as download:
        return download


@pytest.fixture
def collection() -> str:
    """Return the name of a collection that only this test uses."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def store(collection: str) -> ResultStore:
    return ResultStore(firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS)


@pytest.fixture
def reader(collection: str) -> ResultReader:
    return ResultReader(firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS)


@pytest.fixture
def results_bucket() -> storage.Bucket:
    return storage.Client().create_bucket(f"results-{uuid.uuid4().hex}")


@pytest.fixture
def result_objects(results_bucket: storage.Bucket) -> ResultObjects:
    return ResultObjects(storage.Client(), results_bucket.name, timeout_seconds=PATIENCE_SECONDS)


@pytest.fixture
def large(result_objects: ResultObjects) -> LargeResults:
    return LargeResults(result_objects)


@pytest.fixture
def uploads(result_objects: ResultObjects) -> ResultUploads:
    return ResultUploads(result_objects)


@pytest.fixture
def daily_count(collection: str) -> DailyCount:
    return DailyCount(firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS)


@pytest.fixture
def publisher() -> Iterator[pubsub_v1.PublisherClient]:
    with pubsub_v1.PublisherClient() as client:
        yield client


@pytest.fixture
def project() -> str:
    return os.environ["GOOGLE_CLOUD_PROJECT"]


@pytest.fixture
def topic(publisher: pubsub_v1.PublisherClient, project: str) -> str:
    """Return a topic that only this test uses, with a subscription of the same name."""
    return topic_with_subscription(publisher, project)


def topic_with_subscription(publisher: pubsub_v1.PublisherClient, project: str) -> str:
    """Create a topic and a subscription of the same name. Return the topic's full name."""
    topic = str(publisher.topic_path(project, f"test-{uuid.uuid4().hex}"))
    publisher.create_topic(name=topic)
    with pubsub_v1.SubscriberClient() as client:
        client.create_subscription(name=topic.replace("/topics/", "/subscriptions/"), topic=topic)
    return topic
