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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from devtools.demo_model import shapes
from devtools.demo_model.warm_start import warm_start
from service.domain import Box
from service.inference.similarity import iou
from service.machine import cpu_name

MODEL_NAME = "shapes"
DETECTION_MODEL = Path(__file__).parents[2] / "service" / "bundled_model"
MODEL_YAML = Path(__file__).with_name("yolo26-demo.yaml")

VALIDATION_COUNT = 400
HELD_OUT_COUNT = 1000
BATCH = 16
INPUT_SIZE = 320  # pixels: side of the square that the model is trained on
BACKBONE_LAYERS = 11
WARM_START_COUNT = 128  # drawn images for the statistics of a network with copied weights
TRAINING_SEED = 0  # decides the first weights and the order of the images
THREADS = 2
CONFIDENCE = 0.25  # the card counts only detections with at least this confidence
MAX_DETECTIONS = 300  # per image. The exported model always outputs this many rows.

_Found = TypeVar("_Found")  # a box or a mask
_SHORTEST_SIDE = 240
_LONGEST_SIDE = 512


@dataclass(frozen=True)
class Recipe:
    """What differs between the demo models.

    Attributes:
        task: Ultralytics' name of the task.
        images: Number of images in the training set.
        epochs: Number of passes over the images.
        learning_rate: Highest learning rate of the schedule.
        head: Last layer of the network and its arguments, as in the architecture's YAML file.
        copies_weights: Whether training starts with the weights of the detection model, and keeps
            those of the backbone. It is short, so the weights of its last epoch are the best.
        model_name: Name of the weights and of the export.
        card_name: File name of the model card.
    """

    task: str
    images: int
    epochs: int
    learning_rate: float
    head: tuple[str, list[Any]]
    copies_weights: bool
    model_name: str
    card_name: str

    @property
    def export_name(self) -> str:
        """Name of the folder of the exported model."""
        return f"{self.model_name}_openvino_model"


RECIPES = {
    "detect": Recipe(
        task="detect",
        images=8000,
        epochs=14,
        learning_rate=0.004,
        head=("Detect", ["nc"]),
        copies_weights=False,
        model_name=MODEL_NAME,
        card_name="README.md",
    ),
    "segment": Recipe(
        task="segment",
        images=1000,
        epochs=6,
        learning_rate=0.002,
        head=("Segment26", ["nc", 32, 256]),
        copies_weights=True,
        model_name=f"{MODEL_NAME}-seg",
        card_name="SEGMENT.md",
    ),
}


@dataclass(frozen=True)
class TrainingRecord:
    """How the weights were trained. Stored beside them as JSON.

    Attributes:
        images: Number of images in the training set.
        epochs: Number of passes over the images.
        seconds: Wall time of the training, including the validation after each epoch.
        parameters: Number of parameters while training, including both heads.
        machine: Processor and number of threads.
        versions: Version of each package that affects the weights or the export.
    """

    images: int
    epochs: int
    seconds: float
    parameters: int
    machine: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Measurement:
    """Average precision on the held-out images, from 0 to 1, of a model's boxes or masks.

    Attributes:
        map50_95: Mean average precision over IoU 0.50 to 0.95.
        map50: Mean average precision at IoU 0.50.
        per_class: mAP50-95 and mAP50 of each class by name.
    """

    map50_95: float
    map50: float
    per_class: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Tally:
    """Comparison of detections above ``CONFIDENCE`` with the drawn shapes (IoU of at least 0.5).

    The IoU is that of the boxes, or that of the masks for the task ``segment``.

    Attributes:
        drawn: Number of shapes on the images.
        found: Number of shapes with a detection of the right class.
        repeated: Number of further detections of shapes that were already found.
        wrong: Number of detections without a shape, or with the wrong class.
    """

    drawn: int = 0
    found: int = 0
    repeated: int = 0
    wrong: int = 0

    def __add__(self, other: Tally) -> Tally:
        """Add the numbers of two sets of images."""
        return Tally(
            self.drawn + other.drawn,
            self.found + other.found,
            self.repeated + other.repeated,
            self.wrong + other.wrong,
        )


