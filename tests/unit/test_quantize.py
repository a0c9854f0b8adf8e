"""int8: its measurements, its rejection, and a real quantisation of the bundled model.

The real quantisation runs in its own process, without torch and ultralytics. That process records
every network connection.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import yaml
from click.testing import CliRunner, Result
from openvino import opset13 as ops

from devtools.demo_model.shapes import write_samples
from service.cli.export import export
from service.cli.main import main
from service.domain import Box, ClassScore, Detection, Polygon, Prediction
from service.errors import ModelError
from service.export.accuracy import (
    MATCH_CONFIDENCE,
    Agreement,
    ClassAgreement,
    agreement,
    class_agreement,
    find_labels,
    predict_files,
)
from service.export.weights import (
    _check_agreement,
    _check_class_agreement,
    export_openvino,
    find_calibration,
    find_images,
    read_metadata,
)
from service.images.decode import open_image
from service.images.formats import File
from service.images.pixels import DecodedImage
from service.inference.canary import CANARY, FALLBACK, load_verified
from service.inference.identity import sha256_of_model
from service.inference.loading import load_detector
from service.settings import BUNDLED_MODEL
from service.truth import Labels
from tests.fakes import FakeDetector
from tests.labelled import labelled_samples, write_drawn_samples

ABSENT = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 4, 5]}],
    "categories": [{"id": 7, "name": "circle"}],
}
needs_export_extra = pytest.mark.ultralytics  # nncf and pycocotools
HERE = Path(__file__).parents[2]
BOX = Box(0, 0, 100, 100)
FAR = Box(200, 200, 300, 300)


def circle(confidence: float, box: Box = BOX, class_id: int = 0) -> Detection:
    return Detection("circle", class_id, confidence, box)


# --- agreement --------------------------------------------------------------------------------


def agree(theirs: Sequence[Detection], ours: Sequence[Detection]) -> Agreement:
    return agreement([Prediction(tuple(theirs))], [Prediction(tuple(ours))])


@pytest.mark.parametrize(
    ("theirs", "ours", "f1"),
    [
        ([], [], 1.0),
        ([circle(0.9)], [circle(0.4)], 1.0),
        ([circle(0.9)], [], 0.0),
        ([circle(0.9)], [circle(0.2)], 0.0),
        ([circle(0.9)], [circle(0.9, class_id=1)], 0.0),
        ([circle(0.9)], [circle(0.9), circle(0.9)], 2 / 3),
        ([circle(0.9), circle(0.1)], [circle(0.9)], 1.0),
    ],
    ids=["nothing", "same", "lost", "weak", "class", "twice", "below"],
)
def test_agreement_counts_what_both_find(
    theirs: list[Detection], ours: list[Detection], f1: float
) -> None:
    assert agree(theirs, ours).f1 == pytest.approx(f1)


def test_agreement_pairs_boxes_that_overlap_by_half() -> None:
    half, less = Box(0, 0, 100, 50), Box(0, 0, 100, 49)
    assert agree([circle(0.9)], [circle(0.9, half)]) == Agreement(1.0, 0.5, 1)
    assert agree([circle(0.9)], [circle(0.9, less)]).f1 == 0.0


def test_agreement_measures_the_shapes_of_the_pairs() -> None:
    square = Polygon((0, 0, 100, 0, 100, 100, 0, 100))
    half = Polygon((0, 0, 100, 0, 100, 50, 0, 50))
    whole, less = (replace(circle(0.9), polygons=(ring,)) for ring in (square, half))
    measured = agree([whole, circle(0.9, FAR)], [less, circle(0.9, FAR)])
    assert (measured.f1, measured.iou) == (1.0, 1.0)
    assert measured.shape == pytest.approx((0.5 + 1) / 2, abs=0.01)


def classes(*confidences: float) -> Prediction:
    ranked = sorted(enumerate(confidences), key=lambda score: -score[1])
    return Prediction(classes=tuple(ClassScore(f"c{i}", i, value) for i, value in ranked))


def test_agreement_of_classifiers_counts_equal_best_classes() -> None:
    reference = [classes(0.9, 0.1), classes(0.6, 0.4)]
    assert class_agreement(reference, reference) == ClassAgreement(1.0, 0.0, 2)
    other = [classes(0.8, 0.2), classes(0.3, 0.7)]
    measured = class_agreement(reference, other)
    assert (measured.top1, measured.images) == (0.5, 2)
    assert measured.confidence_gap == pytest.approx((0.1 + 0.3) / 2)
    gone = [Prediction(classes=(ClassScore("c7", 7, 0.9),))] * 2
    assert class_agreement(reference, gone).confidence_gap == pytest.approx((0.9 + 0.6) / 2)


@pytest.mark.parametrize(
    ("measured", "what"),
    [
        (ClassAgreement(0.85, 0.01, 80), r"the same class for 0\.850 of the images"),
        (ClassAgreement(0.95, 0.2, 80), r"mean difference of the confidence 0\.200"),
        (ClassAgreement(1.0, 0.0, 3), "There are 3 calibration images, fewer than 20"),
    ],
    ids=["top1", "confidence", "few"],
)
def test_int8_classifier_that_disagrees_is_refused(measured: ClassAgreement, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        _check_class_agreement(measured, 0.9)
    _check_class_agreement(ClassAgreement(0.9, 0.1, 20), 0.9)


@pytest.mark.parametrize(
    ("measured", "what"),
    [
        (Agreement(0.85, 0.97, 300), r"F1 of the detections 0\.850 \(at least 0\.9\)"),
        (Agreement(0.95, 0.93, 300), r"mean IoU of their boxes 0\.930 \(at least 0\.95\)"),
        (Agreement(0.95, 0.97, 300, 0.8), r"keypoints or rotated boxes 0\.800 \(at least 0\.9\)"),
        (Agreement(1.0, 1.0, 3), "finds 3 objects in the 80 calibration images, fewer than 20"),
    ],
    ids=["f1", "iou", "shape", "few"],
)
def test_too_little_agreement_is_refused_with_the_figures(measured: Agreement, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        _check_agreement(measured, 80, 0.9)


def test_enough_agreement_is_not_refused() -> None:
    _check_agreement(Agreement(0.9, 0.95, 20), 80, 0.9)


# --- files ------------------------------------------------------------------------------------


def test_find_images_returns_only_images_and_not_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_drawn_samples(tmp_path / "deep", count=6)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    assert len(find_images(tmp_path)) == 6
    monkeypatch.setattr("service.export.weights._MAX_IMAGES", 4)
    names = [path.name for path in find_images(tmp_path)]
    assert len(names) == 4 and names == sorted(names)
    assert names == [path.name for path in find_images(tmp_path)]


def test_find_images_reads_headers_until_there_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_drawn_samples(tmp_path, count=8)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:1000])  # of a few kB: nothing to decode
    read: list[int] = []

    def counted(data: bytes, *, max_pixels: int) -> File:
        read.append(len(data))
        return open_image(data, max_pixels=max_pixels)

    monkeypatch.setattr("service.export.weights._MAX_IMAGES", 5)
    monkeypatch.setattr("service.export.weights.open_image", counted)
    assert len(find_images(tmp_path)) == len(read) == 5


def test_find_images_in_a_folder_without_images_fails(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no images in"):
        find_images(tmp_path)


def damage(path: Path) -> None:
    """Keep the header, but truncate the pixels."""
    path.write_bytes(path.read_bytes()[:2000])


def test_unreadable_calibration_image_is_skipped_and_named(tmp_path: Path) -> None:
    write_drawn_samples(tmp_path / "deep", count=12)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    damage(tmp_path / "deep/shapes-03.jpg")
    found = find_calibration(tmp_path, image_size=640)
    assert len(found.images) == 11
    assert [entry.partition(" (")[0] for entry in found.skipped] == [
        "deep/shapes-03.jpg",
        "empty.jpg",
    ]


def test_calibration_file_that_cannot_be_opened_is_skipped(tmp_path: Path) -> None:
    write_drawn_samples(tmp_path, count=12)
    (tmp_path / "memory.jpg").symlink_to("/proc/self/mem")  # fails to be read, also by root
    found = find_calibration(tmp_path, image_size=640)
    assert len(found.images) == 12
    assert found.skipped == ["memory.jpg (Input/output error)"]
    with pytest.raises(ModelError, match=r"memory\.jpg cannot be read: Input/output error"):
        find_images(tmp_path)


def test_unreadable_calibration_image_gets_a_substitute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.export.weights._MAX_IMAGES", 10)
    write_drawn_samples(tmp_path, count=12)
    first = find_calibration(tmp_path, image_size=640).images
    damage(first[0])
    found = find_calibration(tmp_path, image_size=640)
    assert len(found.images) == 10
    assert set(first[1:]) < set(found.images)


def test_too_few_readable_calibration_images_are_refused(tmp_path: Path) -> None:
    write_drawn_samples(tmp_path, count=12)
    for path in sorted(tmp_path.iterdir())[:3]:
        damage(path)
    with pytest.raises(ModelError, match=r"can be read: 9, .* at least 10\. .*shapes-01\.jpg \("):
        find_calibration(tmp_path, image_size=640)
    with pytest.raises(ModelError, match="no images in"):
        find_calibration(tmp_path.parent / "absent", image_size=640)


def test_find_labels_looks_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "instances_dev.json"
    assert find_labels(file) == Labels(file, tmp_path)
    (tmp_path / "dev").mkdir()
    assert find_labels(file) == Labels(file, tmp_path / "dev")
    assert find_labels(file, tmp_path) == Labels(file, tmp_path)
    with pytest.raises(ModelError, match="no folder"):
        find_labels(file, tmp_path / "absent")


def test_predict_files_names_the_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ModelError, match=r"cut\.jpg: The JPEG ends before its pixels"):
        predict_files(FakeDetector(), [tmp_path / "cut.jpg"])


def test_predict_files_with_a_model_that_does_not_run_fails(tmp_path: Path) -> None:
    class Raising(FakeDetector):
        def detect(self, images: Sequence[DecodedImage]) -> list[Prediction]:
            raise RuntimeError("no kernel")

    write_drawn_samples(tmp_path, count=1)
    with pytest.raises(ModelError, match=r"fake\.pt cannot run on this machine: no kernel"):
        predict_files(Raising(), list(tmp_path.iterdir()))


# --- export of an exported model --------------------------------------------------------------


@pytest.fixture
def fp32(tmp_path: Path) -> Path:
    """The bundled model with its weights converted to 32 bits."""
    directory = tmp_path / "shapes32_openvino_model"
    directory.mkdir()
    model = ov.Core().read_model(BUNDLED_MODEL / "shapes.xml")
    for convert in model.get_ordered_ops():
        if convert.get_type_name() == "Convert":
            weights = convert.input_value(0).get_node()
            if weights.get_type_name() == "Constant" and weights.get_element_type() == ov.Type.f16:
                wide = ops.constant(weights.data.astype(np.float32))
                convert.output(0).replace(wide.output(0))
    ov.save_model(model, directory / "shapes.xml", compress_to_fp16=False)
    metadata = read_metadata(BUNDLED_MODEL) | {"precision": "fp32"}
    (directory / "metadata.yaml").write_text(yaml.safe_dump(metadata), encoding="utf-8")
    return directory


def test_export_of_an_export_adds_a_canary(tmp_path: Path) -> None:
    written = export_openvino(BUNDLED_MODEL, tmp_path / "out", precision="fp16")
    for name in ("shapes.xml", "shapes.bin", f"{CANARY}/street.jpg"):
        assert (written / name).read_bytes() == (BUNDLED_MODEL / name).read_bytes()
    assert load_verified(written, load=load_detector).fallback is None


def test_export_of_fp32_to_fp16_halves_the_weights(fp32: Path, tmp_path: Path) -> None:
    written = export_openvino(fp32, tmp_path / "out", precision="fp16", image_size=256)
    sizes = [(path / "shapes.bin").stat().st_size for path in (written, fp32)]
    assert sizes[0] < 0.6 * sizes[1]
    info = load_verified(written, load=load_detector).detector.info
    assert (info.precision, info.image_size, info.name) == ("fp16", 256, "shapes.pt")


def test_renamed_export_is_another_model_in_the_documents(tmp_path: Path) -> None:
    own = read_metadata(BUNDLED_MODEL)["sha256"]

    def sha256_of_export(model: Path, name: str, *renames: str) -> str:
        target = tmp_path / name
        export_openvino(model, target, precision="fp16", renames=renames)
        info = load_detector(target).info
        assert sha256_of_model(target) == info.sha256
        return info.sha256

    assert sha256_of_export(BUNDLED_MODEL, "same") == own
    assert sha256_of_export(BUNDLED_MODEL, "kept", "star=star") == own
    first = sha256_of_export(BUNDLED_MODEL, "renamed", "star=sun")
    again = sha256_of_export(tmp_path / "renamed", "again")
    second = sha256_of_export(tmp_path / "renamed", "second", "heart=love")
    both = sha256_of_export(BUNDLED_MODEL, "both", "heart=love", "star=sun")
    assert first == again
    assert second == both
    assert len({own, first, second}) == 3
    assert read_metadata(tmp_path / "second")["weights_sha256"] == own


@pytest.mark.parametrize("precision", ["fp16", "int8", None])
def test_advice_about_labels_works_for_the_precision(tmp_path: Path, precision: str | None) -> None:
    model = shutil.copytree(BUNDLED_MODEL, tmp_path / "odd_openvino_model")
    metadata = read_metadata(model)
    metadata["names"][3] = ""
    metadata["precision"] = precision
    (model / "metadata.yaml").write_text(yaml.safe_dump(metadata), encoding="utf-8")
    with pytest.raises(ModelError, match="class 3, '': a label cannot be empty") as caught:
        load_detector(model)
    if precision != "fp16":
        assert "export again from its weights" in str(caught.value)
        return
    advice = str(caught.value).partition("yolo-batch ")[2].partition(" (or")[0]
    arguments = advice.replace("DIRECTORY", str(tmp_path / "out")).replace("OLD=NEW", "=sun")
    done = CliRunner().invoke(main, arguments.split())
    assert done.exit_code == 0, done.output
    assert read_metadata(tmp_path / "out")["names"][3] == "sun"


@pytest.mark.parametrize(
    ("changes", "arguments", "what"),
    [
        ({}, {"precision": "fp32"}, "has fp16 weights"),
        (
            {"precision": "int8"},
            {"precision": "fp16"},
            "is not a float model, its precision is int8",
        ),
        ({}, {"precision": "int8"}, "int8 needs --calibration"),
        ({}, {"precision": "fp16", "image_size": 100}, "not a multiple of 32"),
    ],
    ids=["fp32", "from-int8", "calibration", "size"],
)
def test_impossible_export_is_rejected(
    tmp_path: Path, changes: dict[str, Any], arguments: dict[str, Any], what: str
) -> None:
    model = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))
    metadata = read_metadata(model) | changes
    (model / "metadata.yaml").write_text(yaml.safe_dump(metadata), encoding="utf-8")
    with pytest.raises(ModelError, match=what):
        export_openvino(model, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_export_over_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="exists and is not an exported model"):
        export_openvino(BUNDLED_MODEL, tmp_path, precision="fp16")
    assert (tmp_path / "thesis.txt").exists()


def test_export_over_its_own_model_is_refused_unless_named(tmp_path: Path) -> None:
    model = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "shapes_openvino_model"))
    shutil.rmtree(model / CANARY)
    done = CliRunner().invoke(main, ["export", str(model), "--precision", "fp16"])
    assert done.exit_code == 3
    assert "would overwrite" in done.output and "--output" in done.output
    assert not (model / CANARY).exists()
    assert export_openvino(model, model, precision="fp16") == model
    assert load_verified(model, load=load_detector).fallback is None


def test_export_replaces_an_older_one(tmp_path: Path) -> None:
    target = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "out"))
    (target / "old.bin").write_bytes(b"old")
    export_openvino(BUNDLED_MODEL, target, precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = sorted(path.name for path in target.iterdir())
    assert names == [CANARY, "metadata.yaml", "shapes.bin", "shapes.xml"]


def test_export_that_cannot_be_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError("No space left on device")

    target = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "out"))
    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(OSError, match="No space left"):
        export_openvino(BUNDLED_MODEL, target, precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_verified(target, load=load_detector).fallback is None


def test_export_of_an_export_drops_its_measurements(tmp_path: Path) -> None:
    model = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))
    figures = {"accuracy": {"labels": "old.json"}, "quantization": {}, CANARY: {"old": 1}}
    metadata = yaml.safe_dump(read_metadata(model) | figures)
    (model / "metadata.yaml").write_text(metadata, encoding="utf-8")
    written = read_metadata(export_openvino(model, tmp_path / "out", precision="fp16"))
    assert "accuracy" not in written and "quantization" not in written
    assert list(written[CANARY]) == ["detections_compared"]


def test_canary_of_many_images_or_equal_names_is_rejected(tmp_path: Path) -> None:
    def export_with(own: Path) -> None:
        export_openvino(BUNDLED_MODEL, tmp_path / "out", precision="fp16", canary=own)

    write_drawn_samples(tmp_path / "many", count=11)
    for folder in ("a", "b"):
        write_drawn_samples(tmp_path / "twice" / folder, count=1)
    with pytest.raises(ModelError, match="more than 10 images"):
        export_with(tmp_path / "many")
    with pytest.raises(ModelError, match=r"two images with the name shapes-01\.jpg"):
        export_with(tmp_path / "twice")


def test_canary_of_own_images_replaces_the_drawn_ones(tmp_path: Path) -> None:
    write_drawn_samples(tmp_path / "own", count=1)
    options = ["--precision", "fp16", "--canary", str(tmp_path / "own")]
    done = run_export(BUNDLED_MODEL, tmp_path / "out", *options)
    assert "would notice few faults" not in done.output
    names = sorted(path.name for path in (tmp_path / "out" / CANARY).iterdir())
    assert names == ["expected.json", "shapes-01.jpg"]
    assert load_verified(tmp_path / "out", load=load_detector).fallback is None


def run_export(*arguments: object) -> Result:
    model, output, *options = map(str, arguments)
    done = CliRunner().invoke(export, [model, "--output", output, *options])
    if done.exception:
        raise done.exception
    return done


# --- a model that cannot be quantised well -----------------------------------------------------


def test_int8_without_nncf_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_drawn_samples(tmp_path / "images", count=2)
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ModelError, match=r"pip install 'yolo-batch\[export\]'"):
        export_openvino(
            BUNDLED_MODEL,
            tmp_path / "out",
            precision="int8",
            calibration=tmp_path / "images",
        )
    assert not (tmp_path / "out").exists()


def test_int8_that_disagrees_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantisation is replaced by one that darkens the input. Everything else is real."""
    monkeypatch.setattr("service.export.quantize.quantize", darken_input)
    monkeypatch.setattr("service.export.quantize.nncf_version", lambda: "0")
    write_drawn_samples(tmp_path / "images")
    with pytest.raises(ModelError, match=r"int8 agrees too little with float on the 12 .*F1"):
        export_openvino(
            BUNDLED_MODEL,
            tmp_path / "out",
            precision="int8",
            calibration=tmp_path / "images",
        )
    assert not (tmp_path / "out").exists()


