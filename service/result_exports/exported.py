"""What a writer of an export reads of one image, and texts that every format can have."""

import re
from collections.abc import Mapping
from typing import Any, Protocol

from service.document import STATUS_DONE
from service.domain import ClassScore, DerivedKind, ImageResult

# Characters that XML 1.0 cannot have, not even escaped: https://www.w3.org/TR/xml/#charsets
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_REPLACEMENT = "\ufffd"
NO_LABEL = "(no label)"  # for an empty label, which other tools refuse


class Exported(Protocol):
    """One image of an export: its document, and what was read of it.

    `result` is None if the image is not done, or if its document is unreadable. `error` says why,
    in a sentence. `path` is the safe relative path of the image's file, with `/` between its parts.
    """

    @property
    def document_id(self) -> str:
        """Id of the document."""

    @property
    def document(self) -> Mapping[str, Any]:
        """All fields. A person may have edited them."""

    @property
    def result(self) -> ImageResult | None:
        """The result of a done image."""

    @property
    def status(self) -> str:
        """`done`, `failed` or `parked`."""

    @property
    def error(self) -> str | None:
        """Why there is no result."""

    @property
    def path(self) -> str:
        """Path of the image's file."""


def reason_of(image: Exported) -> str:
    """Return why an image has no result, as one sentence."""
    if image.error:
        return image.error
    return (
        "The document is unreadable." if image.status == STATUS_DONE else f"It is {image.status}."
    )


def plain_label(label: str) -> str:
    """Return a label that XML can have and that is not blank. Most labels stay as they are."""
    text = _NOT_XML.sub(_REPLACEMENT, label)
    return text if text.strip() else NO_LABEL


def kept_classes(image: Exported) -> tuple[ClassScore, ...]:
    """Return the classes of an image that its source's settings keep, the most confident first."""
    labels = image.document.get("labels")
    kept = set(map(str, labels)) if isinstance(labels, list) else set()
    found = image.result.classes if image.result else ()
    return tuple(sorted((item for item in found if item.label in kept), key=_by_confidence))


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
    kinds = {item.get("kind") for item in _maps(document.get("derived"))}
    if DerivedKind.REDACTED in kinds:
        return redacted_uri(document)
    uri = document.get("uri")
    return uri if isinstance(uri, str) else None


def _by_confidence(item: ClassScore) -> float:
    return -item.confidence


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
