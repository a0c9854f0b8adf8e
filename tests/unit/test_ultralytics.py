"""The ultralytics detector on models built here, whose confidences are an image's brightest pixels.

The models are OpenVINO directories. Ultralytics loads them with shapes and metadata, as it loads a
TensorRT engine. No GPU is needed.
"""

import json
import logging
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest
import yaml
from openvino import opset13 as ops

from service.domain import Box, Detection
from service.errors import ModelError
from service.images.pixels import DecodedImage, Pixels
from service.inference import ultralytics
from service.inference.loading import load_detector
from service.inference.ultralytics import UltralyticsDetector, decode_boxes_in_float32, sha256_of
from tests.boxes import found_in
from tests.loglines import logged_by
from tests.task_models import write_model

pytestmark = [
    pytest.mark.ultralytics,
    pytest.mark.filterwarnings("ignore"),  # torch's to ultralytics
]

METADATA: dict[str, Any] = {
    "names": {0: "red", 1: "green", 2: "blue"},
    "imgsz": [160, 160],
    "stride": 32,
    "batch": 1,
    "task": "detect",
    "end2end": True,
    "args": {"dynamic": True, "nms": False},
}
FIXED = METADATA | {"imgsz": [96, 160], "batch": 2, "args": {"dynamic": False, "nms": False}}
BOXES = [
    [0, 0, 64, 64],
    [8, 16, 24, 32],
    [-9, -9, 999, 999],
]  # of red, green, blue; in pixels of the input


