"""Results that are larger than a document may be, on the emulators."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from google.cloud import firestore, storage

from service.cli.main import main
from service.deadline import NO_DEADLINE, Deadline
from service.document import detections_of, to_document
from service.domain import (
    CommittedResult,
    ErrorCode,
    GeoPoint,
    ImageResult,
    Outcome,
    Replace,
)
from service.errors import (
    ResultObjectError,
    StorageRefusedError,
    StorageUnavailableError,
    TooLateError,
)
from service.gcp.firestore import ResultStore
from service.gcp.large_results import LargeResults
from service.gcp.result_objects import ResultObjects
from service.gcp.result_reader import ResultReader
from service.gcp.result_uploads import ResultUploads
from service.health import Health
from service.recorder import Recorder
from tests.fakes import PATIENCE_SECONDS
from tests.loglines import logged_by
from tests.masks import MODEL, segmented


@pytest.fixture
def recorder(store: ResultStore, uploads: ResultUploads) -> Iterator[Recorder]:
    recorder = Recorder(store, Health(hang_timeout_seconds=600), uploads)
    yield recorder
    recorder.close(timeout_seconds=PATIENCE_SECONDS)


def document_of(reader: ResultReader, result: ImageResult) -> dict[str, Any]:
    document = reader.document(result.ref.document_id)
    assert document
    return document


def uris(bucket: storage.Bucket) -> set[str]:
    return {f"gs://{bucket.name}/{blob.name}" for blob in bucket.list_blobs()}


def test_large_result_is_read_back_through_its_object(
    recorder: Recorder, reader: ResultReader, large: LargeResults, results_bucket: storage.Bucket
) -> None:
    result = segmented("a.jpg")
    assert recorder.record(result, NO_DEADLINE).outcome is Outcome.DONE
    document = document_of(reader, result)
    assert uris(results_bucket) == {document["detections_uri"]}
    assert (document["left_out"], document["simplified_pixels"]) == (["polygons"], None)
    assert document["counts"] == {"person": 300}
    assert document["detections"][0]["box"] == to_document(result)["detections"][0]["box"]
    assert "polygons" not in document["detections"][0]
    assert large.read(document) == detections_of(result)


def test_object_is_named_by_its_document_and_content(
    recorder: Recorder, results_bucket: storage.Bucket
) -> None:
    result = segmented("a.jpg")
    recorder.record(result, NO_DEADLINE)
    [blob] = results_bucket.list_blobs()
    text = gzip.decompress(blob.download_as_bytes(raw_download=True))
    sha256 = hashlib.sha256(text).hexdigest()
    assert blob.name == f"{result.ref.document_id}-{sha256}.json.gz"
    content = json.loads(text)
    assert (content["schema"], content["uri"], content["generation"]) == (2, result.ref.uri, 1)


def test_small_result_has_no_object(
    recorder: Recorder, reader: ResultReader, large: LargeResults, results_bucket: storage.Bucket
) -> None:
    result = segmented("a.jpg", masks=2)
    recorder.record(result, NO_DEADLINE)
    document = document_of(reader, result)
    assert uris(results_bucket) == set()
    assert document["detections_uri"] is None
    assert large.read(document) == detections_of(result)


def race(
    store: ResultStore, uploads: ResultUploads, first: ImageResult, second: ImageResult
) -> list[Outcome]:
    """Record two results of an image, after the objects of both were uploaded."""
    outcomes = []
    for prepared in [uploads.prepare(first), uploads.prepare(second)]:
        [committed] = store.commit([prepared.result])
        assert isinstance(committed, CommittedResult)
        uploads.settle(prepared, committed)
        outcomes.append(committed.outcome)
    return outcomes


def test_loser_of_a_race_removes_only_its_own_object(
    store: ResultStore,
    reader: ResultReader,
    large: LargeResults,
    uploads: ResultUploads,
    results_bucket: storage.Bucket,
) -> None:
    winner, loser = segmented("a.jpg", confidence=0.5), segmented("a.jpg", confidence=0.6)
    assert race(store, uploads, winner, loser) == [Outcome.DONE, Outcome.SUPERSEDED]
    document = document_of(reader, winner)
    assert uris(results_bucket) == {document["detections_uri"]}
    assert large.read(document) == detections_of(winner)


def test_equal_results_of_a_race_share_their_object(
    store: ResultStore, reader: ResultReader, uploads: ResultUploads, results_bucket: storage.Bucket
) -> None:
    winner = segmented("a.jpg")
    loser = replace(winner, timings=replace(winner.timings, queue_ms=7.0))
    assert race(store, uploads, winner, loser) == [Outcome.DONE, Outcome.SUPERSEDED]
    document = document_of(reader, winner)
    assert uris(results_bucket) == {document["detections_uri"]}


def test_repeated_delivery_keeps_its_object(
    recorder: Recorder, reader: ResultReader, results_bucket: storage.Bucket
) -> None:
    """The commit succeeded, but its response was lost."""
    result = segmented("a.jpg")
    assert [recorder.record(result, NO_DEADLINE).outcome for _ in range(2)] == [Outcome.DONE] * 2
    assert uris(results_bucket) == {document_of(reader, result)["detections_uri"]}


def rerun(reader: ResultReader, result: ImageResult) -> ImageResult:
    """Return the result with the permission to replace the document that is there."""
    read_at = reader.stored_documents([result.ref]).read_at
    return replace(result, ref=replace(result.ref, replace=Replace(read_at)))


def test_rerun_removes_the_object_of_the_old_document(
    recorder: Recorder, reader: ResultReader, large: LargeResults, results_bucket: storage.Bucket
) -> None:
    recorder.record(segmented("a.jpg"), NO_DEADLINE)
    new = rerun(reader, segmented("a.jpg", confidence=0.6))
    assert recorder.record(new, NO_DEADLINE).outcome is Outcome.DONE
    document = document_of(reader, new)
    assert uris(results_bucket) == {document["detections_uri"]}
    assert large.read(document) == detections_of(new)
    small = rerun(reader, segmented("a.jpg", masks=1))
    recorder.record(small, NO_DEADLINE)
    assert uris(results_bucket) == set()
    assert document_of(reader, small)["detections_uri"] is None


def test_rerun_with_equal_detections_keeps_the_object(
    recorder: Recorder, reader: ResultReader, results_bucket: storage.Bucket
) -> None:
    result = segmented("a.jpg")
    recorder.record(result, NO_DEADLINE)
    [before] = results_bucket.list_blobs()
    again = rerun(reader, replace(result, timings=replace(result.timings, queue_ms=9.0)))
    assert recorder.record(again, NO_DEADLINE).outcome is Outcome.DONE
    [after] = results_bucket.list_blobs()
    assert (after.name, after.generation) == (before.name, before.generation)
    assert document_of(reader, result)["timings"]["queue_ms"] == 9.0


def test_shared_object_that_vanishes_is_restored(
    store: ResultStore, uploads: ResultUploads, results_bucket: storage.Bucket
) -> None:
    """A superseded delivery with the same detections removes the object that it created."""
    result = segmented("a.jpg")
    uploads.prepare(result)  # by the other delivery
    prepared = uploads.prepare(result)
    before = uris(results_bucket)
    results_bucket.delete_blobs(list(results_bucket.list_blobs()))
    [committed] = store.commit([prepared.result])
    assert isinstance(committed, CommittedResult)
    uploads.settle(prepared, committed)
    assert uris(results_bucket) == before


def test_superseded_delivery_leaves_an_object_that_it_found(
    store: ResultStore, uploads: ResultUploads, results_bucket: storage.Bucket
) -> None:
    """The delivery that created the object may be about to commit it."""
    uploads.prepare(segmented("a.jpg", confidence=0.6))
    before = uris(results_bucket)
    race(store, uploads, segmented("a.jpg"), segmented("a.jpg", confidence=0.6))
    assert before < uris(results_bucket)


def test_refused_document_of_a_large_result_leaves_no_object(
    recorder: Recorder, reader: ResultReader, results_bucket: storage.Bucket
) -> None:
    result = replace(segmented("a.jpg"), batch_size=2**70)
    assert recorder.record(result, NO_DEADLINE).outcome is Outcome.FAILED
    assert document_of(reader, result)["error"]["code"] == ErrorCode.UNSTORABLE_RESULT
    assert uris(results_bucket) == set()


def test_all_objects_of_an_image_are_removed(
    uploads: ResultUploads, results_bucket: storage.Bucket
) -> None:
    """Also those of failed deliveries, which no document refers to."""
    results = [segmented("a.jpg", confidence=one) for one in (0.5, 0.6)]
    for result in results:
        uploads.prepare(result)
    other = uploads.prepare(segmented("b.jpg"))
    uploads.remove_all(results[0].ref.document_id)
    assert uris(results_bucket) == {other.result.detections_uri}
    uploads.remove_all(results[0].ref.document_id)


def test_bucket_that_does_not_exist_is_named(
    store: ResultStore, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = ResultUploads(
        ResultObjects(storage.Client(), "missing", timeout_seconds=PATIENCE_SECONDS)
    )
    for _ in range(2):
        with pytest.raises(StorageRefusedError, match="RESULTS_BUCKET does not exist"):
            uploads.prepare(segmented("a.jpg"))
    [line] = logged_by(caplog, "service.gcp.outages")
    assert line.__dict__["subject"] == "gs://missing"


def test_unavailable_bucket_is_retried_by_the_next_delivery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    uploads = ResultUploads(ResultObjects(storage.Client(), "results", timeout_seconds=0.5))
    with pytest.raises(StorageUnavailableError) as raised:
        uploads.prepare(segmented("a.jpg"))
    assert not isinstance(raised.value, StorageRefusedError)


def test_upload_ends_with_the_deadline(uploads: ResultUploads) -> None:
    with pytest.raises(TooLateError):
        uploads.prepare(segmented("a.jpg"), Deadline.after(-1))


def test_failure_after_the_commit_is_logged(
    store: ResultStore, uploads: ResultUploads, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = uploads.prepare(segmented("a.jpg"))
    committed = CommittedResult(prepared.result, unused_uris=frozenset({"gs://uploads/cat.jpg"}))
    uploads.settle(prepared, committed)
    [line] = logged_by(caplog, "service.gcp.result_uploads")
    assert line.getMessage() == "An object in RESULTS_BUCKET could not be created or removed"
    assert line.__dict__["unused"] == ["gs://uploads/cat.jpg"]


def test_changed_object_is_not_taken_for_the_result(
    recorder: Recorder, reader: ResultReader, large: LargeResults, results_bucket: storage.Bucket
) -> None:
    result = segmented("a.jpg")
    recorder.record(result, NO_DEADLINE)
    document = document_of(reader, result)
    [blob] = results_bucket.list_blobs()
    for data in (gzip.compress(b"{}"), b"no gzip"):
        results_bucket.blob(blob.name).upload_from_string(data)
        with pytest.raises(ResultObjectError, match="damaged"):
            large.read(document)
    blob.delete()
    with pytest.raises(ResultObjectError, match="does not exist"):
        large.read(document)


def test_results_as_json_have_all_detections(
    recorder: Recorder,
    collection: str,
    results_bucket: storage.Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FIRESTORE_COLLECTION", collection)
    here, there = (segmented(name) for name in ("a.jpg", "b.jpg"))
    place = GeoPoint(48.1, 11.6)
    recorder.record(replace(here, location=place), NO_DEADLINE)
    recorder.record(there, NO_DEADLINE)
    [gone] = results_bucket.list_blobs(prefix=there.ref.document_id)
    gone.delete()
    run = CliRunner().invoke(main, ["results", "gs://uploads", "--json"])
    assert run.exit_code == 0, run.output
    first, second = map(json.loads, run.stdout.splitlines())
    assert first["detections"] == detections_of(here)
    assert first["location"] == {"latitude": 48.1, "longitude": 11.6}
    assert "polygons" not in second["detections"][0]
    assert "gs://uploads/b.jpg is printed as it is in Firestore" in run.stderr


def test_simplified_document_is_one_that_firestore_takes(
    store: ResultStore, reader: ResultReader
) -> None:
    without_bucket = ResultUploads(
        ResultObjects(storage.Client(), None, timeout_seconds=PATIENCE_SECONDS)
    )
    for result in (segmented("a.jpg"), segmented("b.jpg", roughness=900)):
        [committed] = store.commit([without_bucket.prepare(result).result])
        assert isinstance(committed, CommittedResult)
        assert committed.outcome is Outcome.DONE
        assert document_of(reader, result)["num_detections"] == 300


def test_largest_document_is_one_that_firestore_takes(
    store: ResultStore, reader: ResultReader
) -> None:
    """The estimate of the size is never too small."""
    without_bucket = ResultUploads(
        ResultObjects(storage.Client(), None, timeout_seconds=PATIENCE_SECONDS)
    )
    masks = next(n for n in range(300, 0, -1) if _is_unchanged(without_bucket, n))
    result = segmented("c.jpg", masks=masks)
    [committed] = store.commit([result])
    assert isinstance(committed, CommittedResult)
    assert committed.outcome is Outcome.DONE


def _is_unchanged(uploads: ResultUploads, masks: int) -> bool:
    result = segmented("c.jpg", masks=masks)
    return uploads.prepare(result).result == result


def test_location_is_a_place_for_firestore(
    store: ResultStore, reader: ResultReader, collection: str
) -> None:
    result = replace(segmented("a.jpg", masks=1), location=GeoPoint(48.1, -11.6))
    store.commit([result])
    snapshot = firestore.Client().collection(collection).document(result.ref.document_id).get()
    assert snapshot.get("location") == firestore.GeoPoint(48.1, -11.6)
    assert document_of(reader, result)["location"] == GeoPoint(48.1, -11.6)
    assert MODEL.task == document_of(reader, result)["task"]