def image_size(rng: np.random.Generator) -> tuple[int, int]:
    """Pick the size of a training image.

    Args:
        rng: Source of randomness.

    Returns:
        Width and height in pixels, portrait as often as landscape.
    """
    longest = int(rng.integers(INPUT_SIZE, _LONGEST_SIDE + 1))
    shortest = max(_SHORTEST_SIDE, int(longest * rng.uniform(0.6, 1.0)))
    return (longest, shortest) if rng.random() < 0.5 else (shortest, longest)


def label_lines(scene: shapes.Scene, task: str = "detect") -> str:
    """Write the ground truth of an image in YOLO format.

    Args:
        scene: The image.
        task: ``detect`` or ``segment``.

    Returns:
        One line for each object, in shares of the image. For ``detect``: class, then centre, width
        and height of its box. For ``segment``: class, then the corners of what is visible of it.
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


def measure(model: Path, data: Path, task: str) -> dict[str, Measurement]:
    """Measure the average precision of a model on the held-out images.

    Args:
        model: Weights, or folder of an exported model.
        data: Description of the data set.
        task: ``detect`` or ``segment``.

    Returns:
        The average precision, over all classes and by class: of ``boxes``, and for ``segment`` of
        ``masks``.
    """
    from ultralytics import YOLO

    metrics: Any = YOLO(str(model), task=task).val(
        data=str(data),
        split="test",
        imgsz=INPUT_SIZE,
        batch=BATCH,
        nms=False,
        device="cpu",
        plots=False,
        verbose=False,
        workers=0,
        project=str(data.parent),
        name="val",
    )
    measured = {"boxes": metrics.box}
    if task == "segment":
        measured["masks"] = metrics.seg
    return {name: _measurement(metric) for name, metric in measured.items()}


def _measurement(metric: Any) -> Measurement:
    """Read Ultralytics' metric of boxes or masks."""
    rows = {int(c): i for i, c in enumerate(metric.ap_class_index)}
    per_class = {
        name: (float(metric.ap[rows[i]]), float(metric.ap50[rows[i]]))
        for i, name in enumerate(shapes.CLASS_NAMES)
    }
    return Measurement(float(metric.map), float(metric.map50), per_class)


def box_overlap(box: shapes.Box, item: shapes.SceneObject) -> float:
    """Return the intersection over union of a box and the box of a drawn shape."""
    return iou(Box(*box), Box(*item.box))


def mask_overlap(mask: npt.NDArray[np.bool_], item: shapes.SceneObject) -> float:
    """Return the intersection over union of a mask and what is visible of a drawn shape.

    Args:
        mask: Mask of the size of the image, of shape (height, width).
        item: The drawn shape. A pixel belongs to it if it covers at least a half.

    Returns:
        Share from 0 to 1.
    """
    visible = item.visible.coverage >= 0.5
    common = np.count_nonzero(mask[item.visible.window] & visible)
    return common / (np.count_nonzero(mask) + np.count_nonzero(visible) - common)


def tally(
    objects: Sequence[shapes.SceneObject],
    detections: Sequence[tuple[int, _Found]],
    overlap_with: Callable[[_Found, shapes.SceneObject], float],
) -> Tally:
    """Compare the detections on one image with its drawn shapes.

    Args:
        objects: The drawn shapes.
        detections: Class and box or mask of each detection, the most confident first.
        overlap_with: Returns the intersection over union with a drawn shape.

    Returns:
        The counts of this image.
    """
    missing = set(range(len(objects)))
    found = repeated = 0
    for class_id, place in detections:
        overlaps = [
            (overlap_with(place, item), index)
            for index, item in enumerate(objects)
            if item.class_id == class_id
        ]
        fitting = [(share, index) for share, index in overlaps if share >= 0.5]
        candidates = [(share, index) for share, index in fitting if index in missing]
        if candidates:
            missing.remove(max(candidates)[1])
            found += 1
        elif fitting:
            repeated += 1
    return Tally(len(objects), found, repeated, len(detections) - found - repeated)


