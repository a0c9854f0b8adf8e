"""`yolo-batch evaluate` and `yolo-batch compare stored` against the official emulators."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from google.cloud import firestore, storage

from service.cli.main import main
from service.deadline import NO_DEADLINE
from service.domain import ErrorCode, Failure, ImageRef, ImageResult, Prediction
from service.gallery.build import build_images
from service.gallery.report import StoredImages
from service.gcp.firestore import ResultStore
from service.images.decode import decode
from service.inference.loading import load_detector
from service.settings import BUNDLED_MODEL, Settings
from tests.contract.conftest import BUCKET
from tests.fakes import PATIENCE_SECONDS
from tests.labelled import labelled_samples, write_drawn_samples

pytestmark = pytest.mark.emulator

COUNT = 6


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, collection: str) -> None:
    monkeypatch.setenv("FIRESTORE_COLLECTION", collection)
    for service in ("FIRESTORE", "STORAGE"):
        monkeypatch.setenv(f"{service}_TIMEOUT_SECONDS", f"{PATIENCE_SECONDS:g}")


@pytest.fixture
def prefix(tmp_path: Path, bucket: storage.Bucket, store: ResultStore) -> Iterator[str]:
    """Upload drawn images, and store what the bundled model finds. One image has failed."""
    prefix = f"{uuid.uuid4().hex}/"
    write_drawn_samples(tmp_path / "samples", count=COUNT)
    detector = load_detector(BUNDLED_MODEL, min_confidence=0.05)
    results = []
    for file in sorted((tmp_path / "samples").iterdir()):
        blob = bucket.blob(prefix + file.name)
        blob.upload_from_filename(str(file))
        ref = ImageRef(BUCKET, blob.name, blob.generation)
        image = decode(file.read_bytes(), max_pixels=10**7)
        [found] = detector.detect([image])
        results.append(result_of(ref, found, ImageResult(ref, None, image.info, detector.info)))
    failure = Failure(ErrorCode.CORRUPT_IMAGE, "It is damaged.")
    results.append(ImageResult(ImageRef(BUCKET, f"{prefix}failed.jpg", 7), failure))
    store.commit(results, NO_DEADLINE)
    yield prefix
    bucket.delete_blobs(list(bucket.list_blobs(prefix=prefix)))


def result_of(ref: ImageRef, found: Prediction, result: ImageResult) -> ImageResult:
    return replace(
        result,
        ref=ref,
        detections=tuple(item for item in found.detections if item.confidence >= 0.25),
        faint=tuple(item for item in found.detections if item.confidence < 0.25),
    )


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_stored_results_have_the_map_of_the_folder(tmp_path: Path, prefix: str) -> None:
    labels = labelled_samples()
    labels["images"] = labels["images"][:COUNT]
    # As Label Studio writes the name of an uploaded file.
    for image in labels["images"]:
        image["file_name"] = f"images/1f2e3d4c-{image['file_name']}"
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(labels), encoding="utf-8")
    arguments = ("evaluate", "--labels", file, "--json", "--resamples", 20)
    stored = run(*arguments, f"gs://{BUCKET}/{prefix}")
    assert stored.exit_code == 0, stored.output
    report = json.loads(stored.stdout)
    folder = json.loads(run(*arguments, tmp_path / "samples").stdout)
    assert report["images"] == folder["images"] == COUNT
    assert report["map50"]["value"] == pytest.approx(folder["map50"]["value"], abs=0.05)
    assert report["unmatched_results"] == [f"{prefix}failed.jpg"]


def test_stored_results_agree_with_their_own_model(tmp_path: Path, prefix: str) -> None:
    file = tmp_path / "report.json"
    done = run(
        "compare", "stored", BUNDLED_MODEL, f"gs://{BUCKET}/{prefix}", "--no-page", "--json", file
    )
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["images"] == COUNT
    assert report["total"]["f1"] == pytest.approx(1, abs=0.05)
    assert report["results"][0]["uri"].startswith(f"gs://{BUCKET}/{prefix}")
    [skipped] = report["skipped"]
    assert skipped == {"name": "failed.jpg", "reason": "It has no detections: it is failed."}


def test_deleted_object_is_skipped(tmp_path: Path, prefix: str, bucket: storage.Bucket) -> None:
    [blob, *_] = bucket.list_blobs(prefix=prefix)
    blob.delete()
    file = tmp_path / "report.json"
    done = run(
        "compare", "stored", BUNDLED_MODEL, f"gs://{BUCKET}/{prefix}", "--no-page", "--json", file
    )
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["images"] == COUNT - 1
    assert blob.name.removeprefix(prefix) in [row["name"] for row in report["skipped"]]


def test_page_never_shows_the_upload_of_a_redacted_result(
    prefix: str, bucket: storage.Bucket, collection: str
) -> None:
    blobs = list(bucket.list_blobs(prefix=prefix))[:2]
    results = [(ImageRef(BUCKET, b.name, b.generation).document_id, b.generation) for b in blobs]
    redacted = {"kind": "redacted", "uri": "gs://results/other"}
    document = firestore.Client().collection(collection).document(results[1][0])
    document.update({"derived": [redacted]})
    gallery = build_images(Settings.from_env())
    images = StoredImages(gallery, results)
    try:
        shown = images.read(0, is_large=True)
        assert shown is not None
        assert shown[0].startswith(b"\xff\xd8\xff")
        for index in (1, 2, -1):
            assert images.read(index, is_large=True) is None
            assert images.read(index, is_large=False) is None
    finally:
        gallery.close()


def test_prefix_without_results_is_said(prefix: str) -> None:
    done = run("compare", "stored", BUNDLED_MODEL, f"gs://{BUCKET}/{prefix}nothing", "--no-page")
    assert done.exit_code == 1
    assert "There is no image to compare" in done.stderr
