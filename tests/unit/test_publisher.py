"""Jobs as messages, read back by the parser that receives them."""

import base64
import json
from datetime import UTC, datetime

import pytest

from service.domain import Replace
from service.events import MAX_URIS, parse_event
from service.publisher import PublishError, job_messages, publish_jobs, topic_path
from service.settings import Settings


def pushed(message: bytes) -> bytes:
    """The message as a wrapped push delivers it."""
    return json.dumps({"message": {"data": base64.b64encode(message).decode()}}).encode()


def read(message: bytes) -> list[str]:
    return [image.uri for image in parse_event({}, pushed(message)).images]


def test_job_messages_of_no_uris_are_none() -> None:
    assert list(job_messages([])) == []


def test_job_messages_of_few_uris_are_one() -> None:
    assert list(job_messages(["gs://uploads/a.jpg", "gs://uploads/é.jpg"])) == [
        '{"uris": ["gs://uploads/a.jpg", "gs://uploads/é.jpg"]}'.encode()
    ]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (1000, [1000]), (1001, [1000, 1]), (2500, [1000, 1000, 500])],
    ids=str,
)
def test_job_messages_hold_as_many_uris_as_the_parser_takes(count: int, sizes: list[int]) -> None:
    uris = [f"gs://uploads/{number}.jpg" for number in range(count)]
    received = [read(message) for message in job_messages(iter(uris))]
    assert [len(group) for group in received] == sizes
    assert sum(received, []) == uris


@pytest.mark.parametrize(
    "name",
    ["日本/😀.jpg", "line\nbreak.jpg", 'quote".jpg', "back\\slash.jpg", "a%2Fb.jpg", "é" * 512],
    ids=["unicode", "newline", "quote", "backslash", "percent", "1024-bytes"],
)
def test_job_messages_of_odd_names_come_back_the_same(name: str) -> None:
    [message] = job_messages([f"gs://uploads/{name}"])
    assert read(message) == [f"gs://uploads/{name}"]


def test_job_messages_with_generation_come_back_with_it() -> None:
    [message] = job_messages(["gs://uploads/a.jpg#7"])
    assert parse_event({}, pushed(message)).images[0].generation == 7


def test_job_messages_of_the_longest_names_fit_a_request() -> None:
    name = "é" * 510
    uris = [f"gs://{'b' * 63}/{number:04}{name}" for number in range(MAX_URIS)]
    [message] = job_messages(uris)
    assert len(pushed(message)) < Settings().max_request_bytes


def test_job_messages_of_names_that_escape_to_many_bytes_still_fit_a_request() -> None:
    uris = [f"gs://{'b' * 63}/{number:04}{chr(1) * 1020}" for number in range(MAX_URIS)]
    messages = list(job_messages(uris))
    assert all(len(pushed(message)) < Settings().max_request_bytes for message in messages)
    assert sum((read(message) for message in messages), []) == uris


@pytest.mark.parametrize("model", [None, "ab" * 32], ids=["any", "one"])
def test_job_messages_of_a_rerun_come_back_with_it(model: str | None) -> None:
    rerun = Replace(datetime(2026, 11, 21, 14, 36, 54, 443164, tzinfo=UTC), model)
    messages = job_messages(["gs://uploads/a.jpg#7"] * 3, uris_per_message=2, rerun=rerun)
    images = [parse_event({}, pushed(message)).images for message in messages]
    assert [[image.rerun for image in group] for group in images] == [[rerun], [rerun]]


def test_topic_path_completes_a_name_only() -> None:
    assert topic_path("jobs", "p") == "projects/p/topics/jobs"
    assert topic_path("projects/other/topics/jobs", None) == "projects/other/topics/jobs"
    with pytest.raises(PublishError, match="Set GOOGLE_CLOUD_PROJECT"):
        topic_path("jobs", None)


def test_publish_jobs_with_an_attribute_that_the_client_would_take_for_its_own_raises() -> None:
    with pytest.raises(PublishError, match="'timeout'"):
        publish_jobs(None, "t", [b"{}"], attributes={"timeout": "1"})  # type: ignore[arg-type]
