"""What several formats share: texts, the rings of masks, and which image a person may see."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.domain import DerivedKind, ImageResult, Polygon
from service.result_exports.records import ExportedImage

# Characters that XML 1.0 cannot have, not even escaped: https://www.w3.org/TR/xml/#charsets
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_REPLACEMENT = "\ufffd"
NO_LABEL = "(no label)"  # for an empty label, which other tools refuse


def reason_of(image: ExportedImage) -> str:
    """Return why an image has no result, as one sentence."""
    return image.note or "The document is unreadable."


def plain_label(label: str) -> str:
    """Return a label that XML can have and that is not blank. Most labels stay as they are."""
    text = _NOT_XML.sub(_REPLACEMENT, label)
    return text if text.strip() else NO_LABEL


def usable_result(image: ExportedImage) -> ImageResult | None:
    """Return the result of an image, or None without one that a format can have.

    A person may have edited the numbers of a document: NaN is no JSON, and an image without a size
    has no relative positions.
    """
    result, info = image.result, image.result and image.result.image_info
    is_usable = info and info.width > 0 and info.height > 0 and all(_numbers(result))
    return result if is_usable else None


def _numbers(result: ImageResult | None) -> Iterator[bool]:
    """Yield for each number of a result whether it is finite, and possible for a confidence."""
    if not result:
        return
    yield from (0 <= each.confidence <= 1 for each in result.classes)
    for item in result.detections:
        yield 0 <= item.confidence <= 1
        box, rotated = item.box, item.rotated_box
        yield all(map(math.isfinite, (box.x1, box.y1, box.x2, box.y2)))
        yield all(all(map(math.isfinite, ring.points)) for ring in item.polygons)
        yield all(
            math.isfinite(point.x) and math.isfinite(point.y) and 0 <= point.confidence <= 1
            for point in item.keypoints
        )
        yield rotated is None or all(map(math.isfinite, (*rotated.corners, rotated.angle_degrees)))


def redacted_copies(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of `derived` that are redacted copies."""
    derived = document.get("derived")
    return [
        item
        for item in (derived if isinstance(derived, list) else ())
        if isinstance(item, dict) and item.get("kind") == DerivedKind.REDACTED
    ]


def shown_uri(document: Mapping[str, Any]) -> str | None:
    """Return the address of the image that a person may see. None: none may be seen.

    If an image has a redacted copy, nobody is sent to the upload. After `derived_error`, an image
    may lack the redacted copy that its source asks for.
    """
    if document.get("derived_error"):
        return None
    copies = redacted_copies(document)
    uri = copies[0].get("uri") if copies else document.get("uri")
    return uri if isinstance(uri, str) else None


def outer_rings(polygons: Sequence[Polygon]) -> list[Polygon]:
    """Return the rings of a mask that are not holes. A hole is inside an odd number of rings.

    A ring with fewer than three points has no area, and is left out.
    """
    rings = [ring for ring in polygons if len(ring.points) >= 6]
    return [
        ring
        for ring in rings
        if sum(
            _contains(other, ring.points[0], ring.points[1]) for other in rings if other is not ring
        )
        % 2
        == 0
    ]


def _contains(ring: Polygon, x: float, y: float) -> bool:
    """Return whether a point is inside a ring: a ray to the right crosses it an odd time."""
    points = list(zip(ring.points[::2], ring.points[1::2], strict=False))
    is_inside = False
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            is_inside = not is_inside
    return is_inside
