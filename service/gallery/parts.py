"""What the pages of the gallery work with: one object, which the app factory stores."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, cast

from flask import current_app

if TYPE_CHECKING:
    from service.domain import ImageRef
    from service.gallery.access import Access
    from service.gallery.images import GalleryImages
    from service.gcp.alert_reader import AlertReader
    from service.gcp.large_results import LargeResults
    from service.gcp.listing import ObjectLister
    from service.gcp.result_pages import ResultPages
    from service.gcp.verdict_store import VerdictStore
    from service.sources.current import CurrentSources

PAGE_SIZE = 60  # images of one page


@dataclass(frozen=True)
class GalleryOptions:
    """Settings of the pages.

    `project`, `database` and `collection` are for links to Firestore's console. None: there is no
    console, because the documents are in an emulator. `allowed_buckets` are those whose objects may
    be listed. Empty: every bucket.
    """

    page_size: int = PAGE_SIZE
    project: str | None = None
    database: str = "(default)"
    collection: str = "detections"
    allowed_buckets: tuple[str, ...] = ()


@dataclass(frozen=True)
class GalleryParts:
    """What the pages work with. A part that is None is not available, and its pages say so."""

    results: "ResultPages"
    images: "GalleryImages"
    access: "Access"
    sources: "CurrentSources"
    verdicts: "VerdictStore | None" = None
    alerts: "AlertReader | None" = None
    objects: "ObjectLister | None" = None  # lists the images' bucket, for those without a result
    large_results: "LargeResults | None" = None  # reads detections that are in RESULTS_BUCKET
    # Publishes a job that replaces an image's document. None: nobody may try again. It is called
    # with the image and the `created_at` of its document, so that no newer document is replaced.
    try_again: "Callable[[ImageRef, datetime], None] | None" = None
    options: GalleryOptions = GalleryOptions()


def parts() -> GalleryParts:
    """Return the parts of the application that serves the current request."""
    return cast(GalleryParts, current_app.extensions["gallery"])
