"""`POST /v1/detect`: the caller gets the result, or an error that says why there is none."""

import base64
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from flask.testing import FlaskClient
from google.api_core.datetime_helpers import DatetimeWithNanoseconds
from werkzeug.test import TestResponse

from service.deadline import Deadline
from service.domain import (
    DerivedImage,
    DerivedKind,
    ErrorCode,
    ImageRef,
    ObjectMetadata,
    Outcome,
)
from service.errors import BadImageError, FirestoreUnavailableError, StorageUnavailableError
from service.faint import unpack
from service.object_metadata import RESULT_MARKER
from service.server.app import create_app
from service.server.detect_api import FAILURES, REASONS, DetectLimits, detect_blueprint
from service.sources.current import SourceSettings
from service.sources.rules import Rules
from tests.fakes import (
    PATIENCE_SECONDS,
    DecodersHere,
    FakeCounter,
    FakeDetector,
    FakeStorage,
    FakeStore,
    FakeUploads,
    bmp_image,
    in_thread,
    pipeline_of,
    wait_until,
)
from tests.loglines import logged_by

SECRET = "secret7f3a"  # in requests, but never in an error
MAX_IMAGE_BYTES = 10_000
MAX_JSON_BYTES = 2_000
URL = "/v1/detect"


class FakeSources:
    """Names that begin with `off/` are of a disabled source, others of the source `yard`."""

    def settings_of(self, ref: ImageRef, deadline: Deadline) -> SourceSettings:
        return SourceSettings(Rules(min_confidence=0.5), is_enabled=not ref.name.startswith("off/"))


class Storage(FakeStorage):
    """A storage whose objects may have the marker of objects that the service made."""

    is_marked = False

    def resolve(self, ref: ImageRef, deadline: Deadline) -> ImageRef:
        return self._marked(super().resolve(ref, deadline))

    def download(self, ref: ImageRef, *args: Any) -> Any:
        return super().download(self._marked(ref), *args)

    def _marked(self, ref: ImageRef) -> ImageRef:
        metadata = ObjectMetadata(custom={RESULT_MARKER: "true"})
        return replace(ref, metadata=metadata) if self.is_marked else ref


class Site:
    """An application with `/v1/detect` around fakes."""

    def __init__(self, **options: Any) -> None:
        self.storage = Storage()
        self.store = FakeStore()
        self.detector = FakeDetector()
        self.decoders = DecodersHere()
        self.pipeline = pipeline_of(
            self.storage,
            self.store,
            self.detector,
            decoders=self.decoders,
            sources=FakeSources(),
            allowed_buckets=("uploads",),
            **options,
        )
        self.client = self.client_of(seconds=PATIENCE_SECONDS)

    def client_of(self, *, seconds: float) -> FlaskClient:
        limits = DetectLimits(MAX_IMAGE_BYTES, MAX_JSON_BYTES, seconds, commit_seconds=1.0)
        detect = detect_blueprint(self.pipeline, self.read, limits)
        app = create_app(self.pipeline, max_request_bytes=MAX_IMAGE_BYTES, detect=detect)
        return app.test_client()

    def read(self, document_id: str, deadline: Deadline) -> Mapping[str, Any] | None:
        assert deadline.commit_seconds == 0.0  # the commit is over, so its time may be used
        document = self.store.documents.get(document_id)
        return document and document | {"created_at": self.store.created[document_id]}

    def post(self, data: bytes, query: str = "", **options: Any) -> TestResponse:
        return self.client.post(URL + query, data=data, **options)

    def post_uri(self, uri: object, query: str = "") -> TestResponse:
        return self.client.post(URL + query, json={"uri": uri})


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    for gate in (site.storage.gate, site.decoders.gate, site.detector.gate):
        gate.open()
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


def error_of(response: TestResponse) -> tuple[int, str]:
    """Return the status and the code of an error that has nothing of the request."""
    text = response.get_data(as_text=True)
    assert response.mimetype == "application/json"
    assert SECRET not in text + str(response.headers) and "Traceback" not in text
    error = json.loads(text)["error"]
    assert list(error) == ["code", "message"] and error["message"]
    return response.status_code, error["code"]


# An image as the body


