"""Plans which images a decoder process makes from an image whose detections are known."""

from collections.abc import Set as AbstractSet

from service.derived import DeriveOptions
from service.domain import ImageResult, ModelInfo, Task
from service.images.derive import DerivePlan


def plan_of(
    options: DeriveOptions, result: ImageResult, labels: AbstractSet[str]
) -> DerivePlan | str:
    """Return what is made from an image, or a sentence why nothing may be made.

    If the options ask for a redaction that is impossible, nothing is made: an image without it
    would show what must be hidden.

    Args:
        options: what the image's source asks for.
        result: the image's result. `faint` has every detection that is not kept.
        labels: all labels of the model.

    Raises:
        ValueError: the result is failed, or its `faint` is None.
    """
    if not (result.image_info and result.model and result.faint is not None):
        raise ValueError("A plan needs the result of a model, with its faint detections.")
    if options.redaction and (reason := _reason(options, result.model, labels)):
        return f"{reason} So nothing can be redacted, and no derived images are made."
    return DerivePlan(
        options,
        result.image_info,
        result.model.task,
        result.detections,
        (*result.faint, *result.unusable),
        result.kept_classes,
    )


def _reason(options: DeriveOptions, model: ModelInfo, labels: AbstractSet[str]) -> str | None:
    """Return why the model cannot find what must be redacted, or None if it can."""
    if model.task is Task.CLASSIFY:
        return "A model of the task classify finds no boxes."
    hidden = (options.redaction and options.redaction.labels) or ()
    if unknown := sorted(set(hidden) - labels):
        return f"The model has no label {unknown[0]!r}."
    return None
