"""int8 for each task, on the seeded networks: what stays in float, and that the result runs."""

from pathlib import Path

import openvino as ov
import pytest
import yaml

from devtools.demo_model.shapes import SEGMENTATION_MODEL, write_samples
from service.domain import Task
from service.export.accuracy import predict_files
from service.export.quantize import quantize
from service.export.weights import export_openvino, read_metadata
from service.inference.openvino import OpenVINODetector
from tests.parity.networks import IMAGE_SIZE, write_images, write_weights

pytestmark = [
    pytest.mark.ultralytics,
    pytest.mark.filterwarnings("ignore"),  # torch's to ultralytics, and NNCF's
]
BRANCH = ".one2one_cv4"


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.DETECT])
def test_int8_of_each_task_runs_and_keeps_its_branch_in_float(task: Task, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    float_export = export_openvino(
        write_weights(task, tmp_path / f"{task}.pt"), image_size=IMAGE_SIZE
    )
    metadata = read_metadata(float_export)
    [file] = float_export.glob("*.xml")
    quantized = quantize(
        ov.Core().read_model(file),
        images,
        task=task,
        image_size=IMAGE_SIZE,
        stride=int(metadata["stride"]),
    )
    convolutions = [op for op in quantized.get_ordered_ops() if op.get_type_name() == "Convolution"]
    branch = [op for op in convolutions if BRANCH in op.get_friendly_name()]
    assert bool(branch) == (task is not Task.CLASSIFY)
    assert not any(is_quantized(op) for op in branch)
    assert sum(is_quantized(op) for op in convolutions) > len(convolutions) / 2

    directory = tmp_path / "int8"
    directory.mkdir()
    ov.save_model(quantized, directory / file.name, compress_to_fp16=False)
    (directory / "metadata.yaml").write_text(
        yaml.safe_dump(metadata | {"precision": "int8"}), encoding="utf-8"
    )
    reference, other = (
        predict_files(OpenVINODetector(path), images[:3]) for path in (float_export, directory)
    )
    for expected, actual in zip(reference, other, strict=True):
        assert len(actual.classes) == len(expected.classes)
        assert len(actual.detections) > len(expected.detections) / 2
        for found in actual.detections:
            assert bool(found.polygons) == (task is Task.SEGMENT)
            assert bool(found.keypoints) == (task is Task.POSE)
            assert bool(found.rotated_box) == (task is Task.OBB)


def is_quantized(convolution: ov.Node) -> bool:
    return bool(convolution.input_value(0).get_node().get_type_name() == "FakeQuantize")


def test_trained_masks_survive_the_export_to_int8(tmp_path: Path) -> None:
    write_samples(tmp_path / "images")
    exported = export_openvino(
        SEGMENTATION_MODEL, tmp_path / "int8", precision="int8", calibration=tmp_path / "images"
    )
    assert read_metadata(exported)["quantization"]["agreement"]["shape"] > 0.95
