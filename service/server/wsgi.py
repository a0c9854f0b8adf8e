"""Composition root of the container: settings, clients, model, pipeline, application."""

import logging
import logging.config
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

from flask import Flask

from service.errors import CredentialsError, ModelError, SettingsError
from service.inference.canary import NOT_COMPARED, Checked
from service.inference.detector import Detector
from service.inference.loading import load_model
from service.pipeline import Pipeline, PipelineOptions
from service.server import logs
from service.server.app import create_app
from service.settings import Settings
from service.stages import NO_CLOCK, StageClock
from service.watchdog import Watchdog

if TYPE_CHECKING:
    from service.gcp.firestore import ResultStore
    from service.gcp.storage import ImageStorage

logger = logging.getLogger(__name__)

# Keys in `app.extensions`, for the server's hooks.
PIPELINE = "pipeline"
STAGES = "stages"
_BOOT_ERROR = 3  # gunicorn stops, instead of starting the worker again, on this exit code


def build_app() -> Flask:
    """Build the application from the environment, as gunicorn calls it."""
    try:
        settings = Settings.from_env()
    except SettingsError as exc:
        logger.critical("Cannot start: %s", exc)
        sys.exit(_BOOT_ERROR)
    logging.config.dictConfig(logs.config(settings.log_level))
    if not settings.model_path.exists():
        logger.critical("Cannot start: there is no model at MODEL_PATH=%s", settings.model_path)
        sys.exit(_BOOT_ERROR)
    # The model loads in the background while the clients are made.
    clock = StageClock() if settings.profile_stages else NO_CLOCK
    loader = ThreadPoolExecutor(1, thread_name_prefix="model")
    checked = loader.submit(_load, settings, clock)
    loader.shutdown(wait=False)
    # Google's libraries are imported here, so that the model already loads meanwhile.
    from service.gcp.clients import build_storage, build_store

    try:
        store = build_store(settings)
        pipeline = build_pipeline(
            settings, build_storage(settings), store, _detector_of(checked), clock
        )
    except CredentialsError as exc:
        logger.critical("Cannot start: %s", exc)
        sys.exit(_BOOT_ERROR)
    app = create_app(
        pipeline,
        max_request_bytes=settings.max_request_bytes,
        # What is begun then has the time of a commit left before its message comes again.
        begin_within_seconds=settings.ack_deadline_seconds - settings.firestore_timeout_seconds,
        project=store.project,
        model_health=lambda: _health(checked, settings),
        verify=_verifier(settings),
    )
    app.extensions[PIPELINE] = pipeline
    app.extensions[STAGES] = clock
    return app


def build_pipeline(
    settings: Settings,
    storage: "ImageStorage",
    store: "ResultStore",
    detector: Future[Detector],
    clock: StageClock = NO_CLOCK,
) -> Pipeline:
    """Connect the parts."""
    return Pipeline(
        storage,
        store,
        detector,
        pipeline_options(settings),
        clock,
        Watchdog(settings.stuck_seconds),
    )


def pipeline_options(settings: Settings) -> PipelineOptions:
    """Take the pipeline's limits from the settings; `detect` has the same."""
    return PipelineOptions(
        max_batch_size=settings.max_batch_size,
        max_batch_pixels=settings.max_batch_pixels,
        max_batch_delay_seconds=settings.max_batch_delay_ms / 1000,
        max_queue=settings.max_queue,
        max_image_bytes=settings.max_image_bytes,
        max_held_bytes=settings.max_held_bytes,
        max_image_pixels=settings.max_image_pixels,
        reduced_decode=settings.reduced_decode,
        allowed_buckets=settings.allowed_buckets,
    )


def _load(settings: Settings, clock: StageClock) -> Checked:
    started = time.monotonic()
    try:
        checked = load_model(settings, clock)
    except ModelError as exc:
        logger.critical("The model did not load: %s", exc)
        raise
    except Exception:
        logger.critical("The model did not load", exc_info=True)
        raise
    logger.info(
        "The model is ready",
        extra={
            "model": asdict(checked.detector.info),
            "fallback": checked.fallback,
            "load_ms": round((time.monotonic() - started) * 1e3),
        },
    )
    return checked


def _detector_of(checked: Future[Checked]) -> Future[Detector]:
    detector: Future[Detector] = Future()

    def hand_on(done: Future[Checked]) -> None:
        if error := done.exception():
            detector.set_exception(error)
        else:
            detector.set_result(done.result().detector)

    checked.add_done_callback(hand_on)
    return detector


def _health(checked: Future[Checked], settings: Settings) -> dict[str, str]:
    """What /health/ready tells of the model: its name and precision, or why there is none."""
    if not checked.done():
        return {}
    if error := checked.exception():
        reason = str(error) if isinstance(error, ModelError) else "The log says why."
        return {"reason": _without_directory(reason, settings)}
    found = checked.result()
    health = {"model": found.detector.info.name, "precision": found.detector.info.precision}
    if found.fallback:
        health["fallback"] = _without_directory(found.fallback, settings)
    if found.canary == NOT_COMPARED:
        health["canary"] = NOT_COMPARED
    return health


def _without_directory(text: str, settings: Settings) -> str:
    """An answer names no path of the machine, only the model's own name."""
    return text.replace(f"{settings.model_path.parent}/", "")


def _verifier(settings: Settings) -> Callable[[str | None], None] | None:
    if not settings.push_audience:
        return None
    from service.gcp.push_auth import TokenVerifier

    return TokenVerifier(settings.push_audience, settings.push_service_accounts).verify