@pytest.mark.parametrize("content_type", ["image/bmp", "image/png", "text/html", ""])
def test_an_image_is_answered_whatever_its_content_type(site: Site, content_type: str) -> None:
    response = site.post(bmp_image((10, 20, 30)), content_type=content_type)
    assert response.status_code == 200
    assert response.mimetype == "application/json"
    document = response.get_json()
    assert (document["status"], document["labels"]) == ("done", ["10-20-30"])
    assert document["image"] == {"width": 32, "height": 24, "format": "BMP"}
    assert document["size"] == len(bmp_image())


def test_an_answer_has_the_fields_of_a_stored_document(site: Site) -> None:
    ref = site.storage.put("a.bmp", bmp_image())
    stored = site.post_uri(ref.uri, "?store=true").get_json()
    assert site.post(bmp_image()).get_json().keys() == stored.keys()
    assert site.post_uri(ref.uri).get_json().keys() == stored.keys()


def test_a_body_is_no_object_and_is_not_stored(site: Site) -> None:
    document = site.post(bmp_image()).get_json()
    nothing = dict.fromkeys(
        ("uri", "bucket", "name", "generation", "shard", "created_at", "event_time", "day")
    )
    assert {name: document[name] for name in nothing} == nothing
    assert site.store.commits == [] and site.store.lookups == []


def test_faint_detections_are_base64_as_in_results_json() -> None:
    site = Site(rules=Rules(min_confidence=0.99))
    document = site.post(bmp_image((1, 2, 3))).get_json()
    [faint] = unpack(base64.b64decode(document["faint"]))
    assert (document["detections"], faint.label) == ([], "1-2-3")
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty_object"),
        (SECRET.encode(), 415, "unsupported_media"),
        (bmp_image()[:-100], 422, "corrupt_image"),
        (bmp_image(width=60_000, height=1_000)[:500], 413, "image_too_large"),
    ],
    ids=["empty", "text", "cut", "pixels"],
)
def test_a_bad_image_has_the_error_code_of_its_record(
    site: Site, data: bytes, status: int, code: str
) -> None:
    assert error_of(site.post(data, content_type="image/jpeg")) == (status, code)


def test_every_code_of_a_failed_record_has_a_status() -> None:
    assert set(FAILURES) == set(ErrorCode)
    assert all(400 <= status < 500 for status in FAILURES.values())


def test_every_outcome_without_a_document_has_a_status() -> None:
    with_document = {"done", "failed", "parked", "already_recorded", "superseded"}
    assert set(REASONS) == set(Outcome) - with_document - {Outcome.DELETED}


# An object of Cloud Storage


def test_an_object_is_detected_with_its_own_sources_settings(site: Site) -> None:
    site.storage.put("a", bmp_image((1, 1, 1)), generation=3)
    ref = site.storage.put("a", bmp_image((2, 2, 2)), generation=5)
    document = site.post_uri(ref.uri).get_json()
    assert (document["labels"], document["generation"]) == (["2-2-2"], 5)
    old = site.post_uri(f"{ref.uri}#3").get_json()
    assert (old["labels"], old["generation"], old["uri"]) == (["1-1-1"], 3, ref.uri)
    assert site.store.commits == [] and site.store.lookups == []


@pytest.mark.parametrize(
    ("uri", "status", "code"),
    [
        (f"gs://uploads/{SECRET}", 404, "gone"),
        (f"gs://uploads/{SECRET}#7", 404, "gone"),
        (f"gs://theirs/{SECRET}", 403, "bucket_not_allowed"),
        (f"gs://uploads/off/{SECRET}", 409, "disabled"),
        (f"gs://uploads/{SECRET}/", 400, "ignored"),
    ],
)
@pytest.mark.parametrize("query", ["", "?store=true"])
def test_an_object_without_a_result_has_a_reason(
    site: Site, query: str, uri: str, status: int, code: str
) -> None:
    assert error_of(site.post_uri(uri, query)) == (status, code)
    assert site.storage.downloads in ([], [ImageRef("uploads", SECRET, 7)])
    assert site.store.commits == []


def test_an_object_that_cloud_storage_refuses_is_403(site: Site) -> None:
    refused = BadImageError(ErrorCode.UNREADABLE_OBJECT, "Cloud Storage refuses it.")
    site.storage.put("sealed", bmp_image())
    site.storage.errors["sealed"] = refused
    site.storage.unresolvable["hidden"] = refused
    for uri in ("gs://uploads/sealed#1", "gs://uploads/hidden"):
        assert error_of(site.post_uri(uri)) == (403, "unreadable_object")


