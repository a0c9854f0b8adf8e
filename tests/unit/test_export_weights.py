"""`export` of weights: tasks, labels that cannot be stored, and the image size of the training."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from service.cli.main import main
from service.domain import Task
from service.errors import ModelError
from service.export.weights import export_openvino, read_metadata
from service.inference.identity import sha256_of_model
from service.inference.loading import load_detector
from service.settings import BUNDLED_MODEL
from tests.labelled import labelled_samples, write_drawn_samples
from tests.parity.networks import ARCHITECTURES

pytestmark = [
    pytest.mark.ultralytics,
    pytest.mark.filterwarnings("ignore"),  # torch's to ultralytics
]
ARCHITECTURE = Path(__file__).parents[2] / "devtools/demo_model/yolo26-demo.yaml"
REFUSED = {"yolo26-sem.yaml": "semantic", "yolo26-depth.yaml": "depth"}
LABELS = ["circle", "square", "triangle", "star", "heart", "cross"]


def weights(
    directory: Path, *, names: Any = None, imgsz: Any = 64, architecture: str | Path = ARCHITECTURE
) -> Path:
    """Untrained weights of six classes, in the format in which ultralytics saves a training."""
    import torch
    from ultralytics import YOLO

    yolo = YOLO(architecture, verbose=False)
    model = yolo.model
    model.names = dict(enumerate(LABELS)) if names is None else names
    model.args = {"imgsz": imgsz, "task": yolo.task}
    path = directory / "field.pt"
    torch.save({"model": model, "train_args": model.args, "epoch": -1}, path)
    return path


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def changed(class_id: int, label: Any) -> list[Any]:
    return [label if index == class_id else name for index, name in enumerate(LABELS)]


@pytest.mark.parametrize("label", ["", "\ud83d", True])  # test_labels.py has the others
def test_label_that_cannot_be_stored_stops_the_export(tmp_path: Path, label: Any) -> None:
    path = weights(tmp_path, names=dict(enumerate(changed(3, label))))
    done = export(path)
    assert done.exit_code == 3
    assert "field.pt has labels that cannot be stored: class 3, " in done.output
    assert "--rename OLD=NEW" in done.output
    with pytest.raises(ModelError, match="class 3, "):
        load_detector(path)
    verified = CliRunner().invoke(main, ["check-model", str(path)])
    assert verified.exit_code == 3
    assert "class 3, " in verified.output
    assert [path.name for path in tmp_path.iterdir()] == ["field.pt"]


def test_class_without_a_label_stops_the_export(tmp_path: Path) -> None:
    path = weights(tmp_path, names=LABELS[:5])
    assert "class 5 has no label" in export(path).output
    with pytest.raises(ModelError, match="class 5 has no label"):
        load_detector(path)


def test_rename_gives_the_export_labels_that_can_be_stored(tmp_path: Path) -> None:
    path = weights(tmp_path, names=["n01440764", "traffic light", "a\0b", True, "", "cross"])
    renames = ["--rename", "=background", "--rename", "#2=ab", "--rename", "True=true"]
    done = export(path, *renames)
    assert done.exit_code == 0, done.output
    written = tmp_path / "field_openvino_model"
    weights_sha256 = sha256_of_model(path)
    assert read_metadata(written)["weights_sha256"] == weights_sha256
    assert sha256_of_model(written) == load_detector(written).info.sha256 != weights_sha256
    expected = ["n01440764", "traffic light", "ab", "true", "background", "cross"]
    assert read_metadata(written)["names"] == dict(enumerate(expected))
    load_detector(written)


def test_rename_works_on_an_exported_model(tmp_path: Path) -> None:
    done = export(weights(tmp_path, names=changed(0, "a\n`b")))
    assert done.exit_code == 0, done.output
    source, target = tmp_path / "field_openvino_model", tmp_path / "out"
    assert sha256_of_model(source) == sha256_of_model(tmp_path / "field.pt")
    assert read_metadata(source)["names"][0] == "a\n`b"
    assert export(source, "--output", target, "--rename", "#0=ab").exit_code == 0
    assert list(read_metadata(target)["names"].values()) == changed(0, "ab")
    unknown = export(source, "--output", target, "--rename", "car=bus")
    assert "field_openvino_model has no class 'car'" in unknown.output


def test_classes_of_one_label_are_named(tmp_path: Path) -> None:
    done = export(weights(tmp_path, names=changed(3, "circle")))
    assert "The classes 0, 3 share the label 'circle': they are counted as one" in done.output


@pytest.mark.parametrize(
    ("imgsz", "options", "size", "line"),
    [
        (96, [], 96, "Image size 96 pixels, from the training of the weights"),
        (96, ["--image-size", "64"], 64, "Image size 64 pixels\n"),
    ],
    ids=["trained", "given"],
)
def test_export_sees_the_size_of_the_training(
    tmp_path: Path, imgsz: Any, options: list[str], size: int, line: str
) -> None:
    path = weights(tmp_path, imgsz=imgsz)
    done = export(path, *options)
    assert done.exit_code == 0, done.output
    assert line in done.output
    written = tmp_path / "field_openvino_model"
    assert load_detector(written).info.image_size == size
    if not options:  # the weights themselves run at the same size
        assert load_detector(path).info.image_size == size


# --- tasks ------------------------------------------------------------------------------------


def weights_of(task: Task, directory: Path, *, names: Any = None, imgsz: int = 64) -> Path:
    """Untrained weights for a task, with six classes."""
    architecture = directory / ARCHITECTURES[task]
    text = (_ultralytics_models() / ARCHITECTURES[task].replace("yolo26n", "yolo26")).read_text()
    architecture.write_text(re.sub(r"^nc: .*$", "nc: 6", text, flags=re.MULTILINE))
    path = weights(directory, names=names, imgsz=imgsz, architecture=architecture)
    architecture.unlink()
    return path


def _ultralytics_models() -> Path:
    import ultralytics

    return Path(ultralytics.__file__).parent / "cfg/models/26"


@pytest.mark.parametrize("task", list(Task))
def test_export_of_each_task_passes_check_model(task: Task, tmp_path: Path) -> None:
    path = weights_of(task, tmp_path, names=changed(3, "sun"))
    done = export(path, "--model-version", "2026-11 b", "--rename", "sun=star")
    assert done.exit_code == 0, done.output
    written = tmp_path / "field_openvino_model"
    metadata = read_metadata(written)
    assert (metadata["task"], metadata["model_version"]) == (task, "2026-11 b")
    assert list(metadata["names"].values()) == LABELS
    info = load_detector(written).info
    assert (info.task, info.version, info.image_size) == (task, "2026-11 b", 64)
    verified = CliRunner().invoke(main, ["check-model", str(written)])
    assert verified.exit_code == 0, verified.output
    assert f"task       {task}\nversion    2026-11 b\n" in verified.output
    again = CliRunner().invoke(main, ["check-model", str(path), "--json"])
    assert json.loads(again.stdout)["model"]["task"] == task


@pytest.mark.parametrize("task", list(Task))
def test_class_without_a_label_stops_the_export_of_each_task(task: Task, tmp_path: Path) -> None:
    path = weights_of(task, tmp_path, names=LABELS[:5])
    assert "class 5 has no label" in export(path).output


@pytest.mark.parametrize(("architecture", "task"), REFUSED.items())
def test_other_tasks_are_refused_with_those_that_work(
    architecture: str, task: str, tmp_path: Path
) -> None:
    path = weights(tmp_path, architecture=_ultralytics_models() / architecture)
    directory = tmp_path / "other_openvino_model"
    directory.mkdir()
    metadata = {"task": task, "names": LABELS, "stride": 32, "imgsz": [64, 64], "precision": "fp32"}
    (directory / "metadata.yaml").write_text(yaml.safe_dump(metadata), encoding="utf-8")
    for model in (path, directory):
        for arguments in (["export", model, "--output", tmp_path / "out"], ["check-model", model]):
            done = CliRunner().invoke(main, list(map(str, arguments)))
            assert done.exit_code == 3, done.output
            message = " ".join(done.output.split())
            assert task in message
            assert "detect, segment, pose, obb, classify" in message
    assert not (tmp_path / "out").exists()


def test_classifier_of_any_image_size_can_be_exported(tmp_path: Path) -> None:
    done = export(weights_of(Task.CLASSIFY, tmp_path), "--image-size", "100")
    assert done.exit_code == 0, done.output
    written = tmp_path / "field_openvino_model"
    assert load_detector(written).info.image_size == 100
    verified = CliRunner().invoke(main, ["check-model", str(written)])
    assert verified.exit_code == 0, verified.output


def test_image_size_of_a_model_with_a_stride_is_checked(tmp_path: Path) -> None:
    done = export(weights_of(Task.SEGMENT, tmp_path), "--image-size", "100")
    assert done.exit_code == 3
    assert "The image size 100 is not a multiple of 32" in done.output


def test_export_of_a_pose_model_keeps_the_names_of_its_keypoints(tmp_path: Path) -> None:
    import torch

    path = weights_of(Task.POSE, tmp_path)
    content = torch.load(path, weights_only=False)
    names = {class_id: [f"p{i}" for i in range(17)] for class_id in range(6)}
    content["model"].kpt_names = names
    torch.save(content, path)
    done = export(path)
    assert done.exit_code == 0, done.output
    written = tmp_path / "field_openvino_model"
    assert read_metadata(written)["kpt_shape"] == [17, 3]
    assert read_metadata(written)["kpt_names"] == names
    assert export(written, "--output", tmp_path / "out").exit_code == 0
    assert read_metadata(tmp_path / "out")["kpt_names"] == names


@pytest.mark.parametrize("version", ["", "a" * 101, "a\nb", "\ud83d"])
def test_model_version_that_documents_cannot_show_is_refused(version: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--model-version"):
        export_openvino(BUNDLED_MODEL, tmp_path / "out", precision="fp16", model_version=version)


def test_version_of_a_model_stays_when_it_is_exported_again(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    export_openvino(BUNDLED_MODEL, first, precision="fp16", model_version="v1")
    export_openvino(first, second, precision="fp16")
    export_openvino(second, third, precision="fp16", model_version="v2")
    versions = [load_detector(path).info.version for path in (BUNDLED_MODEL, first, second, third)]
    assert versions == [None, "v1", "v1", "v2"]


def test_map_of_another_task_is_refused_before_the_work(tmp_path: Path) -> None:
    path = weights_of(Task.OBB, tmp_path)
    write_drawn_samples(tmp_path / "images")
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(labelled_samples()), encoding="utf-8")
    done = export(path, "--data", file, "--data-images", tmp_path / "images")
    assert done.exit_code == 3
    assert "--data measures the mAP of boxes" in " ".join(done.output.split())
