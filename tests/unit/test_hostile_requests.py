"""Hostile requests to the whole application: 400, in bounded memory, and repeated nowhere."""

import base64
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from service.server.app import create_app
from service.settings import Settings
from tests.fakes import (
    PATIENCE_SECONDS,
    FakeDetector,
    FakeStorage,
    FakeStore,
    bmp_image,
    pipeline_of,
)
from tests.loglines import configure
from tests.unit.test_events import FINALIZED, MARKER, UNREADABLE, dumps, push, resource

LIMIT = Settings().max_request_bytes
TOKEN = f"Bearer {MARKER}.{MARKER}.{MARKER}"
MEMORY_FACTOR = 40  # Python objects of the worst JSON, relative to the size limit, with a margin


class World:
    """The application around fakes, and the calls that requests caused."""

    def __init__(self) -> None:
        self.storage = FakeStorage()
        self.store = FakeStore()
        self.pipeline = pipeline_of(
            self.storage, self.store, FakeDetector(), allowed_buckets=("uploads",)
        )
        self.client: FlaskClient = create_app(self.pipeline).test_client()

    def touched(self) -> list[Any]:
        """Return all calls that requests caused."""
        return [*self.storage.resolved, *self.storage.downloads, *self.store.lookups]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


def assert_refused(world: World, headers: dict[str, str], body: bytes) -> None:
    headers = headers | {"Authorization": TOKEN, "User-Agent": MARKER}
    before = world.touched()
    response = world.client.post(f"/?{MARKER}", headers=headers, data=body)
    assert response.status_code == 400
    assert response.get_json()["error"]["code"] == "unreadable_request"
    assert MARKER not in response.get_data(as_text=True) + str(response.headers)
    assert world.touched() == before


@pytest.mark.parametrize(("headers", "body"), UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_request_is_400_and_repeated_nowhere(
    world: World, headers: dict[str, str], body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("DEBUG")
    assert_refused(world, headers, body)
    logged = capsys.readouterr().out
    assert [json.loads(line)["severity"] for line in logged.splitlines()] == ["WARNING"]
    assert MARKER not in logged and "Traceback" not in logged


def filled(opening: bytes, element: bytes, closing: bytes) -> bytes:
    """Return JSON with as many elements as the limit allows."""
    room = LIMIT - len(opening) - len(closing) - 100
    return opening + b",".join([element] * (room // (len(element) + 1))) + closing


def in_a_message(data: bytes) -> bytes:
    return dumps({"message": {"data": base64.b64encode(data).decode()}})


BOMBS = {
    "lists": filled(b"[", b"[]", b"]"),
    "objects": filled(b"[", b'{"":0}', b"]"),
    "numbers": filled(b"[", b"1.5", b"]"),
    "one-key-many-times": filled(b"{", b'"a":[]', b"}"),
    "escapes": b'"' + rb"\u00e9" * (LIMIT // 6 - 1) + b'"',
    "uris": filled(b'{"uris":[', b'"gs://uploads/a"', b"]}"),
    "depth": b"[" * (LIMIT - 1),
    "depth-of-objects": b'{"":' * (LIMIT // 4 - 1),
    "long-number": b'{"generation":' + b"9" * (LIMIT - 20) + b"}",
    "long-fraction": b"0." + b"9" * (LIMIT - 3),
    "lists-in-a-message": in_a_message(filled(b"[", b"[]", b"]")[: LIMIT * 3 // 4 - 300]),
    "depth-in-a-message": in_a_message(b"[" * (LIMIT * 3 // 4 - 100)),
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS)
def test_expensive_body_is_400_in_bounded_memory(world: World, body: bytes) -> None:
    assert len(body) < LIMIT
    tracemalloc.start()
    try:
        assert_refused(world, {}, body)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_FACTOR * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (FINALIZED, dumps(resource(bucket="theirs"))),
        ({}, push({"uri": "gs://theirs/a.jpg"})),
        ({}, push(None, {"eventType": "OBJECT_FINALIZE", "bucketId": "theirs", "objectId": "a.jpg",
                         "objectGeneration": "1"})),
    ],
    ids=["event", "job", "notification"],
)  # fmt: skip
def test_foreign_bucket_is_acknowledged_without_any_call(
    world: World, headers: dict[str, str], body: bytes
) -> None:
    before = world.touched()
    response = world.client.post("/", headers=headers, data=body)
    assert (response.status_code, response.get_data()) == (204, b"")
    assert world.touched() == before


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "a\\..\\b", "%2e%2e/x", "a\nb", "${HOME}", "; rm -rf ~",
     "a'b\"c", "\x00", "\u202ea.jpg", "{{7*7}}", "a" * 1024],
    ids=ascii,
)  # fmt: skip
def test_name_of_an_object_is_only_ever_a_name(world: World, name: str) -> None:
    world.storage.put(name, bmp_image())
    response = world.client.post("/", headers=FINALIZED, data=dumps(resource(name=name)))
    assert response.status_code == 204
    assert world.storage.downloads[-1].name == name


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Host": MARKER, "Host": MARKER},
        {"X-Cloud-Trace-Context": f"{MARKER}/1;o=1"},
        {"Content-Encoding": "gzip"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"X-HTTP-Method-Override": "DELETE"},
        {"Expect": "100-continue"},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_unknown_headers_change_nothing(
    world: World, headers: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure("DEBUG")
    assert_refused(world, headers, b"{}")
    assert MARKER not in capsys.readouterr().out


def test_rejected_requests_do_not_change_the_service(world: World) -> None:
    for headers, body in UNREADABLE.values():
        world.client.post("/", headers=headers, data=body)
    world.storage.put("after.bmp", bmp_image(), generation=7)
    response = world.client.post(
        "/", headers=FINALIZED, data=dumps(resource(name="after.bmp", generation="7"))
    )
    assert response.status_code == 204
    assert world.store.document("after.bmp")["status"] == "done"
