"""Settings from the environment: defaults and invalid values."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from service.errors import SettingsError
from service.settings import BUNDLED_MODEL, Settings

DEFAULTS: dict[str, Any] = {
    "bind_address": "0.0.0.0",
    "port": 8080,
    "model_path": BUNDLED_MODEL,
    "device": "cpu",
    "inference_streams": None,
    "decoders": None,
    "image_size": None,
    "min_confidence": 0.25,
    "store_confidence": 0.05,
    "max_batch_size": 8,
    "max_batch_pixels": 20_000_000,
    "max_in_flight": 32,
    "max_image_bytes": 33_554_432,
    "max_buffered_bytes": 117_440_512,
    "max_image_pixels": 50_000_000,
    "max_request_bytes": 131_072,
    "endpoints": "events",
    "reduced_decode": True,
    "allowed_buckets": (),
    "push_audience": None,
    "push_service_accounts": (),
    "google_cloud_project": None,
    "firestore_database": "(default)",
    "firestore_collection": "detections",
    "results_bucket": None,
    "results_topic": None,
    "alerts_topic": None,
    "delete_results_with_objects": False,
    "delete_results_of_overwritten": False,
    "daily_image_limit": 0,
    "sources_refresh_seconds": 60.0,
    "storage_timeout_seconds": 6.0,
    "firestore_timeout_seconds": 6.0,
    "ack_deadline_seconds": 600.0,
    "detect_timeout_seconds": 30.0,
    "hang_timeout_seconds": 300.0,
    "graceful_timeout_seconds": 8,
    "log_level": "INFO",
}


def test_from_env_of_nothing_gives_the_defaults() -> None:
    settings = Settings.from_env({})
    assert {spec.name: getattr(settings, spec.name) for spec in fields(settings)} == DEFAULTS


@pytest.mark.parametrize("text", ["", "  ", "\n"], ids=["empty", "spaces", "newline"])
def test_from_env_of_blank_value_gives_the_default(text: str) -> None:
    assert Settings.from_env({"PORT": text, "ALLOWED_BUCKETS": text}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("PORT", "9090", 9090),
        ("PORT", " 9090 ", 9090),
        ("MODEL_PATH", "/models/yolo26n.pt", Path("/models/yolo26n.pt")),
        ("DEVICE", "cuda:0", "cuda:0"),
        ("IMAGE_SIZE", "1280", 1280),
        ("MIN_CONFIDENCE", "0.05", 0.05),
        ("STORE_CONFIDENCE", "0.001", 0.001),
        ("MIN_CONFIDENCE", "1", 1.0),
        ("MAX_BATCH_SIZE", "32", 32),
        ("INFERENCE_STREAMS", "3", 3),
        ("REDUCED_DECODE", "False", False),
        ("MAX_IN_FLIGHT", "8", 8),
        ("HANG_TIMEOUT_SECONDS", "12.5", 12.5),
        ("ALLOWED_BUCKETS", "one, two ,,three,", ("one", "two", "three")),
        ("RESULTS_BUCKET", "my-results", "my-results"),
        ("GOOGLE_CLOUD_PROJECT", "my-project", "my-project"),
        ("LOG_LEVEL", "ERROR", "ERROR"),
    ],
)
def test_from_env_reads_a_value(variable: str, text: str, expected: object) -> None:
    assert getattr(Settings.from_env({variable: text}), variable.lower()) == expected


@pytest.mark.parametrize(
    ("variable", "text", "demand"),
    [
        ("PORT", "http", "a whole number from 1 to 65535"),
        ("PORT", "0", "a whole number from 1 to 65535"),
        ("PORT", "65536", "a whole number from 1 to 65535"),
        ("PORT", "80.5", "a whole number from 1 to 65535"),
        ("IMAGE_SIZE", "650", "a multiple of 32"),
        ("IMAGE_SIZE", "0", "a whole number from 32 to 4096"),
        ("MIN_CONFIDENCE", "0", "a number from 0.001 to 1"),
        ("MIN_CONFIDENCE", "1.01", "a number from 0.001 to 1"),
        ("MIN_CONFIDENCE", "nan", "a number from 0.001 to 1"),
        ("MIN_CONFIDENCE", "0,5", "a number from 0.001 to 1"),
        ("MAX_BATCH_SIZE", "0", "a whole number from 1 to 64"),
        ("MAX_BATCH_SIZE", "65", "a whole number from 1 to 64"),
        ("INFERENCE_STREAMS", "0", "a whole number from 1 to 256"),
        ("MAX_IN_FLIGHT", "-3", "a whole number from 2 to 1000"),
        ("MAX_IN_FLIGHT", "1", "a whole number from 2 to 1000"),
        ("MAX_BUFFERED_BYTES", "0", "a whole number from 1 to 1099511627776"),
        ("MAX_IMAGE_BYTES", "32MB", "a whole number from 1 to 1073741824"),
        ("MAX_IMAGE_PIXELS", "0", "a whole number from 1 to 1073741824"),
        ("MAX_REQUEST_BYTES", "10", "a whole number from 1024 to 33554432"),
        ("STORAGE_TIMEOUT_SECONDS", "0", "a number from 0.1 to 600"),
        ("FIRESTORE_TIMEOUT_SECONDS", "soon", "a number from 0.1 to 600"),
        ("ACK_DEADLINE_SECONDS", "inf", "a number from 1 to 600"),
        ("HANG_TIMEOUT_SECONDS", "9", "a number from 10 to 3600"),
        ("GRACEFUL_TIMEOUT_SECONDS", "0", "a whole number from 1 to 600"),
        ("LOG_LEVEL", "verbose", "one of DEBUG, INFO, WARNING, ERROR"),
        ("LOG_LEVEL", "info", "one of DEBUG, INFO, WARNING, ERROR"),
    ],
)
def test_from_env_of_wrong_value_names_it(variable: str, text: str, demand: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({variable: text})
    assert str(raised.value).startswith(f"{variable}={text!r} is wrong: it must be {demand}")


@pytest.mark.parametrize(
    "environ",
    [
        {"ACK_DEADLINE_SECONDS": "6"},
        {"HANG_TIMEOUT_SECONDS": "10", "FIRESTORE_TIMEOUT_SECONDS": "7.5"},
    ],
    ids=["ack deadline", "hang timeout"],
)
def test_delivery_without_time_for_work_names_the_settings(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env(environ)
    for name in ("ACK_DEADLINE_SECONDS", "HANG_TIMEOUT_SECONDS", "FIRESTORE_TIMEOUT_SECONDS"):
        value = getattr(Settings(), name.lower())
        assert f"{name}={environ.get(name, f'{value:g}')}" in str(raised.value)


@pytest.mark.parametrize(
    "environ",
    [{"DETECT_TIMEOUT_SECONDS": "6"}, {"FIRESTORE_TIMEOUT_SECONDS": "30"}],
    ids=["timeout", "firestore"],
)
def test_call_without_time_for_work_names_the_settings(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({"ENDPOINTS": "detect"} | environ)
    for name in ("DETECT_TIMEOUT_SECONDS", "HANG_TIMEOUT_SECONDS", "FIRESTORE_TIMEOUT_SECONDS"):
        value = getattr(Settings(), name.lower())
        assert f"{name}={environ.get(name, f'{value:g}')}" in str(raised.value)
    assert Settings.from_env(environ).endpoints == "events"  # it has no such calls


@pytest.mark.parametrize("text", ["both", "events,detect", "DETECT"])
def test_a_service_has_one_kind_of_endpoint(text: str) -> None:
    with pytest.raises(SettingsError, match="it must be one of events, detect"):
        Settings.from_env({"ENDPOINTS": text})


def test_results_and_alerts_have_topics_of_their_own() -> None:
    """Otherwise, BigQuery would refuse each alert."""
    with pytest.raises(SettingsError, match="ALERTS_TOPIC=one is wrong"):
        Settings.from_env({"RESULTS_TOPIC": "one", "ALERTS_TOPIC": "one"})


def test_bucket_of_results_is_no_bucket_of_images() -> None:
    """Each large result would be recorded as an image that failed."""
    environ = {"RESULTS_BUCKET": "one", "ALLOWED_BUCKETS": "two,one"}
    with pytest.raises(SettingsError, match="RESULTS_BUCKET=one is wrong"):
        Settings.from_env(environ)
    assert Settings.from_env(environ | {"ALLOWED_BUCKETS": "two"}).results_bucket == "one"


def test_lowest_recorded_confidence_is_not_over_the_threshold() -> None:
    with pytest.raises(
        SettingsError, match=r"STORE_CONFIDENCE=0.3 is wrong.* Lower STORE_CONFIDENCE"
    ):
        Settings.from_env({"STORE_CONFIDENCE": "0.3"})


@pytest.mark.parametrize(
    ("environ", "delivery_seconds", "work_seconds"),
    [
        ({}, 225, 219),
        ({"ACK_DEADLINE_SECONDS": "10"}, 10, 4),
        ({"HANG_TIMEOUT_SECONDS": "12"}, 9, 3),
        ({"HANG_TIMEOUT_SECONDS": "3600"}, 600, 594),
    ],
)
def test_delivery_ends_before_ack_deadline_and_hang_timeout(
    environ: dict[str, str], delivery_seconds: float, work_seconds: float
) -> None:
    settings = Settings.from_env(environ)
    assert settings.delivery_seconds == delivery_seconds
    assert settings.delivery_seconds <= settings.ack_deadline_seconds
    assert settings.delivery_seconds < settings.hang_timeout_seconds
    assert settings.work_seconds == work_seconds


def test_from_env_without_argument_reads_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9091")
    assert Settings.from_env().port == 9091


def test_from_env_ignores_other_variables() -> None:
    assert Settings.from_env({"port": "9", "HOME": "/", "PORTS": "x"}) == Settings()


def test_default_graceful_timeout_ends_before_the_kill() -> None:
    assert Settings().graceful_timeout_seconds < 10


@pytest.mark.parametrize("max_in_flight", [2, 32, 1000])
def test_threads_remain_for_429_and_probes_without_a_free_slot(max_in_flight: int) -> None:
    assert Settings(max_in_flight=max_in_flight).server_threads > max_in_flight + 4


@pytest.mark.parametrize("text", [",", "gs://uploads", "a b", "Uploads"])
def test_wrong_bucket_names_never_mean_every_bucket(text: str) -> None:
    with pytest.raises(SettingsError, match="ALLOWED_BUCKETS="):
        Settings.from_env({"ALLOWED_BUCKETS": text})


def test_overwritten_results_are_only_deleted_with_deletion_on() -> None:
    with pytest.raises(SettingsError, match="DELETE_RESULTS_WITH_OBJECTS=true"):
        Settings.from_env({"DELETE_RESULTS_OF_OVERWRITTEN": "true"})
