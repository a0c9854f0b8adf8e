"""The bytes of the images that the pages show."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class View(StrEnum):
    """How large an image is shown."""

    THUMBNAIL = "thumbnail"
    LARGE = "large"


@dataclass(frozen=True)
class ShownImage:
    """An encoded image."""

    data: bytes
    content_type: str


class GalleryImages:
    """Finds an image by its document's id. Safe to use from many threads.

    With redaction, only redacted copies are shown.
    """

    def remember(self, document_id: str, document: dict[str, Any]) -> None:
        """Keep what `read` needs of a document that was just read, so that it is not read again."""
        raise NotImplementedError

    def read(self, document_id: str, generation: int, view: View) -> ShownImage:
        """Return an image.

        Raises:
            NoImageError: there is nothing that may be shown. The message says why.
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            FirestoreUnavailableError: Firestore did not respond.
        """
        raise NotImplementedError
