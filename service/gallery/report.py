"""Pages of reports that a command has made: `yolo-batch compare` and `yolo-batch evaluate`.

A report is in memory, and its page is served on this machine until Ctrl-C. The page names an image
by its index in the report. So no path or address comes from the browser.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from flask import Flask, Response, abort, current_app, render_template

from service.gallery.access import LocalAccess, refuse_foreign_writes
from service.gallery.app import SECURITY_HEADERS, handle_errors
from service.gallery.images import GalleryImages, NoImageError, View

_GONE = "The image does not exist any more, or it may not be shown."


class ReportImages(Protocol):
    """Reads the images of a report. Safe to use from many threads."""

    def read(self, index: int, *, is_large: bool) -> tuple[bytes, str] | None:
        """Return an encoded image and its media type, or None if it cannot be shown."""


class StoredImages:
    """The images of stored results. With redaction, only redacted copies are shown."""

    def __init__(self, images: GalleryImages, results: Sequence[tuple[str, int]]) -> None:
        """Take what reads images.

        Args:
            images: reads images by document.
            results: the document's id and the generation of each image of the report.
        """
        self._images = images
        self._results = results

    def read(self, index: int, *, is_large: bool) -> tuple[bytes, str] | None:
        """Return an encoded image and its media type, or None if it may not be shown.

        Raises:
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            FirestoreUnavailableError: Firestore did not respond.
        """
        if not 0 <= index < len(self._results):
            return None
        view = View.LARGE if is_large else View.THUMBNAIL
        try:
            shown = self._images.read(*self._results[index], view)
        except NoImageError:
            return None
        return shown.data, shown.content_type


@dataclass(frozen=True)
class ReportParts:
    """What a page of a report shows.

    Attributes:
        kind: `compare` or `evaluate`. It is the name of the command and of the template.
        report: the report, as the command writes it as JSON.
        access: who may see the page.
        images: the images of the report. None: it shows none.
    """

    kind: str
    report: Mapping[str, Any]
    access: LocalAccess
    images: ReportImages | None = None


def create_report_app(parts: ReportParts) -> Flask:
    """Return the application that serves one report."""
    app = Flask(__name__)
    app.extensions["report"] = parts
    app.add_url_rule("/", "page", _page)
    app.add_url_rule("/images/<int:index>/<view>", "image", _image)
    app.before_request(_admit)
    app.after_request(_complete)
    app.context_processor(lambda: {"csrf_token": parts.access.csrf_token(), "navigation": ()})
    handle_errors(app)
    return app


def _parts() -> ReportParts:
    return cast(ReportParts, current_app.extensions["report"])


def _admit() -> Response | None:
    access = _parts().access
    response = access.check()
    if response is None:
        refuse_foreign_writes(access)
    return response


def _complete(response: Response) -> Response:
    response.headers.update(SECURITY_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _page() -> str:
    parts = _parts()
    return render_template(f"{parts.kind}.html", report=parts.report)


def _image(index: int, view: str) -> Response:
    images = _parts().images
    if images is None or view not in list(View):
        abort(404, _GONE)
    image = images.read(index, is_large=view == View.LARGE)
    if image is None:
        abort(404, _GONE)
    data, content_type = image
    return Response(data, content_type=content_type)
