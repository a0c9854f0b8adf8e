"""The OpenVINO detector on a model built here, whose confidences are an image's mean colours."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import yaml
from openvino import opset13 as ops

from service.domain import Box, ModelInfo
from service.errors import ModelError
from service.images.pixels import DecodedImage, Pixels
from service.inference.loading import load_detector
from service.inference.openvino import OpenVINODetector
from service.settings import BUNDLED_MODEL
from tests.boxes import found_in

ROOT = Path(__file__).parents[2]

METADATA: dict[str, Any] = {
    "names": {0: "red", 1: "green", 2: "blue"},
    "imgsz": [64, 64],
    "stride": 32,
    "task": "detect",
    "end2end": True,
    "source": "colours.pt",
    "sha256": "ab" * 32,
    "precision": "fp32",
}
BOXES = [
    [0, 0, 64, 64],
    [8, 16, 24, 32],
    [-9, -9, 99, 99],
]  # of red, green, blue; in pixels of the input


def colour_model(*, shape: list[int], columns: int = 6) -> ov.Model:
    """Build a model with three rows per image: box, mean of one channel with padding, class."""
    images = ops.parameter(ov.PartialShape(shape), ov.Type.f32)
    means = ops.unsqueeze(ops.reduce_mean(images, np.array([2, 3])), np.array([2]))
    nothing = ops.multiply(means, np.float32(0))
    boxes = ops.add(nothing, np.array([BOXES], np.float32))
    classes = ops.add(nothing, np.array([[[0], [1], [2]]], np.float32))
    parts = [boxes, means, classes] + [nothing] * (columns - 6)
    return ov.Model([ops.concat(parts, 2)], [images])


def write(
    directory: Path, *, shape: list[int] | None = None, columns: int = 6, **changes: Any
) -> Path:
    model = colour_model(shape=shape or [-1, 3, -1, -1], columns=columns)
    ov.save_model(model, directory / "colours.xml", compress_to_fp16=False)
    metadata = {key: value for key, value in (METADATA | changes).items() if value is not None}
    (directory / "metadata.yaml").write_text(yaml.safe_dump(metadata), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> OpenVINODetector:
    return OpenVINODetector(write(tmp_path_factory.mktemp("model")), min_confidence=0.25)


def plain(blue: int, green: int, red: int, *, width: int = 64, height: int = 64) -> Pixels:
    return np.full((height, width, 3), (blue, green, red), np.uint8)


def test_info_is_of_the_metadata(detector: OpenVINODetector) -> None:
    version = ov.__version__.partition("-")[0]
    expected = ModelInfo("colours.pt", "ab" * 32, 64, "fp32", f"openvino {version}")
    assert detector.info == expected


def test_detect_reads_bgr_in_the_range_of_one(detector: OpenVINODetector) -> None:
    [found] = found_in(detector, [plain(102, 153, 255)])
    assert [detection.label for detection in found] == [
        "red",
        "green",
        "blue",
    ]  # most confident first
    assert [detection.class_id for detection in found] == [0, 1, 2]
    assert [detection.confidence for detection in found] == pytest.approx([1.0, 0.6, 0.4], abs=1e-6)


def test_detect_leaves_out_what_is_below_the_confidence(detector: OpenVINODetector) -> None:
    [found] = found_in(detector, [plain(255, 63, 64)])
    assert [detection.label for detection in found] == [
        "blue",
        "red",
    ]  # 64/255 is above 0.25, 63/255 below


def test_detect_gives_boxes_clipped_to_the_image(detector: OpenVINODetector) -> None:
    [found] = found_in(detector, [plain(255, 254, 253, width=128, height=64)])
    boxes = {detection.label: detection.box for detection in found}
    assert boxes["red"] == Box(0.0, 0.0, 128.0, 64.0)
    assert boxes["green"] == Box(16.0, 0.0, 48.0, 32.0)  # 16 rows of padding above
    assert boxes["blue"] == Box(0.0, 0.0, 128.0, 64.0)


def test_detect_of_many_sizes_keeps_each_images_own_results(detector: OpenVINODetector) -> None:
    sizes = [(64, 64), (128, 64), (64, 128), (50, 20), (64, 64), (128, 64), (7, 7)]
    images = [
        plain(0, 0, 70 + 25 * i, width=width, height=height)
        for i, (width, height) in enumerate(sizes)
    ]
    together = list(found_in(detector, images))
    alone = [found for image in images for found in found_in(detector, [image])]
    assert [found[0].label for found in together] == ["red"] * 7
    for found, expected in zip(together, alone, strict=True):
        assert [detection.label for detection in found] == [
            detection.label for detection in expected
        ]
        assert [detection.confidence for detection in found] == pytest.approx(
            [detection.confidence for detection in expected], abs=1e-6
        )
        assert [detection.box for detection in found] == [detection.box for detection in expected]


def test_many_sizes_are_compiled_for_few_input_shapes(tmp_path: Path) -> None:
    detector = OpenVINODetector(write(tmp_path), image_size=640)
    sizes = [(640, 640 * share // 40) for share in range(1, 41)]
    for width, height in sizes + [size[::-1] for size in sizes]:
        list(found_in(detector, [plain(9, 9, 9, width=width, height=height)]))
    assert len(detector._compiled._by_shape) == 7


@pytest.mark.parametrize("streams", [1, 2, 5])
def test_concurrent_threads_get_their_own_results(tmp_path: Path, streams: int) -> None:
    detector = OpenVINODetector(write(tmp_path), streams=streams)
    assert detector.runners == streams
    batches = [[plain(0, 0, 255 - i - streams * j) for j in range(20)] for i in range(streams)]
    with ThreadPoolExecutor(streams) as threads:
        results = list(threads.map(lambda batch: list(found_in(detector, batch)), batches))
    confidences = [[found[0].confidence for found in batch] for batch in results]
    for i, found in enumerate(confidences):
        expected = [(255 - i - streams * j) / 255 for j in range(20)]
        assert found == pytest.approx(expected, abs=1e-5)


def test_failing_image_keeps_the_results_before_it(detector: OpenVINODetector) -> None:
    no_image: Any = None
    results = detector.detect([DecodedImage.of(plain(1, 2, 255)), no_image])
    assert next(results).detections[0].label == "red"
    with pytest.raises(AttributeError):
        next(results)


def test_similar_sizes_share_an_input_shape(detector: OpenVINODetector) -> None:
    assert detector.input_shape(640, 480) == detector.input_shape(64, 48) == (64, 64)
    assert detector.input_shape(1920, 1080) == (64, 64)  # of 32-pixel strides
    assert detector.input_shape(640, 320) == (64, 64)


def test_first_images_on_two_threads_do_not_deadlock(tmp_path: Path) -> None:
    """OpenVINO's binding looks up numpy at its first use. Two threads at once would deadlock.

    A lookup that lets the other thread run makes the race certain.
    """
    write(tmp_path)
    code = f"""
