"""The bytes of the images that the pages show."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flask import Blueprint, Response, abort, request

from service.errors import YoloBatchError
from service.gallery.parts import parts

blueprint = Blueprint("images", __name__)


class NoImageError(YoloBatchError):
    """There is no image that may be shown. The message says why."""


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


@blueprint.get("/images/<document_id>/<int:generation>/<view>")
def show(document_id: str, generation: int, view: str) -> Response:
    """Return the bytes of an image. They never change, because the address has the generation."""
    if view not in list(View):
        abort(404)
    try:
        shown = parts().images.read(document_id, generation, View(view))
    except NoImageError as exc:
        abort(404, str(exc))
    response = Response(shown.data, content_type=shown.content_type)
    response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    response.set_etag(f"{document_id}-{generation}-{view}")
    response.make_conditional(request)
    return response
