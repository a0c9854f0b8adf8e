"""A model's canary, on the bundled model and on fakes."""

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from service.cli.check_model import check_model
from service.domain import (
    Box,
    ClassScore,
    Detection,
    ImageInfo,
    Keypoint,
    ModelInfo,
    Polygon,
    Prediction,
    RotatedBox,
)
from service.errors import DecoderUnavailableError, ModelError
from service.export.canary import write_canary
from service.export.drawings import draw
from service.images.decode import decode_in_process
from service.images.decoders import Decoders
from service.images.pixels import DecodedImage, Pixels, check_pixels
from service.inference.canary import (
    CANARY,
    FALLBACK,
    NOT_COMPARED,
    PASSED,
    Tolerance,
    describe_difference,
    load_verified,
    prediction_from_json,
    prediction_to_json,
)
from service.inference.detector import Detector
from service.inference.loading import load_detector, load_model, warm_up
from service.machine import cpu_name
from service.server.wsgi import _load, _model_health
from service.settings import BUNDLED_MODEL, Settings
from tests.loglines import logged_by

BOX = Box(10, 10, 50, 50)
NEAR = Box(10, 10, 50, 52)  # IoU 0.95
FAR = Box(30, 10, 70, 50)
HERE = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))


@pytest.fixture
def with_float(model: Path) -> Path:
    """A model whose canary fails, with a float model that passes."""
    shutil.copytree(BUNDLED_MODEL, model / FALLBACK)
    expect(model, "circle", "heart")
    return model


def expect(model: Path, label: str, other: str) -> None:
    """Change an expected class of the canary."""
    path = model / CANARY / "expected.json"
    text = path.read_text(encoding="utf-8")
    assert f'"{label}"' in text
    swapped = text.replace(f'"{label}"', f'"{other}"').replace('"class_id": 0', '"class_id": 4')
    path.write_text(swapped, encoding="utf-8")