def write(directory: Path, metadata: dict[str, Any], shape: tuple[int, ...]) -> Path:
    """Write a model with three rows per image: box, brightest pixel of one channel, class."""
    images = ops.parameter(ov.PartialShape(list(shape)), ov.Type.f32, name="images")
    brightest = ops.unsqueeze(ops.reduce_max(images, np.array([2, 3])), np.array([2]))
    nothing = ops.multiply(brightest, np.float32(0))
    boxes = ops.add(nothing, np.array([BOXES], np.float32))
    classes = ops.add(nothing, np.array([[[0], [1], [2]]], np.float32))
    model = ov.Model([ops.concat([boxes, brightest, classes], 2)], [images])
    path = directory / "colours_openvino_model"
    path.mkdir()
    ov.save_model(model, path / "colours.xml", compress_to_fp16=False)
    (path / "metadata.yaml").write_text(yaml.safe_dump(metadata), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsDetector:
    return UltralyticsDetector(
        write(tmp_path_factory.mktemp("dynamic"), METADATA, (-1, 3, -1, -1)), min_confidence=0.5
    )


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsDetector:
    return UltralyticsDetector(
        write(tmp_path_factory.mktemp("fixed"), FIXED, (2, 3, 96, 160)), min_confidence=0.5
    )


def plain(blue: int, green: int, red: int, *, width: int = 160, height: int = 160) -> Pixels:
    return np.full((height, width, 3), (blue, green, red), np.uint8)


MIXED = [
    plain(255, 130, 190),
    plain(204, 255, 180, width=320, height=120),
    plain(150, 200, 255, width=70, height=140),
    plain(250, 160, 240),
    plain(230, 180, 170, width=120, height=320),
]


def test_info_is_of_the_file_and_its_metadata(dynamic: UltralyticsDetector) -> None:
    info = dynamic.info
    assert (info.name, info.image_size, info.precision) == ("colours_openvino_model", 160, "fp32")
    assert info.runtime.startswith("ultralytics 8.")
    assert len(info.sha256) == 64


def test_detect_reads_bgr_in_the_range_of_one(dynamic: UltralyticsDetector) -> None:
    [found] = found_in(dynamic, [plain(153, 204, 255)])
    assert [(detection.label, detection.class_id) for detection in found] == [
        ("red", 0),
        ("green", 1),
        ("blue", 2),
    ]
    assert [detection.confidence for detection in found] == pytest.approx([1.0, 0.8, 0.6], abs=1e-6)


def test_detect_leaves_out_what_is_below_the_threshold(dynamic: UltralyticsDetector) -> None:
    [found] = found_in(dynamic, [plain(127, 128, 0)])  # 0.498, 0.502; the grey of padding is 0.447
    assert [detection.label for detection in found] == ["green"]


def test_boxes_are_in_the_images_own_pixels(dynamic: UltralyticsDetector) -> None:
    # 320x120 becomes 160x60 in an input of 160x96, 18 pixels from the top.
    [found] = found_in(dynamic, [plain(255, 204, 230, width=320, height=120)])
    assert {detection.label: detection.box for detection in found} == {
        "red": Box(0, 0, 128, 92),
        "green": Box(16, 0, 48, 28),
        "blue": Box(0, 0, 320, 120),
    }


@pytest.mark.parametrize("name", ["dynamic", "fixed"])
def test_image_does_not_depend_on_its_neighbours(name: str, request: pytest.FixtureRequest) -> None:
    detector: UltralyticsDetector = request.getfixturevalue(name)
    together = list(found_in(detector, MIXED))
    assert together == [next(found_in(detector, [image])) for image in MIXED]
    assert [detection[0].label for detection in together] == [
        "blue",
        "green",
        "red",
        "blue",
        "blue",
    ]


def test_detect_without_images_returns_nothing(dynamic: UltralyticsDetector) -> None:
    assert list(found_in(dynamic, [])) == []


def test_images_of_equal_ratio_share_an_input_shape(dynamic: UltralyticsDetector) -> None:
    assert dynamic.input_shape(320, 120) == dynamic.input_shape(160, 96) == (96, 160)
    assert dynamic.input_shape(120, 320) == (160, 96)  # at least 300 anchors, as exports need them
    assert dynamic.input_shape(160, 160) == (160, 160)


def test_fixed_shape_is_the_input_of_every_image(fixed: UltralyticsDetector) -> None:
    assert {fixed.input_shape(image.shape[1], image.shape[0]) for image in MIXED} == {(96, 160)}
    assert fixed.info.image_size == 160
    # 120x320 becomes 36x96, 62 pixels from the left.
    [found] = found_in(fixed, [plain(0, 255, 0, width=120, height=320)])
    assert astuple(found[0].box) == pytest.approx((0, 16 / 0.3, 0, 32 / 0.3))


class Recorder(UltralyticsDetector):
    """Records the shapes of the batches that it runs."""

    def infer(self, batch: Any) -> Any:
        self.shapes = [*getattr(self, "shapes", []), tuple(batch.shape)]
        return super().infer(batch)


def test_batches_are_of_one_input_shape_and_at_most_32(tmp_path: Path) -> None:
    detector = Recorder(write(tmp_path, METADATA, (-1, 3, -1, -1)))
    small, wide = plain(0, 0, 0), plain(0, 0, 0, width=320, height=120)
    list(found_in(detector, [small, wide] * 20 + [small] * 15))
    assert detector.shapes == [(32, 160, 160, 3), (3, 160, 160, 3), (20, 96, 160, 3)]


@pytest.mark.parametrize(
    ("max_batch_pixels", "sizes"),
    [(4 * 160 * 160, [4, 4, 2]), (4 * 160 * 160 - 1, [3, 3, 3, 1]), (1, [1] * 10)],
    ids=["just", "less", "below one image"],
)
def test_batches_have_no_more_pixels_than_allowed(
    tmp_path: Path, max_batch_pixels: int, sizes: list[int]
) -> None:
    path = write(tmp_path, METADATA, (-1, 3, -1, -1))
    detector = Recorder(path, max_batch_pixels=max_batch_pixels)
    assert len(list(found_in(detector, [plain(0, 0, 0)] * 10))) == 10
    assert [shape[0] for shape in detector.shapes] == sizes


def test_warm_up_runs_the_inputs_of_common_images(tmp_path: Path) -> None:
    detector = Recorder(write(tmp_path, METADATA, (-1, 3, -1, -1)))
    detector.warm_up()
    inputs = {shape[1:3] for shape in detector.shapes}
    assert inputs == {(160, 160), (128, 160), (160, 128), (96, 160), (160, 96)}


@pytest.mark.parametrize(
    ("metadata", "image_size", "message"),
    [
        (METADATA | {"end2end": False}, None, "no end-to-end head"),
        (METADATA | {"task": "depth"}, None, "is a model for the task depth"),
        (METADATA, 100, "not a multiple of 32"),
        (METADATA | {"names": {0: "red", 1: "", 2: "blue"}}, None, "class 1, '': .* empty"),
        (
            METADATA | {"names": {0: "red", 1: False, 2: "blue"}},
            None,
            "class 1, False: .* not text",
        ),
        (FIXED, 320, "exported for 160 pixels only"),
    ],
    ids=["nms", "pose", "stride", "empty", "bool", "fixed"],
)
def test_model_that_cannot_serve_is_refused(
    metadata: dict[str, Any], image_size: int | None, message: str, tmp_path: Path
) -> None:
    shape = (2, 3, 96, 160) if metadata is FIXED else (-1, 3, -1, -1)
    with pytest.raises(ModelError, match=message):
        UltralyticsDetector(write(tmp_path, metadata, shape), image_size=image_size)


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("a.onnx", "cpu", "needs onnxruntime, which is not installed"),
        ("a.engine", "0", "needs tensorrt, which is not installed"),
    ],
)
def test_missing_library_is_named_and_not_installed(
    name: str, device: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ultralytics, "find_spec", lambda library: None)
    with pytest.raises(ModelError, match=message):
        UltralyticsDetector(tmp_path / name, device=device)


