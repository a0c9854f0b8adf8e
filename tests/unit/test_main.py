"""The container's composition root: what stops the start, and what the model's thread says."""

import logging
from concurrent.futures import Future
from pathlib import Path

import pytest

from service.errors import ModelError
from service.inference.canary import VerifiedModel
from service.inference.loading import load_detector, warm_up
from service.server.wsgi import _detector_of, _health, build_app
from service.settings import Settings
from tests.fakes import FakeDetector
from tests.loglines import logged_by


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PORT", "http"), ("MODEL_PATH", "/no/such/model")],
    ids=["setting", "model"],
)
def test_build_app_of_wrong_setting_exits_with_gunicorns_boot_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as raised:
        build_app()
    assert raised.value.code == 3


def test_build_app_of_wrong_setting_logs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PORT", "http")
    with pytest.raises(SystemExit):
        build_app()
    [record] = logged_by(caplog, "service.server.wsgi")
    assert record.levelno == logging.CRITICAL
    assert "PORT='http' is wrong" in record.getMessage()


def test_load_detector_of_no_model_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model at .*nothing: set MODEL_PATH"):
        load_detector(tmp_path / "nothing")


def test_load_detector_of_openvino_model_refuses_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "metadata.yaml").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="runs on DEVICE=cpu, not 'cuda:0'"):
        load_detector(tmp_path, device="cuda:0")


def test_warm_up_runs_one_picture_of_the_models_size() -> None:
    detector = FakeDetector()
    warm_up(detector)
    assert detector.shapes == [(480, 640, 3)]


def settled(value: VerifiedModel | Exception) -> "Future[VerifiedModel]":
    future: Future[VerifiedModel] = Future()
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


SETTINGS = Settings(model_path=Path("/srv/secret/shapes_openvino_model"))


def test_health_names_model_and_precision() -> None:
    checked = VerifiedModel(FakeDetector(), SETTINGS.model_path)
    assert _health(settled(checked), SETTINGS) == {"model": "fake.pt", "precision": "fp32"}


def test_health_of_a_fallback_says_why_and_names_no_directory() -> None:
    checked = VerifiedModel(
        FakeDetector(), SETTINGS.model_path, f"The canary of {SETTINGS.model_path} x"
    )
    health = _health(settled(checked), SETTINGS)
    assert health["fallback"] == "The canary of shapes_openvino_model x"


def test_health_of_a_model_that_did_not_load_says_why_and_names_no_directory() -> None:
    error = ModelError(f"The canary of {SETTINGS.model_path} differs")
    health = _health(settled(error), SETTINGS)
    assert health == {"reason": "The canary of shapes_openvino_model differs"}
    assert _health(settled(KeyError("/srv")), SETTINGS) == {"reason": "The log says why."}


def test_health_while_loading_says_nothing_of_the_model() -> None:
    assert _health(Future(), SETTINGS) == {}


def test_detector_comes_out_of_the_checked_model_or_its_error() -> None:
    detector = FakeDetector()
    assert _detector_of(settled(VerifiedModel(detector, Path("model")))).result(0) is detector
    with pytest.raises(ModelError, match="broken"):
        _detector_of(settled(ModelError("broken"))).result(0)
