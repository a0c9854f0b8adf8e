"""A service with ENDPOINTS=detect, under gunicorn, with the bundled model and the emulators."""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from devtools.demo_model.shapes import Scene
from devtools.local_stack.processes import Processes
from devtools.local_stack.stack import Stack
from service.settings import Settings
from tests.fakes import PATIENCE_SECONDS
from tests.system import hooks
from tests.system.conftest import (
    EVENT,
    Service,
    document,
    event_data,
    put_aside,
    run_cli,
    start,
)
from tests.system.test_security import (
    FEW_SLOTS,
    NOT_HTTP,
    SECRET,
    THREADS,
    connection,
    errors,
    receive_all,
    status,
)

Samples = list[tuple[Path, Scene]]
DETECT = {"ENDPOINTS": "detect", "DETECT_TIMEOUT_SECONDS": f"{2 * PATIENCE_SECONDS:g}"}


@pytest.fixture(scope="module")
def detect(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Processes(tmp_path_factory.mktemp("detect")) as processes:
        yield start(processes, ready=True, **stack.environment, **DETECT, ALLOWED_BUCKETS="aside")


def call(service: Service, **options: Any) -> requests.Response:
    return requests.post(service.url + "/v1/detect", timeout=PATIENCE_SECONDS, **options)


def post(headers: str, body: bytes = b"") -> bytes:
    start_line = "POST /v1/detect HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    return f"{start_line}{headers}\r\n".encode() + body


def code(response: requests.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_stored_answer_is_the_document_that_results_prints(
    detect: Service, stack: Stack, samples: Samples
) -> None:
    ref = put_aside(stack, "detect/stored.jpg", samples[0][0].read_bytes())
    responses = [call(detect, params={"store": "true"}, json={"uri": ref.uri}) for _ in range(2)]
    assert [response.status_code for response in responses] == [200, 200]
    answer, again = (response.json() for response in responses)
    assert answer == again
    printed = json.loads(run_cli("results", ref.uri, "--json").stdout)
    times = ("created_at", "event_time")
    assert {key: answer[key] for key in printed if key not in times} == {
        key: printed[key] for key in printed if key not in times
    }
    assert answer["created_at"].replace("Z", "+00:00")[:19] == printed["created_at"][:19]


def test_all_three_ways_detect_the_same(detect: Service, stack: Stack, samples: Samples) -> None:
    data = samples[1][0].read_bytes()
    ref = put_aside(stack, "detect/same.jpg", data)
    by_body = call(detect, data=data).json()
    by_uri = call(detect, json={"uri": f"{ref.uri}#{ref.generation}"}).json()
    assert document(ref) is None  # neither is stored
    stored = call(detect, params={"store": "true"}, json={"uri": ref.uri}).json()
    assert by_body["num_detections"] > 0
    fields = ("detections", "faint", "counts", "image", "model", "size", "source", "schema")
    for field in fields:
        assert by_body[field] == by_uri[field] == stored[field], field
    assert (by_uri["uri"], by_uri["generation"]) == (ref.uri, ref.generation)


def test_an_event_is_not_taken_by_a_service_for_callers(
    detect: Service, stack: Stack, samples: Samples
) -> None:
    """A caller must not be able to forge events."""
    ref = put_aside(stack, "detect/forged.jpg", samples[0][0].read_bytes())
    for response in (
        detect.post(ref),
        detect.post_job(ref),
        requests.post(
            detect.url + "/v1/detect",
            json=event_data(ref),
            headers=EVENT,
            timeout=PATIENCE_SECONDS,
        ),
    ):
        assert response.status_code in (400, 404)
    assert document(ref) is None


def test_a_call_is_not_taken_by_a_service_for_events(service: Service, samples: Samples) -> None:
    assert code(call(service, data=samples[0][0].read_bytes())) == (404, "not_found")


def test_no_other_bucket_is_read_for_a_caller(detect: Service, stack: Stack) -> None:
    for uri in (f"gs://{stack.bucket}/{SECRET}", f"gs://nowhere/{SECRET}"):
        response = call(detect, json={"uri": uri})
        assert code(response) == (403, "bucket_not_allowed")
        assert SECRET not in response.text


def test_missing_objects_and_generations_are_404(
    detect: Service, stack: Stack, samples: Samples
) -> None:
    ref = put_aside(stack, "detect/there.jpg", samples[0][0].read_bytes())
    for uri in (f"{ref.uri}.gone", f"{ref.uri}#7"):
        assert code(call(detect, json={"uri": uri})) == (404, "gone")


def test_a_gzip_bomb_is_415(detect: Service) -> None:
    bomb = gzip.compress(bytes(2**26))
    response = call(detect, data=bomb, headers={"Content-Encoding": "gzip"})
    assert code(response) == (415, "unsupported_media_type")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_over_the_limit_is_413_before_its_end(detect: Service, framing: str) -> None:
    too_long = f"Content-Length: {Settings.max_image_bytes + 1}\r\n"
    header = too_long if framing == "length" else "Transfer-Encoding: chunked\r\n"
    with connection(detect.url, post(header)) as client:
        if framing == "chunked":
            chunk = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
            with suppress(ConnectionError):  # the server may close before the last chunk
                for _ in range(Settings.max_image_bytes // 2**20 + 1):
                    client.sendall(chunk)
        assert status(client.recv(65536)) == 413


def test_an_image_of_a_chunked_body_is_detected(detect: Service, samples: Samples) -> None:
    data = samples[0][0].read_bytes()
    response = call(detect, data=iter([data[:1000], data[1000:]]))
    assert (response.status_code, response.json()["size"]) == (200, len(data))


def test_a_body_that_ends_early_is_400(detect: Service, samples: Samples) -> None:
    """Its length is a lie. What has arrived must not be taken for the image."""
    data = samples[0][0].read_bytes()
    with connection(detect.url, post(f"Content-Length: {len(data) + 1}\r\n", data)) as client:
        client.shutdown(1)
        assert status(receive_all(client)) == 400


def test_a_body_beyond_its_length_is_no_second_request(detect: Service, samples: Samples) -> None:
    """The rest of the body is not executed as a request of its own."""
    data = samples[0][0].read_bytes()
    hidden = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
    with connection(detect.url, post(f"Content-Length: {len(data)}\r\n", data + hidden)) as client:
        raw = receive_all(client)
    assert status(raw) == 200
    assert raw.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP)
def test_invalid_http_is_400_and_not_echoed_to_a_caller(detect: Service, sent: bytes) -> None:
    with connection(detect.url, sent.replace(b"POST / ", b"POST /v1/detect ")) as client:
        raw = receive_all(client)
    assert status(raw) == 400 and SECRET.encode() not in raw


def test_huge_query_strings_are_rejected(detect: Service) -> None:
    sent = post("Content-Length: 0\r\n").replace(b"detect ", b"detect?" + b"a" * 9000 + b" ")
    with connection(detect.url, sent) as client:
        assert status(receive_all(client)) in (400, 414)


SLOW = {
    "length": post("Content-Length: 1000\r\n", b"\xff\xd8"),
    "chunks": post("Transfer-Encoding: chunked\r\n", b"5\r\n\xff\xd8"),
    "json": post("Content-Type: application/json\r\nContent-Length: 1000\r\n", b"{"),
}


def test_slow_callers_end_at_the_read_limit(start_service: Callable[..., Service]) -> None:
    """Until then they have slots and memory. Others get 429, and health probes are answered."""
    service = start_service(**DETECT, **FEW_SLOTS, **hooks.settings(hooks.ShortReadTimeoutWorker))
    with ExitStack() as clients:
        slow = [
            clients.enter_context(connection(service.url, sent))
            for sent in [*SLOW.values()] * THREADS
        ]
        assert requests.get(service.url + "/health/live", timeout=PATIENCE_SECONDS).ok
        for client in slow:
            assert status(receive_all(client) or b"HTTP/1.1 400 ") in (400, 429)
    assert call(service, data=b"no image").status_code == 415
    assert errors(service.log()) == []
