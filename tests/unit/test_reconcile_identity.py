"""The identity of a model that is not loaded equals the one in its documents."""

import hashlib
import shutil
from pathlib import Path

import pytest

from service.errors import ModelError
from service.inference.identity import sha256_of_model
from service.inference.openvino import OpenVINODetector
from service.inference.ultralytics import sha256_of
from service.settings import BUNDLED_MODEL


def test_sha256_of_an_exported_model_is_its_detectors() -> None:
    assert sha256_of_model(BUNDLED_MODEL) == OpenVINODetector(BUNDLED_MODEL).info.sha256


def test_sha256_of_a_foreign_export_is_its_detectors(tmp_path: Path) -> None:
    model = shutil.copytree(BUNDLED_MODEL, tmp_path / "model")
    text = (model / "metadata.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("sha256:")]
    (model / "metadata.yaml").write_text("\n".join(lines))
    assert sha256_of_model(model) == OpenVINODetector(model).info.sha256
    assert sha256_of_model(model) != sha256_of_model(BUNDLED_MODEL)


def test_sha256_of_weights_is_their_hash(tmp_path: Path) -> None:
    (tmp_path / "yolo26n.pt").write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert sha256_of_model(tmp_path / "yolo26n.pt") == expected
    assert sha256_of(tmp_path / "yolo26n.pt") == expected


def test_sha256_of_another_directory_is_that_of_ultralytics(tmp_path: Path) -> None:
    (tmp_path / "saved" / "deep").mkdir(parents=True)
    (tmp_path / "saved" / "deep" / "b").write_bytes(b"b")
    (tmp_path / "saved" / "a").write_bytes(b"a")
    assert sha256_of_model(tmp_path / "saved") == sha256_of(tmp_path / "saved")


@pytest.mark.parametrize(
    "text",
    [None, "[", "7", b"\xff", "[" * 20_000],
    ids=["none", "yaml", "number", "bytes", "deep"],
)
def test_sha256_of_no_model_says_so(text: str | bytes | None, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if text is not None:
        model.mkdir()
        data = text if isinstance(text, bytes) else text.encode()
        (model / "metadata.yaml").write_bytes(data)
    with pytest.raises(ModelError, match="model"):
        sha256_of_model(model)
