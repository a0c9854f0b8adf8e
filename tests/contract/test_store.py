"""`ResultStore` against the official Firestore emulator."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import pytest
from google.api_core.exceptions import ServiceUnavailable
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

from service.document import to_document
from service.domain import (
    Box,
    CommittedResult,
    Detection,
    ErrorCode,
    Failure,
    GeoPoint,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    ObjectMetadata,
    Outcome,
    Replace,
    Timings,
)
from service.errors import DocumentKeptError, FirestoreRefusedError, FirestoreUnavailableError
from service.gcp.firestore import ResultStore
from service.gcp.result_reader import ResultReader
from service.publish.result_message import message_of
from tests.fakes import PATIENCE_SECONDS
from tests.loglines import logged_by

MODEL = ModelInfo("yolo26n.pt", "0" * 64, 640, "fp32", "openvino")


def done(name: str, *labels: str, confidence: float = 0.5) -> ImageResult:
    detections = tuple(Detection(label, 0, confidence, Box(1.0, 2.0, 3.5, 4.0)) for label in labels)
    return ImageResult(
        ImageRef("uploads", name, 1),
        image_info=ImageInfo(64, 48, "JPEG"),
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


def test_read_document_is_what_was_committed(store: ResultStore) -> None:
    place = GeoPoint(46.6, 8.03)
    result = replace(done("a.jpg", "cat"), location=place, event_time=datetime.now(UTC))
    custom = {f"key-{number:02}": "value" for number in range(20)}
    result = replace(result, ref=replace(result.ref, metadata=ObjectMetadata(custom=custom)))
    [committed] = store.commit([result])
    assert isinstance(committed, CommittedResult) and committed.created_at
    assert store.read_document(done("b.jpg").ref.document_id) is None
    stored = store.read_document(result.ref.document_id)
    assert stored == to_document(result) | {"created_at": committed.created_at}
    document_id, written = result.ref.document_id, to_document(result)
    assert message_of(document_id, stored) == message_of(
        document_id, written | {"created_at": committed.created_at}
    )


def test_commit_of_a_final_image_changes_nothing(store: ResultStore, collection: str) -> None:
    store.commit([done("a.jpg", "cat")])
    before = read(collection, done("a.jpg"))
    store.commit([done("a.jpg", "dog")])
    assert read(collection, done("a.jpg")) == before


def test_commit_writes_only_results_without_a_document(store: ResultStore, collection: str) -> None:
    store.commit([done("b.jpg", "cat")])
    store.commit([done("a.jpg", "dog"), done("b.jpg", "dog"), done("c.jpg", "dog")])
    documents = [read(collection, done(name)) for name in ("a.jpg", "b.jpg", "c.jpg")]
    assert [document and document["labels"] for document in documents] == [
        ["dog"],
        ["cat"],
        ["dog"],
    ]


def by(instance: float, result: ImageResult) -> ImageResult:
    """Return the result with timings, like those of an instance of the service."""
    return replace(result, timings=Timings(queue_ms=instance))


def test_result_of_a_second_delivery_is_superseded(store: ResultStore, collection: str) -> None:
    first, second, other = (
        by(1, done("a.jpg", "cat")), by(2, done("a.jpg", "dog")), by(2, done("b.jpg"))
    )  # fmt: skip
    assert [outcome.outcome for outcome in recorded(store.commit([first]))] == [Outcome.DONE]
    outcomes = recorded(store.commit([second, other]))
    assert [outcome.outcome for outcome in outcomes] == [Outcome.SUPERSEDED, Outcome.DONE]
    document = read(collection, first)
    assert document and document["labels"] == ["cat"]


def test_commit_that_is_repeated_supersedes_nothing(store: ResultStore) -> None:
    results = [by(1, done("a.jpg", "cat")), failed("b.jpg")]
    assert store.commit(results) == store.commit(results)


def test_second_result_of_an_image_in_a_batch_is_superseded(store: ResultStore) -> None:
    outcomes = recorded(store.commit([by(index, done("a.jpg")) for index in range(3)]))
    assert [outcome.outcome for outcome in outcomes] == [Outcome.DONE] + [Outcome.SUPERSEDED] * 2


def recorded(outcomes: Iterable[CommittedResult | Exception]) -> list[CommittedResult]:
    """Return the outcomes, after a check that none is an error."""
    return [outcome for outcome in outcomes if isinstance(outcome, CommittedResult)]


def test_commit_of_the_largest_batch_is_taken(store: ResultStore) -> None:
    results = [done(f"{i}.jpg", *["traffic light"] * 300) for i in range(64)]
    store.commit(results)
    assert all(store.is_final(result.ref.document_id) for result in results)


def labelled(name: str, label: Any) -> ImageResult:
    return replace(done(name), detections=(Detection(label, 0, 0.5, Box(1, 2, 3, 4)),))


REFUSED = {
    "empty-label": labelled("bad.jpg", ""),
    "reserved-label": labelled("bad.jpg", "__x__"),
    "long-label": labelled("bad.jpg", "x" * 1600),
    "surrogate-label": labelled("bad.jpg", "\ud800"),
    "label-that-is-none": labelled("bad.jpg", None),
    "numpy-number": replace(done("bad.jpg"), batch_size=cast(int, np.int64(3))),
    "large-number": replace(done("bad.jpg"), batch_size=2**70),
    "too-large": done("bad.jpg", *["x" * 5000] * 300),
    "far-too-large": done("bad.jpg", *["x" * 50_000] * 300),
    "metadata": replace(
        done("bad.jpg"),
        ref=replace(done("bad.jpg").ref, metadata=ObjectMetadata(content_type="x" * 2_000_000)),
    ),
    "no-result-at-all": replace(done("bad.jpg"), detections=("no detection",)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_result_that_cannot_be_stored_fails_alone(
    store: ResultStore, collection: str, refused: ImageResult
) -> None:
    outcomes = store.commit([done("a.jpg", "cat"), refused, done("c.jpg", "cat")])
    assert [type(outcome) for outcome in outcomes] == [CommittedResult] * 3
    good = [read(collection, done(name)) for name in ("a.jpg", "c.jpg")]
    assert [document and document["labels"] for document in good] == [["cat"], ["cat"]]
    bad = read(collection, refused)
    assert bad and bad["status"] == "failed"
    assert bad["error"]["code"] == "unstorable_result"  # type: ignore[index]
    assert "cannot store the result" in bad["error"]["message"]  # type: ignore[index]
    assert set(bad) == set(good[0] or {})
    recorded = outcomes[1]
    assert isinstance(recorded, CommittedResult) and recorded.outcome == Outcome.FAILED


def test_result_that_cannot_be_stored_is_final(store: ResultStore, collection: str) -> None:
    refused = REFUSED["too-large"]
    store.commit([refused])
    before = read(collection, refused)
    assert store.is_final(refused.ref.document_id)
    store.commit([refused])
    assert read(collection, refused) == before


def test_every_result_of_a_batch_may_be_unstorable(store: ResultStore) -> None:
    refused = [labelled(f"{i}.jpg", "" if i % 2 else 2**70) for i in range(8)]
    outcomes = store.commit(refused)
    assert all(
        isinstance(outcome, CommittedResult) and outcome.result.failure for outcome in outcomes
    )
    assert all(store.is_final(result.ref.document_id) for result in refused)


@pytest.mark.parametrize("code", [ErrorCode.UNREADABLE_OBJECT, ErrorCode.UNSTORABLE_RESULT])
def test_failure_outside_the_bytes_keeps_a_done_document(
    store: ResultStore, collection: str, code: ErrorCode
) -> None:
    store.commit([done("done.jpg", "cat"), failed("failed.jpg")])
    permission = seen(store, done("done.jpg"), failed("failed.jpg"))
    names = ["done.jpg", "failed.jpg", "new.jpg"]
    again = [of(replace(failed(name), failure=Failure(code, "away")), permission) for name in names]
    kept, *others = store.commit(again)
    assert isinstance(kept, DocumentKeptError)
    assert others == [CommittedResult(result) for result in again[1:]]
    documents = [read(collection, result) for result in again]
    assert [item and item["labels"] for item in documents] == [["cat"], [], []]
    assert [item and item["error"]["code"] for item in documents[1:]] == [code] * 2  # type: ignore[index]


def test_failure_of_the_bytes_replaces_a_done_document(store: ResultStore, collection: str) -> None:
    store.commit([done("a.jpg", "cat")])
    store.commit([of(failed("a.jpg"), seen(store, done("a.jpg")))])
    after = read(collection, done("a.jpg"))
    assert after and after["status"] == "failed"


def test_unstorable_replacement_keeps_the_done_document(
    store: ResultStore, collection: str
) -> None:
    store.commit([done("bad.jpg", "cat")])
    permission = seen(store, done("bad.jpg"))
    outcomes = store.commit(
        [of(labelled("bad.jpg", "__x__"), permission), of(done("a.jpg"), permission)]
    )
    assert [type(outcome) for outcome in outcomes] == [DocumentKeptError, CommittedResult]
    after = read(collection, done("bad.jpg"))
    assert after and (after["status"], after["labels"]) == ("done", ["cat"])


def test_batch_larger_than_a_commit_is_taken(store: ResultStore) -> None:
    results = [done(f"{i}.jpg", *["x" * 1000] * 300) for i in range(16)]  # 10 MB together
    outcomes = store.commit(results)
    assert outcomes == [CommittedResult(result) for result in results]
    assert all(store.is_final(result.ref.document_id) for result in results)


def test_refused_collection_is_no_fault_of_an_image(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ResultStore(
        firestore.Client(), collection="__reserved__", timeout_seconds=PATIENCE_SECONDS
    )
    for _ in range(3):
        for outcome in store.commit([done("a.jpg"), done("b.jpg")]):
            assert isinstance(outcome, FirestoreRefusedError)
            assert "FIRESTORE_COLLECTION" in str(outcome)
    with pytest.raises(FirestoreRefusedError):
        store.is_final("a")
    lines = logged_by(caplog, "service.gcp.outages")
    assert {line.getMessage() for line in lines} == {"Messages are rejected until this is repaired"}
    assert [line.__dict__["subject"].rpartition(", ")[2] for line in lines] == [
        "writing",
        "reading",
    ]


class Raising:
    """A client whose commit raises if it has a document with this name."""

    def __init__(self, client: firestore.Client, name: str, error: Exception) -> None:
        self._client, self._name, self._error = client, name, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def batch(self) -> Any:
        batch: Any = self._client.batch()
        create, commit = batch.create, batch.commit
        names: list[str | None] = []

        def note(reference: Any, document: dict[str, Any]) -> None:
            names.append(document["name"] if document["status"] == "done" else None)
            create(reference, document)

        def fail(**call: Any) -> Any:
            if self._name in names:
                raise self._error
            return commit(**call)

        batch.create, batch.commit = note, fail
        return batch


@pytest.mark.parametrize(
    "error", [RuntimeError("unexpected"), KeyError("unexpected"), OSError("unexpected")], ids=repr
)
def test_unexpected_commit_error_fails_one_image_for_now(collection: str, error: Exception) -> None:
    client: Any = Raising(firestore.Client(), "b.jpg", error)
    store = ResultStore(client, collection=collection, timeout_seconds=PATIENCE_SECONDS)
    outcomes = store.commit([done(name) for name in ("a.jpg", "b.jpg", "c.jpg")])
    assert outcomes == [CommittedResult(done("a.jpg")), error, CommittedResult(done("c.jpg"))]
    assert not store.is_final(done("b.jpg").ref.document_id)


def test_outage_in_a_split_commit_fails_only_the_rest(collection: str) -> None:
    client: Any = Raising(firestore.Client(), "c.jpg", ServiceUnavailable("away"))
    store = ResultStore(client, collection=collection, timeout_seconds=PATIENCE_SECONDS)
    results = [done(f"{i}.jpg", *["x" * 1000] * 300) for i in range(14)]  # two commits
    results[-1] = replace(results[-1], ref=done("c.jpg").ref)
    outcomes = store.commit(results)
    assert outcomes[0] == CommittedResult(results[0])
    assert isinstance(outcomes[-1], FirestoreUnavailableError)


def test_document_is_read_by_its_id(store: ResultStore, reader: ResultReader) -> None:
    assert reader.document(done("a.jpg").ref.document_id) is None
    store.commit([done("a.jpg", "cat")])
    document = reader.document(done("a.jpg").ref.document_id)
    assert document and document["labels"] == ["cat"]


def test_is_final_is_false_before_and_true_after_the_commit(store: ResultStore) -> None:
    result = done("a.jpg")
    assert not store.is_final(result.ref.document_id)
    store.commit([result])
    assert store.is_final(result.ref.document_id)


def test_document_that_a_person_edited_can_be_read_and_replaced(
    store: ResultStore, reader: ResultReader
) -> None:
    result = done("a.jpg")
    store.commit([result])
    document_id = result.ref.document_id
    edit = {"created_at": "today", "location": "here", "status": "parked", "generation": "1"}
    store._collection.document(document_id).update(edit)
    assert list(reader.parked()) == []
    [document] = reader.results("uploads", "a.jpg")
    assert document["location"] == "here"
    store._collection.document(document_id).update({"status": "done"})
    assert not store.is_final(document_id, Replace(datetime.now(UTC)))


def test_results_are_those_of_bucket_and_prefix_by_name(
    store: ResultStore, reader: ResultReader
) -> None:
    last = "cam1/\U0010ffff.jpg"
    names = ["cam1/b.jpg", "cam1/a.jpg", "cam10/a.jpg", "cam1", "cam1/é.jpg", last, "other.jpg"]
    store.commit([done(name) for name in names])
    matches = [document["name"] for document in reader.results("uploads", "cam1/")]
    assert matches == ["cam1/a.jpg", "cam1/b.jpg", "cam1/é.jpg", last]
    assert [one["name"] for one in reader.results("uploads", "cam1/\U0010ffff")] == [last]
    assert list(reader.results("uploads", "\ud7ff")) == []
    assert list(reader.results("uploads", "\U0010ffff")) == []
    assert len(list(reader.results("uploads", ""))) == len(names)
    assert list(reader.results("another", "")) == []


@pytest.mark.parametrize("page_size", [1, 2, 3, 4])
def test_results_are_complete_across_pages(
    store: ResultStore, reader: ResultReader, page_size: int
) -> None:
    first, second = done("b.jpg"), done("b.jpg")
    second = replace(second, ref=replace(second.ref, generation=2))
    store.commit([done("c.jpg"), first, second, done("a.jpg")])
    names = [document["name"] for document in reader.results("uploads", "", page_size=page_size)]
    assert names == ["a.jpg", "b.jpg", "b.jpg", "c.jpg"]


def test_store_without_a_server_is_unavailable(
    collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:9")
    store = ResultStore(firestore.Client(), collection=collection, timeout_seconds=0.3)
    with pytest.raises(FirestoreUnavailableError):
        store.is_final("a")
    [outcome] = store.commit([done("a.jpg")])
    assert isinstance(outcome, FirestoreUnavailableError)
    reader = ResultReader(firestore.Client(), collection=collection, timeout_seconds=0.3)
    with pytest.raises(FirestoreUnavailableError):
        list(reader.results("uploads", ""))


def test_queries_find_labels_with_spaces(store: ResultStore, collection: str) -> None:
    store.commit([done("a.jpg", *["traffic light"] * 4), done("b.jpg", "traffic light")])
    path = firestore.Client.field_path("counts", "traffic light")
    query = firestore.Client().collection(collection).where(filter=FieldFilter(path, ">", 3))
    assert [snapshot.get("name") for snapshot in query.stream()] == ["a.jpg"]


# Replacements


def of(result: ImageResult, permission: Replace | None) -> ImageResult:
    return replace(result, ref=replace(result.ref, replace=permission))


def seen(store: ResultStore, *results: ImageResult, model: str | None = None) -> Replace:
    """Return the permission to replace the documents that exist now."""
    reader = ResultReader(
        store._client, collection=store._collection.id, timeout_seconds=PATIENCE_SECONDS
    )
    return Replace(reader.stored_documents([result.ref for result in results]).read_at, model)


def test_stored_documents_report_how_each_image_ended(
    store: ResultStore, reader: ResultReader
) -> None:
    recorded = [done("a.jpg", "cat"), failed("b.jpg")]
    store.commit(recorded)
    stored = reader.stored_documents([*(result.ref for result in recorded), done("c.jpg").ref])
    first, second = (stored.by_id[result.ref.document_id] for result in recorded)
    assert len(stored.by_id) == 2
    assert (first.status, first.model) == ("done", MODEL.sha256)
    assert (second.status, second.model) == ("failed", None)
    assert first.created_at <= stored.read_at


def test_missing_images_have_no_documents(reader: ResultReader) -> None:
    stored = reader.stored_documents([done(f"{i}.jpg").ref for i in range(250)])
    assert stored.by_id == {}
    assert stored.read_at > datetime(2020, 1, 1, tzinfo=UTC)


def test_replacement_replaces_every_field_once(store: ResultStore, collection: str) -> None:
    store.commit([failed("a.jpg")])
    permission = seen(store, failed("a.jpg"))
    before = read(collection, done("a.jpg"))
    assert not store.is_final(done("a.jpg").ref.document_id, permission)
    store.commit([of(done("a.jpg", "traffic light"), permission)])
    after = read(collection, done("a.jpg"))
    assert before and after and set(before) == set(after)
    assert (after["status"], after["error"]) == ("done", None)
    assert after["counts"] == {"traffic light": 1}
    assert after["created_at"] > before["created_at"]  # type: ignore[operator]
    assert store.is_final(done("a.jpg").ref.document_id, permission)
    store.commit([of(done("a.jpg", "dog"), permission)])  # the same message, redelivered
    assert read(collection, done("a.jpg")) == after


def test_replacement_removes_the_old_counts(store: ResultStore, collection: str) -> None:
    store.commit([done("a.jpg", "cat", "dog")])
    store.commit([of(done("a.jpg", "cat"), seen(store, done("a.jpg")))])
    after = read(collection, done("a.jpg"))
    assert after and after["counts"] == {"cat": 1}


def test_replacement_keeps_the_document_of_its_own_model(
    store: ResultStore, collection: str
) -> None:
    old = replace(done("old.jpg", "cat"), model=replace(MODEL, sha256="1" * 64))
    store.commit([done("new.jpg", "cat"), old])
    permission = seen(store, old, model=MODEL.sha256)
    store.commit([of(done(name, "dog"), permission) for name in ("new.jpg", "old.jpg")])
    documents = [read(collection, done(name)) for name in ("new.jpg", "old.jpg")]
    assert [document and document["labels"] for document in documents] == [["cat"], ["dog"]]


@pytest.mark.parametrize("schema", [1, firestore.DELETE_FIELD], ids=["older", "none"])
def test_document_of_another_schema_is_replaced_once(
    schema: Any, store: ResultStore, collection: str
) -> None:
    """Otherwise `reconcile --enqueue stale` would find it again and again."""
    store.commit([done("a.jpg", "cat")])
    reference = firestore.Client().collection(collection).document(done("a.jpg").ref.document_id)
    reference.update({"schema": schema})
    permission = seen(store, done("a.jpg"), model=MODEL.sha256)
    assert not store.is_final(reference.id, permission)
    store.commit([of(done("a.jpg", "dog"), permission)])
    after = read(collection, done("a.jpg"))
    assert after and (after["labels"], after["schema"]) == (["dog"], 2)
    assert store.is_final(reference.id, permission)
    reference.update({"schema": schema})  # by an older revision that was given the same message
    assert store.is_final(reference.id, permission)


def test_commit_mixes_replacements_and_new_images(store: ResultStore, collection: str) -> None:
    store.commit([failed("old.jpg"), done("final.jpg", "cat")])
    permission = seen(store, failed("old.jpg"))
    store.commit(
        [
            of(done("old.jpg", "dog"), permission),
            of(done("never.jpg", "dog"), permission),
            done("final.jpg", "dog"),
            done("new.jpg", "dog"),
        ]
    )
    names = ("old.jpg", "never.jpg", "final.jpg", "new.jpg")
    documents = [read(collection, done(name)) for name in names]
    labels = [document and document["labels"] for document in documents]
    assert labels == [["dog"], ["dog"], ["cat"], ["dog"]]


def test_commit_of_racing_replacements_replaces_once(store: ResultStore, collection: str) -> None:
    results = [failed(f"{i}.jpg") for i in range(3)]
    store.commit(results)
    permission = seen(store, *results)
    racers = [[of(done(f"{i}.jpg", label), permission) for i in range(3)] for label in "abcd"]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(store.commit, racers))
    documents = [read(collection, result) for result in results]
    labels = [document and document["labels"] for document in documents]
    assert labels[0] in (["a"], ["b"], ["c"], ["d"])
    assert labels == [labels[0]] * 3  # each commit is atomic: all labels are of the same thread


class Interfering:
    """A client whose first batch is overtaken by another write between its read and its commit."""

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
def test_replacement_that_is_overtaken_reads_again(
    how: str, store: ResultStore, collection: str
) -> None:
    store.commit([failed("a.jpg")])
    permission = seen(store, failed("a.jpg"))
    reference = firestore.Client().collection(collection).document(done("a.jpg").ref.document_id)
    overtake = {
        "edited": lambda: reference.update({"note": "by hand"}),
        "deleted": reference.delete,
        "replaced": lambda: store.commit([of(done("a.jpg", "first"), permission)]),
    }[how]
    client: Any = Interfering(firestore.Client(), overtake)
    late = ResultStore(client, collection=collection, timeout_seconds=PATIENCE_SECONDS)
    late.commit([of(done("a.jpg", "late"), permission)])
    after = read(collection, done("a.jpg"))
    assert after and after["labels"] == (["first"] if how == "replaced" else ["late"])
    assert after.get("note") == ("by hand" if how == "edited" else None)