FOREIGN = [
    f"http://169.254.169.254/{SECRET}",
    f"https://storage.googleapis.com/uploads/{SECRET}",
    f"file:///etc/{SECRET}",
    f"s3://uploads/{SECRET}",
    f"GS://uploads/{SECRET}",
    f"gs:/uploads/{SECRET}",
    f"gs://../{SECRET}",
    f"gs://uploads\r\nHost: {SECRET}/a",
    f"gs://user@uploads/{SECRET}",
    f"gs://uploads?{SECRET}/a",
    "gs://uploads/..",
    "gs://uploads",
    "gs://uploads/\ud800",
    f"gs://uploads/{SECRET}" + "a" * 1024,
    "",
    None,
    7,
    [f"gs://uploads/{SECRET}"],
]


@pytest.mark.parametrize("uri", FOREIGN, ids=ascii)
def test_other_schemes_and_addresses_are_400_without_a_call(site: Site, uri: object) -> None:
    assert error_of(site.post_uri(uri)) == (400, "unreadable_request")
    assert site.storage.downloads == [] and site.storage.resolved == []


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/../../b", "a\r\nX: y", "%2e%2e/x", "{{7*7}}", "\u202ea.jpg"]
)
def test_an_objects_name_is_only_ever_a_name(site: Site, name: str) -> None:
    site.storage.put(name, bmp_image())
    assert site.post_uri(f"gs://uploads/{name}").status_code == 200
    assert site.storage.downloads[-1].name == name


# Stored


def test_a_stored_object_has_the_document_of_an_upload(site: Site) -> None:
    ref = site.storage.put("a", bmp_image((1, 2, 3)), generation=5)
    response = site.post_uri(ref.uri, "?store=true")
    stored = site.store.documents[ref.document_id]
    assert response.status_code == 200
    answer = response.get_json()
    assert answer["created_at"] == "2026-01-01T00:00:01Z"
    assert (answer["labels"], answer["shard"]) == (stored["labels"], stored["shard"])


def test_an_object_is_stored_once_and_then_read(site: Site) -> None:
    ref = site.storage.put("a", bmp_image())
    first, second = (site.post_uri(ref.uri, "?store=true").get_json() for _ in range(2))
    assert first == second
    assert site.store.commits == [["a"]] and len(site.storage.downloads) == 1


def test_a_stored_object_is_counted_like_an_upload(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    site = Site()
    site.storage.put("a", bmp_image())
    for _ in range(2):
        site.post_uri("gs://uploads/a", "?store=true")
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)
    [line] = [line for line in logged_by(caplog, "service.recorder") if line.msg == "Outcomes"]
    assert (vars(line)["done"], vars(line)["already_recorded"]) == (1, 1)


THUMBNAIL = DerivedImage(DerivedKind.THUMBNAIL, b"small", "image/jpeg", 32, 24)


def test_derived_images_are_made_only_if_the_result_is_stored() -> None:
    uploads = FakeUploads("results")
    site = Site(results_bucket="results", uploads=uploads)
    site.decoders.derived = (THUMBNAIL,)
    ref = site.storage.put("a", bmp_image())
    for response in (site.post(bmp_image()), site.post_uri(ref.uri)):
        document = response.get_json()
        assert (document["derived"], document["derived_error"]) == ([], None)
    assert site.decoders.plans == []
    [derived] = site.post_uri(ref.uri, "?store=true").get_json()["derived"]
    assert [derived["uri"]] == list(uploads.objects)
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize("query", ["", "?store=true"])
def test_an_object_that_the_service_made_is_no_image(query: str) -> None:
    site = Site(results_bucket="uploads")
    site.storage.put("a", bmp_image())
    assert error_of(site.post_uri("gs://uploads/a", query)) == (400, "ignored")
    assert site.storage.resolved == site.storage.downloads == []
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize("uri", ["gs://uploads/a", "gs://uploads/a#1"])
@pytest.mark.parametrize("query", ["", "?store=true"])
def test_an_object_with_the_marker_is_no_image(site: Site, query: str, uri: str) -> None:
    site.storage.put("a", bmp_image())
    site.storage.is_marked = True
    assert error_of(site.post_uri(uri, query)) == (400, "ignored")
    assert site.store.commits == []


