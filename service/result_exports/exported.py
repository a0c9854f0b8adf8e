"""What the formats for labelling tools share: texts, and which image a person may see."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from service.domain import DerivedKind, ImageResult
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


def redacted_uri(document: Mapping[str, Any]) -> str | None:
    """Return the address of an image's redacted copy, or None if it has none."""
    for item in _maps(document.get("derived")):
        if item.get("kind") == DerivedKind.REDACTED and isinstance(item.get("uri"), str):
            return str(item["uri"])
    return None


def shown_uri(document: Mapping[str, Any]) -> str | None:
    """Return the address of the image that a person may see. None: none may be seen.

    If an image has a redacted copy, nobody is sent to the original. After `derived_error`, an image
    may lack the redacted copy that its source asks for.
    """
    if document.get("derived_error"):
        return None
    if any(item.get("kind") == DerivedKind.REDACTED for item in _maps(document.get("derived"))):
        return redacted_uri(document)
    uri = document.get("uri")
    return uri if isinstance(uri, str) else None


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
