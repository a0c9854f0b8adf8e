"""Both detectors against ultralytics itself, on the same weights and the same images.

The reference is `ultralytics.YOLO(...).predict(path, nms=False)`: reading, letterbox, model and
boxes are ultralytics' own. The bundled model is compared always; COCO weights and
images only if they lie beside the checkout.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from devtools.demo_model.shapes import write_samples
from devtools.demo_model.train import MODEL_YAML
from service.domain import Box, Detection
from service.images.decode import decode
from service.images.letterbox import fit, input_shapes
from service.images.pixels import Pixels
from service.inference.detector import Detector
from service.inference.loading import load_detector
from service.inference.similarity import iou
from service.operate.detect import detect_files
from service.settings import BUNDLED_MODEL, Settings
from tests.boxes import found_in

pytestmark = [
    pytest.mark.ultralytics,
    pytest.mark.filterwarnings("ignore"),  # torch's to ultralytics
]

SHARED = Path(os.environ.get("PARITY_DATA", "../shared"))
COCO_WEIGHTS = SHARED / "models" / "yolo26n.pt"
COCO_IMAGES = SHARED / "coco-mini" / "dev"
MIN_CONFIDENCE = 0.25
MIN_IOU = 0.99
MAX_CONFIDENCE_GAP = 0.01
# Of the ultralytics detector, which runs the reference's own model on the reference's own inputs.
MIN_SAME_IOU = 0.998  # documents have boxes to 0.01 pixels
MAX_SAME_CONFIDENCE_GAP = 0.001


@dataclass(frozen=True)
class Found:
    """A detection of either detector."""

    class_id: int
    confidence: float
    box: Box


@dataclass
class Worst:
    """The largest difference between two detectors over all images."""

    iou: float = 1.0
    confidence_gap: float = 0.0
    detections: int = 0  # of both


Say = Callable[[Worst], None]


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model under a name that ultralytics recognises as an OpenVINO export."""
    path = tmp_path_factory.mktemp("bundled") / "shapes_openvino_model"
    path.symlink_to(BUNDLED_MODEL, target_is_directory=True)
    return path


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [path for path, _ in write_samples(tmp_path_factory.mktemp("samples"))]


@pytest.fixture(scope="session")
def coco() -> tuple[Path, list[Path]]:
    if not COCO_WEIGHTS.is_file() or not COCO_IMAGES.is_dir():
        pytest.skip(
            f"NOT CHECKED: parity on COCO needs {COCO_WEIGHTS} and {COCO_IMAGES}; "
            "set PARITY_DATA to the folder that holds models/ and coco-mini/"
        )
    return COCO_WEIGHTS, sorted(COCO_IMAGES.glob("*.jpg"))


