"""Builds the parts of the gallery from the settings."""

from collections.abc import Callable
from datetime import datetime
from functools import partial

from service.deadline import Deadline
from service.domain import ImageRef, Replace
from service.gallery.access import Access
from service.gallery.images import GalleryImages
from service.gallery.parts import GalleryOptions, GalleryParts
from service.gallery.settings import GallerySettings
from service.gcp.clients import (
    build_alert_reader,
    build_large_results,
    build_pages,
    build_result_objects,
    build_source_store,
    build_storage,
    build_topic,
    build_verdict_store,
)
from service.gcp.listing import connect_lister
from service.gcp.publisher import job_message
from service.gcp.result_pages import ResultPages
from service.gcp.topic_publisher import TopicPublisher
from service.images.decoders import build_decoders
from service.settings import Settings
from service.sources.current import CurrentSources, Documents, StoredSources, current_sources

_PUBLISH_SECONDS = 10.0


class _ReadOnly:
    """Sources that are only read: the gallery's account may not write them."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def read(self, deadline: Deadline) -> StoredSources | None:
        """Return the sources."""
        return self._documents.read(deadline)

    def last_good(self, deadline: Deadline) -> StoredSources | None:
        """Return the last good sources."""
        return self._documents.last_good(deadline)

    def remember(self, good: StoredSources, deadline: Deadline) -> None:
        """Do nothing."""


def build_images(settings: Settings) -> GalleryImages:
    """Return what reads images, uploads included, by the ids of their documents.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    return _build_images(settings, build_pages(settings), build_sources(settings), originals=True)


def build_sources(settings: Settings) -> CurrentSources:
    """Return the current sources, which are only read.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    return current_sources(_ReadOnly(build_source_store(settings)), settings)


def _build_images(
    settings: Settings, results: ResultPages, sources: CurrentSources, *, originals: bool
) -> GalleryImages:
    return GalleryImages(
        results,
        sources,
        build_result_objects(settings),
        uploads=build_storage(settings) if originals else None,
        decoders=partial(build_decoders, settings) if originals else None,
    )


def build_gallery(
    settings: Settings, own: GallerySettings, access: Access, *, is_emulator: bool = False
) -> GalleryParts:
    """Connect the gallery to Firestore and Cloud Storage.

    Args:
        settings: the service's settings: database, collection and buckets.
        own: the gallery's settings.
        access: who may use it.
        is_emulator: whether Firestore is an emulator, which has no console.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    results = build_pages(settings)
    sources = build_sources(settings)
    return GalleryParts(
        results=results,
        images=_build_images(settings, results, sources, originals=own.originals),
        access=access,
        sources=sources,
        verdicts=build_verdict_store(settings, own.verdicts_database, results.usage),
        alerts=build_alert_reader(settings),
        objects=connect_lister(settings.google_cloud_project) if own.originals else None,
        large_results=build_large_results(settings) if settings.results_bucket else None,
        try_again=_try_again(settings, own, results.project),
        options=GalleryOptions(
            project=None if is_emulator else results.project,
            database=settings.firestore_database,
            collection=settings.firestore_collection,
            allowed_buckets=settings.allowed_buckets,
        ),
    )


def _try_again(
    settings: Settings, own: GallerySettings, project: str
) -> Callable[[ImageRef, datetime], None] | None:
    if own.jobs_topic is None:
        return None
    return partial(_publish, build_topic(own.jobs_topic, settings, project))


def _publish(topic: TopicPublisher, image: ImageRef, created_at: datetime) -> None:
    """Publish a job that replaces the document of an image, unless it was replaced meanwhile.

    The time is Firestore's, so the clock of this machine does not matter.

    Args:
        topic: the topic of the jobs.
        image: the image. With generation 0, which no object has, its live generation is processed.
        created_at: of the document.

    Raises:
        PubSubUnavailableError: Pub/Sub did not confirm the message, or refuses it.
        TooLateError: Pub/Sub did not respond in time.
    """
    uri = f"{image.uri}#{image.generation}" if image.generation else image.uri
    data = job_message(uri, Replace(if_created_before=created_at))
    topic.publish(data, {}, Deadline.after(_PUBLISH_SECONDS))
