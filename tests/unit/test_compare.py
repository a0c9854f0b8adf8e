"""`yolo-batch compare`: two models on the same images, without any cloud."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli.main import main
from service.domain import (
    Box,
    ClassScore,
    Detection,
    Download,
    ModelInfo,
    ObjectMetadata,
    Prediction,
    Task,
)
from service.errors import ModelError
from service.operate.compare import (
    ComparisonError,
    FileImages,
    Image,
    as_json,
    compare_models,
    folder_images,
)
from service.settings import BUNDLED_MODEL
from tests.fakes import DecodersHere, FakeDetector, bmp_image, color_of
from tests.labelled import write_drawn_samples

MAX_BYTES = 10**6


class Fixed(FakeDetector):
    """Finds the same in every image, and notes the order of the runs."""

    def __init__(self, name: str, prediction: Prediction, runs: list[str], task: Task) -> None:
        super().__init__()
        self.name, self.prediction, self.runs = name, prediction, runs
        self.info = ModelInfo(name, "0" * 64, 640, "fp32", "fake", task)

    def detect(self, images: Any) -> list[Prediction]:
        self.runs.append(self.name)
        return [self.prediction for _ in images]


def model(
    name: str,
    *found: Detection | ClassScore,
    runs: list[str] | None = None,
    task: Task = Task.DETECT,
) -> Fixed:
    detections = tuple(item for item in found if isinstance(item, Detection))
    classes = tuple(item for item in found if isinstance(item, ClassScore))
    return Fixed(name, Prediction(detections, classes), [] if runs is None else runs, task)


CAT = Detection("cat", 0, 0.9, Box(0, 0, 10, 10))
DOG = Detection("dog", 1, 0.6, Box(10, 0, 20, 10))


def image(name: str = "a.bmp") -> Image:
    data = bmp_image()
    return Image(name, lambda: Download(data, ObjectMetadata()))


def test_both_models_run_on_every_image_in_turns() -> None:
    runs: list[str] = []
    a, b = model("a", CAT, runs=runs), model("b", CAT, DOG, runs=runs)
    report = compare_models(a, b, [image(), image(), image()], DecodersHere())
    # The first two runs are not measured: each model may compile its input shape then.
    assert runs == ["a", "a", "b", "b", "b", "a", "a", "b"]
    assert report.summary.by_label["dog"].gained == 3
    assert report.a_ms is not None
    assert report.b_ms is not None


def test_largest_disagreement_comes_first(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.bmp").write_bytes(bmp_image(color_of(number * 90)))
    images = folder_images(tmp_path, MAX_BYTES)
    a, b = FakeDetector(), model("b")
    report = compare_models(a, b, images, DecodersHere())
    values = [item.comparison.disagreement for item in report.images]
    assert values == sorted(values, reverse=True)
    assert sorted(item.image.name for item in report.images) == ["0.bmp", "1.bmp", "2.bmp"]


def test_unusable_files_are_skipped_and_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.bmp").write_bytes(bmp_image())
    (tmp_path / "text.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "large.bmp").write_bytes(bmp_image(width=100, height=100))
    images = folder_images(tmp_path, 10_000)
    report = compare_models(model("a"), model("b"), images, DecodersHere())
    assert [item.image.name for item in report.images] == ["sub/good.bmp"]
    assert {name for name, _ in report.skipped} == {"text.txt", "large.bmp"}


def test_no_usable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no image", encoding="utf-8")
    images = folder_images(tmp_path, MAX_BYTES)
    with pytest.raises(ComparisonError, match="None of the 1 images can be compared"):
        compare_models(model("a"), model("b"), images, DecodersHere())
    with pytest.raises(ComparisonError, match="There is no image to compare"):
        compare_models(model("a"), model("b"), [], DecodersHere())


def test_limit_ends_the_comparison_and_is_said() -> None:
    report = compare_models(
        model("a"), model("b"), [image() for _ in range(3)], DecodersHere(), limit=2
    )
    assert (len(report.images), report.is_limited) == (2, True)
    assert as_json(report, "photos")["is_limited"] is True


def test_model_that_fails_is_named() -> None:
    broken = FakeDetector()
    broken.poison = (10, 20, 30)
    with pytest.raises(ModelError, match=r"fake\.pt cannot run on this machine: poison"):
        compare_models(broken, model("b"), [image()], DecodersHere())


def test_classifiers_are_compared_by_their_best_class() -> None:
    a = model("a", ClassScore("cat", 0, 0.9), ClassScore("dog", 1, 0.1), task=Task.CLASSIFY)
    b = model("b", ClassScore("dog", 1, 0.6), ClassScore("cat", 0, 0.4), task=Task.CLASSIFY)
    [compared] = compare_models(a, b, [image()], DecodersHere()).images
    assert [item.detection.label for item in compared.comparison.lost] == ["cat"]
    assert [item.detection.label for item in compared.comparison.gained] == ["dog"]
    assert compared.comparison.gained[0].detection.box == Box(0, 0, 32, 24)


def test_classifier_and_detector_cannot_be_compared() -> None:
    with pytest.raises(ComparisonError, match="only one of them finds boxes"):
        compare_models(model("a"), model("b", task=Task.CLASSIFY), [image()], DecodersHere())


def test_report_as_json_has_each_change() -> None:
    a, b = model("a", CAT), model("b", DOG)
    content = json.loads(
        json.dumps(as_json(compare_models(a, b, [image()], DecodersHere()), "photos"))
    )
    assert content["total"] == {"kept": 0, "moved": 0, "lost": 1, "gained": 1, "f1": 0.0}
    [result] = content["results"]
    assert result["lost"] == [
        {"label": "cat", "confidence": 0.9, "box": [0, 0, 10, 10], "other_confidence": 0.0}
    ]
    assert content["labels"][0] == {
        "label": "cat", "kept": 0, "moved": 0, "lost": 1, "gained": 0, "f1": 0.0
    }  # fmt: skip


def test_images_of_a_report_are_found_by_index_only() -> None:
    report = compare_models(model("a"), model("b"), [image()], DecodersHere())
    images = FileImages(report, DecodersHere())
    for index in (-1, 1, 10**9):
        assert images.read(index, is_large=True) is None


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def test_command_writes_tables_and_a_file(tmp_path: Path) -> None:
    write_drawn_samples(tmp_path / "samples", count=3)
    file = tmp_path / "report.json"
    done = run(
        BUNDLED_MODEL, BUNDLED_MODEL, tmp_path / "samples", "--no-page", "--json", file
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Both are the same model" in done.stderr
    assert "CPU-ms an image" in done.stderr
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["images"] == 3
    assert report["total"]["f1"] == 1
    assert done.stdout.splitlines()[0].split() == ["label", "kept", "moved", "lost", "gained", "F1"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["stored", "b", "."], 2, "`stored` needs gs://BUCKET/[PREFIX]"),
        (["a", "b", "gs://bucket"], 2, "two models are compared on a folder"),
        (["a", "b", "nowhere"], 2, "neither a folder nor gs://bucket/prefix"),
        (["a", "b", "gs:///x"], 2, "it must be gs://bucket"),
        (["nowhere", "b", "."], 3, "There is no model at nowhere"),
    ],
)
def test_wrong_arguments_of_compare_are_explained(
    arguments: list[str], code: int, sentence: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert sentence in done.stderr