class Seeing:
    """A detector that returns the same detections for each image."""

    labels = {0: "circle"}
    runners = 1

    def __init__(self, *found: Detection, image_size: int = 320) -> None:
        self.info = ModelInfo("seeing.pt", "ab" * 32, image_size, "int8", "fake")
        self.found = list(found)
        self.batches: list[int] = []

    def input_shape(self, width: int, height: int) -> tuple[int, int]:
        return height, width

    def detect(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        self.batches.append(len(images))
        return [Prediction(tuple(self.found)) for _ in images]


class SeeingTask(Seeing):
    """A detector that returns the same prediction for each image."""

    def __init__(self, prediction: Prediction) -> None:
        super().__init__()
        self.prediction = prediction

    def detect(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        return [self.prediction for _ in images]


class Raising(Seeing):
    """A model that its runtime cannot compile."""

    def detect(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        raise RuntimeError("no kernel")


def circle(confidence: float, box: Box = BOX, class_id: int = 0) -> Detection:
    return Detection("circle", class_id, confidence, box)


# --- the comparison ---------------------------------------------------------------------------


def difference(
    expected: Sequence[Detection], found: Sequence[Detection], *, min_confidence: float = 0.0
) -> str | None:
    return describe_difference(
        Prediction(tuple(expected)),
        Prediction(tuple(found)),
        Tolerance(),
        min_confidence=min_confidence,
    )


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ([], []),
        ([circle(0.9)], [circle(0.9)]),
        ([circle(0.9)], [circle(0.85, NEAR)]),
        ([circle(0.9), circle(0.8, FAR)], [circle(0.8, FAR), circle(0.9)]),
        ([circle(0.3)], []),  # undecided
        ([], [circle(0.3)]),
        ([circle(0.35)], [circle(0.45)]),
    ],
    ids=["nothing", "equal", "near", "order", "weak-lost", "weak-new", "weak-grown"],
)
def test_small_differences_are_tolerated(expected: list[Detection], found: list[Detection]) -> None:
    assert difference(expected, found) is None


@pytest.mark.parametrize(
    ("expected", "found", "what"),
    [
        ([circle(0.9)], [], "expected 'circle' at 0.90 in the box (10, 10, 50, 50)"),
        ([circle(0.9)], [circle(0.9, FAR)], "which was not found"),
        ([circle(0.9)], [circle(0.9, class_id=1)], "which was not found"),
        ([circle(0.9)], [circle(0.6)], "found it at 0.60"),
        ([circle(0.9)], [circle(float("nan"))], "found it at nan"),
        ([circle(0.9)], [circle(0.9), circle(0.9)], "found 'circle' at 0.90"),
        ([], [circle(0.9)], "which was not expected"),
    ],
    ids=["lost", "moved", "class", "unsure", "nan", "twice", "new"],
)
def test_large_differences_are_described(
    expected: list[Detection], found: list[Detection], what: str
) -> None:
    assert what in str(difference(expected, found))


def test_detections_below_min_confidence_are_not_compared() -> None:
    assert difference([circle(0.8)], [], min_confidence=0.9) is None
    assert difference([circle(0.8)], [], min_confidence=0.5)


RING = Polygon((10, 10, 50, 10, 50, 50, 10, 50))
HOLE = Polygon((18, 18, 42, 18, 42, 42, 18, 42))


def masked(*rings: Polygon) -> Detection:
    return replace(circle(0.9), polygons=rings)


def posed(x: float) -> Detection:
    return replace(circle(0.9), keypoints=(Keypoint("nose", x, 30, 0.9),))


def turned(degrees: float) -> Detection:
    return replace(circle(0.9), rotated_box=RotatedBox(30, 30, 40, 20, degrees))


@pytest.mark.parametrize(
    ("expected", "found", "similarity"),
    [
        (masked(RING), masked(RING, HOLE), "0.6"),
        (masked(RING), circle(0.9), "0.00"),
        (posed(30), posed(45), "0."),
        (turned(10), turned(80), "0."),
    ],
    ids=["hole", "no-mask", "keypoints", "angle"],
)
def test_another_shape_in_the_same_box_is_described(
    expected: Detection, found: Detection, similarity: str
) -> None:
    text = difference([expected], [found])
    assert text and f"with another shape: their similarity is {similarity}" in text
    assert difference([expected], [expected]) is None


def scores(*confidences: float) -> Prediction:
    return Prediction(
        classes=tuple(ClassScore(f"c{i}", i, value) for i, value in enumerate(confidences))
    )


def test_classes_of_an_image_are_compared_if_they_are_sure() -> None:
    def text(expected: Prediction, actual: Prediction) -> str | None:
        return describe_difference(expected, actual, Tolerance())

    assert text(scores(0.9, 0.05), scores(0.85, 0.1)) is None
    assert text(scores(0.2, 0.19), scores(0.19, 0.2)) is None  # undecided
    assert "expected 'c0' at 0.90, found it at 0.50" in str(text(scores(0.9), scores(0.5)))
    swapped = replace(scores(0.05, 0.9), classes=scores(0.05, 0.9).classes[1:])
    assert "expected 'c0' at 0.90, which was not found" in str(text(scores(0.9), swapped))
    assert "found 'c0' at 0.90, which was not expected" in str(text(swapped, scores(0.9, 0.9)))


SHAPED = [
    Prediction((masked(RING, HOLE), circle(0.3, FAR))),
    Prediction((posed(30),)),
    Prediction((turned(33.3),)),
    scores(0.9, 0.05),
]


@pytest.mark.parametrize("prediction", SHAPED, ids=["segment", "pose", "obb", "classify"])
def test_expected_predictions_survive_the_file(prediction: Prediction) -> None:
    info = ImageInfo(640, 480, "")
    rows = json.loads(json.dumps(prediction_to_json(prediction, info)))
    read = prediction_from_json(rows, info)
    assert (
        describe_difference(prediction, read, Tolerance(logit=0.01, iou=0.99, shape=0.98)) is None
    )
    assert len(read.detections) == len(prediction.detections)
    assert len(read.classes) == len(prediction.classes)


@pytest.mark.parametrize("prediction", SHAPED, ids=["segment", "pose", "obb", "classify"])
def test_canary_of_each_task_finds_a_changed_prediction(
    model: Path, prediction: Prediction
) -> None:
    shutil.rmtree(model / CANARY)
    seeing = SeeingTask(prediction)
    assert write_canary(model, seeing, draw()) == 3
    assert load_verified(model, load=lambda _: seeing).canary == PASSED
    other = SeeingTask(Prediction((circle(0.9),) if prediction.detections else ()))
    with pytest.raises(ModelError, match="differs on"):
        load_verified(model, load=lambda _: other)


# --- a real model -----------------------------------------------------------------------------


def test_bundled_model_passes_its_canary(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        verified = load_verified(BUNDLED_MODEL, load=load_detector)
    assert (verified.path, verified.fallback, verified.canary) == (BUNDLED_MODEL, None, PASSED)
    [line] = [record for record in caplog.records if "canary" in record.message]
    assert vars(line)["model"] == str(BUNDLED_MODEL)
    assert vars(line)["cpu"] == cpu_name() != ""


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_canary_is_logged_before_it_runs_at_any_log_level(
    level: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(level):
        load_verified(BUNDLED_MODEL, load=load_detector)
    assert [r.levelname for r in caplog.records if "Running" in r.message] == [level]


CHECKING = """
import sys
from pathlib import Path
from service.inference.loading import load_detector
from service.inference.canary import load_verified

print(load_verified(Path(sys.argv[1]), load=load_detector).fallback)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are x86's instructions")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_bundled_model_passes_its_canary_on_other_cpus(instructions: str) -> None:
    """oneDNN's setting limits the instructions. It has no effect on a CPU without them."""
    done = subprocess.run(
        [sys.executable, "-c", CHECKING, str(BUNDLED_MODEL)],
        cwd=HERE,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": instructions},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "None", done.stderr


def test_canary_passes_at_any_min_confidence() -> None:
    for confidence in (0.001, 0.6, 0.99):
        load = partial(load_detector, min_confidence=confidence)
        load_verified(BUNDLED_MODEL, load=load, min_confidence=confidence)


def test_canary_runs_one_image_at_a_time(model: Path) -> None:
    shutil.rmtree(model / CANARY)
    write_canary(model, Seeing(circle(0.9)), draw())
    seeing = Seeing(circle(0.9))
    load_verified(model, load=lambda _: seeing)
    assert seeing.batches == [1, 1, 1]


def test_canary_sees_what_the_services_decoder_returns(model: Path) -> None:
    """A decoder that exchanges red and blue on this machine changes the detections."""

    def swapped(data: bytes, image_size: int, crop: bool) -> Pixels:
        return np.ascontiguousarray(decode_in_process(data, image_size, crop)[:, :, ::-1])

    with pytest.raises(ModelError, match="differs on"):
        load_verified(model, load=load_detector, decode=swapped)
    assert load_verified(model, load=load_detector, decode=decode_in_process).canary == PASSED


def test_canary_that_cannot_be_decoded_is_a_model_error(model: Path) -> None:
    def busy(data: bytes, image_size: int, crop: bool) -> Pixels:
        raise DecoderUnavailableError("no memory")

    with pytest.raises(ModelError, match=r"failed on .*: street\.jpg: no memory"):
        load_verified(model, load=load_detector, decode=busy)


def test_canary_with_other_detections_is_rejected(model: Path) -> None:
    expect(model, "circle", "heart")
    with pytest.raises(ModelError, match=r"differs on .+: in street\.jpg, expected"):
        load_verified(model, load=load_detector)


def test_canary_with_other_detections_falls_back_to_float(
    with_float: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verified = load_verified(with_float, load=load_detector)
    assert verified.path == with_float / FALLBACK
    assert verified.detector.info.precision == "fp16"
    assert "differs on" in str(verified.fallback)
    assert "The float model beside it runs instead" in str(verified.fallback)
    assert [r.levelname for r in caplog.records if "Fell back" in r.message] == ["ERROR"]


def test_fallback_has_to_pass_its_own_canary(with_float: Path) -> None:
    expect(with_float / FALLBACK, "circle", "heart")
    with pytest.raises(ModelError, match=r"The canary of .*float differs"):
        load_verified(with_float, load=load_detector)


@pytest.mark.parametrize("name", ["shapes.bin", "shapes.xml"])
def test_damaged_model_is_never_loaded(model: Path, name: str) -> None:
    file = model / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    def load(path: Path) -> Detector:
        raise AssertionError(f"loaded {path}")

    with pytest.raises(ModelError, match="is damaged"):
        load_verified(model, load=load)


def test_model_that_sees_other_colours_is_refused(model: Path) -> None:
    """A faulty library would look like this: the files are intact, the detections are wrong."""

    class Swapped(Seeing):
        def detect(self, images: Sequence[DecodedImage]) -> list[Prediction]:
            swapped = (np.ascontiguousarray(image.pixels[:, :, ::-1]) for image in images)
            return list(right.detect([DecodedImage.of(pixels) for pixels in swapped]))

    right = load_detector(model)
    with pytest.raises(ModelError, match="differs on"):
        load_verified(model, load=lambda _: Swapped())


def test_model_that_raises_falls_back(with_float: Path) -> None:
    def load(path: Path) -> Detector:
        if path.name == FALLBACK:
            return load_detector(path)
        return Raising()

    assert "street.jpg: no kernel" in str(load_verified(with_float, load=load).fallback)


def test_model_that_cannot_be_loaded_falls_back(with_float: Path) -> None:
    (with_float / "shapes.xml").write_text("<net", encoding="utf-8")
    shutil.rmtree(with_float / CANARY)
    assert "OpenVINO cannot load" in str(load_verified(with_float, load=load_detector).fallback)


def test_unexpected_error_of_a_model_falls_back(
    with_float: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def load(path: Path) -> Detector:
        if path.name != FALLBACK:
            raise ZeroDivisionError("imgsz")
        return load_detector(path)

    verified = load_verified(with_float, load=load)
    assert "cannot be loaded or run: ZeroDivisionError('imgsz')" in str(verified.fallback)
    assert verified.canary == PASSED
    assert any(record.exc_info for record in caplog.records)


def test_model_without_a_canary_loads_with_a_warning(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(model / CANARY)
    verified = load_verified(model, load=load_detector)
    assert (verified.fallback, verified.canary) == (None, None)
    assert "carries no canary" in caplog.text


def test_weights_are_loaded_as_they_are(tmp_path: Path) -> None:
    seeing = Seeing()
    load_verified(tmp_path / "yolo26n.pt", load=lambda _: seeing)
    assert seeing.batches == []


def test_canary_of_another_image_size_runs_but_is_not_compared(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seeing = Seeing(image_size=640)
    assert load_verified(model, load=lambda _: seeing).canary == NOT_COMPARED
    assert len(seeing.batches) == 3
    assert "was not compared" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"files_sha256": 1, "image_size": 2}',
        '{"files_sha256": 1, "image_size": 2, "tolerance": {}, "images": {}}',
    ],
    ids=["empty", "nothing", "list", "half", "no-images"],
)
def test_broken_expectations_are_a_model_error(model: Path, text: str) -> None:
    (model / CANARY / "expected.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="is not what `yolo-batch export` writes"):
        load_verified(model, load=load_detector)


# --- a crash ----------------------------------------------------------------------------------

ABORTING = """
import logging, os, sys
from pathlib import Path
from service.inference.loading import load_detector
from service.inference.canary import load_verified
from tests.boxes import found_in

class Aborting:
    def __init__(self, path):
        self.info = load_detector(path).info

    def detect(self, images):
        os.abort()

logging.basicConfig(level="INFO", format="%(message)s %(cpu)s %(model)s")
load_verified(Path(sys.argv[1]), load=Aborting)
"""


def test_crash_of_the_model_logs_which_model_and_cpu(model: Path) -> None:
    """Cloud Run keeps the previous revision, and the log is all that an operator sees."""
    done = subprocess.run(
        [sys.executable, "-c", ABORTING, str(model)],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode < 0, done.stderr
    assert f"Running the model's canary {cpu_name()} {model}" in done.stderr
    assert "Fatal Python error: Aborted" in done.stderr  # faulthandler's
    assert "in detect" in done.stderr


def test_write_canary_counts_what_a_start_compares(model: Path) -> None:
    shutil.rmtree(model / CANARY)
    sure = replace(circle(0.9), box=FAR)
    assert write_canary(model, Seeing(sure, circle(0.3)), draw()) == 3


def test_write_canary_of_a_model_that_does_not_run_fails(model: Path) -> None:
    shutil.rmtree(model / CANARY)
    with pytest.raises(ModelError, match=r"seeing\.pt cannot run on this machine: no kernel"):
        write_canary(model, Raising(), draw())


def test_write_canary_names_a_file_that_is_no_image(model: Path) -> None:
    shutil.rmtree(model / CANARY)
    with pytest.raises(ModelError, match=r"cut\.jpg cannot be a canary image"):
        write_canary(model, Seeing(), {"cut.jpg": b"\xff\xd8\xff"})


def test_canary_does_not_depend_on_the_threshold_of_the_results(model: Path) -> None:
    """The detector returns faint detections too, so the canary still compares what is not kept."""
    expect(model, "circle", "heart")
    with pytest.raises(ModelError, match="differs on"):
        load_model(Settings(model_path=model, min_confidence=0.999))


# --- the service's start ----------------------------------------------------------------------


@pytest.mark.parametrize(("has_canary", "runs"), [(True, 3), (False, 1)], ids=["canary", "none"])
def test_start_warms_up_only_what_no_canary_has_run(
    model: Path, monkeypatch: pytest.MonkeyPatch, has_canary: bool, runs: int
) -> None:
    shutil.rmtree(model / CANARY)
    seeing = Seeing()
    if has_canary:
        write_canary(model, Seeing(), draw())
    monkeypatch.setattr("service.inference.loading.load_detector", lambda *_, **__: seeing)
    load_model(Settings(model_path=model))
    assert seeing.batches == [1] * runs


def damage(model: Path) -> None:
    next(model.glob("*.bin")).write_bytes(b"other weights")


def lose_its_images(model: Path) -> None:
    for image in (model / CANARY).glob("*.jpg"):
        image.unlink()


def differ(model: Path) -> None:
    expect(model, "circle", "heart")


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(1, max_pixels=1000, max_decompressed_bytes=1000)
    yield decoders
    decoders.close()


@pytest.mark.parametrize("corrupt", [differ, damage, lose_its_images])
def test_start_that_the_canary_stops_names_the_models_path(
    model: Path, decoders: Decoders, corrupt: Callable[[Path], None]
) -> None:
    corrupt(model)
    with pytest.raises(ModelError, match=f"{re.escape(str(model))} "):
        _load(Settings(model_path=model), decoders)
    assert model.is_absolute()


def test_limits_of_uploads_do_not_apply_to_the_canary(decoders: Decoders) -> None:
    assert _load(Settings(max_image_pixels=1000), decoders).canary == PASSED


def test_start_that_falls_back_logs_the_failed_models_path(
    with_float: Path, decoders: Decoders, caplog: pytest.LogCaptureFixture
) -> None:
    _load(Settings(model_path=with_float), decoders)
    [record] = [line for line in logged_by(caplog, "service") if line.levelno >= logging.ERROR]
    assert f"The canary of {with_float} differs" in vars(record)["reason"]


def test_warm_up_gives_the_model_an_image_as_decoders_do() -> None:
    class Looking(Seeing):
        def detect(self, images: Sequence[DecodedImage]) -> list[Prediction]:
            shapes.extend(check_pixels(image.pixels).shape for image in images)
            return super().detect(images)

    shapes: list[tuple[int, ...]] = []
    warm_up(Looking())
    size = Looking().info.image_size
    assert shapes == [(size * 3 // 4, size, 3)]


def test_warm_up_of_a_model_that_does_not_run_fails() -> None:
    with pytest.raises(ModelError, match=r"seeing\.pt cannot run on this machine: no kernel"):
        warm_up(Raising())


def test_health_says_that_the_canary_was_not_compared(model: Path) -> None:
    settings = Settings(model_path=model, image_size=640)
    assert _model_health(load_model(settings), settings)["canary"] == "not compared"


def test_check_model_warns_that_the_canary_was_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGE_SIZE", "640")
    done = CliRunner().invoke(check_model, [str(BUNDLED_MODEL)])
    assert done.exit_code == 0, done.output
    assert "not compared: IMAGE_SIZE differs from the image size of the export" in done.stderr
