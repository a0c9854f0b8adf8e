"""What the demo models are trained on, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MODEL_NAME = "shapes"
VALIDATION_COUNT = 400
HELD_OUT_COUNT = 1000
BATCH = 16
INPUT_SIZE = 320  # pixels: side of the square that the model is trained on
TRAINING_SEED = 0  # decides the first weights and the order of the images
CONFIDENCE = 0.25  # the card counts only detections with at least this confidence
MAX_DETECTIONS = 300  # per image. The exported model always outputs this many rows.

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
