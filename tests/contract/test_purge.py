"""`yolo-batch purge` against the emulators."""

import json
import uuid
from datetime import datetime
from typing import Any

import pytest
from click.testing import CliRunner, Result
from google.cloud import firestore, storage

from service.cli.main import main
from service.domain import ErrorCode, Failure, ImageRef, ImageResult
from service.gcp.collection import TOMBSTONES
from service.gcp.firestore import ResultStore
from tests.contract.test_topic_publisher import received
from tests.refusing_storage import FORBIDDEN, refusing_storage

PARKED = Failure(ErrorCode.DAILY_IMAGE_LIMIT, "Limit.")


@pytest.fixture
def prefix(store: ResultStore, bucket: storage.Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """Eight images: 0 and 1 deleted, 2 parked and deleted, 3 overwritten, the others exist.

    Another prefix has an image that is deleted, too.
    """
    monkeypatch.setenv("FIRESTORE_COLLECTION", str(store._collection.id))
    prefix = f"purge-{uuid.uuid4().hex}/"
    for name in [*(f"{prefix}{i}.jpg" for i in range(8)), f"other-{prefix}0.jpg"]:
        blob = bucket.blob(name)
        blob.upload_from_string(b"x")
        ref = ImageRef("uploads", name, blob.generation)
        store.commit([ImageResult(ref, PARKED if name.endswith("2.jpg") else None)])
        if name.endswith(("0.jpg", "1.jpg", "2.jpg")):
            blob.delete()
        elif name.endswith("3.jpg"):
            bucket.blob(name).upload_from_string(b"y")
    return prefix


def purge(prefix: str, *options: str, answer: str | None = None) -> Result:
    arguments = ["purge", f"gs://uploads/{prefix}", "--before", "0h", *options]
    return CliRunner().invoke(main, arguments, input=answer)


def report(prefix: str, *options: str) -> dict[str, Any]:
    done = purge(prefix, "--json", *options)
    assert done.exit_code == 0, done.output
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def names(store: ResultStore) -> str:
    """Return the numbers of the images that have a document, and `o` for the other prefix."""
    documents = [snapshot.to_dict() or {} for snapshot in store._collection.stream()]
    return "".join(
        sorted("o" if one["name"].startswith("other") else one["name"][-5] for one in documents)
    )


def tombstones(store: ResultStore) -> int:
    collection = firestore.Client().collection(str(store._collection.id) + TOMBSTONES)
    return len(list(collection.stream()))


def test_purge_removes_the_results_of_deleted_objects(store: ResultStore, prefix: str) -> None:
    dry = report(prefix, "--dry-run")
    assert names(store) == "01234567o"
    done = report(prefix, "--yes")
    assert names(store) == "34567o" and tombstones(store) == 3
    counts = {"results": 8, "existing": 4, "overwritten": 1, "deleted": 3, "newer": 0}
    assert counts.items() <= dry.items() and counts.items() <= done.items()
    assert (dry["selected"], dry["removed"]) == (3, None)
    assert (done["selected"], done["removed"]) == (3, 3)
    again = report(prefix, "--yes")
    assert (again["results"], again["removed"]) == (5, 0)


def test_purge_publishes_what_it_removes(
    store: ResultStore, prefix: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULTS_TOPIC", topic)
    report(prefix, "--yes")
    messages = [json.loads(data) for data in received(topic, 3)]
    assert sorted(each["name"][-5] for each in messages) == ["0", "1", "2"]
    assert {each["status"] for each in messages} == {"deleted"}
    removed = {each["document_id"]: datetime.fromisoformat(each["created_at"]) for each in messages}
    collection = firestore.Client().collection(str(store._collection.id) + TOMBSTONES)
    times = {snapshot.id: snapshot.get("deleted_at") for snapshot in collection.stream()}
    assert removed == times


def test_purge_of_overwritten_objects_must_be_requested(store: ResultStore, prefix: str) -> None:
    done = purge(prefix, "--overwritten", "--yes")
    assert done.exit_code == 0, done.output
    assert "Removed 4 results" in done.stdout
    assert "first delete their objects" in done.stdout
    assert names(store) == "4567o"


def test_young_results_stay(store: ResultStore, prefix: str) -> None:
    arguments = ["purge", f"gs://uploads/{prefix}", "--before", "1h", "--yes"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "8 newer than" in done.stdout
    assert names(store) == "01234567o"


@pytest.mark.parametrize(("answer", "left"), [("n", "01234567o"), ("y", "34567o")])
def test_purge_asks_first_on_a_terminal(
    store: ResultStore, prefix: str, monkeypatch: pytest.MonkeyPatch, answer: str, left: str
) -> None:
    monkeypatch.setattr("service.cli.purge.can_ask", lambda: True)
    done = purge(prefix, answer=f"{answer}\n")
    assert "Remove these 3 results?" in done.output
    assert done.exit_code == (0 if answer == "y" else 1)
    assert names(store) == left


def test_refused_bucket_removes_nothing(
    store: ResultStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing_storage() as server:
        server.permissions = []
        for i in range(8):
            server.refuse(f"{prefix}{i}.jpg", FORBIDDEN)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        done = purge(prefix, "--yes")
    assert done.exit_code == 1
    assert "roles/storage.objectViewer" in done.output
    assert "run the same command again" in done.output
    assert names(store) == "01234567o" and tombstones(store) == 0


def test_unknown_prefix_is_named(store: ResultStore, prefix: str) -> None:
    done = purge("nowhere/", "--yes")
    assert done.exit_code == 0
    assert "There is no document for gs://uploads/nowhere/" in done.output
