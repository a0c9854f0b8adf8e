"""Decides which detections of an image are kept: a pure function of what the model found."""

from collections.abc import Iterable
from dataclasses import replace

from service.domain import ClassScore, Detection, ImageResult, Prediction
from service.sources.rules import Rules


def evaluate(result: ImageResult, prediction: Prediction, rules: Rules) -> ImageResult:
    """Return the result with the detections that the rules keep, and with the others as faint.

    Only what a document stores is used. So the same rules decide the same later, about the stored
    detections and the faint detections together.

    Args:
        result: the result of an image, whose detections are replaced. It has the image's size.
        prediction: what the model found.
        rules: the rules of the image's source.
    """
    kept, faint = [], []
    for item in _sorted(prediction.detections):
        zones = _zones(result, item, rules) if rules.keep(item.label, item.confidence) else None
        if zones is None:
            faint.append(replace(item, zones=()))
        else:
            kept.append(replace(item, zones=zones))
    classes = tuple(sorted(prediction.classes, key=_order))
    return replace(
        result,
        detections=tuple(kept),
        faint=tuple(faint) if rules.keep_faint else None,
        classes=classes,
        kept_classes=tuple(item for item in classes if rules.keep(item.label, item.confidence)),
        zones=rules.counting_zones,
    )


def _zones(result: ImageResult, item: Detection, rules: Rules) -> tuple[str, ...] | None:
    if not rules.zones or not result.image_info:
        return ()
    info = result.image_info
    return rules.zones_of(item.label, item.box, info.width, info.height)


def _sorted(detections: Iterable[Detection]) -> list[Detection]:
    """Sort, the most confident first. The order does not depend on that of the arguments."""

    def order(item: Detection) -> tuple[float, ...]:
        box = item.box
        return (*_order(item), box.x1, box.y1, box.x2, box.y2)

    return sorted(detections, key=order)


def _order(item: Detection | ClassScore) -> tuple[float, int]:
    return -item.confidence, item.class_id
