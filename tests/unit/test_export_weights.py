"""`export` of weights: labels that cannot be stored, and the image size of the training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service.cli.main import main
from service.errors import ModelError
from service.export.weights import read_metadata
from service.inference.identity import sha256_of_model
from service.inference.loading import load_detector

pytestmark = [
    pytest.mark.ultralytics,
    pytest.mark.filterwarnings("ignore"),  # torch's to ultralytics
]
ARCHITECTURE = Path(__file__).parents[2] / "devtools/demo_model/yolo26-demo.yaml"
LABELS = ["circle", "square", "triangle", "star", "heart", "cross"]


@pytest.fixture(autouse=True, scope="module")
def offline_ultralytics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("YOLO_OFFLINE", "True")
        environment.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        yield


def weights(directory: Path, *, names: Any = None, imgsz: Any = 64) -> Path:
    """Untrained weights of six classes, in the format in which ultralytics saves a training."""
    import torch
    from ultralytics import YOLO

    model = YOLO(ARCHITECTURE, verbose=False).model
    model.names = dict(enumerate(LABELS)) if names is None else names
    model.args = {"imgsz": imgsz, "task": "detect"}
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
