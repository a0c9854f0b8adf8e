"""The status of every response, and that no response repeats the request."""

import base64
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.deadline import Deadline
from service.errors import (
    DetectorError,
    FirestoreRefusedError,
    FirestoreUnavailableError,
    NoFreeSlotError,
    OtherModelError,
    ShuttingDownError,
    StorageRefusedError,
    StorageUnavailableError,
    TransientError,
)
from service.server.app import create_app
from tests.fakes import (
    PATIENCE_SECONDS,
    FakeDetector,
    FakeStorage,
    FakeStore,
    bmp_image,
    pipeline_of,
)
from tests.loglines import logged_by

SECRET = "secret7f3a"  # in requests and in errors, but never in a response
FINALIZED = {"ce-type": "google.cloud.storage.object.v1.finalized"}


class Site:
    """An application around fakes."""

    def __init__(self) -> None:
        self.storage = FakeStorage()
        self.store = FakeStore()
        self.detector = FakeDetector()
        self.pipeline = pipeline_of(
            self.storage, self.store, self.detector, allowed_buckets=("uploads",)
        )
        self.app: Flask = create_app(self.pipeline, max_request_bytes=10_000, project="my-project")
        self.client: FlaskClient = self.app.test_client()

    def upload(
        self, data: bytes = b"", *, name: str = SECRET, bucket: str = "uploads"
    ) -> TestResponse:
        """Store an object, and post its event."""
        self.storage.put(name, data or bmp_image(), bucket=bucket)
        event = {"bucket": bucket, "name": name, "generation": "1"}
        return self.client.post("/", headers=FINALIZED, data=json.dumps(event))


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


def error_of(response: TestResponse) -> Any:
    """Return the error of a JSON response that has nothing of the request or the cause."""
    text = response.get_data(as_text=True)
    assert response.mimetype == "application/json"
    assert SECRET not in text
    assert "Traceback" not in text
    body = json.loads(text)
    assert list(body) == ["error"] and sorted(body["error"]) == ["code", "message"]
    return body["error"]


def assert_empty(response: TestResponse) -> None:
    assert (response.status_code, response.get_data()) == (204, b"")


# Acknowledged


def test_post_of_an_image_is_204_after_its_commit(site: Site) -> None:
    assert_empty(site.upload())
    assert site.store.document(SECRET)["status"] == "done"


def test_post_of_the_same_event_twice_is_204_twice(site: Site) -> None:
    assert_empty(site.upload())
    assert_empty(site.upload())
    assert site.store.commits == [[SECRET]]


def test_post_of_a_file_that_is_no_image_is_204(site: Site) -> None:
    assert_empty(site.upload(b"just a note"))
    assert site.store.document(SECRET)["status"] == "failed"


def test_post_of_a_gone_image_is_204(site: Site) -> None:
    event = {"bucket": "uploads", "name": "gone", "generation": "1"}
    assert_empty(site.client.post("/", headers=FINALIZED, data=json.dumps(event)))
    assert site.store.commits == []


def test_post_of_another_bucket_is_204(site: Site) -> None:
    assert_empty(site.upload(bucket="theirs"))
    assert site.store.commits == []


def test_post_of_another_storage_event_is_204(site: Site) -> None:
    headers = {"ce-type": "google.cloud.storage.object.v1.archived"}
    assert_empty(site.client.post("/", headers=headers, data="{}"))


def test_post_of_a_deletion_is_204_and_ignored_by_default(site: Site) -> None:
    headers = {"ce-type": "google.cloud.storage.object.v1.deleted"}
    body = {"bucket": "uploads", "name": "a", "generation": "1"}
    assert_empty(site.client.post("/", headers=headers, json=body))
    assert site.store.commits == [] and site.storage.downloads == []


def test_post_of_a_pushed_job_is_204(site: Site) -> None:
    site.storage.put("a", bmp_image())
    job = b'{"uri": "gs://uploads/a"}'
    envelope = {"message": {"data": base64.b64encode(job).decode()}, "subscription": "s"}
    assert_empty(site.client.post("/", json=envelope))
    assert len(site.store.documents) == 1


