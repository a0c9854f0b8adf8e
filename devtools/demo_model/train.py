"""Trains a demo model, exports it, measures it and writes its card.

    python -m devtools.demo_model.train --output devtools/demo_model
    python -m devtools.demo_model.train --task segment --output devtools/demo_model

``devtools.demo_model.shapes`` draws all images, from seeds. No weights or images are downloaded.
This script measures the figures in the model card.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from devtools.demo_model import shapes
from devtools.demo_model.accuracy import arithmetic, measure, tally_held_out
from devtools.demo_model.card import TrainingRecord, render_card
from devtools.demo_model.recipe import (
    BATCH,
    HELD_OUT_COUNT,
    INPUT_SIZE,
    MAX_DETECTIONS,
    MODEL_NAME,
    RECIPES,
    TRAINING_SEED,
    VALIDATION_COUNT,
    Recipe,
    image_size,
)
from devtools.demo_model.warm_start import warm_start
from service.machine import cpu_name

DETECTION_MODEL = Path(__file__).parents[2] / "service" / "bundled_model"
MODEL_YAML = Path(__file__).with_name("yolo26-demo.yaml")

BACKBONE_LAYERS = 11
WARM_START_COUNT = 128  # drawn images for the statistics of a network with copied weights
THREADS = 2


def label_lines(scene: shapes.Scene, task: str = "detect") -> str:
    """Write the ground truth of an image in YOLO format.

    Args:
        scene: The image.
        task: ``detect`` or ``segment``.

    Returns:
        One line for each object, in shares of the image. For ``detect``: class, then centre, width
        and height of its box. For ``segment``: class, then the corners of its visible part.
    """
    height, width = scene.image.shape[:2]
    lines = []
    for item in scene.objects:
        if task == "segment":
            corners = joined_rings(item.visible.rings()) / (width, height)
            numbers = " ".join(f"{v:.5f}" for v in np.clip(corners, 0.0, 1.0).flatten())
            lines.append(f"{item.class_id} {numbers}\n")
            continue
        x1, y1, x2, y2 = item.box
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width)
        numbers = " ".join(f"{v:.6f}" for v in (*shares, (y2 - y1) / height))
        lines.append(f"{item.class_id} {numbers}\n")
    return "".join(lines)


def joined_rings(rings: Sequence[shapes.Points]) -> shapes.Points:
    """Join rings to one polygon, because a YOLO label has only one.

    Each ring is closed. The line from one ring to the next and the line back have no area.

    Args:
        rings: Corners of each ring, of shape (n, 2). By the even-odd rule, a ring inside another
            one is a hole.

    Returns:
        Corners of the polygon, of shape (n, 2).
    """
    if len(rings) == 1:
        return rings[0]
    closed = [np.concatenate([ring, ring[:1]]) for ring in rings]
    way_back = [ring[:1] for ring in reversed(rings[:-1])]
    return np.concatenate([*closed, *way_back])


def draw_set(directory: Path, name: str, seed: int, count: int, task: str) -> None:
    """Draw one set of images in YOLO format.

    Args:
        directory: Folder of the data set.
        name: Name of the set, for example ``train``.
        seed: Seed of the set.
        count: How many images to draw.
        task: ``detect`` or ``segment``.
    """
    images, labels = directory / "images" / name, directory / "labels" / name
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(count):
        rng = shapes.scene_generator(seed, index)
        scene = shapes.draw_scene(rng, *image_size(rng))
        stem = f"{index:06d}"
        (images / f"{stem}.jpg").write_bytes(shapes.encode_jpeg(scene.image, 95))
        (labels / f"{stem}.txt").write_text(label_lines(scene, task), encoding="ascii")


def draw_data(directory: Path, train_count: int, task: str) -> Path:
    """Draw the training, validation and held-out sets.

    Args:
        directory: Empty folder to draw into.
        train_count: How many images to train on. 0 draws only the held-out set.
        task: ``detect`` or ``segment``.

    Returns:
        Path of the YAML file that describes the data set.
    """
    draw_set(directory, "test", shapes.HELD_OUT_SEED, HELD_OUT_COUNT, task)
    if train_count:
        draw_set(directory, "train", shapes.TRAIN_SEED, train_count, task)
        draw_set(directory, "val", shapes.VALIDATION_SEED, VALIDATION_COUNT, task)
    trained = ("train", "val") if train_count else ("test", "test")
    description = {
        "path": str(directory),
        "train": f"images/{trained[0]}",
        "val": f"images/{trained[1]}",
        "test": "images/test",
        "names": dict(enumerate(shapes.CLASS_NAMES)),
    }
    path = directory / "shapes.yaml"
    path.write_text(yaml.safe_dump(description), encoding="ascii")
    return path


def build_network(recipe: Recipe, directory: Path) -> Any:
    """Build the untrained network of a recipe.

    Args:
        recipe: Task and head.
        directory: Folder for the file that describes the network.

    Returns:
        Ultralytics' model. For a recipe with ``copies_weights``, it finds shapes already: its
        layers have the weights of the detection model, and only those for masks are random.
    """
    import torch
    from ultralytics import YOLO

    torch.manual_seed(TRAINING_SEED)
    description = yaml.safe_load(MODEL_YAML.read_text(encoding="utf-8"))
    description["head"][-1][2:] = recipe.head
    path = directory / f"yolo26-demo-{recipe.task}.yaml"
    path.write_text(yaml.safe_dump(description), encoding="utf-8")
    model: Any = YOLO(str(path), task=recipe.task)
    if recipe.copies_weights:
        generators = (
            shapes.scene_generator(shapes.VALIDATION_SEED, i) for i in range(WARM_START_COUNT)
        )
        images = [shapes.draw_scene(rng, INPUT_SIZE, INPUT_SIZE).image for rng in generators]
        rgb = np.stack(images)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
        warm_start(model.model, DETECTION_MODEL / f"{MODEL_NAME}.xml", rgb / np.float32(255))
        model.load(model.model)  # otherwise, training would begin with random weights
    return model


def train(recipe: Recipe, data: Path, directory: Path) -> Path:
    """Train the model on the CPU.

    Args:
        recipe: What to train, and how long.
        data: Description of the data set.
        directory: Folder for the files of the run. If it has those of an unfinished run, the
            training goes on after the last complete epoch.

    Returns:
        Path of the weights of the best epoch. The record is beside them, as JSON.
    """
    import torch
    from ultralytics import YOLO

    last = directory / "run" / "weights" / "last.pt"
    model: Any = YOLO(str(last)) if last.exists() else build_network(recipe, directory)
    parameters = sum(p.numel() for p in model.model.parameters())
    # Ultralytics leaves one thread unused. A small machine needs all threads.
    model.add_callback("on_train_start", lambda _: torch.set_num_threads(THREADS))
    model.train(
        data=str(data),
        epochs=recipe.epochs,
        batch=BATCH,
        nbs=BATCH,
        imgsz=INPUT_SIZE,
        optimizer="AdamW",
        lr0=recipe.learning_rate,
        lrf=0.01,
        cos_lr=True,
        warmup_epochs=0.5,
        warmup_bias_lr=0.0,
        # The drawn images vary enough. Moving and scaling would cut shapes at the border, and their
        # boxes would not be tight any more. Flipping keeps them exact.
        mosaic=0.0,
        hsv_h=0.0,
        hsv_s=0.0,
        hsv_v=0.0,
        translate=0.0,
        scale=0.0,
        fliplr=0.5,
        flipud=0.5,
        nms=False,  # validate the NMS-free head, which is exported
        pretrained=recipe.copies_weights,
        freeze=BACKBONE_LAYERS if recipe.copies_weights else None,
        val=not recipe.copies_weights,  # after each epoch
        resume=last.exists(),
        amp=False,
        cache="ram",
        workers=2,
        device="cpu",
        seed=TRAINING_SEED,
        deterministic=True,
        plots=False,
        patience=0,
        project=str(directory),
        name="run",
        exist_ok=True,
    )
    trainer: Any = model.trainer
    record = TrainingRecord(
        images=recipe.images,
        epochs=recipe.epochs,
        seconds=_total(trainer.read_results_csv()["time"]),
        parameters=parameters,
        machine=describe_machine(),
        versions={name: version(name) for name in ("ultralytics", "torch", "openvino", "numpy")},
    )
    best = Path(trainer.best if trainer.best.exists() else trainer.last)
    _record_path(best).write_text(json.dumps(asdict(record), indent=2), encoding="utf-8")
    return best


def _total(times: Sequence[float]) -> float:
    """Return the seconds of a training. Its clock starts again when it goes on after a stop."""
    starts = [0.0, *times[:-1]]
    return sum(
        end - start if end > start else end for start, end in zip(starts, times, strict=True)
    )


def export(weights: Path, recipe: Recipe) -> Path:
    """Export trained weights to OpenVINO, with FP16 weights and a dynamic input shape.

    Args:
        weights: Path of the weights. The export is written beside them.
        recipe: How the weights were trained.

    Returns:
        Folder of the exported model.
    """
    from ultralytics import YOLO

    from service.export.weights import export_openvino

    # In this version of Ultralytics, nms=False keeps the NMS-free head. With None, the export would
    # take the other head, whose output needs non-maximum suppression.
    exported = YOLO(str(weights), task=recipe.task).export(
        format="openvino",
        imgsz=INPUT_SIZE,
        dynamic=True,
        quantize=16,
        nms=False,
        max_det=MAX_DETECTIONS,
        device="cpu",
    )
    directory = Path(exported)
    _rewrite_metadata(directory / "metadata.yaml", weights)
    return export_openvino(directory, directory, precision="fp16")  # adds the canary


def describe_machine() -> str:
    """Return the processor's name and the number of training threads."""
    return f"{THREADS} threads of {cpu_name()} ({platform.machine()}), no GPU"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line without the program's name. None takes it from the process.

    Returns:
        Exit status.
    """
    options = _parse(arguments)
    recipe = RECIPES[options.task]
    recipe = replace(
        recipe, images=options.images or recipe.images, epochs=options.epochs or recipe.epochs
    )
    with _quiet_ultralytics(), _work_folder(options.work) as work:
        data = work / "data" / "shapes.yaml"
        if not data.exists():
            shutil.rmtree(data.parent, ignore_errors=True)  # of a drawing that was stopped
            draw_data(data.parent, 0 if options.weights else recipe.images, recipe.task)
        source = options.weights or train(recipe, data, work)
        weights = work / f"{recipe.model_name}.pt"
        shutil.copyfile(source, weights)
        shutil.copyfile(_record_path(source), _record_path(weights))
        if options.keep_weights:
            shutil.copyfile(weights, options.keep_weights)
            shutil.copyfile(_record_path(weights), _record_path(options.keep_weights))
        exported = export(weights, recipe)
        card = render_card(
            recipe,
            _read_record(weights),
            measure(weights, data, recipe.task),
            measure(exported, data, recipe.task),
            tally_held_out(exported, recipe.task),
            arithmetic(exported),
            _megabytes(exported),
        )
        _publish(exported, card, options.output, recipe)
    sys.stdout.write(card)
    return 0


@contextmanager
def _work_folder(given: Path | None) -> Iterator[Path]:
    """Yield the folder for the images and the weights. It is temporary if none is given."""
    if given:
        given.mkdir(parents=True, exist_ok=True)
        yield given
    else:
        with tempfile.TemporaryDirectory(prefix="shapes-") as temporary:
            yield Path(temporary)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m devtools.demo_model.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--task", choices=RECIPES, default="detect", help="what the model does (%(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the exported model and its card"
    )
    parser.add_argument("--images", type=int, help="training images, instead of the recipe's")
    parser.add_argument("--epochs", type=int, help="epochs, instead of the recipe's")
    parser.add_argument(
        "--work",
        type=Path,
        help="keep images and weights in this folder. The same command then goes on after a stop",
    )
    parser.add_argument("--keep-weights", type=Path, help="also keep the .pt file, at this path")
    parser.add_argument(
        "--weights", type=Path, help="export and measure these weights, without training"
    )
    return parser.parse_args(arguments)


@contextmanager
def _quiet_ultralytics() -> Iterator[None]:
    """Stop Ultralytics from using the network and the home folder.

    It reads these variables when it is first imported. Therefore this module imports it only inside
    functions.
    """
    with tempfile.TemporaryDirectory(prefix="ultralytics-") as settings:
        os.environ["YOLO_CONFIG_DIR"] = settings
        os.environ["YOLO_OFFLINE"] = "true"
        os.environ["YOLO_AUTOINSTALL"] = "false"
        os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
        yield


def _record_path(weights: Path) -> Path:
    """Return the path of the record of some weights."""
    return weights.with_suffix(".json")


def _read_record(weights: Path) -> TrainingRecord:
    """Read the record beside some weights."""
    return TrainingRecord(**json.loads(_record_path(weights).read_text(encoding="utf-8")))


def _rewrite_metadata(path: Path, weights: Path) -> None:
    """Add the metadata that the service reads, and remove local paths."""
    metadata = yaml.safe_load(path.read_text(encoding="utf-8"))
    # With the date, every export would differ. The description names a temporary folder.
    metadata.pop("date", None)
    metadata["description"] = "YOLO26 demo model of yolo-batch, trained on drawn shapes"
    metadata["author"] = "yolo-batch (architecture and training code by Ultralytics)"
    metadata["source"] = weights.name
    metadata["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    metadata["precision"] = "fp16"
    path.write_text(yaml.safe_dump(metadata, sort_keys=False), encoding="utf-8")


def _megabytes(directory: Path) -> float:
    """Return the size of a folder's files in units of 1,000,000 bytes."""
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file()) / 1e6


def _publish(exported: Path, card: str, output: Path, recipe: Recipe) -> None:
    """Write the exported model and its card to the output folder, replacing earlier files."""
    output.mkdir(parents=True, exist_ok=True)
    target = output / recipe.export_name
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(exported, target)
    (output / recipe.card_name).write_text(card, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
