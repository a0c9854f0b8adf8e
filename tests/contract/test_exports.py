"""Exports by the command and by the gallery's button, against the emulators."""

import csv
import io
import json
import uuid
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner, Result
from google.cloud import firestore, storage

from service.cli.exit_codes import ExitCode
from service.cli.main import main
from service.document import to_document
from service.domain import ImageRef, ImageResult
from tests.exports import INFO, MODEL, NEWEST, detection
from tests.fakes import PATIENCE_SECONDS
from tests.gallery import running_gallery

FILE = b"\xff\xd8\xff the file"


@pytest.fixture
def prefix(collection: str, bucket: storage.Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two images with a detection. The second one's object was overwritten."""
    monkeypatch.setenv("FIRESTORE_COLLECTION", collection)
    monkeypatch.setenv("ALLOWED_BUCKETS", "uploads")
    prefix = f"export-{uuid.uuid4().hex}/"
    for name in ("a.jpg", "b.jpg"):
        blob = bucket.blob(prefix + name)
        blob.upload_from_string(FILE)
        ref = ImageRef("uploads", blob.name, int(blob.generation))
        result = ImageResult(ref, image_info=INFO, model=MODEL, detections=(detection(),), faint=())
        fields = to_document(result) | {"created_at": NEWEST}
        firestore.Client().collection(collection).document(ref.document_id).set(fields)
    bucket.blob(f"{prefix}b.jpg").upload_from_string(b"another file")
    return prefix


def export(prefix: str, folder: Path, *options: str) -> Result:
    arguments = ["results", f"gs://uploads/{prefix}", "--output", str(folder), "--export", *options]
    return CliRunner().invoke(main, arguments)


def test_command_writes_an_export(prefix: str, tmp_path: Path) -> None:
    done = export(prefix, tmp_path / "out", "csv")
    assert done.exit_code == 0, done.output
    assert "2 images with 2 detections" in done.stdout
    text = (tmp_path / "out/detections.csv").read_text(encoding="utf-8")
    assert [row["file"] for row in csv.DictReader(io.StringIO(text))] == [
        f"{prefix}a.jpg",
        f"{prefix}b.jpg",
    ]


def test_images_are_of_the_exact_generation(prefix: str, tmp_path: Path) -> None:
    done = export(prefix, tmp_path / "out", "yolo", "--images")
    assert done.exit_code == ExitCode.NOT_ALL_DONE, done.output
    assert (tmp_path / f"out/images/{prefix}a.jpg").read_bytes() == FILE
    assert not (tmp_path / f"out/images/{prefix}b.jpg").exists()
    assert (tmp_path / f"out/labels/{prefix}b.txt").exists()
    [missing] = (tmp_path / "out/missing-images.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(missing)["file"] == f"{prefix}b.jpg"


def test_existing_folder_is_not_overwritten(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    done = export(prefix, tmp_path, "csv")
    assert done.exit_code == ExitCode.FAILED
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_button_exports_what_the_page_shows(collection: str) -> None:
    with running_gallery() as gallery, requests.Session() as browser:
        gallery.add_image("a.jpg", detection("star", 0.9), faint=(detection("heart", 0.2),))
        browser.get(gallery.url, timeout=PATIENCE_SECONDS)
        address = f"{gallery.address}/export?format=csv&threshold=0.95&threshold_of=heart:0.1"
        response = browser.get(address, timeout=PATIENCE_SECONDS)
        rows = list(csv.DictReader(io.StringIO(response.text)))
        assert [row["class_name"] for row in rows] == ["heart"]
        assert "attachment" in response.headers["Content-Disposition"]
        # The page ignores numbers that are no confidence.
        for ignored in ("threshold=5", "threshold=-1", "threshold=nan", "threshold_of=star:7"):
            address = f"{gallery.address}/export?format=csv&{ignored}"
            exported = browser.get(address, timeout=PATIENCE_SECONDS).text
            rows = list(csv.DictReader(io.StringIO(exported)))
            assert [row["class_name"] for row in rows] == ["star"], ignored
        zipped = browser.get(f"{gallery.address}/export?format=yolo", timeout=PATIENCE_SECONDS)
        assert zipped.content.startswith(b"PK")
        unknown = browser.get(f"{gallery.address}/export?format=none", timeout=PATIENCE_SECONDS)
        assert unknown.status_code == 404
