"""The model card of a demo model, and the figures in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devtools.demo_model import shapes
from devtools.demo_model.recipe import (
    BATCH,
    CONFIDENCE,
    HELD_OUT_COUNT,
    INPUT_SIZE,
    MAX_DETECTIONS,
    TRAINING_SEED,
    VALIDATION_COUNT,
    Recipe,
)


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
