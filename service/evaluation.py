"""Decides which detections of an image are kept. It depends on the model's prediction alone."""

from dataclasses import replace

from service.domain import Detection, ImageResult, Prediction
from service.faint import rounded
from service.sources.rules import Rules


def evaluate(result: ImageResult, prediction: Prediction, rules: Rules) -> ImageResult:
    """Return the result with the detections that the rules keep, and with the others as faint.

    The rules see the rounded numbers that a document stores. So they decide the same if they are
    applied later to the stored detections and faint detections.

    Args:
        result: the result of an image, whose detections are replaced. It has the image's size.
        prediction: what the model found.
        rules: the rules of the image's source.
    """
    prediction = rounded(prediction)
    kept, faint = [], []
    for item in prediction.detections:
        zones = _zones(result, item, rules) if rules.keeps(item.label, item.confidence) else None
        if zones is None:
            faint.append(replace(item, zones=()))
        else:
            kept.append(replace(item, zones=zones))
    return replace(
        result,
        detections=tuple(kept),
        faint=tuple(faint) if rules.keep_faint else None,
        unusable=prediction.unusable,
        classes=prediction.classes,
        kept_classes=tuple(
            item for item in prediction.classes if rules.keeps(item.label, item.confidence)
        ),
        zones=rules.counting_zones,
    )


def _zones(result: ImageResult, item: Detection, rules: Rules) -> tuple[str, ...] | None:
    """Return the names of the zones that a detection is in, or None if the zones drop it."""
    if not rules.zones or not result.image_info:
        return ()
    info = result.image_info
    return rules.zones_of(item.label, item.box, info.width, info.height)