import builtins, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from service.inference.openvino import OpenVINODetector
from tests.boxes import found_in

original = builtins.__import__
def slow(name, *rest, **more):
    if name.startswith("numpy"):
        time.sleep(0.2)
    return original(name, *rest, **more)
builtins.__import__ = slow

detector = OpenVINODetector(Path({str(tmp_path)!r}), streams=2)
images = [np.zeros((64, 64, 3), np.uint8)] * 4
with ThreadPoolExecutor(2) as threads:
    print(sum(map(len, threads.map(lambda _: list(found_in(detector, images)), range(2)))))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "8", done.stderr


def test_detect_without_images_returns_nothing(detector: OpenVINODetector) -> None:
    assert list(found_in(detector, [])) == []
    assert list(found_in(detector, [plain(0, 0, 0)])) == [[]]


def test_detect_gives_plain_types(detector: OpenVINODetector) -> None:
    [[found, *_]] = found_in(detector, [plain(0, 0, 255)])
    values = [found.label, found.class_id, found.confidence, found.box.x1, found.box.y2]
    assert [type(value) for value in values] == [str, int, float, float, float]


def test_names_may_be_a_list(tmp_path: Path) -> None:
    detector = OpenVINODetector(write(tmp_path, names=["traffic light", 7, "blue"]))
    [found] = found_in(detector, [plain(255, 254, 253)])
    assert {detection.class_id: detection.label for detection in found} == {
        0: "traffic light",
        1: "7",
        2: "blue",
    }


def test_every_class_of_the_model_needs_a_label(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))
    text = (directory / "metadata.yaml").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text)
    assert len(metadata["names"]) == 6
    del metadata["names"][5]
    (directory / "metadata.yaml").write_text(yaml.safe_dump(metadata), encoding="utf-8")
    with pytest.raises(ModelError, match="class 5 has no label"):
        OpenVINODetector(directory)


