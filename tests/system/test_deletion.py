"""Deleted objects lose their results: the real service, with events through the local stack."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.cloud import firestore, storage

from devtools.demo_model.shapes import Scene
from devtools.local_stack.eventarc import EventarcOptions
from devtools.local_stack.stack import Stack, StackOptions
from service.domain import ImageRef
from tests.system.conftest import (
    COLLECTION,
    PATIENT,
    document,
    run_cli,
    upload,
    wait_for_deliveries,
    wait_for_document,
)

Samples = list[tuple[Path, Scene]]
RACES = 24


@pytest.fixture(scope="module")
def deleting_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a stack whose service removes results with their objects."""
    options = StackOptions(
        directory=tmp_path_factory.mktemp("deleting"),
        service_environment=PATIENT | {"DELETE_RESULTS_WITH_OBJECTS": "true"},
        eventarc=EventarcOptions(concurrency=StackOptions.concurrency, max_delay_seconds=8),
    )
    with Stack(options) as running:
        yield running


@pytest.fixture
def stack(deleting_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    for name, value in deleting_stack.environment.items():
        monkeypatch.setenv(name, value)
    return deleting_stack


def delete(ref: ImageRef) -> None:
    storage.Client().bucket(ref.bucket).blob(ref.name).delete()


def has_tombstone(ref: ImageRef) -> bool:
    tombstones = firestore.Client().collection(f"{COLLECTION}-deleted")
    return bool(tombstones.document(ref.document_id).get().exists)


def test_result_is_removed_with_its_object(stack: Stack, samples: Samples) -> None:
    prefix, data = uuid.uuid4().hex, samples[0][0].read_bytes()
    gone, kept, old = (upload(stack, f"{prefix}/{name}.jpg", data) for name in "abc")
    for ref in (gone, kept, old):
        wait_for_document(ref)
    new = upload(stack, old.name, samples[1][0].read_bytes())
    wait_for_document(new)
    delete(gone)
    wait_for_deliveries(lambda: not document(gone), "the result is not removed")
    assert has_tombstone(gone)
    # The overwrite deleted a generation, too.
    assert document(kept) and document(old) and document(new)
    assert not has_tombstone(old)


def test_detection_that_races_its_deletion_leaves_nothing(stack: Stack, samples: Samples) -> None:
    prefix, data = uuid.uuid4().hex, samples[0][0].read_bytes()

    def upload_and_delete(number: int) -> ImageRef:
        ref = upload(stack, f"{prefix}/{number}.jpg", data)
        delete(ref)
        return ref

    with ThreadPoolExecutor(8) as threads:
        refs = list(threads.map(upload_and_delete, range(RACES)))
    wait_for_deliveries(lambda: all(map(has_tombstone, refs)), "a deletion is not handled")
    # With its tombstone, an image cannot get a document any more.
    wait_for_deliveries(lambda: not any(map(document, refs)), "a result is left")


def test_purge_removes_what_was_deleted_without_events(stack: Stack, samples: Samples) -> None:
    prefix, data = uuid.uuid4().hex, samples[0][0].read_bytes()
    kept = upload(stack, f"{prefix}/kept.jpg", data)
    fields = wait_for_document(kept)
    gone = ImageRef(kept.bucket, f"{prefix}/gone.jpg", 7)  # its event was lost
    fields |= {"name": gone.name, "generation": gone.generation}
    firestore.Client().collection(COLLECTION).document(gone.document_id).set(fields)
    uri = f"gs://{stack.bucket}/{prefix}/"
    asked = run_cli("purge", uri, "--before", "0h")
    assert asked.returncode == 2 and "--yes" in asked.stderr
    done = run_cli("purge", uri, "--before", "0h", "--yes")
    assert done.returncode == 0, done.stderr
    assert "Removed 1 results" in done.stdout
    assert document(kept) and not document(gone) and has_tombstone(gone)
