"""Jobs as messages, read back by the parser that receives them."""

import base64
import json

import pytest

from service.events import MAX_URIS, parse_event
from service.publisher import job_messages
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
