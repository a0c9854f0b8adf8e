"""Results that are larger than a document may be, without a bucket for them."""

from dataclasses import replace
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest
from google.api_core import exceptions
from google.auth.exceptions import RefreshError
from hypothesis import given
from hypothesis import strategies as st

from service.deadline import NO_DEADLINE, Deadline
from service.document import to_document
from service.domain import (
    CommittedResult,
    GeoPoint,
    ImageResult,
    Keypoint,
    Polygon,
    PreparedResult,
    Task,
)
from service.errors import (
    ObjectGoneError,
    ResultObjectError,
    StorageRefusedError,
    StorageUnavailableError,
)
from service.gcp.document_size import MAX_DOCUMENT_BYTES, document_bytes
from service.gcp.large_results import LargeResults
from service.gcp.result_objects import ResultObjects
from service.gcp.result_uploads import ResultUploads
from service.health import Health
from service.images.polygons import simplify
from service.recorder import Recorder
from tests.loglines import logged_by
from tests.masks import MODEL, segmented

WITHOUT_BUCKET = ResultUploads(ResultObjects(Mock(), None, timeout_seconds=1))


def test_small_result_is_unchanged() -> None:
    result = segmented("a.jpg", masks=3)
    assert WITHOUT_BUCKET.prepare(result) == PreparedResult(result)


def test_polygons_are_simplified_until_the_document_fits() -> None:
    result = segmented("a.jpg")
    assert document_bytes(to_document(result)) > MAX_DOCUMENT_BYTES
    prepared = WITHOUT_BUCKET.prepare(result).result
    document = to_document(prepared)
    assert document_bytes(document) <= MAX_DOCUMENT_BYTES
    assert (document["simplified_pixels"], document["left_out"]) == (2.0, [])
    assert document["num_detections"] == 300
    for before, after in zip(result.detections, prepared.detections, strict=True):
        assert set(after.polygons[0].points) <= set(before.polygons[0].points)
        assert len(after.polygons[0].points) >= 6
        assert replace(after, polygons=before.polygons) == before


def test_tolerance_is_doubled_no_more_than_needed() -> None:
    rough = segmented("a.jpg", roughness=6)
    assert WITHOUT_BUCKET.prepare(rough).result.simplified_pixels == 8.0


def test_polygons_that_stay_too_large_are_left_out() -> None:
    result = segmented("a.jpg", roughness=900)
    document = to_document(WITHOUT_BUCKET.prepare(result).result)
    assert document_bytes(document) <= MAX_DOCUMENT_BYTES
    assert (document["simplified_pixels"], document["left_out"]) == (None, ["polygons"])
    assert "polygons" not in document["detections"][0]
    assert document["detections"][0]["area"] == 31400.0


def test_keypoints_that_are_too_large_are_left_out() -> None:
    points = tuple(Keypoint(f"point {i}", 1.0, 2.0, 0.5) for i in range(100))
    pose = replace(MODEL, task=Task.POSE)
    small = segmented("a.jpg")
    found = tuple(replace(item, polygons=(), keypoints=points) for item in small.detections)
    large = replace(small, model=pose, detections=found)
    document = to_document(WITHOUT_BUCKET.prepare(large).result)
    assert document_bytes(document) <= MAX_DOCUMENT_BYTES
    assert document["left_out"] == ["keypoints"]
    assert set(document["detections"][0]) == {"label", "class_id", "confidence", "box", "zones"}


@pytest.mark.parametrize(
    "uri",
    [
        "gs://uploads/cam/1.jpg",
        f"gs://other/{'a' * 40}-{'b' * 64}.json.gz",
        f"gs://results/{'c' * 40}-{'b' * 64}.json.gz",
        f"gs://results/x/{'a' * 40}-{'b' * 64}.json.gz",
    ],
)
def test_objects_that_are_not_of_the_image_are_not_removed(uri: str) -> None:
    """Whoever can write documents must not be able to delete uploads with them."""
    client = Mock()
    results = ResultObjects(client, "results", timeout_seconds=1)
    with pytest.raises(ResultObjectError):
        results.remove(uri, "a" * 40)
    client.bucket.assert_not_called()


def test_documents_cannot_make_a_reader_read_other_objects() -> None:
    client = Mock()
    with pytest.raises(ResultObjectError):
        LargeResults(ResultObjects(client, None, timeout_seconds=1)).read(
            {"detections_uri": "gs://a/b.json.gz"}
        )
    client.bucket.assert_not_called()


POLICY = exceptions.PreconditionFailed("Request violates the organization's policy.")
REFUSALS = {
    exceptions.Forbidden("sa@p does not have storage.objects.create access"): "objectUser",
    exceptions.NotFound("The specified bucket does not exist."): "RESULTS_BUCKET does not exist",
    POLICY: "organization policy",
    RefreshError("account disabled"): "credentials",
}


