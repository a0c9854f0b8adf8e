"""Builds the application of the container from its parts, as the environment configures them."""

import logging
import logging.config
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, NoReturn

from service import logs
from service.daily_limit import DailyLimit
from service.deadline import Deadline
from service.deletion import Deletion
from service.errors import CredentialsError, ModelError, SettingsError
from service.health import Health
from service.images.decoders import Decoders, build_decoders
from service.images.pixels import Pixels
from service.inference.canary import NOT_COMPARED, VerifiedModel
from service.inference.loading import load_model
from service.inference.model import Model
from service.memory import fit_into_memory
from service.pipeline import Pipeline, PipelineOptions
from service.publish.after_commit import AfterCommit, Step
from service.recorder import Recorder
from service.settings import DETECT, Settings
from service.sources.current import CurrentSources, current_sources
from service.sources.rules import Rules

if TYPE_CHECKING:
    from flask import Blueprint, Flask

    from service.alerts.step import AlertStep
    from service.gcp.firestore import ResultStore
    from service.gcp.storage import ImageStorage

logger = logging.getLogger(__name__)

PIPELINE = "pipeline"  # key in `app.extensions`, for the hooks of `gunicorn_conf`
_BOOT_ERROR = 3  # exit code at which gunicorn stops, instead of restarting the worker
_CANARY_PIXELS = 50_000_000  # limit for the canary's images. MAX_IMAGE_PIXELS may be lower.
_CANARY_SECONDS = 60.0  # for decoding one canary image, including the start of the decoders


def build_app() -> "Flask":
    """Build the application from the environment. gunicorn calls this.

    It returns when the model is loaded and its canary has passed. Until then, the server responds
    to no request, not even to health probes.
    """
    try:
        settings = Settings.from_env()
    except SettingsError as exc:
        _cannot_start(str(exc))
    logging.config.dictConfig(logs.config(settings.log_level))
    if not settings.model_path.exists():
        _cannot_start(f"there is no model at MODEL_PATH={settings.model_path}")
    # All three at the same time: the decoders' root process imports its libraries, a thread loads
    # the model, and this thread imports Flask and Google's libraries.
    decoders = build_decoders(settings)
    with ThreadPoolExecutor(1, thread_name_prefix="model") as loader:
        loading = loader.submit(_load, settings, decoders)
        try:
            from service.gcp.clients import build_source_store, build_storage, build_store
            from service.server.app import create_app

            storage, store = build_storage(settings), build_store(settings)
            limit = _daily_limit(settings)
            sources = current_sources(build_source_store(settings), settings)
            alerts = _alerts(settings, store, storage)
            after_commit = _after_commit(settings, store, alerts)
            deletion = _deletion(settings, storage, after_commit)
            verified = loading.result()
            settings = fit_into_memory(settings, verified.detector)
        except (CredentialsError, ModelError) as exc:
            decoders.close()
            _cannot_start(str(exc))
    pipeline = build_pipeline(
        settings, decoders, verified, storage, store, limit, sources, deletion, after_commit, alerts
    )
    detect = _detect_blueprint(settings, pipeline, store)
    app = create_app(
        pipeline,
        max_request_bytes=settings.max_image_bytes if detect else settings.max_request_bytes,
        start_deadline=lambda: Deadline.after(
            settings.delivery_seconds, commit_seconds=settings.firestore_timeout_seconds
        ),
        project=store.project,
        model_health=_model_health(verified, settings),
        verify=_verifier(settings),
        detect=detect,
    )
    app.extensions[PIPELINE] = pipeline
    return app


def build_pipeline(
    settings: Settings,
    decoders: Decoders,
    verified: VerifiedModel,
    storage: "ImageStorage",
    store: "ResultStore",
    limit: DailyLimit | None = None,
    sources: CurrentSources | None = None,
    deletion: Deletion | None = None,
    after_commit: AfterCommit | None = None,
    alerts: "Callable[[], AlertStep] | None" = None,
) -> Pipeline:
    """Return a pipeline with these parts and the limits of the settings."""
    from service.gcp.clients import build_result_uploads

    health = Health(hang_timeout_seconds=settings.hang_timeout_seconds)
    return Pipeline(
        storage,
        decoders,
        Model(verified.detector, health, max_batch_size=settings.max_batch_size),
        Recorder(store, health, build_result_uploads(settings), store.is_deleted),
        health,
        PipelineOptions(
            max_in_flight=settings.max_in_flight,
            max_buffered_bytes=settings.max_buffered_bytes,
            allowed_buckets=settings.allowed_buckets,
            rules=Rules(min_confidence=settings.min_confidence),
            store_confidence=settings.store_confidence,
            results_bucket=settings.results_bucket,
        ),
        limit,
        sources,
        deletion,
        after_commit,
        alerts,
    )