def tally_held_out(exported: Path, task: str) -> Tally:
    """Run the exported model on the held-out images, and compare with the drawn shapes.

    Args:
        exported: Folder of an exported model.
        task: ``detect`` compares boxes, and ``segment`` compares masks.

    Returns:
        The counts over all held-out images.
    """
    from ultralytics import YOLO

    model: Any = YOLO(str(exported), task=task)
    total = Tally()
    for index in range(HELD_OUT_COUNT):
        rng = shapes.scene_generator(shapes.HELD_OUT_SEED, index)
        scene = shapes.draw_scene(rng, *image_size(rng))
        result = model.predict(
            scene.image,
            imgsz=INPUT_SIZE,
            conf=CONFIDENCE,
            nms=False,
            retina_masks=True,
            device="cpu",
            verbose=False,
        )[0]
        rows = result.boxes.data.tolist()
        best_first = sorted(range(len(rows)), key=lambda row: -rows[row][4])
        if task == "segment":
            masks = [result.masks.data[row].numpy().astype(bool) for row in best_first]
            found = [(int(rows[row][5]), mask) for row, mask in zip(best_first, masks, strict=True)]
            total += tally(scene.objects, found, mask_overlap)
        else:
            boxes = [(int(rows[row][5]), tuple(rows[row][:4])) for row in best_first]
            total += tally(scene.objects, boxes, box_overlap)
    return total


def arithmetic(exported: Path) -> str:
    """Return the number type that OpenVINO computes with on this processor.

    On processors with instructions for bfloat16, OpenVINO uses it by default. The same exported
    model therefore has slightly different figures on other machines.

    Args:
        exported: Folder of an exported model.

    Returns:
        Name of the type, for example ``f32`` or ``bf16``.
    """
    import openvino

    (file,) = exported.glob("*.xml")
    compiled = openvino.Core().compile_model(str(file), "CPU")
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


@dataclass(frozen=True)
class _Wording:
    """The sentences of the model card that depend on the task."""

    kind: str
    finds: str
    output: str
    start: str
    limit: str
    other_scale: str = ""


_WORDINGS = {
    "detect": _Wording(
        kind="object detection",
        finds="With it you can try the\nwhole service without a download.",
        output=f"`[N,{MAX_DETECTIONS},6]`: x1, y1, x2, y2 in input pixels, confidence, class",
        start="",
        limit="- The box of a partly hidden shape is a guess where its edge is not visible.",
        other_scale=" At 640 pixels it misses shapes and confuses them.",
    ),
    "segment": _Wording(
        kind="instance segmentation",
        finds="It outlines the\nvisible part of each. `make demo TASK=segment` runs it.",
        output=f"`[N,{MAX_DETECTIONS},38]`: x1, y1, x2, y2 in input pixels, confidence, class, "
        "32 mask coefficients; `[N,32,H/4,W/4]`: 32 mask prototypes",
        start="""
The training did not start with random weights. It started with those of the bundled detection model
(`service/bundled_model`), which this script made too. Only the layers for masks were random. The
weights of the backbone stayed as they were. The detection model's own training is in
[its card](README.md).
""",
        limit=f"""\
- Masks and boxes cover only the visible part of a shape. Where a later shape hides a corner,
  the mask ends at that shape.
- A mask has a quarter of the input's resolution: {INPUT_SIZE // 4} x {INPUT_SIZE // 4}. Sharp \
corners become round.""",
    ),
}