def test_post_of_a_job_of_several_images_is_400(site: Site) -> None:
    response = site.client.post("/", json={"uris": ["gs://uploads/a", "gs://uploads/b"]})
    assert response.status_code == 400
    assert "publish one message" in response.get_json()["error"]["message"]


def test_post_with_a_form_content_type_is_read(site: Site) -> None:
    """The emulator sends unwrapped messages with this type. Flask must not parse a form."""
    site.storage.put("a", bmp_image())
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert_empty(site.client.post("/", headers=headers, data='{"uri": "gs://uploads/a"}'))


def test_post_of_a_unicode_name_is_committed_under_it(site: Site) -> None:
    assert_empty(site.upload(name="日本/é 😀#?%2F.jpg"))
    assert site.store.document("日本/é 😀#?%2F.jpg")["status"] == "done"


# Unreadable


@pytest.mark.parametrize(
    "body",
    [b"", SECRET.encode(), b"[" * 9000, json.dumps({SECRET: SECRET}).encode(), b"\xff\xfe"],
    ids=["empty", "text", "nested", "object", "binary"],
)
def test_post_of_unreadable_body_is_400(site: Site, body: bytes) -> None:
    response = site.client.post("/", data=body, headers={"X-Secret": SECRET})
    assert response.status_code == 400
    assert error_of(response)["code"] == "unreadable_request"
    assert "Retry-After" not in response.headers


def test_post_over_the_limit_is_413(site: Site) -> None:
    response = site.client.post("/", data=SECRET * 2000)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_entity_too_large"


def test_post_of_an_endless_body_is_413(site: Site) -> None:
    """Chunked, as gunicorn passes it on. Werkzeug silently truncates it at the limit."""
    response = site.client.post(
        "/",
        environ_overrides={
            "wsgi.input": Endless(),
            "wsgi.input_terminated": True,
            "HTTP_TRANSFER_ENCODING": "chunked",
            "CONTENT_LENGTH": "",
        },
    )
    assert response.status_code == 413