def client_that_raises(error: Exception) -> Mock:
    client = Mock()
    client.bucket().blob().upload_from_string.side_effect = error
    return client


@pytest.mark.parametrize(("error", "advice"), REFUSALS.items(), ids=lambda v: type(v).__name__)
def test_bucket_that_refuses_everything_is_logged_once(
    error: Exception, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = ResultUploads(ResultObjects(client_that_raises(error), "results", timeout_seconds=1))
    for _ in range(3):
        with pytest.raises(StorageRefusedError, match=advice):
            uploads.prepare(segmented("a.jpg"))
    [line] = logged_by(caplog, "service.gcp.outages")
    assert advice in line.__dict__["reason"]
    assert line.__dict__["subject"] == "gs://results"


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ServiceUnavailable("away"),
        exceptions.RetryError("away", None),
        exceptions.TooManyRequests("slow down"),
        ConnectionError("reset"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_unavailable_bucket_is_no_refusal(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = ResultUploads(ResultObjects(client_that_raises(error), "results", timeout_seconds=1))
    with pytest.raises(StorageUnavailableError) as raised:
        uploads.prepare(segmented("a.jpg"))
    assert not isinstance(raised.value, StorageRefusedError)
    assert logged_by(caplog, "service.gcp.outages") == []


def test_object_that_exists_is_not_written_again() -> None:
    client = client_that_raises(exceptions.PreconditionFailed("conditionNotMet"))
    uploads = ResultUploads(ResultObjects(client, "results", timeout_seconds=1))
    prepared = uploads.prepare(segmented("a.jpg"))
    assert prepared.result.left_out == ("polygons",)
    assert [*prepared.found] == [prepared.result.detections_uri]
    [call] = client.bucket().blob().upload_from_string.call_args_list
    assert call.kwargs["if_generation_match"] == 0


def test_equal_detections_have_an_object_of_the_same_bytes() -> None:
    uploads = []
    for _ in range(2):
        client = Mock()
        ResultUploads(ResultObjects(client, "results", timeout_seconds=1)).prepare(
            segmented("a.jpg")
        )
        [name] = client.bucket().blob.call_args.args
        uploads.append((name, client.bucket().blob().upload_from_string.call_args.args))
    assert uploads[0] == uploads[1]


class Bucket:
    """The objects of large results, in a set."""

    def __init__(self) -> None:
        self.uris: set[str] = set()

    def prepare(self, result: ImageResult, deadline: Deadline) -> PreparedResult:
        self.uris.add("gs://results/own")
        return PreparedResult(replace(result, detections_uri="gs://results/own"))

    def settle(
        self, prepared: PreparedResult, committed: CommittedResult, deadline: Deadline
    ) -> None:
        self.uris -= committed.unused_uris

    def remove_all(self, document_id: str, deadline: Deadline) -> None:
        self.uris.clear()


def test_object_of_an_image_that_is_deleted_meanwhile_is_removed() -> None:
    store, bucket = Mock(), Bucket()
    store.commit = lambda results, deadline: [ObjectGoneError("deleted")] * len(results)
    recorder = Recorder(store, Health(hang_timeout_seconds=60), bucket)
    with pytest.raises(ObjectGoneError):
        recorder.record(segmented("a.jpg"), NO_DEADLINE)
    recorder.close(timeout_seconds=1)
    assert bucket.uris == set()


@given(st.lists(st.floats(0, 5000), min_size=3, max_size=60), st.sampled_from([2.0, 8.0, 64.0]))
def test_simplified_polygon_keeps_points_of_the_polygon(xs: list[float], tolerance: float) -> None:
    before = [(round(x, 2), round(5000 - x * index % 777, 2)) for index, x in enumerate(xs)]
    polygon = Polygon(tuple(value for point in before for value in point))
    simpler = simplify(polygon, tolerance)
    if simpler is not None:
        points = simpler.points
        pairs = set(zip(points[::2], points[1::2], strict=True))
        assert pairs <= set(before)
        assert 3 <= len(points) / 2 <= len(before)


def test_document_size_counts_every_type() -> None:
    sized = {
        "text": ("é", 3),
        "bytes": (b"\0" * 100, 100),
        "none": (None, 1),
        "number": (0.5, 8),
        "time": (datetime(2026, 1, 1, tzinfo=UTC), 8),
        "place": (GeoPoint(1.0, 2.0), 16),
        "list": ([1, 2, "a"], 18),
        "map": ({"a": {"b": 1}}, 32 + 2 + 32 + 2 + 8),
    }
    empty = document_bytes({})
    for name, (value, size) in sized.items():
        assert document_bytes({name: value}) - empty == len(name) + 1 + size, name
