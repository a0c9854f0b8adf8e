"""What stops the service at its start, and what its health names."""

import logging
from pathlib import Path

import pytest

from service.errors import ModelError
from service.inference.canary import VerifiedModel
from service.inference.loading import load_detector, warm_up
from service.server.wsgi import _model_health, build_app
from service.settings import Settings
from tests.fakes import FakeDetector
from tests.loglines import logged_by


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PORT", "http"), ("MODEL_PATH", "/no/such/model")],
    ids=["setting", "model"],
)
def test_wrong_setting_ends_the_start_with_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as raised:
        build_app()
    assert raised.value.code == 3


def test_wrong_setting_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PORT", "http")
    with pytest.raises(SystemExit):
        build_app()
    [record] = logged_by(caplog, "service.server.wsgi")
    assert record.levelno == logging.CRITICAL
    assert "PORT='http' is wrong" in record.getMessage()


def test_missing_model_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model at .*nothing: name another"):
        load_detector(tmp_path / "nothing")


def test_openvino_model_refuses_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "metadata.yaml").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="runs on DEVICE=cpu, not 'cuda:0'"):
        load_detector(tmp_path, device="cuda:0")


def test_warm_up_runs_one_image_of_the_models_size() -> None:
    detector = FakeDetector()
    warm_up(detector)
    assert detector.shapes == [(480, 640, 3)]


SETTINGS = Settings(model_path=Path("/srv/secret/shapes_openvino_model"))


def test_health_names_model_and_precision() -> None:
    verified = VerifiedModel(FakeDetector(), SETTINGS.model_path)
    assert _model_health(verified, SETTINGS) == {"model": "fake.pt", "precision": "fp32"}


def test_fallback_is_in_the_health_without_its_directory() -> None:
    reason = f"The canary of {SETTINGS.model_path} x"
    verified = VerifiedModel(FakeDetector(), SETTINGS.model_path, reason)
    health = _model_health(verified, SETTINGS)
    assert health["fallback"] == "The canary of shapes_openvino_model x"
