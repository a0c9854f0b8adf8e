"""The bytes of the images that the pages show."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache, TTLCache
from flask import Blueprint, Response, abort, request

from service.deadline import Deadline
from service.derived import MAX_SIDE, NOTHING, DeriveOptions
from service.document import STATUS_DONE
from service.domain import DerivedKind, Download, ImageInfo, ImageRef, Task
from service.errors import (
    BadImageError,
    ObjectGoneError,
    ResultObjectError,
    SourcesUnknownError,
    YoloBatchError,
)
from service.gallery.parts import parts
from service.images.derive import DerivePlan

if TYPE_CHECKING:
    from service.gcp.result_objects import ResultObjects
    from service.gcp.result_pages import ResultPages
    from service.gcp.storage import ImageStorage
    from service.images.decoders import Decoders
    from service.sources.current import CurrentSources

blueprint = Blueprint("images", __name__)

_THUMBNAIL_SIDE = 320  # pixels, as that of a derived thumbnail
_CACHED_BYTES = 64 * 2**20  # of thumbnails
_REMEMBERED = 5000  # documents
# A page requests its thumbnails at once. Later, a document may have been replaced, for example with
# redaction.
_REMEMBERED_SECONDS = 60.0
_AT_ONCE = 4  # downloads of uploads: each may have MAX_IMAGE_BYTES bytes
_SECONDS = 60.0  # for a download, and for making an image
_NO_COPIES = "Only redacted copies may be shown, and this result has none."
_MAX_SHOWN_PIXELS = 40_000_000  # of an upload that is shown unchanged: browsers refuse larger ones
_MAX_DIMENSION = 2**20  # pixels. A larger one in a document is no size of an image.
# Bytes of a file with an orientation that not every browser applies: EXIF of PNG and WebP, EXIF of
# PNG as text, and XMP.
_TURNED = (b"eXIf", b"EXIF", b"Raw profile type", b":Orientation")
# What is shown large without the upload, the best first.
_LARGE = (DerivedKind.NORMALIZED, DerivedKind.ANNOTATED, DerivedKind.THUMBNAIL)


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


@dataclass(frozen=True)
class _Facts:
    """What a document says about its image. A person may have edited it."""

    ref: ImageRef
    is_done: bool
    info: ImageInfo | None
    derived: Mapping[str, str]  # uri by kind
    derived_error: str | None


class GalleryImages:
    """Finds an image by its document's id. Safe to use from many threads.

    With redaction, only redacted copies are shown.
    """

    def __init__(
        self,
        results: "ResultPages",
        sources: "CurrentSources",
        objects: "ResultObjects",
        *,
        uploads: "ImageStorage | None" = None,
        decoders: "Callable[[], Decoders] | None" = None,
    ) -> None:
        """Take what the images are read from.

        Args:
            results: the documents.
            sources: say for which images only redacted copies may be shown.
            objects: the derived images.
            uploads: the uploads. None: only derived images are shown.
            decoders: starts the decoder processes, when they are needed first.
        """
        self._results = results
        self._sources = sources
        self._objects = objects
        self._uploads = uploads
        self._start_decoders = decoders
        self._decoders: Decoders | None = None
        self._lock = threading.Lock()
        self._facts: TTLCache[str, _Facts] = TTLCache(_REMEMBERED, _REMEMBERED_SECONDS)
        self._thumbnails: LRUCache[str, ShownImage] = LRUCache(
            _CACHED_BYTES, getsizeof=lambda shown: len(shown.data)
        )
        self._slots = threading.BoundedSemaphore(_AT_ONCE)

    def remember(self, document_id: str, document: Mapping[str, Any]) -> None:
        """Keep what `read` needs of a document that was just read, so that it is not read again."""
        with self._lock:
            self._facts[document_id] = _facts(document)

    def read(self, document_id: str, generation: int, view: View) -> ShownImage:
        """Return an image.

        Raises:
            NoImageError: there is nothing that may be shown. The message says why.
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            FirestoreUnavailableError: Firestore did not respond.
            DecoderUnavailableError: no decoder process could make the image.
        """
        facts = self._known(document_id, generation)
        if facts is None or facts.ref.generation != generation:
            raise NoImageError("There is no result of this generation.")
        # The id is a hash of the object's name. An edited document must not name another object:
        # its source may ask for redaction.
        if facts.ref.document_id != document_id:
            raise NoImageError("The document was edited, and names another object.")
        if not facts.is_done:
            raise NoImageError("An image without a result is not shown.")
        if facts.derived_error:
            raise NoImageError(f"{facts.derived_error} So the image is not shown.")
        if self._is_redacted(facts):
            return self._redacted(document_id, facts, view)
        if view is View.THUMBNAIL:
            if shown := self._derived(document_id, facts, DerivedKind.THUMBNAIL):
                return shown
            return self._thumbnail(document_id, facts)
        return self._large(document_id, facts)

    def close(self) -> None:
        """Stop the decoder processes."""
        with self._lock:
            decoders, self._decoders = self._decoders, None
            self._start_decoders = None  # a late request must not start them again
        if decoders:
            decoders.close()

    def _known(self, document_id: str, generation: int) -> _Facts | None:
        with self._lock:
            facts = self._facts.get(document_id)
        if facts is None or facts.ref.generation != generation:
            result = self._results.result(document_id)
            if result is None:
                return None
            self.remember(document_id, result.document)
            facts = _facts(result.document)
        return facts

    def _is_redacted(self, facts: _Facts) -> bool:
        """Return whether only redacted copies may be shown.

        Raises:
            NoImageError: nobody knows.
        """
        try:
            settings = self._sources.settings_of(facts.ref, Deadline.after(_SECONDS))
        except SourcesUnknownError as exc:
            raise NoImageError(str(exc)) from exc
        if settings.version.id is None and settings.derive == NOTHING:
            raise NoImageError(
                "The sources are broken, so nobody knows what must be redacted. Repair them with "
                "`yolo-batch sources apply`."
            )
        return DerivedKind.REDACTED in facts.derived or settings.derive.redaction is not None

    def _redacted(self, document_id: str, facts: _Facts, view: View) -> ShownImage:
        if DerivedKind.REDACTED not in facts.derived:
            raise NoImageError(f"{_NO_COPIES} Have the image processed again.")
        kinds = (DerivedKind.REDACTED, DerivedKind.THUMBNAIL)
        for kind in kinds if view is View.LARGE else reversed(kinds):
            if shown := self._derived(document_id, facts, kind):
                return shown
        raise NoImageError(_NO_COPIES)

    def _derived(self, document_id: str, facts: _Facts, kind: DerivedKind) -> ShownImage | None:
        """Return a derived image of this document, or None if there is none."""
        uri = facts.derived.get(kind, "")
        bucket = self._objects.bucket
        if not bucket or not uri.startswith(f"gs://{bucket}/{document_id}-{kind}-"):
            return None
        if shown := self._cached(uri):
            return shown
        try:
            data = self._objects.read(uri)
        except ResultObjectError:
            return None
        content_type = _content_type(data)
        if content_type is None:
            return None
        shown = ShownImage(data, content_type)
        if kind is DerivedKind.THUMBNAIL:
            self._cache(uri, shown)
        return shown

    def _thumbnail(self, document_id: str, facts: _Facts) -> ShownImage:
        """Return a thumbnail that is made here."""
        shown = self._cached(document_id)
        if shown is None:
            with self._upload(facts) as download:
                shown = self._made_of(download, facts, _THUMBNAIL_SIDE)
            self._cache(document_id, shown)
        return shown

    def _cached(self, key: str) -> ShownImage | None:
        with self._lock:
            return self._thumbnails.get(key)

    def _cache(self, key: str, shown: ShownImage) -> None:
        with self._lock:
            if len(shown.data) < _CACHED_BYTES:
                self._thumbnails[key] = shown

    def _large(self, document_id: str, facts: _Facts) -> ShownImage:
        if self._uploads is None:
            for kind in _LARGE:
                if shown := self._derived(document_id, facts, kind):
                    return shown
        with self._upload(facts) as download:
            is_huge = facts.info and facts.info.width * facts.info.height > _MAX_SHOWN_PIXELS
            is_encoded = bool(download.content_encoding)
            if not (is_huge or is_encoded) and _is_shown_by_browsers(download.data):
                return ShownImage(download.data, _content_type(download.data) or "")
            return self._made_of(download, facts, MAX_SIDE)

    @contextmanager
    def _upload(self, facts: _Facts) -> Iterator[Download]:
        """Yield the upload.

        Raises:
            NoImageError: it may not be read, or is gone.
            StorageUnavailableError: Cloud Storage did not respond.
        """
        if self._uploads is None:
            raise NoImageError(
                "There is no derived image, and the gallery may not read the uploads "
                "(GALLERY_ORIGINALS)."
            )
        try:
            with self._slots, self._uploads.download(facts.ref, Deadline.after(_SECONDS)) as found:
                yield found
        except ObjectGoneError as exc:
            raise NoImageError("This generation of the object no longer exists.") from exc
        except BadImageError as exc:
            raise NoImageError(exc.message) from exc

    def _made_of(self, download: Download, facts: _Facts, side: int) -> ShownImage:
        """Return a smaller, upright copy, made in a decoder process.

        Raises:
            BadImageError: the file cannot be decoded.
        """
        if facts.info is None:
            raise NoImageError("The document does not have the image's size.")
        options = DeriveOptions(thumbnail_side=side, max_side=side)
        plan = DerivePlan(options, facts.info, Task.DETECT)
        made = self._pool().derive(
            download.data,
            plan,
            content_encoding=download.content_encoding,
            deadline=Deadline.after(_SECONDS),
        )
        return ShownImage(made[0].data, made[0].content_type)

    def _pool(self) -> "Decoders":
        with self._lock:
            if self._decoders is None:
                if self._start_decoders is None:
                    raise NoImageError("There is no thumbnail.")
                self._decoders = self._start_decoders()
            return self._decoders


@blueprint.get("/images/<document_id>/<int:generation>/<view>")
def show(document_id: str, generation: int, view: str) -> Response:
    """Return the bytes of an image. They never change, because the address has the generation."""
    if view not in list(View) or not re.fullmatch(r"[0-9a-f]{40}", document_id):
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


def _facts(document: Mapping[str, Any]) -> _Facts:
    bucket, name, generation = (document.get(key) for key in ("bucket", "name", "generation"))
    derived = document.get("derived")
    listed = derived if isinstance(derived, list) else []
    items = [item for item in listed if isinstance(item, dict)]
    error = document.get("derived_error")
    is_known = type(generation) is int and generation > 0
    return _Facts(
        ImageRef(str(bucket), str(name), generation if is_known else None),
        document.get("status") == STATUS_DONE,
        _info(document.get("image")),
        {
            item["kind"]: item["uri"]
            for item in reversed(items)  # the first of a kind counts
            if isinstance(item.get("kind"), str) and isinstance(item.get("uri"), str)
        },
        error if isinstance(error, str) and error else None,
    )


def _info(image: Any) -> ImageInfo | None:
    if not isinstance(image, dict):
        return None
    width, height = image.get("width"), image.get("height")
    if not (type(width) is int and type(height) is int):
        return None
    if not (0 < width <= _MAX_DIMENSION and 0 < height <= _MAX_DIMENSION):
        return None
    return ImageInfo(width, height, "")


def _content_type(data: bytes) -> str | None:
    """Return the media type by the first bytes, or None for what is no image."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def _is_shown_by_browsers(data: bytes) -> bool:
    """Return whether a browser shows these bytes upright, as the coordinates of detections are.

    Browsers differ in whether they apply the EXIF orientation of PNG and WebP files.
    """
    content_type = _content_type(data)
    return content_type is not None and (
        content_type == "image/jpeg" or not any(mark in data for mark in _TURNED)
    )
