"""Decides which detections of an image are kept: a pure function of what the model found."""

from dataclasses import replace

from service.domain import ImageResult, Prediction
from service.sources.rules import Rules


def evaluate(result: ImageResult, prediction: Prediction, rules: Rules) -> ImageResult:
    """Return the result with the detections that the rules keep, and with the others as faint.

    Args:
        result: the result of an image, whose detections are replaced.
        prediction: what the model found, the most confident first.
        rules: the rules of the image's source.
    """

    def is_kept(label: str, confidence: float) -> bool:
        threshold = rules.min_confidence_by_label.get(label, rules.min_confidence)
        return confidence >= threshold and (rules.keep_labels is None or label in rules.keep_labels)

    found = prediction.detections
    kept = tuple(item for item in found if is_kept(item.label, item.confidence))
    faint = tuple(item for item in found if not is_kept(item.label, item.confidence))
    return replace(
        result,
        detections=kept,
        faint=faint if rules.keep_faint else None,
        classes=prediction.classes,
        kept_classes=tuple(
            item for item in prediction.classes if is_kept(item.label, item.confidence)
        ),
    )
