"""`ResultStore` against the official Firestore emulator."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

from service.domain import (
    Box,
    Detection,
    ErrorCode,
    Failure,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    Rerun,
)
from service.errors import StoreUnavailableError
from service.store import ResultStore
from tests.fakes import PATIENCE_SECONDS

MODEL = ModelInfo("yolo26n.pt", "0" * 64, 640, "fp32", "openvino")


def done(name: str, *labels: str, confidence: float = 0.5) -> ImageResult:
    detections = tuple(Detection(label, 0, confidence, Box(1.0, 2.0, 3.5, 4.0)) for label in labels)
    return ImageResult(
        ImageRef("uploads", name, 1),
        image=ImageInfo(64, 48, "JPEG"),
        model=MODEL,
        detections=detections,
        batch_size=1,
    )


def failed(name: str) -> ImageResult:
    failure = Failure(ErrorCode.CORRUPT_IMAGE, "cut short")
    return ImageResult(ImageRef("uploads", name, 1), failure=failure)


def read(collection: str, result: ImageResult) -> dict[str, object] | None:
    reference = firestore.Client().collection(collection).document(result.ref.document_id)
    return reference.get().to_dict()


def test_commit_writes_every_document_of_a_batch(store: ResultStore, collection: str) -> None:
    results = [done("a.jpg", "cat", "cat", "dog"), failed("b.jpg")]
    store.commit(results)
    first, second = (read(collection, result) for result in results)
    assert first is not None
    assert second is not None
    assert first["counts"] == {"cat": 2, "dog": 1}
    assert first["detections"][0]["box"] == {"x1": 1.0, "y1": 2.0, "x2": 3.5, "y2": 4.0}  # type: ignore[index]
    assert first["created_at"] is not None
    assert second["status"] == "failed"
    assert second["error"] == {"code": "corrupt_image", "message": "cut short"}


def test_commit_of_a_final_picture_changes_nothing(store: ResultStore, collection: str) -> None:
    store.commit([done("a.jpg", "cat")])
    before = read(collection, done("a.jpg"))
    store.commit([done("a.jpg", "dog")])
    assert read(collection, done("a.jpg")) == before


def test_commit_beside_final_pictures_writes_the_others(
    store: ResultStore, collection: str
) -> None:
    store.commit([done("b.jpg", "cat")])
    store.commit([done("a.jpg", "dog"), done("b.jpg", "dog"), done("c.jpg", "dog")])
    found = [read(collection, done(name)) for name in ("a.jpg", "b.jpg", "c.jpg")]
    assert [document and document["labels"] for document in found] == [["dog"], ["cat"], ["dog"]]


def test_commit_of_the_largest_batch_is_taken(store: ResultStore) -> None:
    results = [done(f"{i}.jpg", *["traffic light"] * 300) for i in range(64)]
    store.commit(results)
    assert all(store.is_final(result.ref.document_id) for result in results)


def test_commit_with_a_document_that_firestore_refuses_writes_the_others(
    store: ResultStore,
) -> None:
    refused = ImageResult(
        ImageRef("uploads", "b.jpg", 1), failure=Failure(ErrorCode.CORRUPT_IMAGE, "x" * 1_100_000)
    )
    with pytest.raises(StoreUnavailableError, match="refused a document"):
        store.commit([done("a.jpg"), refused, done("c.jpg")])
    finals = [store.is_final(r.ref.document_id) for r in (done("a.jpg"), refused, done("c.jpg"))]
    assert finals == [True, False, True]


def test_is_final_is_false_before_and_true_after_the_commit(store: ResultStore) -> None:
    result = done("a.jpg")
    assert not store.is_final(result.ref.document_id)
    store.commit([result])
    assert store.is_final(result.ref.document_id)


def test_results_are_those_of_bucket_and_prefix_by_name(store: ResultStore) -> None:
    names = ["cam1/b.jpg", "cam1/a.jpg", "cam10/a.jpg", "cam1", "cam1/é.jpg", "other.jpg"]
    store.commit([done(name) for name in names])
    found = [document["name"] for document in store.results("uploads", "cam1/")]
    assert found == ["cam1/a.jpg", "cam1/b.jpg", "cam1/é.jpg"]
    assert len(list(store.results("uploads", ""))) == len(names)
    assert list(store.results("another", "")) == []


def test_store_without_a_server_is_unavailable(
    collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:9")
    store = ResultStore(firestore.Client(), collection=collection, timeout_seconds=0.3)
    with pytest.raises(StoreUnavailableError):
        store.is_final("a")
    with pytest.raises(StoreUnavailableError):
        store.commit([done("a.jpg")])
    with pytest.raises(StoreUnavailableError):
        list(store.results("uploads", ""))


def test_document_answers_queries_for_labels_with_spaces(
    store: ResultStore, collection: str
) -> None:
    store.commit([done("a.jpg", *["traffic light"] * 4), done("b.jpg", "traffic light")])
    path = firestore.Client.field_path("counts", "traffic light")
    query = firestore.Client().collection(collection).where(filter=FieldFilter(path, ">", 3))
    assert [snapshot.get("name") for snapshot in query.stream()] == ["a.jpg"]


# Reruns


def of(result: ImageResult, rerun: Rerun | None) -> ImageResult:
    return replace(result, ref=replace(result.ref, rerun=rerun))


def seen(store: ResultStore, *results: ImageResult, model: str | None = None) -> Rerun:
    """Leave to replace what stands there now."""
    return Rerun(store.records([result.ref for result in results]).read_at, model)


def test_records_say_how_each_picture_is_recorded(store: ResultStore) -> None:
    recorded = [done("a.jpg", "cat"), failed("b.jpg")]
    store.commit(recorded)
    found = store.records([*(result.ref for result in recorded), done("c.jpg").ref])
    first, second = (found.by_id[result.ref.document_id] for result in recorded)
    assert len(found.by_id) == 2
    assert (first.status, first.model) == ("done", MODEL.sha256)
    assert (second.status, second.model) == ("failed", None)
    assert first.created_at <= found.read_at


def test_records_of_many_missing_pictures_are_none(store: ResultStore) -> None:
    found = store.records([done(f"{i}.jpg").ref for i in range(250)])
    assert found.by_id == {}
    assert found.read_at > datetime(2020, 1, 1, tzinfo=UTC)


def test_commit_of_a_rerun_replaces_every_field_once(store: ResultStore, collection: str) -> None:
    store.commit([failed("a.jpg")])
    rerun = seen(store, failed("a.jpg"))
    before = read(collection, done("a.jpg"))
    assert not store.is_final(done("a.jpg").ref.document_id, rerun)
    store.commit([of(done("a.jpg", "traffic light"), rerun)])
    after = read(collection, done("a.jpg"))
    assert before and after and set(before) == set(after)
    assert (after["status"], after["error"]) == ("done", None)
    assert after["counts"] == {"traffic light": 1}
    assert after["created_at"] > before["created_at"]  # type: ignore[operator]
    assert store.is_final(done("a.jpg").ref.document_id, rerun)
    store.commit([of(done("a.jpg", "dog"), rerun)])  # the same message again
    assert read(collection, done("a.jpg")) == after


def test_commit_of_a_rerun_forgets_the_counts_that_are_gone(
    store: ResultStore, collection: str
) -> None:
    store.commit([done("a.jpg", "cat", "dog")])
    store.commit([of(done("a.jpg", "cat"), seen(store, done("a.jpg")))])
    after = read(collection, done("a.jpg"))
    assert after and after["counts"] == {"cat": 1}


def test_commit_of_a_rerun_leaves_what_its_model_recorded(
    store: ResultStore, collection: str
) -> None:
    old = replace(done("old.jpg", "cat"), model=replace(MODEL, sha256="1" * 64))
    store.commit([done("new.jpg", "cat"), old])
    rerun = seen(store, old, model=MODEL.sha256)
    store.commit([of(done(name, "dog"), rerun) for name in ("new.jpg", "old.jpg")])
    found = [read(collection, done(name)) for name in ("new.jpg", "old.jpg")]
    assert [document and document["labels"] for document in found] == [["cat"], ["dog"]]


def test_commit_mixes_reruns_and_new_pictures(store: ResultStore, collection: str) -> None:
    store.commit([failed("old.jpg"), done("final.jpg", "cat")])
    rerun = seen(store, failed("old.jpg"))
    store.commit(
        [
            of(done("old.jpg", "dog"), rerun),
            of(done("never.jpg", "dog"), rerun),
            done("final.jpg", "dog"),
            done("new.jpg", "dog"),
        ]
    )
    names = ("old.jpg", "never.jpg", "final.jpg", "new.jpg")
    found = [read(collection, done(name)) for name in names]
    labels = [document and document["labels"] for document in found]
    assert labels == [["dog"], ["dog"], ["cat"], ["dog"]]


def test_commit_of_racing_reruns_replaces_once(store: ResultStore, collection: str) -> None:
    results = [failed(f"{i}.jpg") for i in range(3)]
    store.commit(results)
    rerun = seen(store, *results)
    racers = [[of(done(f"{i}.jpg", label), rerun) for i in range(3)] for label in "abcd"]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(store.commit, racers))
    found = [read(collection, result) for result in results]
    labels = [document and document["labels"] for document in found]
    assert labels[0] in (["a"], ["b"], ["c"], ["d"])
    assert labels == [labels[0]] * 3  # each commit is whole: all of one racer


class Interfering:
    """A client whose first batch is overtaken by somebody else, between its look and its write."""

    def __init__(self, client: firestore.Client, overtake: Any) -> None:
        self._client, self._overtake = client, overtake

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def batch(self) -> Any:
        if overtake := self._overtake:
            self._overtake = None
            overtake()
        return self._client.batch()


@pytest.mark.parametrize("how", ["edited", "deleted", "replaced"])
def test_commit_of_a_rerun_that_is_overtaken_looks_again(
    how: str, store: ResultStore, collection: str
) -> None:
    store.commit([failed("a.jpg")])
    rerun = seen(store, failed("a.jpg"))
    reference = firestore.Client().collection(collection).document(done("a.jpg").ref.document_id)
    overtake = {
        "edited": lambda: reference.update({"note": "by hand"}),
        "deleted": reference.delete,
        "replaced": lambda: store.commit([of(done("a.jpg", "first"), rerun)]),
    }[how]
    client = Interfering(firestore.Client(), overtake)
    late = ResultStore(client, collection=collection, timeout_seconds=PATIENCE_SECONDS)
    late.commit([of(done("a.jpg", "late"), rerun)])
    after = read(collection, done("a.jpg"))
    assert after and after["labels"] == (["first"] if how == "replaced" else ["late"])
    assert after.get("note") == ("by hand" if how == "edited" else None)
