"""`yolo-batch smoke` and `check-model`, as Cloud Build runs them, against the real stack."""

import re
import shutil
from pathlib import Path

import pytest
from google.cloud import storage

from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from service.export.canary import MIN_STORED_CONFIDENCE, write_canary
from service.inference.canary import CANARY, FALLBACK
from service.inference.loading import load_detector
from service.operate.smoke import draw_sample
from service.settings import BUNDLED_MODEL
from tests.system.conftest import ASIDE, document, put_aside, run_cli


def uploaded(output: str) -> ImageRef:
    """Return the object that a run uploaded, from its output."""
    match = re.search(r"Uploaded gs://([^/]+)/(\S+), generation (\d+)", output)
    assert match, output
    return ImageRef(match[1], match[2], int(match[3]))


def exists(ref: ImageRef) -> bool:
    return bool(storage.Client().bucket(ref.bucket).blob(ref.name).exists())


def test_smoke_prints_the_document_and_deletes_its_image(stack: Stack) -> None:
    done = run_cli("smoke", f"gs://{stack.bucket}/in/")
    assert done.returncode == 0, done.stderr
    ref = uploaded(done.stdout)
    assert ref.name.startswith("in/smoke/")
    assert not exists(ref)
    recorded = document(ref)
    assert recorded is not None
    assert recorded["status"] == "done"
    assert f"document {ref.document_id}" in done.stdout


def test_smoke_keeps_its_image_on_request(stack: Stack) -> None:
    done = run_cli("smoke", f"gs://{stack.bucket}", "--keep")
    assert done.returncode == 0, done.stderr
    assert exists(uploaded(done.stdout))


def test_smoke_fails_and_cleans_up_without_deliveries(stack: Stack) -> None:
    put_aside(stack, "makes/the-bucket.jpg", b"x")
    done = run_cli("smoke", f"gs://{ASIDE}", "--timeout", "1")
    assert done.returncode == 1
    assert "has no document after 1 s" in done.stderr
    assert not exists(uploaded(done.stdout))


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("gs://there-is-none", "there is no such bucket"),
        ("uploads", "it must be gs://bucket or gs://bucket/prefix"),
    ],
)
def test_wrong_bucket_is_reported_in_a_sentence(uri: str, sentence: str) -> None:
    done = run_cli("smoke", uri)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_check_model_describes_the_model_that_would_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PATH", str(BUNDLED_MODEL))
    by_setting, by_path = run_cli("check-model"), run_cli("check-model", BUNDLED_MODEL)
    assert by_setting.returncode == 0, by_setting.stderr
    assert re.search(r"^sha256 +[0-9a-f]{64}$", by_setting.stdout, re.MULTILINE)
    assert re.search(r"in \d+ ms$", by_setting.stdout)
    assert by_path.stdout.splitlines()[:4] == by_setting.stdout.splitlines()[:4]


def test_check_model_reports_a_broken_model_in_a_sentence(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED_MODEL, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / CANARY, ignore_errors=True)  # it would fail first
    (tmp_path / "model" / "shapes.xml").write_text("<net")
    for path, sentence in (
        (tmp_path / "model", "OpenVINO cannot load"),
        (tmp_path / "nowhere", "There is no model at"),
    ):
        done = run_cli("check-model", path)
        assert done.returncode == 3
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


def with_canary(directory: Path) -> Path:
    """Copy the bundled model, with a canary of its own."""
    shutil.copytree(BUNDLED_MODEL, directory)
    shutil.rmtree(directory / CANARY, ignore_errors=True)
    detector = load_detector(directory, min_confidence=MIN_STORED_CONFIDENCE)
    write_canary(directory, detector, {"sample.jpg": draw_sample()})
    return directory


def damage(directory: Path) -> None:
    """Change one byte of the weights."""
    weights = directory / "shapes.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 0xFF
    weights.write_bytes(data)


def test_check_model_fails_on_a_damaged_model(tmp_path: Path) -> None:
    model = with_canary(tmp_path / "model")
    assert run_cli("check-model", model).returncode == 0
    damage(model)
    done = run_cli("check-model", model)
    assert done.returncode == 3
    assert "is damaged" in done.stderr


def test_check_model_reports_the_fallback_to_float(tmp_path: Path) -> None:
    model = with_canary(tmp_path / "model")
    with_canary(model / FALLBACK)
    damage(model)
    done = run_cli("check-model", model)
    assert done.returncode == 0, done.stderr
    assert "The float model beside it runs instead" in done.stderr
