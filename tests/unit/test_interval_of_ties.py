"""The interval of mAP if many detections have the same confidence."""

from service.domain import Box, Detection
from service.inference.average_precision import AveragePrecision, TrueBox


def test_interval_contains_the_value_despite_ties() -> None:
    evaluation = AveragePrecision()
    box = Box(64.0, 48.0, 128.0, 144.0)
    for number in range(20):
        truth = [TrueBox(("star", "heart")[number % 2], (64.0, 48.0, 64.0, 96.0))]
        evaluation.add(truth, [Detection("star", 0, 0.9, box), Detection("heart", 2, 0.6, box)])
    measured = evaluation.result()
    for row in (measured.map50_95, *(label.ap50 for label in measured.labels.values())):
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.value <= row.high