@pytest.fixture(scope="session")
def coco_export(coco: tuple[Path, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from service.export.weights import export_openvino

    return export_openvino(coco[0], tmp_path_factory.mktemp("export") / "coco_openvino_model")


def test_bundled_model_agrees_with_ultralytics(bundled: Path, samples: list[Path]) -> None:
    detector = load_detector(bundled)
    reference = predicted(bundled, samples, detector.info.image_size)
    assert_parity(detected(detector, samples), reference, at_least=len(samples))


def test_ultralytics_detector_agrees_with_ultralytics(bundled: Path, samples: list[Path]) -> None:
    from service.inference.ultralytics import UltralyticsDetector

    size = load_detector(bundled).info.image_size
    ours = detected(UltralyticsDetector(bundled, image_size=size), samples)
    assert_same(ours, predicted(bundled, samples, size), at_least=len(samples))


@pytest.fixture(scope="session")
def weights(samples: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights that detect something in every image."""
    import torch
    from ultralytics import YOLO

    path = tmp_path_factory.mktemp("weights") / "untrained.pt"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = YOLO(str(MODEL_YAML), task="detect")
        torch_model = model.model
        for boxes, classes in zip(
            torch_model.model[-1].one2one_cv2, torch_model.model[-1].one2one_cv3, strict=True
        ):
            boxes[-1].weight.mul_(0.3)
            boxes[-1].bias.fill_(3.0)  # cells from the centre to each side
            classes[-1].bias.fill_(-5.0)
        for module in torch_model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # takes its statistics from the next batch
        torch_model.train()
        images = [cv2.resize(pixels_of(path), (256, 256)) for path in samples[:4]]
        torch_model(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255)
        torch_model.eval()
        model.save(path)
    return path


@pytest.mark.parametrize("image_size", [256, 320])
def test_weights_detect_as_with_ultralytics(
    weights: Path, samples: list[Path], image_size: int
) -> None:
    from service.inference.ultralytics import UltralyticsDetector

    detector = UltralyticsDetector(weights, image_size=image_size)
    reference = predicted(weights, samples, image_size)
    assert_same(detected(detector, samples), reference, at_least=len(samples))


def pixels_of(path: Path) -> Pixels:
    return decode(path.read_bytes(), max_pixels=10**8).pixels


def test_openvino_agrees_with_ultralytics_on_coco(
    coco: tuple[Path, list[Path]], coco_export: Path, say: Say
) -> None:
    weights, images = coco
    ours = detected(load_detector(coco_export), images)
    say(assert_parity(ours, predicted(weights, images, 640, in_our_inputs=True), at_least=100))


def test_ultralytics_detector_agrees_with_ultralytics_on_coco(
    coco: tuple[Path, list[Path]], say: Say
) -> None:
    weights, images = coco
    detector = load_detector(weights)
    reference = predicted(weights, images, 640)
    alone = [found for path in images for found in found_in(detector, [pixels_of(path)])]
    say(assert_same(as_found(alone), reference, at_least=100))
    say(assert_same(detected(detector, images), reference, at_least=100))


def test_gpu_agrees_with_ultralytics_on_coco(coco: tuple[Path, list[Path]], say: Say) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("NOT CHECKED: half precision on a GPU needs one that torch.cuda can use")
    weights, images = coco
    ours = detected(load_detector(weights, device="0"), images)
    # In float32 on the CPU: so far may half precision be off.
    reference = predicted(weights, images, 640)
    say(assert_parity(ours, reference, at_least=100, min_iou=0.97, max_confidence_gap=0.03))


def grey(pixels: Pixels) -> Image.Image:
    return Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))


def color(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., ::-1])


def turned(pixels: Pixels, path: Path) -> None:
    """Save the image rotated, with the EXIF orientation that turns it upright."""
    image = color(pixels).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    image.save(path, exif=exif, quality=95)


def sixteen_bit(pixels: Pixels, path: Path) -> None:
    cv2.imwrite(str(path), pixels.astype(np.uint16) * 257)


ODD: dict[str, tuple[str, Callable[[Pixels, Path], Any]]] = {
    "exif": (".jpg", turned),
    "grey": (".jpg", lambda pixels, path: grey(pixels).save(path, quality=95)),
    "palette": (".png", lambda pixels, path: color(pixels).quantize(256).save(path)),
    "rgba": (".png", lambda pixels, path: color(pixels).convert("RGBA").save(path)),
    "16-bit": (".png", sixteen_bit),
    "cmyk": (".jpg", lambda pixels, path: color(pixels).convert("CMYK").save(path, quality=95)),
}


@pytest.mark.parametrize("kind", ODD)
def test_unusual_file_is_read_as_ultralytics_reads_it(
    kind: str, samples: list[Path], tmp_path: Path
) -> None:
    from ultralytics.utils.patches import imread

    for path in write_odd(kind, samples, tmp_path):
        ours = decode(path.read_bytes(), max_pixels=10**8).pixels
        assert np.array_equal(ours, imread(path))


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "grey"])  # shapes are colourful
def test_unusual_file_agrees_with_ultralytics(
    kind: str, bundled: Path, samples: list[Path], tmp_path: Path
) -> None:
    odd = write_odd(kind, samples[:4], tmp_path)  # each of another size; all are read above
    detector = load_detector(bundled)
    reference = predicted(bundled, odd, detector.info.image_size)
    assert_parity(detected(detector, odd), reference, at_least=len(odd))


@pytest.mark.parametrize("kind", ODD)
def test_unusual_file_agrees_with_ultralytics_on_coco(
    kind: str, coco: tuple[Path, list[Path]], coco_export: Path, tmp_path: Path
) -> None:
    weights, images = coco
    odd = write_odd(kind, images[:4], tmp_path)
    ours = detected(load_detector(coco_export), odd)
    assert_parity(ours, predicted(weights, odd, 640, in_our_inputs=True), at_least=len(odd))


def write_odd(kind: str, images: Sequence[Path], directory: Path) -> list[Path]:
    """Write the images again in an unusual format."""
    suffix, write = ODD[kind]
    paths = []
    for index, image in enumerate(images):
        paths.append(directory / f"{index}{suffix}")
        write(decode(image.read_bytes(), max_pixels=10**8).pixels, paths[-1])
    return paths


def test_mixed_batch_agrees_with_one_by_one(
    bundled: Path, samples: list[Path], weights: Path
) -> None:
    from service.inference.ultralytics import UltralyticsDetector

    images = [pixels_of(path) for path in samples]
    detectors = (
        load_detector(bundled),
        UltralyticsDetector(bundled),
        UltralyticsDetector(weights, image_size=256),
    )
    for detector in detectors:
        together = as_found(found_in(detector, images))
        alone = as_found(found for image in images for found in found_in(detector, [image]))
        assert_same(together, alone, at_least=len(samples))


def test_export_of_broken_weights_fails_with_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.errors import ModelError
    from service.export.weights import export_openvino

    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"ultralytics cannot load broken\.pt"):
        export_openvino(Path("broken.pt"))


def test_export_records_what_identifies_the_model(coco_export: Path) -> None:
    info = load_detector(coco_export).info
    assert info.name == "yolo26n.pt"
    assert len(info.sha256) == 64
    assert (info.image_size, info.precision) == (640, "fp32")
    assert str(coco_export.parent) not in (coco_export / "metadata.yaml").read_text()


def detected(detector: Detector, paths: Sequence[Path]) -> list[list[Found]]:
    """Detect in files as `yolo-batch detect` does, in batches."""
    documents: dict[str, Any] = {}

    def receive(document: dict[str, Any]) -> None:
        documents[document["name"]] = document

    detect_files(paths, detector, Settings(reduced_decode=False), receive)
    return [
        [
            Found(found["class_id"], found["confidence"], Box(**found["box"]))
            for found in documents[str(path)]["detections"]
        ]
        for path in paths
    ]


def predicted(
    model: Path, paths: Sequence[Path], image_size: int, *, in_our_inputs: bool = False
) -> list[list[Found]]:
    """Let ultralytics read and predict the files, one by one.

    With `in_our_inputs`, it pads each image to the input shape of the OpenVINO detector. For some
    ratios this is larger than its own choice, and the padding alone changes confidences.
    """
    from ultralytics import YOLO

    reference = YOLO(model, task="detect")
    found = []
    for path in paths:
        size: int | list[int] = image_size
        if in_our_inputs:
            height, width = pixels_of(path).shape[:2]
            shapes = input_shapes(image_size, stride=32)
            fitted = fit(width, height, image_size=image_size, shapes=shapes)
            size = [fitted.input_height, fitted.input_width]
        results = reference.predict(
            path,
            imgsz=size,
            rect=not in_our_inputs,
            conf=MIN_CONFIDENCE,
            nms=False,
            verbose=False,
        )
        boxes = results[0].boxes.cpu().numpy()
        rows = zip(boxes.cls, boxes.conf, boxes.xyxy, strict=True)
        found.append([Found(int(c), float(s), Box(*map(float, xyxy))) for c, s, xyxy in rows])
    return found


def as_found(batches: Iterable[list[Detection]]) -> list[list[Found]]:
    return [[Found(d.class_id, d.confidence, d.box) for d in batch] for batch in batches]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Say:
    """Print a figure in the output of the test run."""

    def print_figures(worst: Worst) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name}: {worst}")

    return print_figures


def assert_parity(
    ours: list[list[Found]],
    reference: list[list[Found]],
    *,
    at_least: int,
    min_iou: float = MIN_IOU,
    max_confidence_gap: float = MAX_CONFIDENCE_GAP,
) -> Worst:
    """Assert that every confident detection of one detector has a counterpart in the other."""
    assert len(ours) == len(reference)
    worst = Worst()
    for mine, theirs in zip(ours, reference, strict=True):
        match_all(mine, theirs, worst, max_confidence_gap)
        match_all(theirs, mine, worst, max_confidence_gap)
    assert worst.iou > min_iou
    assert worst.confidence_gap < max_confidence_gap
    assert worst.detections >= 2 * at_least  # agreeing on nothing proves nothing
    return worst


def assert_same(ours: list[list[Found]], reference: list[list[Found]], *, at_least: int) -> Worst:
    return assert_parity(
        ours,
        reference,
        at_least=at_least,
        min_iou=MIN_SAME_IOU,
        max_confidence_gap=MAX_SAME_CONFIDENCE_GAP,
    )


def match_all(
    these: Sequence[Found], others: Sequence[Found], worst: Worst, max_confidence_gap: float
) -> None:
    for found in these:
        # One just over the threshold may be just under it in the other.
        if found.confidence < MIN_CONFIDENCE + max_confidence_gap:
            continue
        rivals = [other for other in others if other.class_id == found.class_id]
        best = max(rivals, key=lambda other: iou(found.box, other.box), default=None)
        assert best is not None, f"{found} has no counterpart"
        worst.iou = min(worst.iou, iou(found.box, best.box))
        worst.confidence_gap = max(worst.confidence_gap, abs(found.confidence - best.confidence))
        worst.detections += 1