class Endless(io.RawIOBase):
    """A body that never ends."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:] = b"a" * len(buffer)
        return len(buffer)


def test_post_just_under_the_limit_is_read(site: Site) -> None:
    event = {"bucket": "uploads", "name": "gone", "generation": "1", "metadata": {"a": "b" * 9000}}
    assert_empty(site.client.post("/", headers=FINALIZED, data=json.dumps(event)))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 405, "method_not_allowed"),
        ("PUT", "/", 405, "method_not_allowed"),
        ("POST", "/health/live", 405, "method_not_allowed"),
        ("GET", f"/{SECRET}", 404, "not_found"),
        ("POST", f"/events?{SECRET}", 404, "not_found"),
    ],
    ids=["get", "put", "post-health", "unknown", "unknown-post"],
)
def test_wrong_path_or_method_is_a_json_error(
    site: Site, method: str, path: str, status: int, code: str
) -> None:
    response = site.client.open(path, method=method)
    assert response.status_code == status
    assert error_of(response)["code"] == code


def test_405_lists_the_allowed_methods(site: Site) -> None:
    """RFC 9110 requires it."""
    assert "POST" in site.client.get("/").headers.get("Allow", "")


# Rejected


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (NoFreeSlotError("Too many images are in flight."), 429, "2"),
        (ShuttingDownError("The service is shutting down."), 503, "1"),
        (OtherModelError("The message asks for another model."), 503, "10"),
        (StorageUnavailableError("Cloud Storage is unavailable."), 503, "10"),
        (FirestoreUnavailableError("Firestore is unavailable."), 503, "10"),
    ],
    ids=["slots", "stopping", "model", "storage", "store"],
)
def test_rejected_post_has_a_retry_after_header(
    site: Site, error: Exception, status: int, retry_after: str
) -> None:
    site.storage.errors[SECRET] = error
    response = site.upload()
    assert response.status_code == status
    assert error_of(response) == {"code": "try_again", "message": str(error)}
    assert response.headers["Retry-After"] == retry_after
    assert site.store.commits == []


def test_post_with_a_failed_commit_is_503_then_204(site: Site) -> None:
    site.store.errors.append(FirestoreUnavailableError("Firestore is unavailable."))
    assert site.upload().status_code == 503
    assert_empty(site.upload())


def test_post_at_its_deadline_is_503_and_can_be_redelivered(site: Site) -> None:
    late_site = create_app(site.pipeline, start_deadline=lambda: Deadline.after(-1)).test_client()
    site.storage.put("late", bmp_image())
    event = {"bucket": "uploads", "name": "late", "generation": "1"}
    response = late_site.post("/", headers=FINALIZED, data=json.dumps(event))
    assert response.status_code == 503
    assert error_of(response)["code"] == "try_again"
    assert site.store.commits == []
    assert_empty(site.client.post("/", headers=FINALIZED, data=json.dumps(event)))


def test_post_while_stopping_is_503(site: Site) -> None:
    site.pipeline.stop()
    response = site.upload()
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"


def test_post_rejected_logs_the_vendors_error(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    error = StorageUnavailableError("Cloud Storage is unavailable.")
    error.__cause__ = OSError("connection reset by peer")
    site.storage.errors[SECRET] = error
    site.upload()
    [record] = [one for one in caplog.records if one.getMessage() == "Rejected a message"]
    assert record.levelno == logging.WARNING
    assert "connection reset by peer" in caplog.text


@pytest.mark.parametrize("kind", [StorageRefusedError, FirestoreRefusedError])
def test_post_rejected_in_an_outage_has_no_own_log_line(
    site: Site, kind: type[TransientError], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    site.storage.errors[SECRET] = kind("Access is refused.")
    assert site.upload().status_code == 503
    assert "Rejected a message" not in caplog.messages


# Our own faults


@pytest.mark.parametrize(
    "error",
    [RuntimeError(SECRET), KeyError(SECRET), DetectorError(SECRET), OSError(5, SECRET)],
    ids=["runtime", "key", "detector", "os"],
)
def test_post_with_an_unexpected_error_is_500_and_logged(
    site: Site, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    site.storage.errors[SECRET] = error
    response = site.upload()
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    [record] = [line for line in logged_by(caplog, "service") if line.levelno == logging.ERROR]
    assert record.exc_info and record.exc_info[1] is error
    assert "Traceback" in caplog.text and SECRET in caplog.text


def test_post_of_a_poison_image_is_500_and_the_next_one_204(site: Site) -> None:
    site.detector.poison = (1, 2, 3)
    assert site.upload(bmp_image((1, 2, 3))).status_code == 500
    assert_empty(site.upload(name="good"))


# Health


def health(site: Site) -> list[tuple[int, Any]]:
    responses = [site.client.get("/health/live"), site.client.get("/health/ready")]
    return [(response.status_code, response.get_json()) for response in responses]


def test_health_of_a_working_service_is_200(site: Site) -> None:
    assert health(site) == [(200, {"status": "ready"})] * 2


def test_readiness_names_the_model(site: Site) -> None:
    app = create_app(site.pipeline, model_health={"model": "yolo26n"})
    body = app.test_client().get("/health/ready").get_json()
    assert body == {"status": "ready", "model": "yolo26n"}


def test_a_model_that_fails_on_every_image_is_not_live(site: Site) -> None:
    site.detector.missing_results = 1
    statuses = [site.upload(name=str(number)).status_code for number in range(200)]
    assert set(statuses) == {500}
    status, body = health(site)[0]
    assert (status, body["status"]) == (503, "failed")
    assert "different images in a row" in body["reason"]


def test_health_while_stopping_is_live_and_not_ready(site: Site) -> None:
    site.pipeline.stop()
    responses = [site.client.get("/health/live"), site.client.get("/health/ready")]
    assert [response.status_code for response in responses] == [200, 503]
    assert responses[1].get_json() == {"status": "stopping"}


# Traces


def test_post_logs_the_trace_of_its_own_request(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    from service.logs import TraceFilter

    trace_id = "105445aa7843bc8bf206b12000100000"
    caplog.handler.addFilter(trace := TraceFilter())
    site.client.post("/", data=b"", headers={"X-Cloud-Trace-Context": f"{trace_id}/7;o=1"})
    site.client.post("/", data=b"")
    caplog.handler.removeFilter(trace)
    traces = [vars(record).get("logging.googleapis.com/trace") for record in caplog.records]
    assert traces == [f"projects/my-project/traces/{trace_id}", None]
