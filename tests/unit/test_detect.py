"""The same pipeline on local files, and the drawing of its results."""

import base64
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from service.cli.detect import detect as command
from service.domain import Box, Detection
from service.errors import DetectorError
from service.faint import unpack
from service.images.annotate import annotate
from service.operate.detect import (
    MissingFileError,
    annotated_name,
    detect_files,
    find_files,
    save_annotated,
)
from service.settings import Settings
from tests.fakes import FakeDetector, bmp_image, color_of, label_of

OPTIONS = Settings(max_batch_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(10):
        (tmp_path / f"{number}.bmp").write_bytes(bmp_image(color_of(number)))
    return tmp_path


def detect(files: list[Path], detector: FakeDetector | None = None) -> dict[str, dict[str, Any]]:
    documents: list[dict[str, Any]] = []
    detect_files(files, detector or FakeDetector(), OPTIONS, documents.append)
    return {Path(document["name"]).name: document for document in documents}


def test_find_files_descends_and_skips_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/c.jpg", "a.jpg", ".hidden"):
        (tmp_path / name).touch()
    found = find_files([tmp_path, tmp_path / "a.jpg"])
    assert found == [tmp_path / "a.jpg", tmp_path / "b" / "c.jpg", tmp_path / "a.jpg"]


def test_find_files_of_missing_path_raises(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="There is no file or folder .*nothing"):
        find_files([tmp_path / "nothing"])


def test_detect_files_gives_each_its_own_result_once(folder: Path) -> None:
    files = find_files([folder, folder / "3.bmp"])
    documents = detect(files)
    assert {name: one["labels"] for name, one in documents.items()} == {
        f"{number}.bmp": [label_of(color_of(number))] for number in range(10)
    }


def test_detect_files_gives_json_without_the_clouds_fields(folder: Path) -> None:
    document = detect([folder / "3.bmp"])["3.bmp"]
    assert unpack(document.pop("faint")) == ()
    assert json.loads(json.dumps(document)) == document
    assert document["uri"] == document["name"] == str(folder / "3.bmp")
    assert not {"bucket", "generation", "event_time"} & set(document)


def test_detect_files_of_a_text_file_among_images_is_one_failure(folder: Path) -> None:
    (folder / "note.txt").write_text("just a note", encoding="utf-8")
    documents = detect(find_files([folder]))
    assert documents["note.txt"]["error"]["code"] == "unsupported_media"
    assert [one["status"] for one in documents.values()].count("done") == 10


def test_poisonous_file_raises_after_all_others_are_done(folder: Path) -> None:
    detector = FakeDetector()
    detector.poison = color_of(3)
    received: list[str] = []
    with pytest.raises(DetectorError):
        detect_files(
            find_files([folder]), detector, OPTIONS, lambda one: received.append(one["name"])
        )
    assert len(received) == 9


def test_detect_files_ends_soon_when_nobody_takes_the_results(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number:03}.bmp").write_bytes(bmp_image(color_of(number)))
    detector = FakeDetector()

    def refuse(document: dict[str, Any]) -> None:
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        detect_files(find_files([tmp_path]), detector, OPTIONS, refuse)
    assert sum(detector.batch_sizes) < 100


def test_file_over_a_limit_is_refused_by_the_limits_name(folder: Path) -> None:
    documents: dict[str, Any] = {}
    small = bmp_image(width=8, height=8)
    (folder / "small.bmp").write_bytes(small)
    for options in (
        replace(OPTIONS, max_image_bytes=len(small)),
        replace(OPTIONS, max_image_pixels=64),
    ):
        detect_files(
            [folder / "3.bmp", folder / "small.bmp"],
            FakeDetector(),
            options,
            lambda one: documents.update({Path(one["name"]).name: one}),
        )
        limit = "BYTES" if options.max_image_pixels > 64 else "PIXELS"
        assert documents["3.bmp"]["error"]["code"] == "image_too_large"
        assert f"MAX_IMAGE_{limit}" in documents["3.bmp"]["error"]["message"]
        assert documents["small.bmp"]["status"] == "done"


def test_detect_files_of_nothing_is_nothing() -> None:
    assert detect([]) == {}


def test_annotated_names_of_equal_files_differ(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b/1.jpg", "b/deep/1.jpg", "b/1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    both = [tmp_path / "a", tmp_path / "b"]
    copies = [str(annotated_name(tmp_path / name, both)) for name in names]
    assert copies == ["a/1.jpg", "b/1.jpg", "b/deep/1.jpg", "b/1.png.jpg"]
    assert annotated_name(tmp_path / "a/1.jpg", both[:1]) == Path("1.jpg")


def test_save_annotated_writes_a_image_of_the_same_size(folder: Path) -> None:
    document = detect([folder / "3.bmp"])["3.bmp"]
    target = folder / "out" / "3.jpg"
    save_annotated(folder / "3.bmp", document, target)
    drawn = cv2.imread(str(target))
    assert drawn is not None and drawn.shape == (24, 32, 3)


def test_annotate_draws_the_box_on_a_copy() -> None:
    pixels = np.zeros((200, 300, 3), np.uint8)
    drawn = annotate(pixels, [Detection("cat", 15, 0.8, Box(50.0, 60.0, 250.0, 180.0))])
    assert not pixels.any()
    assert drawn[180, 150].any() and drawn[120, 50].any()
    assert not drawn[120, 150].any() and not drawn[195, 150].any()


def test_annotate_of_nothing_is_an_equal_copy() -> None:
    pixels = np.full((20, 30, 3), 9, np.uint8)
    drawn = annotate(pixels, [])
    assert np.array_equal(drawn, pixels) and drawn is not pixels


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2)], ids=str)
def test_annotate_of_extreme_sides_does_not_raise(size: tuple[int, int]) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    box = Box(0.0, 0.0, float(size[1]), float(size[0]))
    drawn = annotate(pixels, [Detection("日本", 0, 0.5, box)])
    assert drawn.shape == pixels.shape


