"""The fake Eventarc: CloudEvents from a bucket's notifications."""

import json
from datetime import UTC, datetime

import pytest
from google.pubsub_v1.types import PubsubMessage

from devtools.local_stack.eventarc import (
    Delivery,
    EventarcOptions,
    event_from_notification,
    push_from_message,
)
from service.domain import ImageRef
from service.events import parse_event

NOTIFICATION = {
    "eventType": "OBJECT_FINALIZE",
    "bucketId": "uploads",
    "objectId": "dir/cat.jpg",
    "objectGeneration": "1755000000000001",
    "payloadFormat": "JSON_API_V1",
    "eventTime": "2026-09-24T11:12:11Z",
}
PUBLISHED = datetime(2026, 9, 24, 11, 12, 12, 500000, tzinfo=UTC)


def event(**changes: str) -> Delivery | None:
    attributes = {**NOTIFICATION, **changes}
    return event_from_notification(attributes, b"{}", message_id="42", publish_time=PUBLISHED)


def test_finalize_becomes_a_binary_mode_cloud_event() -> None:
    assert event() == Delivery(
        message_id="42",
        subject="objects/dir/cat.jpg",
        headers={
            "content-type": "application/json",
            "ce-specversion": "1.0",
            "ce-id": "42",
            "ce-type": "google.cloud.storage.object.v1.finalized",
            "ce-source": "//storage.googleapis.com/projects/_/buckets/uploads",
            "ce-subject": "objects/dir/cat.jpg",
            "ce-time": "2026-09-24T11:12:11Z",
            "ce-bucket": "uploads",
        },
        body=b"{}",
    )


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        pytest.param("a b.jpg", "objects/a%20b.jpg", id="space"),
        pytest.param("é.jpg", "objects/%C3%A9.jpg", id="not-ascii"),
        pytest.param('50%".jpg', "objects/50%25%22.jpg", id="percent-and-quote"),
        pytest.param("a#b?c.jpg", "objects/a#b?c.jpg", id="printable"),
        pytest.param("a\nb.jpg", "objects/a%0Ab.jpg", id="newline"),
    ],
)
def test_subject_is_percent_encoded_as_a_header(name: str, subject: str) -> None:
    delivery = event(objectId=name)
    assert delivery and delivery.headers["ce-subject"] == subject


def test_deletion_does_not_say_what_overwrote_the_object() -> None:
    delivery = event(eventType="OBJECT_DELETE", overwrittenByGeneration="1755000000000002")
    assert delivery and delivery.headers["ce-type"] == "google.cloud.storage.object.v1.deleted"
    assert not [name for name in delivery.headers if "overwritten" in name.lower()]


def test_missing_event_time_becomes_the_publish_time() -> None:
    delivery = event(eventTime="")
    assert delivery and delivery.headers["ce-time"] == "2026-09-24T11:12:12.500000Z"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"eventType": "OBJECT_ARCHIVE"}, id="archive"),
        pytest.param({"eventType": ""}, id="no-notification"),
        pytest.param({"objectId": ""}, id="no-object"),
    ],
)
def test_other_messages_become_no_event(changes: dict[str, str]) -> None:
    assert event(**changes) is None


def test_job_is_wrapped_as_pubsub_pushes_it() -> None:
    message = PubsubMessage(
        data=b'{"uri": "gs://uploads/cat.jpg"}', message_id="7", publish_time=PUBLISHED
    )
    push = push_from_message(message, "projects/p/subscriptions/jobs")
    assert (push.message_id, push.subject) == ("7", "message 7")
    assert json.loads(push.body) == {
        "message": {
            "attributes": {},
            "data": "eyJ1cmkiOiAiZ3M6Ly91cGxvYWRzL2NhdC5qcGcifQ==",
            "messageId": "7",
            "publishTime": "2026-09-24T11:12:12.500000Z",
        },
        "subscription": "projects/p/subscriptions/jobs",
    }
    assert parse_event(push.headers, push.body).ref == ImageRef("uploads", "cat.jpg")


def test_delay_doubles_up_to_its_limit() -> None:
    options = EventarcOptions(min_delay_seconds=1, max_delay_seconds=10)
    assert [options.delay_seconds(n) for n in (1, 2, 3, 4, 5, 10_000)] == [1, 2, 4, 8, 10, 10]
