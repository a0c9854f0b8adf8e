"""A back-fill beside uploads: it is paced, every job is done, and uploads keep their slots.

Back-off, number of deliveries and slots are smaller than in production.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from devtools.demo_model.shapes import Scene
from devtools.local_stack.eventarc import Eventarc, EventarcOptions
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from service.gcp.publisher import connect, job_message, publish_jobs
from service.operate.backfill import Deployment, Redelivery, backfill_estimate, token_bucket
from tests.fakes import PATIENCE_SECONDS
from tests.system.conftest import (
    DOCUMENT_SECONDS,
    Service,
    document,
    held_storage,
    put_aside,
    wait_for_deliveries,
)

Samples = list[tuple[Path, Scene]]

SLOTS = 4
IMAGES = 120
UPLOADS = 40
# All deliveries take over six minutes, so that a slow machine alone makes no dead letter.
REDELIVERY = Redelivery(deliveries=100, minimum_backoff_seconds=1, maximum_backoff_seconds=4)
SLOW = Deployment(images_per_second=1, instances=1)  # 97 jobs are published at once


def uri(ref: ImageRef) -> str:
    return f"{ref.uri}#{ref.generation}"


def dead_letters(stack: Stack, name: str) -> list[bytes]:
    with pubsub_v1.SubscriberClient() as client:
        subscription = client.subscription_path(stack.project, name)
        pulled = client.pull(subscription=subscription, max_messages=100, timeout=PATIENCE_SECONDS)
        return [each.message.data for each in pulled.received_messages]


@contextmanager
def pushed(stack: Stack, topic: str, service: Service) -> Iterator[None]:
    """Push a topic's messages as Pub/Sub does, several at once.

    The emulator's own push sends two at once, and pauses for long after three failed attempts.
    """
    options = EventarcOptions(
        concurrency=2 * SLOTS,
        answer_timeout_seconds=PATIENCE_SECONDS,
        min_delay_seconds=int(REDELIVERY.minimum_backoff_seconds),
        max_delay_seconds=int(REDELIVERY.maximum_backoff_seconds),
        with_pushes=True,
    )
    host = stack.environment["PUBSUB_EMULATOR_HOST"]
    subscription = f"projects/{stack.project}/subscriptions/{topic}"
    eventarc = Eventarc(host, subscription, service.url, options).start()
    try:
        yield
    finally:
        eventarc.stop()


def test_backfill_beyond_the_slots_makes_no_dead_letter(
    stack: Stack,
    samples: Samples,
    make_topic: Callable[..., str],
    start_service: Callable[..., Service],
) -> None:
    data = samples[0][0].read_bytes()
    jobs = [put_aside(stack, f"backfill/{i}.jpg", data) for i in range(IMAGES)]
    uploads = [put_aside(stack, f"camera/{i}.jpg", data) for i in range(UPLOADS)]
    service, dead = start_service(MAX_IN_FLIGHT=str(SLOTS)), make_topic()
    live = make_topic(
        dead_letter_policy={
            "dead_letter_topic": f"projects/{stack.project}/topics/{dead}",
            "max_delivery_attempts": REDELIVERY.deliveries,
        },
    )
    assert SLOTS < backfill_estimate(IMAGES, SLOW, REDELIVERY).at_once < IMAGES
    is_over = threading.Event()

    def take(ref: ImageRef) -> None:
        """Deliver an event until it is acknowledged, as Eventarc does."""
        while not is_over.is_set() and service.post(ref).status_code != 204:
            is_over.wait(1)

    with pushed(stack, live, service), ThreadPoolExecutor(2) as cameras:
        arriving = [cameras.submit(take, ref) for ref in uploads]
        topic = f"projects/{stack.project}/topics/{live}"
        paced = token_bucket(SLOW, REDELIVERY).paced(map(uri, jobs))
        try:
            assert publish_jobs(connect(), topic, map(job_message, paced)) == IMAGES
            for upload in arriving:
                upload.result(DOCUMENT_SECONDS)
            wait_for_deliveries(lambda: all(map(document, jobs)), "a job was not done")
        finally:
            is_over.set()
    assert all(map(document, uploads))
    assert 429 in [line.get("status") for line in service.log()]
    publish_jobs(connect(), f"projects/{stack.project}/topics/{dead}", [b"the test's"])
    assert dead_letters(stack, dead) == [b"the test's"]


def test_jobs_leave_half_of_the_slots_to_uploads(
    stack: Stack, samples: Samples, start_service: Callable[..., Service]
) -> None:
    data = samples[0][0].read_bytes()
    jobs = [put_aside(stack, f"half/job/{i}.jpg", data) for i in range(SLOTS)]
    uploads = [put_aside(stack, f"half/upload/{i}.jpg", data) for i in range(SLOTS)]
    with held_storage() as (url, gate), ThreadPoolExecutor(2 * SLOTS) as callers:
        service = start_service(STORAGE_EMULATOR_HOST=url, MAX_IN_FLIGHT=str(SLOTS))
        gate.close()
        posted = {}
        for post, refs in ((service.post_job, jobs), (service.post, uploads)):
            posted[post] = [callers.submit(post, ref) for ref in refs]
            # While the gate is closed, only requests without a slot have a response.
            list(islice(as_completed(posted[post], PATIENCE_SECONDS), SLOTS // 2))
        gate.open()
        for futures in posted.values():
            statuses = Counter(future.result().status_code for future in futures)
            assert statuses == {204: SLOTS // 2, 429: SLOTS // 2}