def render_card(
    recipe: Recipe,
    record: TrainingRecord,
    trained: Mapping[str, Measurement],
    exported: Mapping[str, Measurement],
    counts: Tally,
    arithmetic: str,
    megabytes: float,
) -> str:
    """Write the model card.

    Args:
        recipe: The demo model.
        record: How the weights were trained.
        trained: Average precision of the trained weights, in FP32: of ``boxes``, and of ``masks``
            for the task ``segment``.
        exported: Average precision of the exported model.
        counts: Counts of the exported model's detections.
        arithmetic: Number type that OpenVINO computed with, for example ``bf16``.
        megabytes: Size of the exported model in units of 1,000,000 bytes.

    Returns:
        The card, in Markdown.
    """
    wording = _WORDINGS[recipe.task]
    measured = list(exported)[-1]  # masks, if the model has them
    kind = {name: f", {name}" if len(exported) > 1 else "" for name in exported}
    of_what = f" of the {measured}" if len(exported) > 1 else ""
    accuracy = "\n".join(
        f"| As trained (FP32){kind[name]} "
        f"| {trained[name].map50_95:.3f} | {trained[name].map50:.3f} |\n"
        f"| **As exported{kind[name]}** | **{result.map50_95:.3f}** | **{result.map50:.3f}** |"
        for name, result in exported.items()
    )
    classes = "\n".join(
        f"| {name} | {precise:.3f} | {coarse:.3f} |"
        for name, (precise, coarse) in exported[measured].per_class.items()
    )
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    choice = f"Images to choose the epoch | {VALIDATION_COUNT:,} (seed {shapes.VALIDATION_SEED})"
    if recipe.copies_weights:
        choice = "Epoch that is kept | the last"
    option = "" if recipe.task == "detect" else f"--task {recipe.task} "
    return f"""\
# Model card: {recipe.model_name}

<!-- Written by `python -m devtools.demo_model.train`. Do not edit: the figures are measured. -->

A small YOLO26 {wording.kind} model for the demo. It finds {len(shapes.CLASS_NAMES)} kinds of flat
shapes ({", ".join(shapes.CLASS_NAMES)}). {wording.finds} Do not use it on photographs.

| | |
|---|---|
| Architecture | YOLO26, own scale ([`yolo26-demo.yaml`](yolo26-demo.yaml)), NMS-free head |
| Parameters while training | {record.parameters:,} (both heads) |
| Exported as | OpenVINO IR, FP16 weights, dynamic input shape `[?,3,?,?]` |
| Size of `{recipe.export_name}/` | {megabytes:.2f} MB |
| Input | RGB, 0 to 1, letterboxed; trained at {INPUT_SIZE} x {INPUT_SIZE} pixels |
| Output | {wording.output} |
| Licence | AGPL-3.0, like this repository and Ultralytics, whose architecture it is |

## Accuracy

The training script measured these figures on {HELD_OUT_COUNT:,} held-out images. They were used
neither to train nor to choose the best epoch.

| | mAP50-95 | mAP50 |
|---|---|---|
{accuracy}

The exported model has FP16 weights. OpenVINO computed in {arithmetic} on this processor. \
Per class{of_what}:

| Class | mAP50-95 | mAP50 |
|---|---|---|
{classes}

Detections of the exported model on the same images, with a confidence of at least {CONFIDENCE} and
an IoU{of_what} of at least 0.5:

| Shapes drawn | found | repeated detections | wrong detections |
|---|---|---|---|
| {counts.drawn:,} | {counts.found:,} | {counts.repeated:,} | {counts.wrong:,} |

## How it was made

```sh
python -m devtools.demo_model.train {option}--output devtools/demo_model
```

The script draws all images ([`shapes.py`](shapes.py)). Shapes of different sizes, rotations and
colours overlap on backgrounds with lines, bars, curves and splinters. The images have blur, noise,
changes of brightness and JPEG artefacts. No image and no weights come from elsewhere.
{wording.start}
| | |
|---|---|
| Training images | {record.images:,} (seed {shapes.TRAIN_SEED}) |
| Epochs | {record.epochs}, in batches of {BATCH} |
| {choice} |
| Held-out images | {HELD_OUT_COUNT:,} (seed {shapes.HELD_OUT_SEED}) |
| Samples of the demo | {shapes.SAMPLE_COUNT} (seed {shapes.SAMPLE_SEED}), never trained on |
| Seed of the weights | {TRAINING_SEED} |
| Training time | {record.seconds / 60:.0f} minutes on {record.machine} |
| Versions | {versions} |

The run is seeded. Other versions, processors or thread counts round differently. A model that you
train can therefore differ from this one, and so can the last digits of its figures.

## Limits

- The NMS-free head sometimes reports a shape twice. The table above counts how often.
- It was trained at one scale. Letterbox images to {INPUT_SIZE} pixels, as the export's metadata
  say.{wording.other_scale}
- It knows shapes as `shapes.py` draws them: one bright fill, even sides, any rotation. It has not
  seen photographs, outlines, hand drawings or text.
- It can miss small and hidden shapes. In training, no circle had a diameter below
  {200 * shapes.MIN_RADIUS:.0f} % of the square root of the image's area, and no other shape fitted
  into such a circle. No shape was hidden by more than {100 * (1 - shapes.MIN_VISIBLE):.0f} %.
{wording.limit}
- The sides of the input must be multiples of 32. They must be large enough for the {MAX_DETECTIONS}
  detections that the model always outputs: 128 x 128 pixels are enough, 96 x 96 are not.
"""


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
