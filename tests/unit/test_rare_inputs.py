"""Inputs and environments that are rare: each has an error or a note of its own."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from service.cli.main import main
from service.cli.report import pace_note
from service.domain import ErrorCode
from service.errors import BadImageError, ModelError, SettingsError
from service.images import transforms
from service.images.tiff import main_image
from service.inference.labels import class_labels
from service.inference.loading import load_detector
from service.memory import plan_memory
from service.operate.backfill import Deployment, Estimate
from service.settings import BUNDLED_MODEL, Settings


class Replaced(Exception):
    """Raised where the process would be replaced."""


def test_serve_becomes_gunicorn_with_our_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def execv(program: str, arguments: list[str]) -> None:
        calls.append([program, *arguments])
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)
    assert isinstance(CliRunner().invoke(main, ["serve"]).exception, Replaced)
    [[program, *arguments]] = calls
    assert program == arguments[0] == sys.executable
    assert arguments[1:3] == ["-m", "gunicorn"]
    assert arguments[-1] == "service.server.wsgi:build_app()"


def test_serve_reports_a_wrong_setting_before_the_server_starts() -> None:
    done = CliRunner().invoke(main, ["serve"], env={"PORT": "http"})
    assert done.exit_code != 0
    assert "PORT" in str(done.exception) + done.output


def test_detect_of_a_folder_without_files_says_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["detect", str(tmp_path)])
    assert done.exit_code == 1
    assert "There are no files in" in done.output


def test_collection_must_be_a_top_level_collection() -> None:
    with pytest.raises(SettingsError, match="FIRESTORE_COLLECTION"):
        Settings.from_env({"FIRESTORE_COLLECTION": "cameras/1/detections"})


def test_model_without_classes_is_refused() -> None:
    with pytest.raises(ModelError, match="it names no classes"):
        class_labels({}, model="empty.pt", advice="")


def test_big_endian_bigtiff_is_an_unsupported_kind() -> None:
    with pytest.raises(BadImageError, match="BigTIFF") as raised:
        main_image(b"MM\x00\x2b\x00\x08\x00\x00" + b"\x00" * 100)
    assert raised.value.code is ErrorCode.UNSUPPORTED_MEDIA


@pytest.mark.parametrize(
    ("code", "kind"), [(cv2.Error.StsNoMem, MemoryError), (cv2.Error.StsBadArg, cv2.error)]
)
def test_no_memory_to_turn_an_image_is_a_memory_error(
    code: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not an error of the image: the message is redelivered."""

    def fail(*_: object) -> None:
        error = cv2.error("failed")
        vars(error)["code"] = code
        raise error

    monkeypatch.setattr(transforms, "_transform", fail)
    with pytest.raises(kind):
        transforms.turn_upright(np.zeros((10, 20, 3), np.uint8), 6)


def test_pace_note_says_how_many_jobs_wait() -> None:
    deployment = Deployment(images_per_second=25.0)
    estimate = Estimate(images=1500, at_once=1000, minutes=1.0, dollars=0.1)
    assert pace_note(replace(estimate, at_once=1500), deployment) is None
    assert "1,000 of 1,500 jobs" in str(pace_note(estimate, deployment))


def test_plan_of_another_runtime_counts_the_resident_memory(tmp_path: Path) -> None:
    detector = load_detector(BUNDLED_MODEL, streams=1)
    plan = plan_memory(replace(Settings(), model_path=tmp_path / "model.onnx"), detector)
    statm = Path("/proc/self/statm").read_text().split()
    assert 0 <= plan.model <= int(statm[1]) * os.sysconf("SC_PAGE_SIZE")
