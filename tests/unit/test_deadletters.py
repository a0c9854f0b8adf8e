"""Dead letters of all three kinds."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from service.domain import Replace
from service.gcp.subscriber import DeadLetter
from service.operate.dead_letters import Kind, read

PUBLISHED = datetime(2026, 11, 21, 15, tzinfo=UTC)
ADDED = {
    "CloudPubSubDeadLetterSourceDeliveryCount": "10",
    "CloudPubSubDeadLetterSourceSubscription": "jobs-push",
    "CloudPubSubDeadLetterSourceSubscriptionProject": "p",
    "CloudPubSubDeadLetterSourceTopicPublishTime": "2026-11-21T03:00:00.5+00:00",
}
NOTIFICATION = {"eventType": "OBJECT_FINALIZE", "bucketId": "uploads", "objectId": "a b#.jpg"}
OBJECT = {"kind": "storage#object", "bucket": "uploads", "name": "a b#.jpg", "generation": "7"}


def dead_letter(data: Any = b"", **attributes: str) -> DeadLetter:
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return DeadLetter("ack", "1", data, ADDED | attributes, PUBLISHED)


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        (dead_letter(OBJECT, **NOTIFICATION), "gs://uploads/a b#.jpg#7"),
        (dead_letter(**NOTIFICATION, objectGeneration="7"), "gs://uploads/a b#.jpg#7"),
        (
            dead_letter(OBJECT, **{"ce-type": "google.cloud.storage.object.v1.finalized"}),
            "gs://uploads/a b#.jpg#7",
        ),
        (
            dead_letter(**NOTIFICATION | {"eventType": "OBJECT_DELETE", "objectGeneration": "7"}),
            None,
        ),
        (dead_letter(OBJECT, **{"ce-type": "google.cloud.storage.object.v1.deleted"}), None),
        (dead_letter(**NOTIFICATION | {"eventType": "OBJECT_ARCHIVE"}), None),
    ],
    ids=[
        "notification",
        "attributes-only",
        "cloud-event",
        "deletion",
        "deletion-cloud-event",
        "archive",
    ],
)
def test_read_of_a_notification(given: DeadLetter, uri: str | None) -> None:
    reading = read(given)
    assert (reading.kind, reading.uri) == (Kind.NOTIFICATION, uri)
    assert bool(reading.reason) == (not uri)


@pytest.mark.parametrize("uri", ["gs://uploads/a", "gs://uploads/b#7"])
def test_read_of_a_job_keeps_what_it_may_replace(uri: str) -> None:
    replace = {"if_created_before": "2026-11-21T14:36:54Z", "unless_model": None}
    reading = read(dead_letter({"uri": uri, "replace": replace}, colour="blue"))
    assert (reading.kind, reading.uri) == (Kind.JOB, uri)
    assert reading.event.ref
    assert reading.event.ref.replace == Replace(datetime(2026, 11, 21, 14, 36, 54, tzinfo=UTC))


@pytest.mark.parametrize(
    "given",
    [
        dead_letter(b"\xff\xd8"),
        dead_letter(b""),
        dead_letter({"url": "gs://uploads/a"}),
        dead_letter({"uris": ["gs://uploads/a"]}),
        dead_letter({"bucket": "uploads"}, **NOTIFICATION),
        dead_letter(OBJECT, **{"ce-type": "com.example"}),
    ],
    ids=["binary", "empty", "other", "several", "no-name", "other-event"],
)
def test_unreadable_dead_letter_has_a_reason(given: DeadLetter) -> None:
    reading = read(given)
    assert (reading.kind, reading.uri) == (Kind.UNREADABLE, None)
    assert reading.reason


def test_added_attributes_are_separate_from_the_original_ones() -> None:
    message = dead_letter(colour="blue")
    assert (message.attempts, message.source) == (10, "projects/p/subscriptions/jobs-push")
    assert message.published_at == datetime(2026, 11, 21, 3, 0, 0, 500_000, tzinfo=UTC)
    assert message.own_attributes == {"colour": "blue"}


@pytest.mark.parametrize("value", ["", "yesterday", "2026-11-21T03:00:00"])
def test_malformed_added_attributes_fall_back(value: str) -> None:
    attributes = {f"CloudPubSubDeadLetterSource{end}": value for end in ("DeliveryCount",)}
    attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] = value
    message = DeadLetter("ack", "1", b"", attributes, PUBLISHED)
    assert (message.attempts, message.source, message.published_at) == (None, None, PUBLISHED)
