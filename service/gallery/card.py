"""What a page shows of one result, as JSON: boxes, masks and keypoints for the script to draw."""

from collections.abc import Mapping
from typing import Any

from service.gcp.result_pages import StoredResult


def card(result: StoredResult) -> dict[str, Any]:
    """Return what the pages show of a result, whatever a person has edited in the document.

    Keys: `id`, `generation`, `name`, `uri`, `source`, `shown` (`service.result_filter.Shown`),
    `error` (`code` and `message`, or null), `width`, `height` (pixels of the upright image, or
    null), `created_at` and `captured_at` (RFC 3339, or null), `task`, `thumbnail` and `large`
    (URLs, or null), `detections` and `faint` (the most confident first), `faint_cut`, `classes`,
    `redacted` (true if only redacted copies may be shown).

    A detection has `label`, `class_id`, `confidence`, `box` (x1, y1, x2, y2 in pixels) and, if the
    task has them, `polygons` (rings: x1, y1, x2, y2, ...), `keypoints` (x, y, confidence, name),
    `corners` (x1, y1, ..., x4, y4) and `zones`.
    """
    raise NotImplementedError


def alt_text(document: Mapping[str, Any]) -> str:
    """Return what a screen reader says in place of an image."""
    raise NotImplementedError
