"""What a network has to answer before it serves: on the network in the repository, and on fakes."""

import fcntl
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from service.stages import NO_CLOCK

from service.cli.check_model import check_model
from service.domain import Box, Detection, ModelInfo
from service.errors import ModelError
from service.export.drawings import draw
from service.images.pixels import Pixels
from service.inference.canary import (
    CANARY,
    FALLBACK,
    NOT_COMPARED,
    PASSED,
    Tolerance,
    VerifiedModel,
    _locked,
    cpu_name,
    difference,
    load_verified,
    write_canary,
)
from service.inference.detector import Detector
from service.inference.loading import load_detector, warm_up
from service.server.wsgi import _health, _load, load_model
from service.settings import BUNDLED_MODEL, Settings
from tests.loglines import logged_by

BOX = Box(0.1, 0.1, 0.5, 0.5)
NEAR = Box(0.1, 0.1, 0.5, 0.52)  # IoU 0.95
FAR = Box(0.3, 0.1, 0.7, 0.5)
HERE = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def markers(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep markers apart from those of services on this machine."""
    folder = tmp_path_factory.mktemp("markers")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))


@pytest.fixture
def with_float(model: Path) -> Path:
    """A model whose canary fails, with a good one beside it."""
    shutil.copytree(BUNDLED_MODEL, model / FALLBACK)
    expect(model, "circle", "heart")
    return model


def expect(model: Path, label: str, other: str) -> None:
    """Let the canary expect another class."""
    path = model / CANARY / "expected.json"
    text = path.read_text(encoding="utf-8")
    assert f'"{label}"' in text
    swapped = text.replace(f'"{label}"', f'"{other}"').replace('"class_id": 0', '"class_id": 4')
    path.write_text(swapped, encoding="utf-8")


class Seeing:
    """A detector that gives the same detections for each picture."""

    def __init__(self, *found: Detection, image_size: int = 320) -> None:
        self.info = ModelInfo("seeing.pt", "ab" * 32, image_size, "int8", "fake")
        self.found = list(found)
        self.batches: list[int] = []

    def batch_key(self, width: int, height: int) -> None:
        del width, height

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        self.batches.append(len(images))
        return [self.found for _ in images]


class Raising(Seeing):
    """A network that its runtime cannot compile."""

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        raise RuntimeError("no kernel")


def thing(confidence: float, box: Box = BOX, class_id: int = 0) -> Detection:
    return Detection("circle", class_id, confidence, box)


# --- the comparison ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ([], []),
        ([thing(0.9)], [thing(0.9)]),
        ([thing(0.9)], [thing(0.85, NEAR)]),
        ([thing(0.9), thing(0.8, FAR)], [thing(0.8, FAR), thing(0.9)]),
        ([thing(0.3)], []),  # undecided
        ([], [thing(0.3)]),
        ([thing(0.35)], [thing(0.45)]),
    ],
    ids=["nothing", "equal", "near", "order", "weak-lost", "weak-new", "weak-grown"],
)
def test_difference_of_the_same_network_is_none(
    expected: list[Detection], found: list[Detection]
) -> None:
    assert difference(expected, found, Tolerance()) is None


@pytest.mark.parametrize(
    ("expected", "found", "what"),
    [
        ([thing(0.9)], [], "expected 'circle' at 0.90 in (10, 10, 50, 50) %"),
        ([thing(0.9)], [thing(0.9, FAR)], "which was not found"),
        ([thing(0.9)], [thing(0.9, class_id=1)], "which was not found"),
        ([thing(0.9)], [thing(0.6)], "found it at 0.60"),
        ([thing(0.9)], [thing(float("nan"))], "found it at nan"),
        ([thing(0.9)], [thing(0.9), thing(0.9)], "found 'circle' at 0.90"),
        ([], [thing(0.9)], "which was not expected"),
    ],
    ids=["lost", "moved", "class", "unsure", "nan", "twice", "new"],
)
def test_difference_of_a_broken_network_says_what(
    expected: list[Detection], found: list[Detection], what: str
) -> None:
    assert what in str(difference(expected, found, Tolerance()))


def test_difference_leaves_out_what_the_service_leaves_out() -> None:
    assert difference([thing(0.8)], [], Tolerance(), min_confidence=0.9) is None
    assert difference([thing(0.8)], [], Tolerance(), min_confidence=0.5)


# --- a real network ---------------------------------------------------------------------------


def test_bundled_model_passes_its_canary(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        checked = load_verified(BUNDLED_MODEL, load=load_detector)
    assert (checked.path, checked.fallback, checked.canary) == (BUNDLED_MODEL, None, PASSED)
    [line] = [record for record in caplog.records if "canary" in record.message]
    assert vars(line)["model"] == str(BUNDLED_MODEL)
    assert vars(line)["cpu"] == cpu_name() != ""


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_canary_says_what_it_tries_where_the_log_shows_it(
    level: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(level):
        load_verified(BUNDLED_MODEL, load=load_detector)
    assert [r.levelname for r in caplog.records if "Trying" in r.message] == [level]


CHECKING = """
import sys
from pathlib import Path
from service.inference.loading import load_detector
from service.inference.canary import load_verified

print(load_verified(Path(sys.argv[1]), load=load_detector).fallback)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are x86's instructions")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_bundled_model_passes_its_canary_on_other_cpus(instructions: str, markers: Path) -> None:
    """As far as oneDNN's switch makes this CPU one of them; one without them stays as it is."""
    done = subprocess.run(
        [sys.executable, "-c", CHECKING, str(BUNDLED_MODEL)],
        cwd=HERE,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": instructions, "TMPDIR": str(markers)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "None", done.stderr


def test_canary_passes_at_any_min_confidence() -> None:
    for confidence in (0.001, 0.6, 0.99):
        load_verified(
            BUNDLED_MODEL,
            load=lambda path, least=confidence: load_detector(path, min_confidence=least),
            min_confidence=confidence,
        )


def test_canary_runs_one_picture_at_a_time(model: Path) -> None:
    shutil.rmtree(model / CANARY)
    write_canary(model, Seeing(thing(0.9)), draw())
    seeing = Seeing(thing(0.9))
    assert load_verified(model, load=lambda _: seeing).detector is seeing
    assert seeing.batches == [1, 1, 1]


def test_canary_with_other_answers_refuses_and_says_what(model: Path, markers: Path) -> None:
    expect(model, "circle", "heart")
    with pytest.raises(ModelError, match=r"differs on .+: in street\.jpg the network expected"):
        load_verified(model, load=load_detector)
    assert not list(markers.iterdir())


def test_canary_with_other_answers_falls_back_to_float(
    with_float: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checked = load_verified(with_float, load=load_detector)
    assert checked.path == with_float / FALLBACK
    assert checked.detector.info.precision == "fp16"
    assert "differs on" in str(checked.fallback)
    assert "The float model beside it runs instead" in str(checked.fallback)
    assert [r.levelname for r in caplog.records if "Fell back" in r.message] == ["ERROR"]


def test_fallback_has_to_pass_its_own_canary(with_float: Path) -> None:
    expect(with_float / FALLBACK, "circle", "heart")
    with pytest.raises(ModelError, match=r"The canary of .*float differs"):
        load_verified(with_float, load=load_detector)


@pytest.mark.parametrize("name", ["shapes.bin", "shapes.xml"])
def test_damaged_network_is_never_loaded(model: Path, name: str) -> None:
    file = model / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    def load(path: Path) -> Detector:
        raise AssertionError(f"loaded {path}")

    with pytest.raises(ModelError, match="is damaged"):
        load_verified(model, load=load)


def test_network_that_sees_other_colours_is_found_by_its_answers(model: Path) -> None:
    """As a wrong library would show itself: the files are right, the answers are not."""

    class Swapped(Seeing):
        def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
            return right.detect([np.ascontiguousarray(image[:, :, ::-1]) for image in images])

    right = load_detector(model)
    with pytest.raises(ModelError, match="differs on"):
        load_verified(model, load=lambda _: Swapped())


def test_network_that_raises_falls_back(with_float: Path) -> None:
    def load(path: Path) -> Detector:
        return load_detector(path) if path.name == FALLBACK else Raising()

    assert "street.jpg: no kernel" in str(load_verified(with_float, load=load).fallback)


def test_network_that_cannot_be_loaded_falls_back(with_float: Path) -> None:
    (with_float / "shapes.xml").write_text("<net", encoding="utf-8")
    shutil.rmtree(with_float / CANARY)
    assert "OpenVINO cannot load" in str(load_verified(with_float, load=load_detector).fallback)


def test_network_that_fails_in_an_unforeseen_way_falls_back(
    with_float: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def load(path: Path) -> Detector:
        if path.name != FALLBACK:
            raise ZeroDivisionError("imgsz")
        return load_detector(path)

    checked = load_verified(with_float, load=load)
    assert "cannot be loaded and tried: ZeroDivisionError('imgsz')" in str(checked.fallback)
    assert checked.canary == PASSED
    assert any(record.exc_info for record in caplog.records)


def test_model_without_a_canary_loads_with_a_warning(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(model / CANARY)
    checked = load_verified(model, load=load_detector)
    assert (checked.fallback, checked.canary) == (None, None)
    assert "carries no canary" in caplog.text


def test_weights_are_loaded_as_they_are(tmp_path: Path) -> None:
    seeing = Seeing()
    assert load_verified(tmp_path / "yolo26n.pt", load=lambda _: seeing).detector is seeing
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
        '{"network": 1, "image_size": 2}',
        '{"network": 1, "image_size": 2, "tolerance": {}, "pictures": {}}',
    ],
    ids=["empty", "nothing", "list", "half", "no-pictures"],
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

class Aborting:
    def __init__(self, path):
        self.info = load_detector(path).info

    def detect(self, images):
        os.abort()

logging.basicConfig(level="INFO", format="%(message)s %(cpu)s %(model)s")
load_verified(Path(sys.argv[1]), load=Aborting)
"""


def crash(model: Path, markers: Path) -> str:
    """Let a canary kill its process; return what that wrote."""
    done = subprocess.run(
        [sys.executable, "-c", ABORTING, str(model)],
        cwd=HERE,
        env=os.environ | {"TMPDIR": str(markers)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode < 0, done.stderr
    return done.stderr


def test_crash_says_which_model_and_cpu(model: Path, markers: Path) -> None:
    output = crash(model, markers)
    assert f"Trying the model's canary {cpu_name()} {model}" in output
    assert "Fatal Python error: Aborted" in output  # faulthandler's
    assert "in detect" in output


def test_next_process_after_a_crash_falls_back(model: Path, markers: Path) -> None:
    crash(model, markers)
    shutil.copytree(BUNDLED_MODEL, model / "other")  # a model of other weights in its place
    other = model / "other"
    (other / "shapes.xml").write_bytes((other / "shapes.xml").read_bytes() + b"\n")
    shutil.rmtree(other / CANARY)
    write_canary(other, load_detector(other, min_confidence=0.05), draw())
    other.rename(model / FALLBACK)
    checked = load_verified(model, load=load_detector)
    assert checked.path.name == FALLBACK
    assert f"the process died while it ran, on {cpu_name()}" in str(checked.fallback)
    assert str(model) in str(checked.fallback)


def test_next_process_after_a_death_tries_again_without_float(
    model: Path, markers: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crash(model, markers)
    assert load_verified(model, load=load_detector).canary == PASSED
    [line] = [record for record in logged_by(caplog, "service") if record.levelname == "ERROR"]
    assert f"died while it ran, on {cpu_name()}" in vars(line)["reason"]
    assert not list(markers.iterdir())


def test_process_after_two_deaths_in_a_row_refuses_and_the_one_after_it_tries_again(
    model: Path, markers: Path
) -> None:
    for _ in range(2):
        crash(model, markers)
    with pytest.raises(ModelError, match=r"died while it ran, on .*, 2 times in a row"):
        load_verified(model, load=load_detector)
    assert not list(markers.iterdir())
    assert load_verified(model, load=load_detector).canary == PASSED


def test_marker_that_is_half_written_is_of_one_death(
    model: Path, markers: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crash(model, markers)
    [marker] = markers.iterdir()
    marker.write_text('{"model": "/srv', encoding="utf-8")
    assert load_verified(model, load=load_detector).canary == PASSED
    assert "on an unknown CPU" in str([vars(record).get("reason") for record in caplog.records])


def test_marker_is_emptied_for_whoever_has_opened_it_already(model: Path, markers: Path) -> None:
    class Opening(Seeing):
        def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
            if not opened:
                [marker] = markers.iterdir()
                opened.append(os.open(marker, os.O_RDWR))
                assert os.pread(opened[0], 4096, 0)
            return right.detect(images)

    opened: list[int] = []
    right = load_detector(model)
    load_verified(model, load=lambda _: Opening(image_size=right.info.image_size))
    assert os.pread(opened[0], 4096, 0) == b""
    os.close(opened[0])


def test_marker_that_goes_between_opening_and_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process ends just then; nothing but a replaced flock can hit that moment."""
    marker = tmp_path / "marker"
    unlinked: list[int] = []

    def flock(file: int, operation: int) -> None:
        if not unlinked:
            marker.unlink()
            unlinked.append(file)
        lock(file, operation)

    lock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock)
    file = _locked(marker)
    assert file is not None
    assert os.fstat(file).st_ino == marker.stat().st_ino
    os.close(file)


def test_canary_that_another_process_runs_right_now_is_no_crash(model: Path, markers: Path) -> None:
    crash(model, markers)
    [marker] = markers.iterdir()
    with marker.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert load_verified(model, load=load_detector).fallback is None
    assert marker.exists()


def test_marker_that_cannot_be_written_is_said(
    markers: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(markers / "absent"))
    assert load_verified(BUNDLED_MODEL, load=load_detector).fallback is None
    assert "would go unseen" in caplog.text


def test_write_canary_counts_what_a_start_compares(model: Path) -> None:
    shutil.rmtree(model / CANARY)
    sure = replace(thing(0.9), box=FAR)
    assert write_canary(model, Seeing(sure, thing(0.3)), draw()) == 3


def test_write_canary_of_a_network_that_does_not_run_is_a_model_error(model: Path) -> None:
    shutil.rmtree(model / CANARY)
    with pytest.raises(ModelError, match=r"seeing\.pt cannot run on this machine: no kernel"):
        write_canary(model, Raising(), draw())


def test_write_canary_of_no_picture_names_it(model: Path) -> None:
    shutil.rmtree(model / CANARY)
    with pytest.raises(ModelError, match=r"cut\.jpg cannot be a canary's picture"):
        write_canary(model, Seeing(), {"cut.jpg": b"\xff\xd8\xff"})


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


def lose_its_pictures(model: Path) -> None:
    for picture in (model / CANARY).glob("*.jpg"):
        picture.unlink()


@pytest.mark.parametrize(
    "spoil", [lambda model: expect(model, "circle", "heart"), damage, lose_its_pictures],
    ids=["differs", "damaged", "fails"],
)  # fmt: skip
def test_start_that_its_canary_stops_logs_the_models_full_path(
    model: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    spoil(model)
    with pytest.raises(ModelError):
        _load(Settings(model_path=model), NO_CLOCK)
    [record] = [one for one in logged_by(caplog, "service") if one.levelno >= logging.ERROR]
    assert model.is_absolute()
    assert f"{model} " in record.getMessage()


def test_start_that_falls_back_logs_the_full_path_of_the_model_that_failed(
    with_float: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _load(Settings(model_path=with_float), NO_CLOCK)
    [record] = [one for one in logged_by(caplog, "service") if one.levelno >= logging.ERROR]
    assert f"The canary of {with_float} differs" in vars(record)["reason"]


def test_warm_up_of_a_network_that_does_not_run_is_a_model_error() -> None:
    with pytest.raises(ModelError, match=r"seeing\.pt cannot run on this machine: no kernel"):
        warm_up(Raising())


def test_health_says_that_the_canary_was_not_compared(model: Path) -> None:
    settings = Settings(model_path=model, image_size=640)
    checked: Future[VerifiedModel] = Future()
    checked.set_result(load_model(settings))
    assert _health(checked, settings)["canary"] == "not compared"


def test_check_model_warns_that_the_canary_was_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGE_SIZE", "640")
    done = CliRunner().invoke(check_model, [str(BUNDLED_MODEL)])
    assert done.exit_code == 0, done.output
    assert "not compared: IMAGE_SIZE is not the one of the export" in done.stderr