@needs_export_extra
def test_labels_are_read_before_the_quantisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize(*_: object, **__: object) -> None:
        raise AssertionError("quantised")

    monkeypatch.setattr("service.export.quantize.quantize", quantize)
    write_drawn_samples(tmp_path / "images", count=2)
    file = tmp_path / "labels.json"
    for text, what in (
        ("{}", "not a COCO label file"),
        (json.dumps(ABSENT), "which does not exist"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=what):
            export_openvino(
                BUNDLED_MODEL,
                tmp_path / "out",
                precision="int8",
                calibration=tmp_path / "images",
                labels=Labels(file, tmp_path / "images"),
            )


def darken_input(model: ov.Model, images: Sequence[Path], **_: object) -> ov.Model:
    """Darken the input, so that the model detects less."""
    assert len(images) == 12
    [parameter] = model.get_parameters()
    readers = parameter.output(0).get_target_inputs()
    darker = ops.multiply(parameter, np.float32(0.3))
    for reader in readers:
        reader.replace_source_output(darker.output(0))
    return model


# --- the real quantisation --------------------------------------------------------------------

QUANTIZE = """
import json, sys
noted = []

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "os.fork"):
        noted.append([event, repr(arguments)])

sys.addaudithook(note)
sys.modules["torch"] = sys.modules["ultralytics"] = None  # not importable
from service.cli.export import export
try:
    export(sys.argv[1:], standalone_mode=False)
finally:
    print(json.dumps(noted))
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_drawn_samples(folder)
    return folder


@pytest.fixture(scope="module")
def labels(samples: Path) -> Labels:
    """Labels of the samples, in COCO's format."""
    file = samples.parent / "labels.json"
    file.write_text(json.dumps(labelled_samples()), encoding="utf-8")
    return Labels(file, samples)


@pytest.fixture(scope="module")
def quantized(
    samples: Path, labels: Labels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """An int8 export of the bundled model, and what its process printed."""
    home = tmp_path_factory.mktemp("int8")
    output = home / "out"
    arguments: list[object] = [BUNDLED_MODEL, "--output", output, "--precision", "int8"]
    arguments += [
        "--calibration",
        samples,
        "--data",
        labels.file,
        "--data-images",
        labels.image_folder,
    ]
    done = subprocess.run(
        [sys.executable, "-c", QUANTIZE, *map(str, arguments)],
        cwd=HERE,
        env={k: v for k, v in os.environ.items() if k != "CI"} | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output, done.stdout.splitlines()


@needs_export_extra
def test_int8_needs_no_torch_and_sends_no_telemetry(
    quantized: tuple[Path, list[str]],
) -> None:
    output, lines = quantized
    assert json.loads(lines[-1]) == []
    assert [path.name for path in output.parent.iterdir()] == ["out"]  # nothing left at home


@needs_export_extra
def test_int8_metadata_contain_the_measurements(quantized: tuple[Path, list[str]]) -> None:
    output, lines = quantized
    metadata = read_metadata(output)
    measured = metadata["quantization"]["agreement"]
    assert metadata["precision"] == "int8"
    assert metadata["quantization"]["calibration_images"] == 12
    assert metadata["quantization"]["threshold"] == {"f1": 0.9, "iou": 0.95, "shape": 0.9}
    assert measured["f1"] >= 0.9 and measured["iou"] >= 0.95 and measured["detections"] >= 50
    for precision in ("fp16", "int8"):
        assert 0.85 < metadata["accuracy"][precision]["map50_95"] < 1
    assert any(f"F1 {measured['f1']:.3f} (at least 0.9)" in line for line in lines)
    assert any(line.startswith("int8 on labels.json: mAP50-95 ") for line in lines)
    assert str(output.parent) not in (output / "metadata.yaml").read_text(encoding="utf-8")


@needs_export_extra
def test_int8_is_static_and_keeps_the_ends_in_float(quantized: tuple[Path, list[str]]) -> None:
    output, _ = quantized
    model = ov.Core().read_model(output / "shapes.xml")
    assert model.input(0).partial_shape.to_string() == "[?,3,?,?]"
    kinds = [op.get_type_name() for op in model.get_ordered_ops()]
    assert kinds.count("FakeQuantize") > 50
    first = next(op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution")
    assert first.input_value(0).get_node().get_type_name() != "FakeQuantize"
    [last] = model.get_results()
    assert not decoded_by("FakeQuantize", last)


def decoded_by(kind: str, result: ov.Node) -> bool:
    """Whether an operation of this kind lies between the last convolutions and the output."""
    pending, seen = [result], set()
    while pending:
        for value in pending.pop().input_values():
            node = value.get_node()
            if node.get_friendly_name() in seen:
                continue
            seen.add(node.get_friendly_name())
            if node.get_type_name() == kind:
                return True
            if node.get_type_name() not in ("Convolution", "GroupConvolution", "ShapeOf"):
                pending.append(node)
    return False


@needs_export_extra
def test_int8_carries_its_canary_and_the_float_model(quantized: tuple[Path, list[str]]) -> None:
    output, _ = quantized
    verified = load_verified(output, load=load_detector)
    assert (verified.fallback, verified.detector.info.precision) == (None, "int8")
    beside = load_verified(output / FALLBACK, load=load_detector)
    assert (beside.fallback, beside.detector.info.precision) == (None, "fp16")
    assert (output / FALLBACK / "shapes.bin").read_bytes() == (
        BUNDLED_MODEL / "shapes.bin"
    ).read_bytes()


@needs_export_extra
def test_int8_agrees_with_float_on_images_it_never_saw(
    quantized: tuple[Path, list[str]], tmp_path: Path
) -> None:
    write_samples(tmp_path, seed=77)
    files = sorted(tmp_path.iterdir())
    float_detections, int8_detections = (
        predict_files(load_detector(path, min_confidence=MATCH_CONFIDENCE), files)
        for path in (BUNDLED_MODEL, quantized[0])
    )
    measured = agreement(float_detections, int8_detections)
    assert measured.detections >= 40
    assert measured.f1 >= 0.9
