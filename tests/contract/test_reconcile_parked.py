"""`reconcile --enqueue parked` against the emulators."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner
from google.cloud import firestore, storage

from service.cli.main import main
from service.domain import ErrorCode, Failure, ImageRef, ImageResult
from service.gcp.daily_count import DailyCount
from service.gcp.firestore import ResultStore
from service.gcp.result_reader import ResultReader
from tests.contract.test_reconcile import pulled


@pytest.fixture
def prefix(store: ResultStore, bucket: storage.Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """Eight images: 0 to 5 parked in this order, 6 missing, 7 done. The object of 0 is deleted."""
    monkeypatch.setenv("FIRESTORE_COLLECTION", str(store._collection.id))
    prefix = f"parked-{uuid.uuid4().hex}/"
    for i in range(8):
        blob = bucket.blob(f"{prefix}{i}.jpg")
        blob.upload_from_string(b"x")
        ref = ImageRef("uploads", blob.name, blob.generation)
        if i < 6:
            store.commit([ImageResult(ref, Failure(ErrorCode.DAILY_IMAGE_LIMIT, "Limit."))])
        elif i == 7:
            store.commit([ImageResult(ref)])
    bucket.blob(f"{prefix}0.jpg").delete()
    return prefix


def reconcile(prefix: str, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["reconcile", f"gs://uploads/{prefix}", "--json", *options])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def published(topic: str) -> str:
    """Return the numbers of the images that got a job."""
    return "".join(sorted(uri.rpartition("#")[0][-5] for uri in pulled(topic)))


def test_parked_images_get_jobs_and_others_are_not_read(
    prefix: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored_documents(*_: object) -> None:
        raise AssertionError("a document was read that is not parked")

    monkeypatch.setattr(ResultReader, "stored_documents", stored_documents)
    report = reconcile(prefix, "--enqueue", "parked", "--yes", "--topic", topic)
    assert (report["published"], report["enqueue"], report["objects"]) == (5, "parked", 0)
    assert published(topic) == "12345"


def test_limit_takes_the_oldest_parked_images(prefix: str, topic: str) -> None:
    options = ["--enqueue", "parked", "--limit", "2", "--topic", topic]
    dry = reconcile(prefix, *options, "--dry-run")
    assert (dry["estimate"]["images"], dry["published"]) == (2, None)
    assert reconcile(prefix, *options, "--yes")["published"] == 2
    assert published(topic) == "12"


def test_day_limit_leaves_room_for_missing_images_first(
    prefix: str, topic: str, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAILY_IMAGE_LIMIT", "10")
    count = DailyCount(firestore.Client(), collection=collection, timeout_seconds=60)
    count.add(datetime.now(UTC).date(), 6)
    options = ["--enqueue", "missing", "--enqueue", "parked", "--yes", "--topic", topic]
    report = reconcile(prefix, *options)
    assert (report["enqueue"], report["published"]) == ("missing,parked", 4)
    assert (report["parked"], report["missing"], report["done"]) == (5, 1, 1)
    assert published(topic) == "1236"


def test_nothing_is_continued_on_a_day_that_is_full(
    prefix: str, topic: str, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAILY_IMAGE_LIMIT", "10")
    count = DailyCount(firestore.Client(), collection=collection, timeout_seconds=60)
    count.add(datetime.now(UTC).date(), 11)

    def parked(*_: object) -> None:
        raise AssertionError("parked documents were read, but none may get a job")

    monkeypatch.setattr(ResultReader, "parked", parked)
    report = reconcile(prefix, "--enqueue", "parked", "--yes", "--topic", topic)
    assert report["published"] == 0


def test_text_says_how_many_parked_images_get_a_job(prefix: str, topic: str) -> None:
    arguments = ["reconcile", f"gs://uploads/{prefix}", "--topic", topic]
    done = CliRunner().invoke(main, [*arguments, "--enqueue", "parked", "--dry-run"])
    assert "--enqueue parked: 5 images, about" in done.stdout, done.output
    assert "objects =" not in done.stdout
    counted = CliRunner().invoke(main, arguments)
    assert "7 objects = 1 done + 0 failed + 5 parked + 1 missing" in counted.stdout