def test_engine_is_refused_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ultralytics, "find_spec", lambda library: object())
    with pytest.raises(ModelError, match="runs on a GPU: set DEVICE"):
        UltralyticsDetector(tmp_path / "a.engine")


def test_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, METADATA, (-1, 3, -1, -1))
    with pytest.raises(ModelError, match="cannot be loaded on DEVICE=99"):
        UltralyticsDetector(path, device="99")


class FakeEngine:
    """Act as the `AutoBackend` of a TensorRT engine: batches of 4, one reused output buffer."""

    def __init__(self) -> None:
        import torch

        self.device = torch.device("cpu")
        self.fp16 = True
        self.metadata = {"args": {"quantize": 16}}
        self.format, self.batch, self.imgsz, self.dynamic = "engine", 4, [96, 96], False
        self.stride, self.names = 32, {0: "bright"}
        self._output = torch.empty(4, 1, 6)

    def __call__(self, inputs: Any) -> Any:
        import torch

        assert inputs.dtype == torch.float16
        assert len(inputs) <= 4
        rows = self._output[: len(inputs)]
        rows[:] = torch.tensor([10, 20, 30, 40, 0, 0])
        rows[:, 0, 4] = inputs.amax((1, 2, 3))
        return rows


@pytest.fixture
def weights_and_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights with an engine beside them. Only the engine loads, and only on a GPU."""

    def load(path: Path, device: str) -> FakeEngine:
        if path.suffix == ".engine" and path.read_bytes() == b"engine" and device != "cpu":
            return FakeEngine()
        raise ModelError(f"{path.name} does not load here")

    monkeypatch.setattr(ultralytics, "_load_backend", load)
    (tmp_path / "a.pt").write_bytes(b"weights")
    (tmp_path / "a.engine").write_bytes(b"engine")
    return tmp_path / "a.pt"


def test_engine_beside_the_weights_is_used_on_a_gpu(weights_and_engine: Path) -> None:
    detector = UltralyticsDetector(weights_and_engine, device="0")
    assert (detector.info.name, detector.info.precision) == ("a.engine", "fp16")
    assert detector.info.sha256 == sha256_of(weights_and_engine)


def test_engine_beside_the_weights_is_not_tried_on_a_cpu(
    weights_and_engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(ModelError, match=r"a\.pt does not load"):
        UltralyticsDetector(weights_and_engine)
    assert not logged_by(caplog, "service")


def test_engine_that_does_not_load_is_replaced_by_weights(
    weights_and_engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights_and_engine.with_suffix(".engine").write_bytes(b"of another GPU")
    with caplog.at_level(logging.WARNING), pytest.raises(ModelError, match=r"a\.pt does not load"):
        UltralyticsDetector(weights_and_engine, device="0")
    assert "the weights run instead" in caplog.text


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def message(*fields: tuple[int, int | bytes | str]) -> bytes:
    """Encode a protobuf message, the format of ONNX files."""
    encoded = b""
    for number, value in fields:
        if isinstance(value, int):
            encoded += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            encoded += varint(number << 3 | 2) + varint(len(data)) + data
    return encoded


def onnx_of_six_classes() -> bytes:
    """Build an ONNX graph that splits rows of 10 into 4 sides and 6 scores, as the head does."""

    def tensor(name: str, *shape: int) -> bytes:
        sides = message(*((1, message((1, side))) for side in shape))
        return message((1, name), (2, message((1, message((1, 1), (2, sides))))))

    axis = message((1, "axis"), (3, 2), (20, 2))
    lengths = message((1, 2), (2, 7), (7, varint(4) + varint(6)), (8, "lengths"))
    split = message(
        (1, "rows"), (1, "lengths"), (2, "sides"), (2, "scores"), (4, "Split"), (5, axis)
    )
    graph = message(
        (1, split),
        (2, "head"),
        (5, lengths),
        (11, tensor("rows", 1, 84, 10)),
        (12, tensor("sides", 1, 84, 4)),
        (12, tensor("scores", 1, 84, 6)),
    )
    return message((1, 8), (7, graph), (8, message((1, ""), (2, 13))))


def test_classes_of_an_onnx_file_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(onnx_of_six_classes())
    assert ultralytics._count_classes_of_onnx(path) == 6
    with monkeypatch.context() as gpu_image:
        gpu_image.setattr(ultralytics, "find_spec", lambda library: None)
        assert ultralytics._count_classes_of_onnx(path) is None
    path.write_bytes(b"another graph")
    assert ultralytics._count_classes_of_onnx(path) is None
    assert ultralytics._count_classes_of_onnx(tmp_path / "a.engine") is None


def test_class_without_a_label_does_not_fail_the_image(
    weights_and_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithMoreClasses(FakeEngine):
        def __call__(self, inputs: Any) -> Any:
            rows = super().__call__(inputs)
            rows[:, 0, 5] = 7
            return rows

    monkeypatch.setattr(ultralytics, "_load_backend", lambda path, device: WithMoreClasses())
    detector = UltralyticsDetector(weights_and_engine, device="0", min_confidence=0.4)
    [[found]] = found_in(detector, [plain(200, 200, 200, width=96, height=96)])
    assert (found.label, found.class_id) == ("7", 7)


def test_engine_that_reuses_its_output_mixes_no_results(
    weights_and_engine: Path,
) -> None:
    detector = UltralyticsDetector(weights_and_engine, device="0", min_confidence=0.4)
    levels = list(range(120, 250, 10))
    found = list(found_in(detector, [plain(v, v, v, width=96, height=96) for v in levels]))
    box = Box(10, 20, 30, 40)
    assert [one.confidence for [one] in found] == pytest.approx([v / 255 for v in levels], abs=1e-3)
    assert [[replace(detection, confidence=0) for detection in each] for each in found] == [
        [Detection("bright", 0, 0, box)] for _ in levels
    ]


def test_half_precision_keeps_boxes_exact() -> None:
    """Run the head in half precision on values that the convolutions could return."""
    import torch
    from ultralytics.nn.modules import Detect

    head = Detect(nc=1, reg_max=1, end2end=True, ch=(16, 16, 16)).eval()
    head.end2end = True
    head.stride = torch.tensor([8.0, 16.0, 32.0])
    cells = [torch.zeros(1, 1, 640 // stride, 640 // stride) for stride in (8, 16, 32)]
    count = sum(level[0, 0].numel() for level in cells)
    sides = torch.rand(1, 4, count, generator=torch.Generator().manual_seed(0)).half()

    def corners(dtype: Any) -> Any:
        head.shape = None  # of the anchors that it keeps
        levels = [level.to(dtype) for level in cells]
        return head._get_decode_boxes({"boxes": sides.to(dtype), "feats": levels}).float()

    exact = corners(torch.float32)
    assert (corners(torch.float16) - exact).abs().max() > 0.2  # so far is a half float off
    decode_boxes_in_float32(head)
    assert torch.equal(corners(torch.float16), exact)


def test_half_precision_keeps_points_exact() -> None:
    import torch
    from ultralytics.nn.modules.head import Pose26

    head = Pose26(nc=1, kpt_shape=(2, 3), reg_max=1, end2end=True, ch=(16, 16, 16)).eval()
    head.anchors = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)).mul(80).round()
    head.strides = torch.full((1, 50), 8.0)
    points = torch.rand(1, 6, 50, generator=torch.Generator().manual_seed(1)).half()
    exact = head.kpts_decode(points.float())
    head.anchors, head.strides = head.anchors.half(), head.strides.half()
    assert (head.kpts_decode(points).float() - exact).abs().max() > 0.1
    decode_boxes_in_float32(head)
    assert torch.equal(head.kpts_decode(points), exact)


def test_half_precision_keeps_the_order_of_classes() -> None:
    import torch
    from ultralytics.nn.modules import Classify

    head = Classify(8, 1000).eval().half()
    head.export = True  # returns only the scores
    features = torch.rand(1, 8, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    with torch.inference_mode():
        assert head(features).dtype == torch.float16
        decode_boxes_in_float32(head)
        scores = head(features)
    assert scores.dtype == torch.float32
    assert float(scores.sum()) == pytest.approx(1, abs=1e-5)


TASK_MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "segment": (
        [[10, 10, 90, 90, 0.9, 1, 1, -1, 0], [20, 30, 60, 70, 0.8, 2, -1, 1, 0]],
        {},
    ),
    "pose": ([[10, 10, 90, 90, 0.9, 1, 20, 30, 0.7, 50, 60, 0.2]], {"kpt_shape": [2, 3]}),
    "obb": ([[50, 50, 40, 20, 0.9, 1, 2.0]], {}),
    "classify": ([0.1, 0.7, 0.2], {}),
}


@pytest.mark.parametrize("is_fixed", [False, True], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("task", TASK_MODELS)
def test_both_runtimes_agree_on_every_task(tmp_path: Path, task: str, is_fixed: bool) -> None:
    rows, metadata = TASK_MODELS[task]
    half_red = plain(0, 255, 0)
    half_red[:, 70:] = (0, 0, 255)
    images = [half_red, np.ascontiguousarray(half_red[::-1, ::-1]), plain(9, 9, 255)]
    dynamic_path = write_model(tmp_path / "a_openvino_model", task, rows, **metadata)
    path = dynamic_path
    if is_fixed:
        fixed_metadata = metadata | {"args": {"dynamic": False, "nms": False}}
        path = write_model(
            tmp_path / "b_openvino_model", task, rows, shape=(1, 3, 160, 160), **fixed_metadata
        )
    expected = list(load_detector(dynamic_path).detect([DecodedImage.of(p) for p in images]))
    detector = UltralyticsDetector(path)
    assert detector.info.task == task
    assert detector.detect([DecodedImage.of(p) for p in images]) == expected
    assert any(prediction.detections or prediction.classes for prediction in expected)


def test_version_of_an_export_is_in_the_info(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "a_openvino_model", "detect", [[0.0] * 6], version="8.4", model_version="v7"
    )
    assert UltralyticsDetector(path).info.version == "v7"


def test_classes_of_a_classification_model_are_counted() -> None:
    layers = [SimpleNamespace(linear=SimpleNamespace(out_features=7))]
    assert ultralytics.count_classes(SimpleNamespace(model=SimpleNamespace(model=layers))) == 7


def test_no_telemetry_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils.events import events

    monkeypatch.setattr(events, "enabled", True)
    ultralytics.load_yolo(write(tmp_path, METADATA, (-1, 3, -1, -1)))
    assert events.enabled is False


def test_image_size_of_weights_is_that_of_their_training() -> None:
    def trained(imgsz: object) -> int:
        model = SimpleNamespace(args={"imgsz": imgsz}, stride=[8, 16, 32])
        return ultralytics.trained_image_size(SimpleNamespace(model=model))

    assert [trained(size) for size in ([480, 640], (1280,), 1000, None)] == [640, 1280, 1024, 640]
    assert ultralytics.trained_image_size(SimpleNamespace(model=None)) == 640


def test_gpu_benchmark_runs_on_a_cpu_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from devtools.bench import gpu

    model, images = write(tmp_path, METADATA, (-1, 3, -1, -1)), tmp_path / "images"
    images.mkdir()
    for index, pixels in enumerate(MIXED):
        cv2.imwrite(str(images / f"{index}.jpg"), pixels)
    options = "--device cpu --batch-sizes 1 4 --count 12 --rounds 1 --json"
    monkeypatch.setattr(
        "sys.argv", ["gpu", "--model", str(model), "--images", str(images), *options.split()]
    )
    gpu.main()
    output = capsys.readouterr().out
    measured = json.loads(output[output.index("{") :])["batch_sizes"]
    assert measured["1"]["formed"] == 1
    assert 1 <= measured["4"]["formed"] <= 4
    assert all(value > 0 for row in measured.values() for value in row.values())
