"""The removal of results with their objects, against the emulators.

The races are decided by the official Firestore emulator: a commit against a removal.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from google.cloud import firestore, storage

from service.deadline import NO_DEADLINE, Deadline
from service.deletion import Deletion
from service.domain import (
    CommittedResult,
    ErrorCode,
    Event,
    Failure,
    ImageRef,
    ImageResult,
    Outcome,
    PreparedResult,
    Replace,
    Timings,
)
from service.errors import ObjectGoneError, StorageUnavailableError
from service.gcp.collection import TOMBSTONES
from service.gcp.deletions import ResultDeleter
from service.gcp.firestore import ResultStore
from service.gcp.listing import ObjectLister
from service.gcp.result_reader import ResultReader
from service.gcp.result_uploads import ResultUploads
from service.gcp.storage import ImageStorage
from service.health import Health
from service.operate.reconcile import Enqueue, Scope, reconcile
from service.recorder import Recorder
from tests.contract.conftest import BUCKET
from tests.contract.test_large_results import uris
from tests.contract.test_store import done, failed, of, read, recorded, seen
from tests.fakes import PATIENCE_SECONDS
from tests.masks import segmented

ROUNDS = 200
LARGE_ROUNDS = 5


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
def deleter(collection: str) -> ResultDeleter:
    return deleter_of(collection)


def deleter_of(collection: str, **options: Any) -> ResultDeleter:
    return ResultDeleter(
        firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS, **options
    )


def tombstone(collection: str, result: ImageResult) -> dict[str, Any] | None:
    tombstones = firestore.Client().collection(collection + TOMBSTONES)
    return tombstones.document(result.ref.document_id).get().to_dict()


def test_removal_leaves_only_an_id_and_times(store: ResultStore, collection: str) -> None:
    now = datetime(2026, 11, 30, tzinfo=UTC)
    store.commit([done("a.jpg", "cat"), done("b.jpg", "cat")])
    deleter_of(collection, now=lambda: now).delete([done("a.jpg").ref.document_id])
    assert read(collection, done("a.jpg")) is None
    assert read(collection, done("b.jpg")) is not None
    left = tombstone(collection, done("a.jpg"))
    assert left and set(left) == {"deleted_at", "expires_at"}
    assert left["expires_at"] == now + timedelta(days=31)
    assert tombstone(collection, done("b.jpg")) is None


def test_removal_can_be_repeated(
    store: ResultStore, deleter: ResultDeleter, collection: str
) -> None:
    store.commit([done("a.jpg", "cat")])
    for _ in range(2):
        deleted_at = deleter.delete([done("a.jpg").ref.document_id])
        assert read(collection, done("a.jpg")) is None
        left = tombstone(collection, done("a.jpg"))
        assert left and left["deleted_at"] == deleted_at


def test_late_results_of_a_deleted_image_are_dropped_alone(
    store: ResultStore, deleter: ResultDeleter, collection: str
) -> None:
    deleter.delete([done(name).ref.document_id for name in ("a.jpg", "b.jpg", "c.jpg")])
    late = [done("a.jpg", "cat"), failed("b.jpg"), parked("c.jpg"), done("d.jpg", "cat")]
    outcomes = store.commit(late)
    assert [type(outcome) for outcome in outcomes] == [ObjectGoneError] * 3 + [CommittedResult]
    assert [bool(read(collection, result)) for result in late] == [False] * 3 + [True]


def test_result_that_cannot_be_stored_is_dropped_too(
    store: ResultStore, deleter: ResultDeleter, collection: str
) -> None:
    refused = done("bad.jpg", *["x" * 50_000] * 300)
    deleter.delete([refused.ref.document_id])
    [outcome] = store.commit([refused])
    assert isinstance(outcome, ObjectGoneError)
    assert read(collection, refused) is None


def test_rerun_does_not_bring_a_result_back(
    store: ResultStore, deleter: ResultDeleter, collection: str
) -> None:
    store.commit([done("a.jpg", "cat"), done("b.jpg", "cat")])
    permission = seen(store, done("a.jpg"), done("b.jpg"))
    deleter.delete([done("a.jpg").ref.document_id])
    gone, kept = store.commit(
        [of(done("a.jpg", "dog"), permission), of(done("b.jpg", "dog"), permission)]
    )
    assert isinstance(gone, ObjectGoneError)
    assert isinstance(kept, CommittedResult) and kept.outcome is Outcome.DONE
    assert read(collection, done("a.jpg")) is None


def parked(name: str) -> ImageResult:
    failure = Failure(ErrorCode.DAILY_IMAGE_LIMIT, "Limit.")
    return ImageResult(done(name).ref, failure=failure)


def test_new_object_of_the_same_name_is_recorded(
    store: ResultStore, deleter: ResultDeleter, collection: str
) -> None:
    deleter.delete([done("a.jpg").ref.document_id])
    newer = ImageResult(ImageRef("uploads", "a.jpg", 2))
    assert [outcome.outcome for outcome in recorded(store.commit([newer]))] == [Outcome.DONE]
    assert read(collection, newer)


# The race between a commit and a removal


class Race:
    """Two calls at the same moment. Whoever won starts a little later in the next round."""

    def __init__(self) -> None:
        self._lead_seconds = 0.0  # how much earlier the first call starts
        self._step_seconds = 0.0
        self._first_won: bool | None = None

    def run(self, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
        """Return what the first call returns."""
        barrier = threading.Barrier(2, timeout=PATIENCE_SECONDS)

        def start(call: Callable[[], Any], pause_seconds: float) -> Any:
            barrier.wait()
            time.sleep(max(0.0, pause_seconds))
            return call()

        with ThreadPoolExecutor(2) as threads:
            result = threads.submit(start, first, -self._lead_seconds)
            threads.submit(start, second, self._lead_seconds).result()
            return result.result()

    def note(self, *, first_won: bool) -> None:
        """Note who won. The step doubles until the other one wins, on a machine of any speed."""
        is_same = first_won is self._first_won
        self._step_seconds = min(2 * self._step_seconds, 0.2) if is_same else 0.001
        self._first_won = first_won
        self._lead_seconds += -self._step_seconds if first_won else self._step_seconds


@pytest.mark.parametrize("is_rerun", [False, True], ids=["new", "rerun"])
def test_race_of_detection_and_removal_leaves_nothing(
    store: ResultStore, deleter: ResultDeleter, collection: str, is_rerun: bool
) -> None:
    race = Race()
    endings: Counter[bool] = Counter()
    for number in range(ROUNDS):
        result = replace(done(f"{number}.jpg", "cat"), timings=Timings(queue_ms=1.0))
        if is_rerun:
            store.commit([result])
            permission = seen(store, result)
            result = of(replace(result, timings=Timings(queue_ms=2.0)), permission)
        beside = done(f"{number}-beside.jpg", "cat")
        outcome, other = race.run(
            partial(store.commit, [result, beside]),
            partial(deleter.delete, [result.ref.document_id]),
        )
        assert isinstance(other, CommittedResult)
        assert read(collection, result) is None, f"round {number}: the result is back"
        assert isinstance(outcome, CommittedResult | ObjectGoneError)
        race.note(first_won=isinstance(outcome, CommittedResult))
        endings[isinstance(outcome, CommittedResult)] += 1
    assert len(endings) == 2, f"one of them always won: {endings}"


# Objects that belong to a document


def test_objects_are_removed_before_the_document(store: ResultStore, collection: str) -> None:
    store.commit([done("a.jpg", "cat")])
    reference = firestore.Client().collection(collection).document(done("a.jpg").ref.document_id)
    removed: list[str] = []

    def remove(document_id: str, deadline: Deadline) -> None:
        assert reference.get().exists
        removed.append(document_id)
        if len(removed) == 1:
            raise StorageUnavailableError("down")

    deleter = deleter_of(collection, remove_objects=remove)
    with pytest.raises(StorageUnavailableError):
        deleter.delete([reference.id])
    assert reference.get().exists
    # Although the removal stopped halfway, no commit writes the document.
    permission = Replace(datetime.now(UTC) + timedelta(days=1))
    [late] = store.commit([of(done("a.jpg", "dog"), permission)])
    assert isinstance(late, ObjectGoneError)
    deleter.delete([reference.id])
    assert removed == [reference.id] * 2
    assert not reference.get().exists


def test_race_leaves_no_object_of_a_large_result(
    store: ResultStore,
    collection: str,
    uploads: ResultUploads,
    results_bucket: storage.Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deleter = deleter_of(collection, remove_objects=uploads.remove_all)
    recorder = Recorder(store, Health(hang_timeout_seconds=600), uploads, store.is_deleted)
    uploaded, prepare = threading.Barrier(2, timeout=PATIENCE_SECONDS), uploads.prepare

    def prepare_and_wait(result: ImageResult, deadline: Deadline) -> PreparedResult:
        prepared = prepare(result, deadline)
        uploaded.wait()
        return prepared

    monkeypatch.setattr(uploads, "prepare", prepare_and_wait)
    for number in range(LARGE_ROUNDS):
        result = segmented(f"{number}.jpg")
        with ThreadPoolExecutor(1) as threads:
            recording = threads.submit(recorder.record, result, NO_DEADLINE)
            uploaded.wait()  # the removal begins when the commit does
            deleter.delete([result.ref.document_id])
        assert recording.exception() is None or isinstance(recording.exception(), ObjectGoneError)
        assert read(collection, result) is None, f"round {number}: the result is back"
        assert not uris(results_bucket), f"round {number}: an object is left"
    recorder.close(timeout_seconds=PATIENCE_SECONDS)


def test_object_that_no_document_names_is_removed_too(
    collection: str, uploads: ResultUploads, results_bucket: storage.Bucket
) -> None:
    result, other = segmented("a.jpg"), segmented("b.jpg")
    for each in (result, other):
        uploads.prepare(each)  # and then the process ended before the commit
    deleter = deleter_of(collection, remove_objects=uploads.remove_all)
    deleter.delete([result.ref.document_id])
    [left] = uris(results_bucket)
    assert f"/{other.ref.document_id}-" in left


# The objects of the fake Cloud Storage


@pytest.fixture
def image_storage() -> ImageStorage:
    return ImageStorage(
        storage.Client(), timeout_seconds=PATIENCE_SECONDS, max_bytes=1000, connections=4
    )


def uploaded(bucket: storage.Bucket, name: str) -> ImageRef:
    blob = bucket.blob(name)
    blob.upload_from_string(b"x")
    return ImageRef(BUCKET, name, blob.generation)


def test_object_exists_until_it_is_deleted(
    bucket: storage.Bucket, image_storage: ImageStorage, collection: str
) -> None:
    ref = uploaded(bucket, f"{collection}/a #ü.jpg")
    live = replace(ref, generation=None)
    assert image_storage.exists(ref) and image_storage.exists(live)
    newer = uploaded(bucket, ref.name)
    assert not image_storage.exists(ref)
    assert image_storage.exists(newer) and image_storage.exists(live)
    bucket.blob(ref.name).delete()
    assert not image_storage.exists(newer) and not image_storage.exists(live)


@pytest.mark.parametrize(
    ("is_overwritten", "with_overwritten", "outcome"),
    [
        (None, False, Outcome.IGNORED),
        (False, False, Outcome.DELETED),  # deleted, and then uploaded again
        (None, True, Outcome.DELETED),
        (True, True, Outcome.DELETED),
    ],
)
def test_overwritten_objects_keep_their_results_by_default(
    bucket: storage.Bucket,
    image_storage: ImageStorage,
    store: ResultStore,
    deleter: ResultDeleter,
    collection: str,
    is_overwritten: bool | None,
    with_overwritten: bool,
    outcome: Outcome,
) -> None:
    ref = uploaded(bucket, f"{collection}/a.jpg")
    uploaded(bucket, ref.name)
    store.commit([ImageResult(ref)])
    deletion = Deletion(image_storage, deleter, with_overwritten=with_overwritten)
    event = Event(ref, is_deletion=True, is_overwritten=is_overwritten)
    assert deletion.handle(ref, event, NO_DEADLINE) is outcome
    assert bool(read(collection, ImageResult(ref))) is (outcome is Outcome.IGNORED)


def test_forged_deletion_of_an_existing_object_removes_nothing(
    bucket: storage.Bucket,
    image_storage: ImageStorage,
    store: ResultStore,
    deleter: ResultDeleter,
    collection: str,
) -> None:
    ref = uploaded(bucket, f"{collection}/a.jpg")
    store.commit([ImageResult(ref)])
    deletion = Deletion(image_storage, deleter, with_overwritten=True)
    forged = Event(ref, is_deletion=True, is_overwritten=True)
    assert deletion.handle(ref, forged, NO_DEADLINE) is Outcome.IGNORED
    assert read(collection, ImageResult(ref))
    assert tombstone(collection, ImageResult(ref)) is None


def test_deletion_that_arrives_first_keeps_the_image_out(
    bucket: storage.Bucket,
    image_storage: ImageStorage,
    store: ResultStore,
    deleter: ResultDeleter,
    collection: str,
) -> None:
    ref = uploaded(bucket, f"{collection}/a.jpg")
    bucket.blob(ref.name).delete()
    deletion = Deletion(image_storage, deleter, with_overwritten=False)
    event = Event(ref, is_deletion=True, is_overwritten=False)
    assert deletion.handle(ref, event, NO_DEADLINE) is Outcome.DELETED
    [late] = store.commit([ImageResult(ref)])  # its bytes were downloaded before
    assert isinstance(late, ObjectGoneError)
    assert read(collection, ImageResult(ref)) is None


def test_reconcile_finds_only_what_was_uploaded_again(
    bucket: storage.Bucket, store: ResultStore, deleter: ResultDeleter, collection: str
) -> None:
    refs = [uploaded(bucket, f"{collection}/{name}.jpg") for name in "ab"]
    for ref in refs:
        bucket.blob(ref.name).delete()
    deleter.delete([ref.document_id for ref in refs])
    uploaded(bucket, refs[1].name)
    reader = ResultReader(
        firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS
    )
    scope = Scope(BUCKET, f"{collection}/", enqueue=Enqueue.MISSING)
    tally = reconcile(scope, ObjectLister(storage.Client()), reader)
    assert (tally.objects, tally.missing) == (1, 1)


def test_images_of_a_prefix_are_listed_while_they_are_removed(
    store: ResultStore, reader: ResultReader, deleter: ResultDeleter
) -> None:
    names = [f"{folder}/{i:02}.jpg" for folder in "ab" for i in range(25)]
    store.commit([done(name) for name in names])
    listed = []
    for page in reader.images("uploads", "a/", page_size=10):
        listed += [(image.ref.name, image.ref.generation) for image in page]
        assert all(image.created_at.tzinfo for image in page)
        deleter.delete([image.document_id for image in page])
    assert listed == [(name, 1) for name in names[:25]]
