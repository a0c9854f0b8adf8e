"""Derived images around a commit, on the emulators: crashes, races, replacements and removals."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from google.cloud import firestore, storage

from service.cli.main import main
from service.deadline import NO_DEADLINE, Deadline
from service.domain import (
    DerivedImage,
    DerivedKind,
    ImageRef,
    ImageResult,
    Outcome,
    PreparedResult,
    Timings,
)
from service.errors import FirestoreUnavailableError, ObjectGoneError
from service.gcp.deletions import ResultDeleter
from service.gcp.firestore import ResultStore
from service.gcp.listing import ObjectLister
from service.gcp.result_reader import ResultReader
from service.gcp.result_uploads import ResultUploads
from service.gcp.storage import ImageStorage
from service.health import Health
from service.object_metadata import RESULT_MARKER, is_marked
from service.operate.purge import OtherBucketError, purge
from service.recorder import Recorder
from tests.contract.conftest import BUCKET, fetched
from tests.contract.test_large_results import document_of, rerun, uris
from tests.contract.test_store import done
from tests.fakes import PATIENCE_SECONDS
from tests.masks import segmented

ROUNDS = 10
THUMBNAIL = DerivedImage(DerivedKind.THUMBNAIL, b"thumbnail", "image/jpeg", 32, 24)


def with_images(
    result: ImageResult, *crops: bytes, thumbnail: bytes = b"thumbnail", queue_ms: float = 0.0
) -> ImageResult:
    """Return the result of a delivery that has these images and this time."""
    images = [replace(THUMBNAIL, data=thumbnail)]
    images += [DerivedImage(DerivedKind.CROP, data, "image/jpeg", 9, 9, 2) for data in crops]
    return replace(result, derived=tuple(images), timings=Timings(queue_ms=queue_ms))


@pytest.fixture
def store(collection: str) -> ResultStore:
    """Return a store as the service has with DELETE_RESULTS_WITH_OBJECTS."""
    return ResultStore(
        firestore.Client(),
        collection=collection,
        timeout_seconds=PATIENCE_SECONDS,
        with_tombstones=True,
    )


@pytest.fixture
def recorder(store: ResultStore, uploads: ResultUploads) -> Iterator[Recorder]:
    recorder = Recorder(store, Health(hang_timeout_seconds=600), uploads, store.is_deleted)
    yield recorder
    recorder.close(timeout_seconds=PATIENCE_SECONDS)


def derived_uris(document: dict[str, Any]) -> set[str]:
    return {image["uri"] for image in document["derived"]}


def generations(bucket: storage.Bucket) -> dict[str, int]:
    return {blob.name: blob.generation for blob in bucket.list_blobs()}


def test_document_refers_to_objects_that_exist(
    recorder: Recorder, reader: ResultReader, results_bucket: storage.Bucket
) -> None:
    result = with_images(done("a.jpg", "cat"), b"crop")
    assert recorder.record(result, NO_DEADLINE).outcome is Outcome.DONE
    document = document_of(reader, result)
    assert derived_uris(document) == uris(results_bucket)
    assert [(image["kind"], image["size"], image["class_id"]) for image in document["derived"]] == [
        ("thumbnail", 9, None),
        ("crop", 4, 2),
    ]
    for blob in results_bucket.list_blobs():
        assert (blob.content_type, blob.metadata) == ("image/jpeg", {RESULT_MARKER: "true"})


def test_result_can_be_large_and_have_derived_images(
    recorder: Recorder, reader: ResultReader, results_bucket: storage.Bucket
) -> None:
    result = with_images(segmented("a.jpg"))
    recorder.record(result, NO_DEADLINE)
    document = document_of(reader, result)
    assert derived_uris(document) | {document["detections_uri"]} == uris(results_bucket)
    assert len(uris(results_bucket)) == 2


def test_crash_between_upload_and_commit_repeats_no_upload(
    recorder: Recorder,
    store: ResultStore,
    reader: ResultReader,
    results_bucket: storage.Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = with_images(done("a.jpg", "cat"), b"crop")
    with monkeypatch.context() as patch:
        error = FirestoreUnavailableError("The process ends here.")
        patch.setattr(store, "commit", lambda results, deadline: [error] * len(results))
        with pytest.raises(FirestoreUnavailableError):
            recorder.record(result, NO_DEADLINE)
    before = generations(results_bucket)
    assert len(before) == 2 and reader.document(result.ref.document_id) is None
    again = with_images(done("a.jpg", "cat"), b"crop", queue_ms=5)
    assert recorder.record(again, NO_DEADLINE).outcome is Outcome.DONE
    assert generations(results_bucket) == before
    assert derived_uris(document_of(reader, result)) == uris(results_bucket)


@pytest.mark.parametrize("is_equal", [True, False])
def test_race_of_two_deliveries_leaves_the_winners_objects(
    store: ResultStore,
    reader: ResultReader,
    uploads: ResultUploads,
    results_bucket: storage.Bucket,
    monkeypatch: pytest.MonkeyPatch,
    is_equal: bool,
) -> None:
    """Both have uploaded before the first one commits."""
    crops = [b"crop", b"crop" if is_equal else b"other"]
    uploaded, prepare = threading.Barrier(2, timeout=PATIENCE_SECONDS), uploads.prepare

    def prepare_and_wait(result: ImageResult, deadline: Deadline) -> PreparedResult:
        prepared = prepare(result, deadline)
        uploaded.wait()
        return prepared

    monkeypatch.setattr(uploads, "prepare", prepare_and_wait)
    recorders = [Recorder(store, Health(hang_timeout_seconds=600), uploads) for _ in crops]
    for number in range(ROUNDS):
        results = [
            with_images(done(f"{number}.jpg", "cat"), crop, queue_ms=index)
            for index, crop in enumerate(crops)
        ]
        with ThreadPoolExecutor(2) as threads:
            outcomes = threads.map(
                lambda pair: pair[0].record(pair[1], NO_DEADLINE).outcome,
                zip(recorders, results, strict=True),
            )
            assert sorted(outcomes) == [Outcome.DONE, Outcome.SUPERSEDED]
        document = document_of(reader, results[0])
        left = {uri for uri in uris(results_bucket) if results[0].ref.document_id in uri}
        assert derived_uris(document) == left, f"round {number}"
    for recorder in recorders:
        recorder.close(timeout_seconds=PATIENCE_SECONDS)


def test_replacement_removes_the_old_images_and_keeps_equal_ones(
    recorder: Recorder, reader: ResultReader, results_bucket: storage.Bucket
) -> None:
    old = with_images(done("a.jpg", "cat"), b"old crop", b"second crop")
    recorder.record(old, NO_DEADLINE)
    before = generations(results_bucket)
    new = with_images(rerun(reader, done("a.jpg", "dog")), b"new crop", queue_ms=5)
    assert recorder.record(new, NO_DEADLINE).outcome is Outcome.DONE
    document, after = document_of(reader, new), generations(results_bucket)
    assert derived_uris(document) == uris(results_bucket)
    assert len(after) == 2
    [kept] = before.items() & after.items()
    assert "-thumbnail-" in kept[0]


def test_replacement_without_images_removes_the_old_ones(
    recorder: Recorder, reader: ResultReader, results_bucket: storage.Bucket
) -> None:
    recorder.record(with_images(done("a.jpg", "cat"), b"crop"), NO_DEADLINE)
    new = rerun(reader, replace(done("a.jpg"), derived_error="The model has no label 'person'."))
    recorder.record(new, NO_DEADLINE)
    document = document_of(reader, new)
    assert (document["derived"], uris(results_bucket)) == ([], set())
    assert document["derived_error"] == "The model has no label 'person'."


def test_deletion_during_an_upload_leaves_no_object(
    store: ResultStore,
    collection: str,
    reader: ResultReader,
    uploads: ResultUploads,
    results_bucket: storage.Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deleter = ResultDeleter(
        firestore.Client(),
        collection=collection,
        timeout_seconds=PATIENCE_SECONDS,
        remove_objects=uploads.remove_all,
    )
    recorder = Recorder(store, Health(hang_timeout_seconds=600), uploads, store.is_deleted)
    uploaded, prepare = threading.Barrier(2, timeout=PATIENCE_SECONDS), uploads.prepare

    def prepare_and_wait(result: ImageResult, deadline: Deadline) -> PreparedResult:
        prepared = prepare(result, deadline)
        uploaded.wait()
        return prepared

    monkeypatch.setattr(uploads, "prepare", prepare_and_wait)
    for number in range(ROUNDS):
        result = with_images(done(f"{number}.jpg", "cat"), b"crop")
        with ThreadPoolExecutor(1) as threads:
            recording = threads.submit(recorder.record, result, NO_DEADLINE)
            uploaded.wait()  # the removal begins when the commit does
            deleter.delete([result.ref.document_id])
        assert recording.exception() is None or isinstance(recording.exception(), ObjectGoneError)
        assert reader.document(result.ref.document_id) is None, f"round {number}"
        assert not uris(results_bucket), f"round {number}: an object is left"
    recorder.close(timeout_seconds=PATIENCE_SECONDS)


def test_purge_knows_the_derived_images_of_a_result(
    recorder: Recorder,
    reader: ResultReader,
    image_storage: ImageStorage,
    results_bucket: storage.Bucket,
) -> None:
    result = with_images(done("never/uploaded.jpg", "cat"))
    recorder.record(result, NO_DEADLINE)
    [[image]] = reader.images("uploads", "never/")
    assert image.object_uris == uris(results_bucket)
    with pytest.raises(OtherBucketError, match="set RESULTS_BUCKET"):
        purge(
            reader.images("uploads", "never/"),
            image_storage,
            before=datetime.now(UTC) + timedelta(days=1),
            results_bucket="another",
            remove=lambda images: pytest.fail("it would leave the objects"),
        )


def test_results_command_prints_the_derived_images(
    recorder: Recorder,
    collection: str,
    results_bucket: storage.Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FIRESTORE_COLLECTION", collection)
    recorder.record(with_images(done("a.jpg", "cat")), NO_DEADLINE)
    run = CliRunner().invoke(main, ["results", "gs://uploads", "--json"])
    assert run.exit_code == 0, run.output
    assert derived_uris(json.loads(run.stdout)) == uris(results_bucket)


# The marker


def test_marker_is_seen_wherever_an_object_is_read(
    uploads: ResultUploads, results_bucket: storage.Bucket, image_storage: ImageStorage
) -> None:
    """In the headers of a download, in an object's metadata, and in a listing."""
    uploads.prepare(with_images(done("a.jpg", "cat")))
    [blob] = results_bucket.list_blobs()
    ref = ImageRef(results_bucket.name, blob.name, blob.generation)
    lister = ObjectLister(storage.Client())
    [[listed]] = lister.pages(results_bucket.name, "")
    downloaded = fetched(image_storage, ref).metadata
    resolved = image_storage.resolve(replace(ref, generation=None)).metadata
    for metadata in (listed.metadata, downloaded, resolved):
        assert is_marked(metadata.custom)


def test_copied_object_keeps_its_marker(
    uploads: ResultUploads, results_bucket: storage.Bucket, bucket: storage.Bucket
) -> None:
    """So a copy in an uploads' bucket is no upload."""
    uploads.prepare(with_images(done("a.jpg", "cat")))
    [blob] = results_bucket.list_blobs()
    copy = results_bucket.copy_blob(blob, bucket, f"copies/{blob.name}")
    [[listed]] = ObjectLister(storage.Client()).pages(BUCKET, f"copies/{blob.name}")
    assert is_marked(listed.metadata.custom)
    copy.delete()
