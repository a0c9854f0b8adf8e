"""`watch` and `submit --wait` against the emulators, without the service."""

import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from google.cloud import storage

from service.cli.exit_codes import ExitCode
from service.cli.main import main
from service.domain import ErrorCode, Failure, ImageRef, ImageResult
from service.gcp.firestore import ResultStore

Put = Callable[[str], ImageRef]


@pytest.fixture
def prefix() -> str:
    return f"watch-{uuid.uuid4().hex}/"


@pytest.fixture
def put(bucket: storage.Bucket, prefix: str) -> Put:
    """Upload an object, and return it with its generation."""

    def upload(name: str) -> ImageRef:
        blob = bucket.blob(prefix + name)
        blob.upload_from_string(b"x")
        return ImageRef("uploads", blob.name, blob.generation)

    return upload


@pytest.fixture(autouse=True)
def own_collection(collection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_COLLECTION", collection)


def failed(ref: ImageRef, code: ErrorCode = ErrorCode.CORRUPT_IMAGE) -> ImageResult:
    return ImageResult(ref, failure=Failure(code, "It failed."))


def run(command: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, [command, *arguments, "--interval", "0.1"])


def report(done: Result) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


def test_finished_images_of_each_kind_are_counted(
    put: Put, prefix: str, store: ResultStore
) -> None:
    put("folder/")
    store.commit(
        [
            ImageResult(put("a.jpg")),
            failed(put("b.jpg")),
            failed(put("c.jpg"), ErrorCode.DAILY_IMAGE_LIMIT),
        ]
    )
    done = run("watch", f"gs://uploads/{prefix}")
    assert done.exit_code == ExitCode.NOT_ALL_DONE, done.output
    assert "3 uploaded = 1 done + 1 failed + 1 parked + 0 disabled + 0 missing" in done.stdout
    assert "has the reason of each failed image" in done.stderr


def test_it_waits_for_the_document_of_a_new_image(
    put: Put, prefix: str, store: ResultStore
) -> None:
    store.commit([ImageResult(put("a.jpg"))])
    late = put("b.jpg")
    timer = threading.Timer(1, store.commit, ([ImageResult(late)],))
    timer.start()
    done = run("watch", f"gs://uploads/{prefix}", "--json")
    timer.join()
    assert done.exit_code == ExitCode.DONE, done.output
    assert report(done)["done"] == 2
    assert "2 uploaded = 1 done + 0 failed + 0 parked + 0 disabled + 1 missing" in done.stderr


def test_time_out_names_a_missing_image(put: Put, prefix: str) -> None:
    ref = put("a.jpg")
    done = run("watch", f"gs://uploads/{prefix}", "--timeout", "0")
    assert done.exit_code == ExitCode.NOT_FINISHED
    assert f"No result after --timeout, for example: {ref.uri}#{ref.generation}" in done.stderr


def test_prefix_without_images_is_an_error(put: Put, prefix: str) -> None:
    put("folder/")
    done = run("watch", f"gs://uploads/{prefix}")
    assert done.exit_code == ExitCode.FAILED
    assert f"There is no image in gs://uploads/{prefix}" in done.stderr
    assert "give a prefix here, not a pattern" in run("watch", f"gs://uploads/{prefix}*").stderr


def test_submitted_images_are_waited_for_by_generation(
    topic: str, put: Put, store: ResultStore
) -> None:
    ref, other = put("a.jpg"), put("b.jpg")
    store.commit([ImageResult(ref), failed(other)])
    arguments = ["--wait", "--topic", topic, "--json"]
    done = run("submit", ref.uri, f"{ref.uri}#{ref.generation}", *arguments)
    assert done.exit_code == ExitCode.DONE, done.output
    assert (report(done)["published"], report(done)["done"]) == (2, 1)
    pattern = run("submit", ref.uri.replace("a.jpg", "*.jpg"), *arguments)
    assert pattern.exit_code == ExitCode.NOT_ALL_DONE
    assert (report(pattern)["done"], report(pattern)["failed"]) == (1, 1)


def test_submitted_image_that_is_overwritten_is_gone(
    topic: str, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = put("a.jpg")
    publish = "service.gcp.publisher.publish_jobs"
    monkeypatch.setattr(publish, lambda *arguments: put("a.jpg") and 1)
    done = run("submit", ref.uri, "--wait", "--topic", topic, "--json")
    assert done.exit_code == ExitCode.NOT_ALL_DONE, done.output
    assert (report(done)["gone"], report(done)["missing"]) == (1, 0)


def test_submit_ends_at_the_time_out(topic: str, put: Put) -> None:
    done = run("submit", put("a.jpg").uri, "--wait", "--timeout", "0", "--topic", topic)
    assert done.exit_code == ExitCode.NOT_FINISHED
    assert "1 uploaded = 0 done" in done.stdout
