"""Which detections of a result are exported: those above a threshold, faint ones included."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from service.domain import Detection, ImageResult
from service.faint import sort_key


@dataclass(frozen=True)
class Selection:
    """The detections that a user wants.

    Attributes:
        min_confidence: the lowest confidence. None: the detections that the service kept, without
            the faint ones.
        of_label: the lowest confidence of single labels.
        labels: only these labels. None: all.
    """

    min_confidence: float | None = None
    of_label: Mapping[str, float] = field(default_factory=dict)
    labels: frozenset[str] | None = None

    def of(self, result: ImageResult) -> ImageResult:
        """Return a result with the selected detections and classes, the most confident first."""
        kept = [item for item in result.detections if self._takes(item, is_faint=False)]
        faint = [item for item in result.faint or () if self._takes(item, is_faint=True)]
        classes = result.classes if self.min_confidence is not None else result.kept_classes
        return replace(
            result,
            detections=tuple(sorted((*kept, *faint), key=sort_key)),
            faint=(),
            classes=tuple(
                item
                for item in classes
                if (self.labels is None or item.label in self.labels)
                and item.confidence >= self.of_label.get(item.label, self.min_confidence or 0.0)
            ),
        )

    def _takes(self, item: Detection, *, is_faint: bool) -> bool:
        if self.labels is not None and item.label not in self.labels:
            return False
        lowest = self.of_label.get(item.label, self.min_confidence)
        return not is_faint if lowest is None else item.confidence >= lowest
