"""The network for segmentation starts with what the bundled detection model has learnt."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from devtools.demo_model import shapes
from devtools.demo_model.train import RECIPES, build_network
from service.settings import BUNDLED_MODEL

pytestmark = [
    pytest.mark.ultralytics,
    pytest.mark.filterwarnings("ignore"),  # torch's to ultralytics
]


@pytest.fixture(autouse=True)
def short_warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devtools.demo_model.train.WARM_START_COUNT", 16)


@pytest.mark.parametrize("is_training", [False, True], ids=["evaluated", "in training"])
def test_network_scores_as_the_detection_model_does(tmp_path: Path, is_training: bool) -> None:
    import torch

    network = build_network(RECIPES["segment"], tmp_path).model.train(is_training)
    drawn = (shapes.draw_scene(shapes.scene_generator(7, i), 320, 320).image for i in range(16))
    rgb = np.stack([image[..., ::-1].transpose(2, 0, 1) for image in drawn])
    images = rgb.astype(np.float32) / np.float32(255)
    with torch.no_grad():
        output = network(torch.from_numpy(images))
    scores = (output if is_training else output[1])["one2one"]["scores"].sigmoid()
    best = scores.amax(dim=(1, 2)).numpy()
    expected = ov.Core().compile_model(BUNDLED_MODEL / "shapes.xml", "CPU")(images)[0]
    # Training normalises with the statistics of these images instead of those that were measured.
    assert best == pytest.approx(expected[:, 0, 4], abs=0.1 if is_training else 0.02)
