"""int8 against float: what `yolo-batch export` measures on labelled images, and trained masks.

The calibration images and the measured images are different photographs.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.demo_model.shapes import SEGMENTATION_MODEL, write_samples
from service.export.accuracy import find_labels
from service.export.weights import export_openvino, read_metadata
from service.inference.canary import FALLBACK, load_verified
from service.inference.loading import load_detector

pytestmark = [
    pytest.mark.ultralytics,
    pytest.mark.filterwarnings("ignore"),  # torch's to ultralytics, and NNCF's
]

HERE = Path(__file__).parents[2]
SHARED = Path(os.environ.get("PARITY_DATA", "../shared"))
WEIGHTS = SHARED / "models" / "yolo26n.pt"
CALIBRATION = SHARED / "coco-mini" / "calibration"
LABELS = SHARED / "coco-mini" / "instances_dev.json"
MAX_LOSS = 0.01  # of mAP50-95, in 0..1


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (WEIGHTS.is_file() and CALIBRATION.is_dir() and LABELS.is_file()):
        pytest.skip(
            f"NOT CHECKED: int8 on COCO needs {WEIGHTS}, {CALIBRATION} and {LABELS}; "
            "set PARITY_DATA to the folder that holds models/ and coco-mini/"
        )
    folder = tmp_path_factory.mktemp("int8")
    return export_openvino(
        WEIGHTS,
        folder / "yolo26n_int8_openvino_model",
        precision="int8",
        calibration=CALIBRATION,
        labels=find_labels(LABELS),
    )


def test_int8_loses_at_most_a_point_of_map(int8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = read_metadata(int8)
    measured = metadata["accuracy"]
    with capsys.disabled():
        print(f"\n{measured} {metadata['quantization']['agreement']}")
    assert measured["fp32"]["map50_95"] > 0.4
    assert measured["fp32"]["map50_95"] - measured["int8"]["map50_95"] <= MAX_LOSS


def test_int8_and_its_float_model_pass_their_canaries(int8: Path) -> None:
    for path, precision in ((int8, "int8"), (int8 / FALLBACK, "fp32")):
        assert read_metadata(path)["canary"]["detections_compared"] >= 4
        verified = load_verified(path, load=load_detector)
        assert (verified.fallback, verified.detector.info.precision) == (None, precision)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are x86's instructions")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_int8_passes_its_canary_without_vnni(int8: Path, tmp_path: Path, instructions: str) -> None:
    """CPUs without VNNI add 8-bit products in 16 bits, which can overflow."""
    code = (
        "import sys; from pathlib import Path; "
        "from service.inference.loading import load_detector; "
        "from service.inference.canary import load_verified; "
        "print(load_verified(Path(sys.argv[1]), load=load_detector).fallback)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(int8)],
        cwd=HERE,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": instructions, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "None", done.stderr


def test_trained_masks_survive_the_export_to_int8(tmp_path: Path) -> None:
    write_samples(tmp_path / "images")
    exported = export_openvino(
        SEGMENTATION_MODEL, tmp_path / "int8", precision="int8", calibration=tmp_path / "images"
    )
    assert read_metadata(exported)["quantization"]["agreement"]["shape"] > 0.95