def test_a_failed_object_is_stored_and_reported(site: Site) -> None:
    ref = site.storage.put("a", b"no image")
    for _ in range(2):
        error = error_of(site.post_uri(ref.uri, "?store=true"))
        assert error == (415, "unsupported_media")
    assert site.store.documents[ref.document_id]["status"] == "failed"
    assert site.store.commits == [["a"]]


def test_a_document_that_was_removed_meanwhile_is_404(site: Site) -> None:
    ref = site.storage.put("a", bmp_image())
    site.store.documents[ref.document_id] = {"status": "done"}
    site.read = lambda document_id, deadline: None  # type: ignore[method-assign]
    site.client = site.client_of(seconds=PATIENCE_SECONDS)
    assert error_of(site.post_uri(ref.uri, "?store=true")) == (404, "gone")


@pytest.mark.parametrize(
    "edit",
    [
        {"error": "none"},
        {"error": {"code": "unknown", "message": "?"}},
        {"error": {"code": "gone"}},
        {"error": {"code": ["corrupt_image"], "message": "?"}},
        {"status": object()},
        None,
    ],
)
def test_edited_document_is_named_as_the_cause(
    site: Site, edit: dict[str, Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    ref = site.storage.put("a", bmp_image())
    assert site.post_uri(ref.uri, "?store=true").status_code == 200
    if edit:
        site.store.documents[ref.document_id] |= edit
    else:
        del site.store.documents[ref.document_id]["error"]
    response = site.post_uri(ref.uri, "?store=true")
    assert error_of(response) == (500, "unreadable_document")
    assert "Delete it" in response.get_json()["error"]["message"]
    [record] = [each for each in caplog.records if each.levelname == "ERROR"]
    assert vars(record)["document_id"] == ref.document_id


def test_times_of_firestore_are_rfc_3339(site: Site) -> None:
    ref = site.storage.put("a", bmp_image())
    time = DatetimeWithNanoseconds(2026, 1, 1, 12, nanosecond=1_000, tzinfo=UTC)
    site.read = lambda document_id, deadline: {  # type: ignore[method-assign]
        "error": None, "created_at": time, "event_time": datetime(2026, 1, 1, 13, tzinfo=UTC),
    }  # fmt: skip
    site.client = site.client_of(seconds=PATIENCE_SECONDS)
    answer = site.post_uri(ref.uri, "?store=true").get_json()
    assert answer["created_at"] == "2026-01-01T12:00:00.000001Z"
    assert answer["event_time"] == "2026-01-01T13:00:00Z"


def test_a_failed_commit_is_503_and_can_be_repeated(site: Site) -> None:
    ref = site.storage.put("a", bmp_image())
    site.store.errors.append(FirestoreUnavailableError("Firestore is unavailable."))
    response = site.post_uri(ref.uri, "?store=true")
    assert error_of(response) == (503, "try_again")
    assert response.headers["Retry-After"] == "10"
    assert site.post_uri(ref.uri, "?store=true").status_code == 200


def test_a_body_cannot_be_stored(site: Site) -> None:
    assert error_of(site.post(bmp_image(), "?store=true")) == (400, "unreadable_request")


# Limits


def test_calls_beyond_the_slots_are_429_at_once() -> None:
    site = Site(max_in_flight=2)
    site.decoders.gate.close()
    in_flight = [in_thread(lambda: site.post(bmp_image())) for _ in range(2)]
    site.decoders.gate.wait_for_arrivals(2)
    response = site.post(bmp_image())
    assert error_of(response) == (429, "try_again")
    assert int(response.headers["Retry-After"]) > 0
    site.decoders.gate.open()
    assert [call.result(PATIENCE_SECONDS).status_code for call in in_flight] == [200, 200]
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize("uri", [None, "gs://uploads/a"], ids=["body", "uri"])
def test_a_call_after_its_deadline_is_503(site: Site, uri: str | None) -> None:
    site.storage.put("a", bmp_image())
    client = site.client_of(seconds=-1)
    body: dict[str, Any] = {"json": {"uri": uri}} if uri else {"data": bmp_image()}
    response = client.post(URL, **body)
    assert error_of(response) == (503, "try_again")
    assert site.detector.batch_sizes == []


def test_the_daily_limit_counts_calls() -> None:
    site = Site(limit=FakeCounter().limit(1))
    site.storage.put("a", bmp_image())
    assert site.post(bmp_image()).status_code == 200
    for response in (
        site.post(bmp_image()),
        site.post_uri("gs://uploads/a"),
        site.post_uri("gs://uploads/a", "?store=true"),
    ):
        assert error_of(response) == (429, "daily_image_limit")
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


class Body(io.RawIOBase):
    """A body of `size` bytes, or without an end. It counts what is read."""

    def __init__(self, size: float = float("inf")) -> None:
        self.left = size
        self.read_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(min(len(buffer), self.left))
        buffer[:count] = b"a" * count
        self.left -= count
        self.read_bytes += count
        return count


def chunked(body: io.RawIOBase) -> dict[str, Any]:
    """Return the environment of a chunked body, as gunicorn passes it on."""
    return {
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
        "CONTENT_LENGTH": "",
    }


def with_length(body: io.RawIOBase, length: int) -> dict[str, Any]:
    return {"wsgi.input": body, "wsgi.input_terminated": True, "CONTENT_LENGTH": str(length)}


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/json"])
def test_an_endless_body_is_413_and_read_in_part(site: Site, content_type: str) -> None:
    body = Body()
    response = site.post(b"", environ_overrides=chunked(body), content_type=content_type)
    assert error_of(response) == (413, "request_entity_too_large")
    assert body.read_bytes <= MAX_IMAGE_BYTES + 1


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/json"])
def test_a_body_that_is_said_to_be_too_long_is_not_read(site: Site, content_type: str) -> None:
    body = Body()
    environ = with_length(body, MAX_IMAGE_BYTES + 1)
    response = site.post(b"", environ_overrides=environ, content_type=content_type)
    assert error_of(response) == (413, "request_entity_too_large")
    assert body.read_bytes == 0


def test_json_has_a_lower_limit_than_an_image(site: Site) -> None:
    body = Body(MAX_JSON_BYTES + 1)
    response = site.post(b"", environ_overrides=chunked(body), content_type="application/json")
    assert error_of(response) == (413, "request_entity_too_large")


def test_a_body_that_is_too_long_does_not_wait_for_memory() -> None:
    site = Site(max_buffered_bytes=len(bmp_image()))
    site.decoders.gate.close()
    first = in_thread(lambda: site.post(bmp_image()))
    site.decoders.gate.wait_for_arrivals()
    environ = with_length(Body(), MAX_IMAGE_BYTES + 1)
    assert site.post(b"", environ_overrides=environ).status_code == 413
    site.decoders.gate.open()
    assert first.result(PATIENCE_SECONDS).status_code == 200
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


def test_a_body_that_is_shorter_than_said_is_400(site: Site) -> None:
    """Its client has gone. A file that is cut must not be taken for a damaged one."""
    environ = with_length(io.BytesIO(bmp_image()[:-1]), len(bmp_image()))  # type: ignore[arg-type]
    assert error_of(site.post(b"", environ_overrides=environ)) == (400, "bad_request")
    assert site.detector.batch_sizes == []


def test_a_chunked_image_is_read_to_its_end(site: Site) -> None:
    environ = chunked(io.BytesIO(bmp_image((1, 2, 3))))  # type: ignore[arg-type]
    assert site.post(b"", environ_overrides=environ).get_json()["labels"] == ["1-2-3"]


def test_memory_is_reserved_before_a_body_is_read() -> None:
    size = len(bmp_image())
    site = Site(max_buffered_bytes=2 * size)
    site.decoders.gate.close()
    first = [in_thread(lambda: site.post(bmp_image())) for _ in range(2)]
    site.decoders.gate.wait_for_arrivals(2)
    body = Body(size)
    third = in_thread(lambda: site.post(b"", environ_overrides=with_length(body, size)))
    wait_until(lambda: len(site.pipeline._buffered._waiting) == 1, "no call waits for memory")
    assert body.read_bytes == 0
    site.decoders.gate.open()
    assert [call.result(PATIENCE_SECONDS).status_code for call in first] == [200, 200]
    assert third.result(PATIENCE_SECONDS).status_code == 415
    assert body.read_bytes == size
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


# Hostile


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", f"gzip, {SECRET}"])
def test_a_compressed_body_is_415_and_not_read(site: Site, encoding: str) -> None:
    body = Body(1000)
    headers = {"Content-Encoding": encoding}
    response = site.post(b"", environ_overrides=with_length(body, 1000), headers=headers)
    assert error_of(response) == (415, "unsupported_media_type")
    assert body.read_bytes == 0


@pytest.mark.parametrize("encoding", ["identity", "Identity"])
def test_body_without_compression_may_say_so(site: Site, encoding: str) -> None:
    response = site.post(bmp_image(), headers={"Content-Encoding": encoding})
    assert response.status_code == 200


BAD_JSON = {
    "empty": b"",
    "text": SECRET.encode(),
    "not-utf-8": b'{"uri": "gs://uploads/\xff"}',
    "list": b"[]",
    "no-uri": b"{}",
    "other-field": b'{"uri": "gs://uploads/a", "' + SECRET.encode() + b'": 1}',
    "replace": b'{"uri": "gs://uploads/a", "replace": {}}',
    "deep": b"[" * (MAX_JSON_BYTES - 1),
    "deep-in-a-field": b'{"x":' + b"[" * (MAX_JSON_BYTES - 10),
    "long-number": b'{"uri":' + b"9" * (MAX_JSON_BYTES - 10) + b"}",
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
def test_json_of_another_form_is_400(site: Site, body: bytes) -> None:
    response = site.post(body, content_type="application/json")
    assert error_of(response) == (400, "unreadable_request")
    assert site.storage.resolved == []


@pytest.mark.parametrize(
    "query",
    [f"?{SECRET}=1", "?store=yes", "?store=", "?store=true&store=true", f"?store=true&{SECRET}",
     "?store=false&x=1"],
)  # fmt: skip
def test_other_parameters_are_400(site: Site, query: str) -> None:
    assert error_of(site.post(bmp_image(), query)) == (400, "unreadable_request")


def test_a_defect_is_500_and_shows_nothing(site: Site) -> None:
    site.detector.poison = (1, 2, 3)
    assert error_of(site.post(bmp_image((1, 2, 3)))) == (500, "internal_error")
    site.storage.put(SECRET, bmp_image())
    site.storage.errors[SECRET] = StorageUnavailableError("Cloud Storage is unavailable.")
    assert error_of(site.post_uri(f"gs://uploads/{SECRET}#1")) == (503, "try_again")


def test_one_image_that_always_fails_does_not_end_the_instance(site: Site) -> None:
    """Five different images in a row do: the model is at fault then."""
    site.detector.poison = (1, 2, 3)
    for _ in range(20):
        assert site.post(bmp_image((1, 2, 3))).status_code == 500
    assert site.client.get("/health/live").status_code == 200


# Which endpoints there are


def test_a_service_for_callers_has_no_endpoint_for_events(site: Site) -> None:
    event = {"bucket": "uploads", "name": "a", "generation": "1"}
    site.storage.put("a", bmp_image())
    headers = {"ce-type": "google.cloud.storage.object.v1.finalized"}
    assert error_of(site.client.post("/", headers=headers, json=event)) == (404, "not_found")
    assert site.store.commits == []


def test_a_service_for_events_has_no_endpoint_for_callers(site: Site) -> None:
    client = create_app(site.pipeline).test_client()
    assert error_of(client.post(URL, data=bmp_image())) == (404, "not_found")
    assert error_of(client.get("/openapi.json")) == (404, "not_found")


def test_health_is_reported_to_probes(site: Site) -> None:
    assert site.client.get("/health/live").get_json() == {"status": "ready"}
    assert site.client.get("/health/ready").status_code == 200


def test_every_path_but_health_needs_the_token(site: Site) -> None:
    def verify(header: str | None) -> None:
        from service.errors import UnauthenticatedError

        if header != "Bearer good":
            raise UnauthenticatedError("The request has no token.")

    limits = DetectLimits(MAX_IMAGE_BYTES, MAX_JSON_BYTES, 60.0, commit_seconds=0.0)
    detect = detect_blueprint(site.pipeline, site.read, limits)
    client = create_app(site.pipeline, detect=detect, verify=verify).test_client()
    assert error_of(client.post(URL, data=bmp_image())) == (401, "unauthenticated")
    assert error_of(client.get("/openapi.json")) == (401, "unauthenticated")
    assert client.get("/health/live").status_code == 200
    headers = {"Authorization": "Bearer good"}
    assert client.post(URL, data=bmp_image(), headers=headers).status_code == 200