def test_detections_below_min_confidence_are_faint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, Any] = {}

    def load(path: Path, **given: Any) -> FakeDetector:
        loaded.update(given)
        return FakeDetector()

    monkeypatch.setattr("service.inference.loading.load_detector", load)
    monkeypatch.setattr("service.inference.loading.warm_up", lambda detector: None)

    def run(min_confidence: str) -> tuple[dict[str, Any], list[Detection]]:
        arguments = ["--json", "--min-confidence", min_confidence, str(folder / "3.bmp")]
        document = json.loads(CliRunner().invoke(command, arguments).stdout)
        return document, list(unpack(base64.b64decode(document["faint"])))

    document, faint = run("0.99")
    assert document["detections"] == []
    assert [item.label for item in faint] == [label_of(color_of(3))]
    assert (loaded["min_confidence"], document["faint_cut"]) == (0.05, 0.05)
    document, faint = run("0.01")
    assert (len(document["detections"]), faint) == (1, [])
    assert (loaded["min_confidence"], document["faint_cut"]) == (0.01, 0.01)


# Every setting that the help names: a value of the environment, and what arrives.
SETTINGS: dict[str, tuple[str, str, object]] = {
    "MAX_IMAGE_PIXELS": ("1234", "max_image_pixels", 1234),
    "MAX_IMAGE_BYTES": ("1234", "max_image_bytes", 1234),
    "MAX_BUFFERED_BYTES": ("1234", "max_buffered_bytes", 1234),
    "MAX_BATCH_PIXELS": ("1234", "max_batch_pixels", 1234),
    "REDUCED_DECODE": ("false", "reduced_decode", False),
    "IMAGE_SIZE": ("96", "image_size", 96),
    "INFERENCE_STREAMS": ("3", "streams", 3),
    "STORE_CONFIDENCE": ("0.01", "store_confidence", 0.01),
}


@pytest.mark.parametrize("name", re.findall(r"[A-Z]+(?:_[A-Z]+)+", command.help or ""))
def test_setting_that_the_help_names_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    value, key, expected = SETTINGS[name]
    monkeypatch.setenv(name, value)
    arrived: dict[str, Any] = {}

    def load(path: Path, **given: Any) -> FakeDetector:
        arrived.update(given)
        return FakeDetector()

    def detect_none(
        files: list[Path], detector: FakeDetector, options: Settings, receive: Any
    ) -> None:
        arrived.update(asdict(options))

    monkeypatch.setattr("service.inference.loading.load_detector", load)
    monkeypatch.setattr("service.operate.detect.detect_files", detect_none)
    ran = CliRunner().invoke(command, [str(folder)])
    assert ran.exit_code == 0, ran.output
    assert arrived[key] == expected
