"""Builds the clients of Cloud Storage and Firestore from the settings."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore, storage

from service.errors import CredentialsError
from service.gcp.firestore import ResultStore
from service.gcp.storage import ImageStorage
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.gcp.alert_reader import AlertReader
    from service.gcp.alert_store import AlertStore
    from service.gcp.daily_count import DailyCount
    from service.gcp.deletions import ResultDeleter
    from service.gcp.large_results import LargeResults
    from service.gcp.result_objects import ResultObjects
    from service.gcp.result_pages import ResultPages, Usage
    from service.gcp.result_reader import ResultReader, ResultRewriter
    from service.gcp.result_uploads import ResultUploads
    from service.gcp.silence_store import SilenceStore
    from service.gcp.source_store import SourceStore
    from service.gcp.topic_publisher import TopicPublisher
    from service.gcp.verdict_store import VerdictStore


def build_storage(settings: Settings) -> ImageStorage:
    """Return the storage that the images are read from.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    return ImageStorage(
        _storage(settings),
        timeout_seconds=settings.storage_timeout_seconds,
        max_bytes=settings.max_image_bytes,
        connections=settings.max_in_flight,
    )


def build_store(settings: Settings) -> ResultStore:
    """Return the store that results are written to.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    return ResultStore(
        _firestore(settings),
        **_limits(settings),
        with_tombstones=settings.delete_results_with_objects,
    )


def build_large_results(settings: Settings) -> "LargeResults":
    """Return what reads large results.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.large_results import LargeResults

    return LargeResults(build_result_objects(settings))


def build_result_uploads(settings: Settings) -> "ResultUploads":
    """Return what uploads the objects that results have beside their documents.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.result_uploads import ResultUploads

    return ResultUploads(build_result_objects(settings))


def build_result_objects(settings: Settings) -> "ResultObjects":
    """Return what creates and removes the objects in RESULTS_BUCKET.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.result_objects import ResultObjects

    return ResultObjects(
        _storage(settings),
        settings.results_bucket,
        timeout_seconds=settings.storage_timeout_seconds,
        connections=settings.max_in_flight,
    )


def build_reader(settings: Settings) -> "ResultReader":
    """Return the reader of results.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.result_reader import ResultReader  # only commands need it, not the server

    return ResultReader(_firestore(settings), **_limits(settings))


def build_pages(settings: Settings) -> "ResultPages":
    """Return what reads pages of results by a filter.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.result_pages import ResultPages  # only the gallery and exports need it

    return ResultPages(_firestore(settings), **_limits(settings))


def build_verdict_store(
    settings: Settings, database: str, usage: "Callable[[], Usage]"
) -> "VerdictStore":
    """Return where the verdicts of people are stored.

    Args:
        settings: the settings.
        database: the verdicts' own database.
        usage: returns what the current thread's requests are counted in.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.verdict_store import VerdictStore  # only the gallery needs it

    client = _firestore(replace(settings, firestore_database=database))
    return VerdictStore(client, timeout_seconds=settings.firestore_timeout_seconds, usage=usage)


def build_rewriter(settings: Settings) -> "ResultRewriter":
    """Return the reader of results that can also change them.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.result_reader import ResultRewriter

    return ResultRewriter(_firestore(settings), **_limits(settings))


def build_deleter(settings: Settings) -> "ResultDeleter":
    """Return what removes results.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.deletions import ResultDeleter  # only needed if results are removed

    return ResultDeleter(
        _firestore(settings),
        **_limits(settings),
        remove_objects=build_result_objects(settings).remove_all,
    )


def build_daily_count(settings: Settings) -> "DailyCount":
    """Return the count of each day's images.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.daily_count import DailyCount  # only needed with a daily limit

    return DailyCount(_firestore(settings), **_limits(settings))


def build_source_store(settings: Settings) -> "SourceStore":
    """Return what reads and writes the documents of the sources.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.source_store import SourceStore

    return SourceStore(_firestore(settings), timeout_seconds=settings.firestore_timeout_seconds)


def build_topic(topic: str, settings: Settings, project: str | None = None) -> "TopicPublisher":
    """Return what publishes to a topic.

    Args:
        topic: the topic's name, or its full name.
        settings: the settings.
        project: the project of a topic without one, unless GOOGLE_CLOUD_PROJECT is set.

    Raises:
        CredentialsError: no credentials.
        PublishError: the topic has no project, and none is known.
    """
    from service.gcp.publisher import topic_path
    from service.gcp.topic_publisher import TopicPublisher, connect_topic

    path = topic_path(topic, settings.google_cloud_project or project)
    return TopicPublisher(connect_topic(), path)


def build_alert_store(settings: Settings) -> "AlertStore":
    """Return where alerts are stored and decided.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.alert_store import AlertStore  # only needed with alert rules

    return AlertStore(_firestore(settings), **_limits(settings))


def build_alert_reader(settings: Settings) -> "AlertReader":
    """Return the reader of alerts.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.alert_reader import AlertReader  # only commands need it, not the server

    return AlertReader(_firestore(settings), **_limits(settings))


def build_silence_store(settings: Settings) -> "SilenceStore":
    """Return where the alerts of silent sources are stored.

    Raises:
        CredentialsError: no credentials, or no project.
    """
    from service.gcp.silence_store import SilenceStore

    return SilenceStore(_firestore(settings), **_limits(settings))


def _limits(settings: Settings) -> dict[str, Any]:
    return {
        "collection": settings.firestore_collection,
        "timeout_seconds": settings.firestore_timeout_seconds,
    }


def _storage(settings: Settings) -> storage.Client:
    try:
        return storage.Client(project=settings.google_cloud_project)
    except (GoogleAuthError, OSError) as exc:  # OSError: no project
        raise CredentialsError from exc


def _firestore(settings: Settings) -> firestore.Client:
    try:
        return firestore.Client(
            project=settings.google_cloud_project, database=settings.firestore_database
        )
    except (GoogleAuthError, OSError) as exc:  # OSError: no project
        raise CredentialsError from exc
