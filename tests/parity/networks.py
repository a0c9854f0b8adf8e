"""Networks of each task whose results differ enough to compare two implementations.

An untrained network gives each of its 300 boxes the same score, so a comparison of two of its
results cannot fail. These networks are seeded and untrained too, but the statistics of their
normalisation come from real images, and the last layers of their heads are drawn again. They find
hundreds of objects with different scores, sizes, masks, keypoints and angles in every image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from devtools.demo_model.shapes import draw_scene, scene_generator
from service.domain import Task
from service.images.letterbox import letterbox
from service.images.pixels import Pixels

IMAGE_SIZE = 320
# Name of the architecture in ultralytics, by task.
ARCHITECTURES = {
    Task.DETECT: "yolo26n.yaml",
    Task.SEGMENT: "yolo26n-seg.yaml",
    Task.POSE: "yolo26n-pose.yaml",
    Task.OBB: "yolo26n-obb.yaml",
    Task.CLASSIFY: "yolo26n-cls.yaml",
}
# (width, height): both orientations, a thin image, one of the input's size, smaller and larger.
SIZES = ((640, 480), (480, 720), (320, 320), (200, 150), (1000, 300), (901, 1203))
_SEED = 2605  # of the drawn images: no other set has it
_CALIBRATION_SEED = 2606
_CALIBRATION_IMAGES = 8
# Standard deviation of the weights, and bias, of the last layer of each part of a head.
_CLASSES = (0.03, -2.5)
_BOXES = (0.05, 3.0)  # cells from the centre to each side
_ANGLES = (0.1, 0.5)  # radians
_LINEAR = (0.15, 0.0)  # of a classifier


def write_images(directory: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Path]:
    """Draw an image of each size and write it as PNG, which every library decodes alike."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (width, height) in enumerate(sizes):
        scene = draw_scene(scene_generator(_SEED, index), width, height, min_objects=3)
        paths.append(directory / f"{index}-{width}x{height}.png")
        cv2.imwrite(str(paths[-1]), scene.image)
    return paths


def write_weights(task: Task, path: Path) -> Path:
    """Write the seeded network of a task, a `.pt` file that ultralytics loads."""
    import torch
    from ultralytics import YOLO

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        yolo = YOLO(ARCHITECTURES[task], task=str(task), verbose=False)
        _draw_head(yolo.model.model[-1], task)
        _calibrate(yolo.model)
        yolo.model.args = {"imgsz": IMAGE_SIZE, "task": str(task)}
        yolo.save(path)
    return path


def write_coco_segmentation(coco_weights: Path, path: Path) -> Path:
    """Write a segmentation network with the trained backbone and boxes of YOLO26n.

    Its masks are not trained.
    """
    import torch
    from ultralytics import YOLO

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yolo = YOLO(ARCHITECTURES[Task.SEGMENT], task="segment", verbose=False).load(coco_weights)
        yolo.save(path)
    return path


def _draw_head(head: Any, task: Task) -> None:
    """Draw the last layers of the end-to-end head again."""
    if task is Task.CLASSIFY:
        _draw(head.linear, *_LINEAR)
        return
    for boxes, classes in zip(head.one2one_cv2, head.one2one_cv3, strict=True):
        _draw(boxes[-1], *_BOXES)
        _draw(classes[-1], *_CLASSES)
    if task is Task.OBB:
        for angles in head.one2one_cv4:
            _draw(angles[-1], *_ANGLES)


def _draw(layer: Any, deviation: float, bias: float) -> None:
    layer.weight.normal_(0, deviation)
    layer.bias.fill_(bias)


def _calibrate(model: Any) -> None:
    """Take the statistics of each normalisation from one forward pass over drawn images."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics are those of the next batch
    model.train()
    model(torch.from_numpy(_calibration_images()).permute(0, 3, 1, 2).float() / 255)
    model.eval()


def _calibration_images() -> Pixels:
    """Return drawn images, uint8 N x H x W x 3 RGB."""
    images = []
    for index in range(_CALIBRATION_IMAGES):
        width, height = SIZES[index % len(SIZES)]
        scene = draw_scene(scene_generator(_CALIBRATION_SEED, index), width, height)
        fitted = letterbox(width, height, image_size=IMAGE_SIZE, stride=IMAGE_SIZE)
        images.append(fitted.apply(scene.image)[..., ::-1])
    return np.stack(images)