def test_name_of_the_model_must_be_text(tmp_path: Path) -> None:
    write(tmp_path, source=None)
    for suffix in (".xml", ".bin"):
        (tmp_path / f"colours{suffix}").rename(tmp_path / f"colours\udcff{suffix}")
    with pytest.raises(ModelError, match=r"'colours\\udcff', is not valid UTF-8"):
        load_detector(tmp_path)


def test_image_size_of_the_setting_wins(tmp_path: Path) -> None:
    assert OpenVINODetector(write(tmp_path), image_size=96).info.image_size == 96


def test_info_without_our_own_metadata_is_of_the_files(tmp_path: Path) -> None:
    info = OpenVINODetector(write(tmp_path, source=None, sha256=None, precision=None)).info
    assert (info.name, info.precision) == ("colours", "unknown")
    assert len(info.sha256) == 64 and info.sha256 != "ab" * 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "depth"}, "a model for the task depth, which is not supported"),
        ({"end2end": None}, "without YOLO26's end-to-end head"),
        ({"end2end": False}, "without YOLO26's end-to-end head"),
        ({"names": None}, "is not the metadata that ultralytics writes"),
        ({"names": 7}, "does not name its classes"),
        ({"names": {0: "red", 2: "blue"}}, "class 1 has no label"),
        ({"names": ["red", "", "blue"]}, "class 1, '': a label cannot be empty"),
        ({"names": {0: "red", 1: False, 2: "blue"}}, "class 1, False: this is bool, not text"),
        ({"imgsz": None}, "is not the metadata that ultralytics writes"),
        ({"stride": "wide"}, "is not the metadata that ultralytics writes"),
        ({"shape": [1, 3, 64, 64]}, "exported with the fixed input shape"),
        ({"columns": 7}, "not \\[batch, boxes, 6\\]"),
    ],
    ids=[
        "task",
        "no-head",
        "other-head",
        "names",
        "number",
        "gap",
        "empty",
        "bool",
        "size",
        "stride",
        "shape",
        "output",
    ],
)
def test_load_of_another_model_says_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        OpenVINODetector(write(tmp_path, **changes))


@pytest.mark.parametrize("place", [0, 2, 3], ids=["batch", "height", "width"])
def test_model_with_one_fixed_side_is_refused(tmp_path: Path, place: int) -> None:
    shape = [-1, 3, -1, -1]
    shape[place] = 64
    with pytest.raises(ModelError, match="exported with the fixed input shape"):
        OpenVINODetector(write(tmp_path, shape=shape))


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "{", "\x00", "names: 7\nimgsz: 9\nstride: 32", "[" * 20_000],
    ids=["empty", "list", "yaml", "nul", "number", "deep"],
)
def test_load_of_broken_metadata_is_a_model_error(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    body = text + ("\ntask: detect\nend2end: true\n" if text.startswith("names") else "")
    (tmp_path / "metadata.yaml").write_text(body, encoding="utf-8")
    with pytest.raises(ModelError):
        OpenVINODetector(tmp_path)


@pytest.mark.parametrize("name", ["colours.xml", "colours.bin"])
def test_load_of_a_directory_without_its_files_is_a_model_error(tmp_path: Path, name: str) -> None:
    (write(tmp_path) / name).unlink()
    with pytest.raises(ModelError):
        OpenVINODetector(tmp_path)


def test_load_of_a_broken_file_is_a_model_error(tmp_path: Path) -> None:
    (write(tmp_path) / "colours.xml").write_text("<net", encoding="utf-8")
    with pytest.raises(ModelError, match="OpenVINO cannot load"):
        OpenVINODetector(tmp_path)


@pytest.mark.parametrize(
    ("flags", "own", "expected"),
    [
        ({"amx_int8"}, None, "AVX512_CORE_VNNI"),
        ({"amx_int8"}, "AVX2", "AVX2"),
        ({"avx2"}, None, "None"),
    ],
    ids=["amx", "as the user says", "no amx"],
)
def test_amx_kernels_are_turned_off(
    flags: set[str], own: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if own:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", own)
    code = (
        f"import os; from service import machine; machine.cpu_flags = lambda: {flags}; "
        "import service.inference.openvino; print(os.environ.get('ONEDNN_MAX_CPU_ISA'))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.strip() == expected, shown.stderr
