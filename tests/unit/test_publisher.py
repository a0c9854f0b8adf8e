"""Jobs as messages, parsed by the service's own parser, and the publishing of many."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

import pytest
from google.api_core import exceptions

from service.domain import ImageRef, Replace
from service.events import parse_event
from service.gcp import publisher
from service.gcp.publisher import (
    MessageError,
    PublishError,
    job_message,
    publish_jobs,
    topic_path,
)


def read(message: bytes) -> ImageRef:
    """Return the image of a message that a wrapped push delivers."""
    push = {"message": {"data": base64.b64encode(message).decode()}}
    event = parse_event({}, json.dumps(push).encode())
    assert event.is_job and event.ref
    return event.ref


def test_message_is_the_documented_form() -> None:
    assert job_message("gs://uploads/é.jpg#7") == '{"uri": "gs://uploads/é.jpg#7"}'.encode()
    seen = datetime(2026, 11, 21, 14, 36, 54, tzinfo=UTC)
    assert json.loads(job_message("gs://uploads/a", Replace(seen, "a" * 64))) == {
        "uri": "gs://uploads/a",
        "replace": {"if_created_before": "2026-11-21T14:36:54+00:00", "unless_model": "a" * 64},
    }


@pytest.mark.parametrize(
    "name",
    ["日本/😀.jpg", "line\nbreak.jpg", 'quote".jpg', "back\\slash.jpg", "a%2Fb.jpg", "é" * 512],
    ids=["unicode", "newline", "quote", "backslash", "percent", "1024-bytes"],
)
def test_message_keeps_an_unusual_name(name: str) -> None:
    assert read(job_message(f"gs://uploads/{name}")) == ImageRef("uploads", name)
    assert read(job_message(f"gs://uploads/{name}#7")) == ImageRef("uploads", name, 7)


@pytest.mark.parametrize("model", [None, "ab" * 32], ids=["any", "one"])
def test_message_keeps_its_permission_to_replace(model: str | None) -> None:
    permission = Replace(datetime(2026, 11, 21, 14, 36, 54, 443164, tzinfo=UTC), model)
    assert read(job_message("gs://uploads/a.jpg#7", permission)).replace == permission


def test_topic_path_completes_a_name_only() -> None:
    assert topic_path("jobs", "p") == "projects/p/topics/jobs"
    assert topic_path("projects/other/topics/jobs", None) == "projects/other/topics/jobs"
    with pytest.raises(PublishError, match="Set GOOGLE_CLOUD_PROJECT"):
        topic_path("jobs", None)


# Messages that are not confirmed yet


class FakeClient:
    """A client that confirms a message when a caller waits for it, and counts the others."""

    def __init__(self, error: Exception | None = None, confirms_at_once: bool = False) -> None:
        self.error = error
        self.confirms_at_once = confirms_at_once
        self.outstanding = self.most_outstanding = self.count = 0

    def publish(self, topic: str, data: bytes, **named: Any) -> "Future[str]":
        future = Confirmed(self)
        self.count += 1
        self.outstanding += 1
        self.most_outstanding = max(self.most_outstanding, self.outstanding)
        if self.confirms_at_once:
            future.confirm()
        return future


class Confirmed(Future[str]):
    def __init__(self, client: FakeClient) -> None:
        super().__init__()
        self._client = client

    def confirm(self) -> None:
        self._client.outstanding -= 1
        if self._client.error:
            self.set_exception(self._client.error)
        else:
            self.set_result("1")

    def result(self, timeout: float | None = None) -> str:
        if not self.done():
            self.confirm()
        return super().result(timeout)


def publish(client: FakeClient, messages: Iterator[bytes]) -> int:
    return publish_jobs(client, "t", messages)


def test_few_messages_wait_for_their_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_MAX_OUTSTANDING", 10)
    client = FakeClient()
    assert publish(client, (b"%d" % i for i in range(1000))) == 1000
    assert (client.most_outstanding, client.outstanding) == (11, 0)


def test_error_is_raised_before_later_messages_are_published() -> None:
    """With a rate limit, the next thousand messages may take hours."""
    client = FakeClient(exceptions.NotFound("no topic"), confirms_at_once=True)
    with pytest.raises(PublishError, match="There is no topic t"):
        publish(client, (b"%d" % i for i in range(1000)))
    assert client.count == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.InvalidArgument("too large"), MessageError),
        (exceptions.PermissionDenied("no"), PublishError),
        (exceptions.ServiceUnavailable("away"), PublishError),
        (TimeoutError(), PublishError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_error_of_the_client_is_one_of_ours(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        publish(FakeClient(error), iter([b"{}"]))


def test_attribute_named_like_a_client_option_is_an_error() -> None:
    with pytest.raises(PublishError, match="'timeout'"):
        publish_jobs(None, "t", [b"{}"], attributes={"timeout": "1"})
