"""The rules that decide which detections of an image are kept, and which images alert."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from zoneinfo import ZoneInfo

from service.domain import Box
from service.sources.geometry import contains, overlap_area
from service.sources.schema import AlertRule, Anchor, Mode, Source, Zone

_ROUNDING = 1e-12  # of an area. One pixel of the largest image has an area of 1e-9 or more.


@dataclass(frozen=True)
class Rules:
    """Which detections of an image are kept.

    Attributes:
        min_confidence: detections below it are not kept.
        min_confidence_by_label: the same for single labels. It overrides `min_confidence`.
        keep_labels: labels that are kept. None: all.
        zones: parts of the image. They do not apply to classes, which have no place in the image.
        keep_faint: whether the other detections are recorded as faint detections.
    """

    min_confidence: float = 0.25
    min_confidence_by_label: Mapping[str, float] = field(default_factory=dict)
    keep_labels: frozenset[str] | None = None
    zones: tuple[Zone, ...] = ()
    keep_faint: bool = True

    @classmethod
    def of(cls, source: Source | None, *, min_confidence: float, store_confidence: float) -> Self:
        """Return the rules of a source.

        Args:
            source: the source. None: the rules of images without a source.
            min_confidence: the threshold of sources that have none.
            store_confidence: the lowest confidence that is recorded. No threshold is lower.
        """
        if source is None:
            return cls(min_confidence)
        own = source.min_confidence
        return cls(
            max(store_confidence, min_confidence if own is None else own),
            {
                label: max(store_confidence, threshold)
                for label, threshold in source.min_confidence_by_label.items()
            },
            source.keep_labels,
            source.zones,
            source.keep_faint,
        )

    @property
    def lowest_confidence(self) -> float:
        """The lowest threshold of any label."""
        return min(self.min_confidence, *self.min_confidence_by_label.values(), 1.0)

    @property
    def counting_zones(self) -> tuple[str, ...]:
        """The names of the zones that have counts: those with the mode `include`."""
        return tuple(zone.name for zone in self.zones if zone.mode is Mode.INCLUDE)

    def keeps(self, label: str, confidence: float) -> bool:
        """Return whether the thresholds and labels keep a detection or a class."""
        threshold = self.min_confidence_by_label.get(label, self.min_confidence)
        return confidence >= threshold and (self.keep_labels is None or label in self.keep_labels)

    def zones_of(self, label: str, box: Box, width: int, height: int) -> tuple[str, ...] | None:
        """Return the names of the zones that a detection is in, or None if the zones drop it.

        Args:
            label: the detection's label.
            box: its box, in pixels of the full image.
            width: the image's width, in pixels.
            height: the image's height, in pixels.
        """
        applicable = [zone for zone in self.zones if zone.applies_to(label)]
        inside = [zone for zone in applicable if _is_in(zone, box, width, height)]
        if any(zone.mode is Mode.EXCLUDE for zone in inside):
            return None
        if not inside and any(zone.mode is Mode.INCLUDE for zone in applicable):
            return None
        return tuple(zone.name for zone in inside)


@dataclass(frozen=True)
class AlertRules:
    """The alert rules of a source, and what they need of it.

    Attributes:
        source_id: the source.
        rules: its rules, one or more.
        groups: labels by the name of their group.
        timezone: of the hours in a rule. None: UTC.
    """

    source_id: str
    rules: tuple[AlertRule, ...]
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    timezone: ZoneInfo | None = None

    def labels_of(self, rule: AlertRule) -> frozenset[str] | None:
        """Return the labels of a rule, or None if it is for all labels."""
        return self.groups[rule.group] if rule.group is not None else rule.labels


def _is_in(zone: Zone, box: Box, width: int, height: int) -> bool:
    """Return whether a box is in a zone, as the zone's anchor decides it."""
    x1, x2 = (min(max(x / width, 0.0), 1.0) for x in (box.x1, box.x2))
    y1, y2 = (min(max(y / height, 0.0), 1.0) for y in (box.y1, box.y2))
    if zone.anchor is Anchor.OVERLAP:
        size = (x2 - x1) * (y2 - y1)
        overlap = overlap_area(zone.polygon, (x1, y1), (x2, y2))
        return size > 0 and overlap + _ROUNDING >= zone.min_overlap * size
    y = y2 if zone.anchor is Anchor.BOTTOM_CENTER else (y1 + y2) / 2
    return contains(zone.polygon, ((x1 + x2) / 2, y))