def _alerts(
    settings: Settings, store: "ResultStore", storage: "ImageStorage"
) -> "Callable[[], AlertStep]":
    """Return a function that returns what alerts. It is built when an image needs it first."""
    lock = threading.Lock()
    built: list[AlertStep] = []

    def alerts() -> "AlertStep":
        with lock:
            if not built:
                built.append(_alert_step(settings, store, storage))
            return built[0]

    return alerts


def _alert_step(settings: Settings, store: "ResultStore", storage: "ImageStorage") -> "AlertStep":
    from service.alerts.message import console_urls
    from service.alerts.step import AlertStep
    from service.gcp.clients import build_alert_store, build_topic

    name = settings.alerts_topic
    return AlertStep(
        build_alert_store(settings),
        build_topic(name, settings, store.project) if name else None,
        console_urls(store.project, settings.firestore_database, settings.firestore_collection),
        storage.resolve,
    )


def _after_commit(
    settings: Settings, store: "ResultStore", alerts: "Callable[[], AlertStep]"
) -> AfterCommit:
    """Return what publishes each recorded result, and its alerts."""
    steps: list[Step] = []
    if settings.results_topic:
        from service.gcp.clients import build_topic
        from service.publish.results_step import ResultsStep

        topic = build_topic(settings.results_topic, settings, store.project)
        steps.append(ResultsStep(topic))
    return AfterCommit(steps, store.read_document, alerts)


def _deletion(
    settings: Settings, storage: "ImageStorage", after_commit: AfterCommit | None
) -> Deletion | None:
    """Return what removes the results of deleted objects, or None if the settings keep them."""
    if not settings.delete_results_with_objects:
        return None
    from service.gcp.clients import build_deleter

    return Deletion(
        storage,
        build_deleter(settings),
        with_overwritten=settings.delete_results_of_overwritten,
        after_commit=after_commit,
    )


def _daily_limit(settings: Settings) -> DailyLimit | None:
    """Return the daily limit, or None if there is none.

    It already knows the day's count. Otherwise each new instance would exceed the limit.
    """
    if not settings.daily_image_limit:
        return None
    from service.gcp.clients import build_daily_count

    limit = DailyLimit(settings.daily_image_limit, build_daily_count(settings))
    limit.share(Deadline.after(settings.firestore_timeout_seconds), is_due=True)
    return limit


def _detect_blueprint(
    settings: Settings, pipeline: Pipeline, store: "ResultStore"
) -> "Blueprint | None":
    """Return the endpoints for callers who wait, or None if the service takes events."""
    if settings.endpoints != DETECT:
        return None
    from service.server.detect_api import DetectLimits, detect_blueprint

    limits = DetectLimits(
        max_image_bytes=settings.max_image_bytes,
        max_request_bytes=min(settings.max_request_bytes, settings.max_image_bytes),
        seconds=settings.detect_seconds,
        commit_seconds=settings.firestore_timeout_seconds,
    )
    return detect_blueprint(pipeline, store.read_document, limits)


def _cannot_start(reason: str) -> NoReturn:
    logger.critical("Cannot start: %s", reason)
    sys.exit(_BOOT_ERROR)


def _load(settings: Settings, decoders: Decoders) -> VerifiedModel:
    """Load the model. The decoders decode its canary's images, as they decode uploads."""
    started = time.monotonic()

    def decode(data: bytes, image_size: int, crop: bool) -> Pixels:
        deadline = Deadline.after(_CANARY_SECONDS)
        return decoders.decode(
            data, image_size=image_size, crop=crop, max_pixels=_CANARY_PIXELS, deadline=deadline
        ).pixels

    verified = load_model(settings, decode)
    logger.info(
        "The model is ready",
        extra={
            "model": asdict(verified.detector.info),
            "fallback": verified.fallback,
            "load_ms": round((time.monotonic() - started) * 1e3),
        },
    )
    return verified


def _model_health(verified: VerifiedModel, settings: Settings) -> dict[str, str]:
    """Return what /health/ready reports about the model: name, precision, and any anomaly."""
    info = verified.detector.info
    health = {"model": info.name, "precision": info.precision}
    if verified.fallback:  # without the directory, which the public need not know
        health["fallback"] = verified.fallback.replace(f"{settings.model_path.parent}/", "")
    if verified.canary == NOT_COMPARED:
        health["canary"] = NOT_COMPARED
    return health


def _verifier(settings: Settings) -> Callable[[str | None], None] | None:
    if not settings.push_audience:
        return None
    from service.gcp.push_auth import TokenVerifier

    return TokenVerifier(settings.push_audience, settings.push_service_accounts).verify
