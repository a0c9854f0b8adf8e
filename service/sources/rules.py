"""The rules that decide which detections of an image are kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rules:
    """Which detections of an image are kept.

    Attributes:
        min_confidence: detections below it are not kept.
        min_confidence_by_label: the same for single labels. It overrides `min_confidence`.
        keep_labels: labels that are kept. None: all.
        keep_faint: whether the other detections are recorded, too.
    """

    min_confidence: float = 0.25
    min_confidence_by_label: Mapping[str, float] = field(default_factory=dict)
    keep_labels: frozenset[str] | None = None
    keep_faint: bool = True
