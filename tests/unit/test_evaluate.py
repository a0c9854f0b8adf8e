"""mAP of results: which images count, and what is said about the others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli.main import main
from service.document import to_document
from service.domain import (
    Box,
    Detection,
    ErrorCode,
    Failure,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    Task,
)
from service.export.accuracy import find_labels, mean_average_precision
from service.inference.loading import load_detector
from service.operate.evaluate import (
    Evaluation,
    EvaluationError,
    evaluate,
    read_labels,
    stored_results,
)
from service.settings import BUNDLED_MODEL
from tests.labelled import labelled_samples, write_drawn_samples

MODEL = ModelInfo("m.pt", "0" * 64, 640, "fp32", "fake")
CAT = Box(10.0, 10.0, 60.0, 60.0)
IMAGES = 6


def truth(*names: str, category: str = "cat", **fields: Any) -> dict[str, Any]:
    """Return labels: one cat in each image."""
    return {
        "images": [
            {"id": number, "file_name": name, "width": 100, "height": 80} | fields
            for number, name in enumerate(names, 1)
        ],
        "categories": [{"id": 1, "name": category}],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [10, 10, 50, 50]}
            for number in range(1, len(names) + 1)
        ],
    }


def stored(name: str, confidence: float = 0.9, **fields: Any) -> dict[str, Any]:
    """Return the document of an image with a cat."""
    detection = Detection("cat", 0, confidence, CAT)
    is_faint = confidence < 0.25
    result = ImageResult(
        ImageRef("uploads", name, 1),
        image_info=ImageInfo(100, 80, "JPEG"),
        model=MODEL,
        detections=() if is_faint else (detection,),
        faint=(detection,) if is_faint else (),
    )
    return to_document(replace(result, **fields))


def measure(tmp_path: Path, labels: dict[str, Any], *documents: dict[str, Any]) -> Evaluation:
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(labels), encoding="utf-8")
    results = stored_results(documents, "2026/")
    return evaluate(read_labels(file), results, file=file, resamples=0)


def names(count: int = IMAGES) -> list[str]:
    return [f"cam/{number}.jpg" for number in range(count)]


def test_correct_results_have_full_precision(tmp_path: Path) -> None:
    documents = [stored(f"2026/{name}") for name in names()]
    evaluation = measure(tmp_path, truth(*names()), *documents)
    assert evaluation.figures.map50_95.value == pytest.approx(1)
    assert (evaluation.images, evaluation.objects) == (IMAGES, IMAGES)


def test_faint_detections_count(tmp_path: Path) -> None:
    documents = [stored(f"2026/{name}", 0.1) for name in names()]
    evaluation = measure(tmp_path, truth(*names()), *documents)
    assert evaluation.figures.map50.value == pytest.approx(1)
    assert any("below 0.05 are not recorded" in note for note in evaluation.notes)


def test_failed_image_counts_as_empty_and_is_named(tmp_path: Path) -> None:
    failure = Failure(ErrorCode.CORRUPT_IMAGE, "It is damaged.")
    documents = [stored(f"2026/{name}") for name in names(3)]
    documents.append(to_document(ImageResult(ImageRef("uploads", "2026/bad.jpg", 1), failure)))
    evaluation = measure(tmp_path, truth(*names(3), "bad.jpg"), *documents)
    assert evaluation.failed == ("bad.jpg",)
    assert evaluation.images == 4
    assert evaluation.figures.map50.value == pytest.approx(76 / 101)  # recall ends at 3/4


def test_parked_and_edited_images_are_left_out(tmp_path: Path) -> None:
    parked = Failure(ErrorCode.DAILY_IMAGE_LIMIT, "It is parked.")
    documents = [stored(f"2026/{name}") for name in names(3)]
    documents.append(to_document(ImageResult(ImageRef("uploads", "2026/p.jpg", 1), parked)))
    documents.append(stored("2026/e.jpg") | {"detections": "edited"})
    evaluation = measure(tmp_path, truth(*names(3), "p.jpg", "e.jpg"), *documents)
    assert evaluation.images == 3
    [note] = [note for note in evaluation.notes if "without a final result" in note]
    assert "p.jpg (daily_image_limit), e.jpg (the document was edited)" in note


def test_unmatched_images_of_both_sides_are_named(tmp_path: Path) -> None:
    documents = [stored(f"2026/{name}") for name in [*names(3), "z/1.jpg", "other.jpg"]]
    evaluation = measure(tmp_path, truth(*names(3), "lost.jpg", "1.jpg"), *documents)
    assert evaluation.unmatched_labels == ("lost.jpg",)
    assert evaluation.ambiguous == ("1.jpg",)
    assert evaluation.unmatched_count == 2
    assert set(evaluation.unmatched_results) == {"2026/z/1.jpg", "2026/other.jpg"}


def test_only_the_newest_generation_counts(tmp_path: Path) -> None:
    documents = [stored(f"2026/{name}") for name in names(3)]
    old = stored("2026/cam/0.jpg", detections=()) | {"generation": 0}
    evaluation = measure(tmp_path, truth(*names(3)), *documents, old)
    assert evaluation.figures.map50.value == pytest.approx(1)
    assert any("older generations" in note for note in evaluation.notes)


def test_image_of_another_size_is_left_out(tmp_path: Path) -> None:
    documents = [stored(f"2026/{name}") for name in names(3)]
    documents[0]["image"]["width"] = 200
    evaluation = measure(tmp_path, truth(*names(3)), *documents)
    assert evaluation.images == 2
    assert any("200x80, labelled 100x80" in note for note in evaluation.notes)


def test_category_that_no_result_has_counts_as_zero(tmp_path: Path) -> None:
    labels = truth(*names(3))
    labels["categories"].append({"id": 2, "name": "dog"})
    labels["annotations"][0]["category_id"] = 2
    documents = [stored(f"2026/{name}") for name in names(3)]
    evaluation = measure(tmp_path, labels, *documents)
    assert evaluation.figures.labels["dog"].ap50.value == 0
    assert any("No result has 'dog' (1 objects)" in note for note in evaluation.notes)


def test_category_in_another_spelling_is_measured(tmp_path: Path) -> None:
    documents = [stored(f"2026/{name}") for name in names(3)]
    evaluation = measure(tmp_path, truth(*names(3), category="Cat"), *documents)
    assert list(evaluation.figures.labels) == ["cat"]


def test_results_of_several_models_are_named(tmp_path: Path) -> None:
    documents = [stored(f"2026/{name}") for name in names(3)]
    documents[0]["model"]["sha256"] = "f" * 64
    notes = measure(tmp_path, truth(*names(3)), *documents).notes
    assert any("those of 2 models: m.pt (00000000): 2, m.pt (ffffffff): 1" in n for n in notes)


def test_masks_are_said_not_to_count(tmp_path: Path) -> None:
    model = replace(MODEL, task=Task.SEGMENT)
    documents = [stored(f"2026/{name}", model=model) for name in names(3)]
    notes = measure(tmp_path, truth(*names(3)), *documents).notes
    assert any("Only upright boxes count" in note for note in notes)


def test_labels_that_fit_no_box_are_doubted(tmp_path: Path) -> None:
    labels = truth(*names(3))
    for annotation in labels["annotations"]:
        annotation["bbox"] = [80, 60, 10, 10]
    notes = measure(tmp_path, labels, *[stored(f"2026/{name}") for name in names(3)]).notes
    assert notes[0].startswith("WARNING: mAP50 is 0.00, yet the results have 3 detections")


def test_nothing_to_measure_says_why(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="2 of 2 labelled images have no result"):
        measure(tmp_path, truth("a.jpg", "b.jpg"), stored("2026/other.jpg"))


def test_classifier_has_no_map(tmp_path: Path) -> None:
    model = replace(MODEL, task=Task.CLASSIFY)
    with pytest.raises(EvaluationError, match="classification model, which has no boxes"):
        measure(tmp_path, truth("a.jpg"), stored("2026/a.jpg", model=model))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_drawn_samples(folder)
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def labels_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("labels") / "labels.json"
    file.write_text(json.dumps(labelled_samples()), encoding="utf-8")
    return file


@pytest.mark.ultralytics
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools'
def test_folder_has_the_map_of_the_export(samples: Path, labels_file: Path) -> None:
    detector = load_detector(BUNDLED_MODEL, min_confidence=0.001)
    expected = mean_average_precision(detector, find_labels(labels_file, samples))
    done = run("--labels", labels_file, samples, "--json", "--resamples", 10)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["images"] == expected.images
    # Documents have two decimals of a pixel, and four of a confidence.
    assert report["map50_95"]["value"] == pytest.approx(expected.map50_95, abs=2e-3)
    assert report["map50"]["value"] == pytest.approx(expected.map50, abs=2e-3)


def test_folder_prints_a_row_for_each_label(samples: Path, labels_file: Path) -> None:
    done = run("--labels", labels_file, samples, "--resamples", 10)
    assert done.exit_code == 0, done.output
    rows = [line.split()[0] for line in done.stdout.splitlines()]
    assert rows == ["label", "all", "circle", "cross", "heart", "square", "star", "triangle"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["."], 2, "Missing option '--labels'"),
        (["--labels", "text", "nowhere"], 2, "neither a folder nor gs://bucket/prefix"),
        (["--labels", "nowhere", "empty"], 1, "There is no label file nowhere"),
        (["--labels", "text", "empty"], 1, "text is not a COCO label file"),
        (["--labels", "good", "empty"], 1, "There are no files in empty"),
        (["--labels", "good", "empty", "--resamples", "-1"], 2, "--resamples"),
        (["--labels", "good", "gs://a"], 1, "credentials or the project are missing"),
    ],
)
def test_wrong_arguments_of_evaluate_are_explained(
    arguments: list[str],
    code: int,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    Path("empty").mkdir()
    Path("text").write_text("no JSON", encoding="utf-8")
    Path("good").write_text(json.dumps(truth("a.jpg")), encoding="utf-8")
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert sentence in done.stderr
    assert done.stdout == ""
