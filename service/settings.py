"""All settings of the service, read once from environment variables, and validated."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from service.errors import SettingsError

BUNDLED_MODEL = Path(__file__).parent / "bundled_model"
EVENTS, DETECT = "events", "detect"  # values of ENDPOINTS


def _setting(default: Any, help_text: str, parse: Callable[[str], Any] = str) -> Any:
    return field(default=default, metadata={"help": help_text, "parse": parse})


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:  # also true for NaN
            raise ValueError(f"a number from {low:g} to {high:g}")
        return value

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return text

    return parse


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _buckets(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or not all(re.fullmatch(r"[a-z0-9][a-z0-9._-]+", name) for name in names):
        raise ValueError("bucket names without gs://, separated by commas")
    return names


def _bucket(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]+", text):
        raise ValueError("the name of a bucket without gs://")
    return text


def _emails(text: str) -> tuple[str, ...]:
    emails = tuple(email.strip() for email in text.split(",") if email.strip())
    if not emails or not all(re.fullmatch(r"[^@\s]+@[^@\s]+", email) for email in emails):
        raise ValueError("emails of service accounts, separated by commas")
    return emails


def _collection(text: str) -> str:
    if "/" in text:
        raise ValueError("the name of a top-level collection, without /")
    return text


def _topic(text: str) -> str:
    # https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
    if not re.fullmatch(r"(projects/[^/\s]+/topics/)?[A-Za-z][A-Za-z0-9._~+%-]{2,254}", text):
        raise ValueError("a topic's name, or projects/PROJECT/topics/NAME")
    return text


def _multiple_of_32(text: str) -> int:
    value = _integer(32, 4096)(text)
    if value % 32:
        raise ValueError("a multiple of 32, the model's stride")
    return value


@dataclass(frozen=True)
class Settings:
    """The settings of one process. A field's name in capitals is its environment variable."""

    bind_address: str = _setting("0.0.0.0", "Address to listen on. In a container, keep `0.0.0.0`.")
    port: int = _setting(8080, "Port to listen on. Cloud Run sets it.", _integer(1, 65535))
    endpoints: str = _setting(
        "events",
        "What the service responds to: `events` (uploads, deletions and jobs) or `detect` "
        "(`POST /v1/detect`, which returns a result to its caller). Never both, because Cloud Run "
        "grants access to a service, and a caller of `detect` must not be able to forge events.",
        _one_of(EVENTS, DETECT),
    )
    model_path: Path = _setting(
        BUNDLED_MODEL,
        "Model to run: an exported `*_openvino_model` directory, or a file that ultralytics loads "
        "(`.pt`, `.onnx`, `.engine`).",
        Path,
    )
    device: str = _setting(
        "cpu", "Where the model runs: `cpu`, or a GPU by its ultralytics name (`0`, `cuda:0`)."
    )
    inference_streams: int | None = _setting(
        None, "Images inferred at once on a CPU. Unset: one for each core.", _integer(1, 256)
    )
    decoders: int | None = _setting(
        None, "Decoder processes. Unset: one for each core.", _integer(1, 256)
    )
    image_size: int | None = _setting(
        None,
        "Longer side of the model's input, in pixels. A larger input finds smaller objects and is "
        "slower. Unset: the model's own size.",
        _multiple_of_32,
    )
    min_confidence: float = _setting(
        0.25,
        "Detections with a lower confidence are not in `detections`. A source can have its own "
        "threshold.",
        _number(0.001, 1.0),
    )
    store_confidence: float = _setting(
        0.05,
        "Detections with a lower confidence are not recorded at all. Detections that are recorded, "
        "but are not in `detections`, are in `faint`.",
        _number(0.001, 1.0),
    )
    max_batch_size: int = _setting(
        8,
        "Maximum number of images in one batch. For a GPU, set 32, and MAX_IN_FLIGHT to 128.",
        _integer(1, 64),
    )
    max_batch_pixels: int = _setting(
        20_000_000,
        "Maximum number of input pixels in one batch on a GPU. Lower it if the GPU runs out of "
        "memory.",
        _integer(1024, 2**31),
    )
    max_in_flight: int = _setting(
        32,
        "Maximum number of images in flight. Further messages are rejected with 429. Jobs and "
        "deletions may use half of the slots. Set Cloud Run's concurrency to the same number.",
        _integer(2, 1000),
    )
    max_image_bytes: int = _setting(
        32 * 2**20,
        "Largest object, in bytes. Larger objects are recorded as `image_too_large`.",
        _integer(1, 2**30),
    )
    max_buffered_bytes: int = _setting(
        112 * 2**20,
        "Bytes of downloaded files that may be in memory at once, until they are decoded and their "
        "derived images are made. Further downloads wait. "
        "It is lowered automatically if the instance has too little memory.",
        _integer(1, 2**40),
    )
    max_image_pixels: int = _setting(
        50_000_000,
        "Largest image, in pixels (width times height). Larger images are recorded as "
        "`image_too_large`, and not decoded.",
        _integer(1, 2**30),
    )
    max_request_bytes: int = _setting(
        2**17,
        "Largest request body, in bytes. Larger bodies are rejected with 413.",
        _integer(1024, 2**25),
    )
    reduced_decode: bool = _setting(
        True,
        "Decode a large JPEG at 1/2, 1/4 or 1/8 of its size, if the result is not smaller than the "
        "model's input. This is faster. `false` always decodes in full.",
        _boolean,
    )
    allowed_buckets: tuple[str, ...] = _setting(
        (), "Buckets that are served, separated by commas. Unset: all buckets.", _buckets
    )
    push_audience: str | None = _setting(
        None,
        "Audience of the OIDC token that each push must have, or each call of `detect`. Set it "
        "where Cloud Run IAM does not protect the service. Unset: tokens are not checked.",
    )
    push_service_accounts: tuple[str, ...] = _setting(
        (),
        "Service accounts that may push, or call, separated by commas. Set it together with "
        "PUSH_AUDIENCE.",
        _emails,
    )
    google_cloud_project: str | None = _setting(
        None, "Project of Firestore, Cloud Storage and traces. Unset: the credentials' project."
    )
    firestore_database: str = _setting("(default)", "Firestore database of the results.")
    firestore_collection: str = _setting(
        "detections", "Firestore collection of the results.", _collection
    )
    delete_results_with_objects: bool = _setting(
        False,
        "Remove the result of an image when its object is deleted. The service must receive an "
        "event for each deletion. Results of overwritten objects stay.",
        _boolean,
    )
    delete_results_of_overwritten: bool = _setting(
        False,
        "Also remove the result of an image when its object is overwritten. Needs "
        "DELETE_RESULTS_WITH_OBJECTS.",
        _boolean,
    )
    results_bucket: str | None = _setting(
        None,
        "Bucket for derived images, for example thumbnails, and for results that are larger than "
        "1 MiB, Firestore's limit. Unset: nothing is derived, and the polygons of large results "
        "are simplified. It must not be a bucket of images.",
        _bucket,
    )
    results_topic: str | None = _setting(
        None,
        "Pub/Sub topic for results: its name, or `projects/PROJECT/topics/NAME`. Each recorded "
        "result is published there as one message. Unset: results are not published.",
        _topic,
    )
    alerts_topic: str | None = _setting(
        None,
        "Pub/Sub topic for alerts: its name, or `projects/PROJECT/topics/NAME`. Unset: alerts are "
        "documents and log lines only.",
        _topic,
    )
    daily_image_limit: int = _setting(
        0,
        "Maximum number of images a day (UTC) that all instances process together. Further images "
        "are parked. The limit may be exceeded by what the instances process in a minute. 0: no "
        "limit.",
        _integer(0, 10**9),
    )
    sources_refresh_seconds: float = _setting(
        60.0,
        "Seconds after which an instance reads the sources again. They are one document.",
        _number(1, 3600),
    )
    storage_timeout_seconds: float = _setting(
        6.0,
        "Seconds for which Cloud Storage is retried before a message is rejected with 503.",
        _number(0.1, 600),
    )
    firestore_timeout_seconds: float = _setting(
        6.0,
        "Seconds for which Firestore is retried before a message is rejected with 503.",
        _number(0.1, 600),
    )
    ack_deadline_seconds: float = _setting(
        600.0,
        "Ack deadline of the subscriptions, in seconds. A message that is not finished in time is "
        "rejected with 503. The last FIRESTORE_TIMEOUT_SECONDS are reserved for the commit. Raise "
        "Eventarc's deadline, which is 10 s by default, to the same number.",
        _number(1, 600),
    )
    detect_timeout_seconds: float = _setting(
        30.0,
        "With ENDPOINTS=detect, seconds after which a call is rejected with 503. If its result is "
        "stored, the last FIRESTORE_TIMEOUT_SECONDS are reserved for the commit.",
        _number(1, 600),
    )
    hang_timeout_seconds: float = _setting(
        300.0,
        "Seconds after which work counts as hanging: liveness fails, and the platform replaces the "
        "instance. A message is rejected with 503 after three quarters of this time.",
        _number(10, 3600),
    )
    graceful_timeout_seconds: int = _setting(
        8,
        "Seconds for images in flight after SIGTERM. Cloud Run kills the instance after 10 s.",
        _integer(1, 600),
    )
    log_level: str = _setting(
        "INFO", "Lowest severity that is logged.", _one_of("DEBUG", "INFO", "WARNING", "ERROR")
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings. An unset or empty variable means the default.

        Args:
            environ: the environment variables. None: those of the process.

        Raises:
            SettingsError: a value is wrong. The message names the variable and the value.
        """
        environ = os.environ if environ is None else environ
        values = {}
        for spec in fields(cls):
            variable = spec.name.upper()
            text = environ.get(variable, "").strip()
            if not text:
                continue
            try:
                values[spec.name] = spec.metadata["parse"](text)
            except ValueError as exc:
                raise SettingsError(f"{variable}={text!r} is wrong: it must be {exc}") from exc
        settings = cls(**values)
        if settings.store_confidence > settings.min_confidence:
            raise SettingsError(
                f"STORE_CONFIDENCE={settings.store_confidence:g} is wrong: it must not be greater "
                f"than MIN_CONFIDENCE={settings.min_confidence:g}. Lower STORE_CONFIDENCE, or "
                "raise MIN_CONFIDENCE"
            )
        if settings.work_seconds <= 0:
            raise SettingsError(
                f"ACK_DEADLINE_SECONDS={settings.ack_deadline_seconds:g} or HANG_TIMEOUT_SECONDS="
                f"{settings.hang_timeout_seconds:g} is too small: ACK_DEADLINE_SECONDS, and three "
                "quarters of HANG_TIMEOUT_SECONDS, must be greater than FIRESTORE_TIMEOUT_SECONDS="
                f"{settings.firestore_timeout_seconds:g}, which is reserved for the commit"
            )
        if (
            settings.endpoints == DETECT
            and settings.detect_seconds <= settings.firestore_timeout_seconds
        ):
            raise SettingsError(
                f"DETECT_TIMEOUT_SECONDS={settings.detect_timeout_seconds:g} or "
                f"HANG_TIMEOUT_SECONDS={settings.hang_timeout_seconds:g} is too small: "
                "DETECT_TIMEOUT_SECONDS, and three quarters of HANG_TIMEOUT_SECONDS, must be "
                f"greater than FIRESTORE_TIMEOUT_SECONDS={settings.firestore_timeout_seconds:g}, "
                "which is reserved for the commit"
            )
        if settings.delete_results_of_overwritten and not settings.delete_results_with_objects:
            raise SettingsError(
                "DELETE_RESULTS_OF_OVERWRITTEN=true has no effect without "
                "DELETE_RESULTS_WITH_OBJECTS=true. Set both, or neither"
            )
        if settings.results_bucket in settings.allowed_buckets:
            raise SettingsError(
                f"RESULTS_BUCKET={settings.results_bucket} is wrong: it must not be one of "
                "ALLOWED_BUCKETS, because it is not for images"
            )
        if settings.results_topic and settings.results_topic == settings.alerts_topic:
            raise SettingsError(
                f"ALERTS_TOPIC={settings.alerts_topic} is wrong: it must not be RESULTS_TOPIC, "
                "because their messages have different fields"
            )
        if bool(settings.push_audience) != bool(settings.push_service_accounts):
            raise SettingsError(
                "PUSH_AUDIENCE or PUSH_SERVICE_ACCOUNTS is missing: a push's token is checked for "
                "both, so set both or neither"
            )
        return settings

    @property
    def delivery_seconds(self) -> float:
        """How many seconds a delivery may take, before its ack deadline and the hang timeout."""
        return min(self.ack_deadline_seconds, 0.75 * self.hang_timeout_seconds)

    @property
    def work_seconds(self) -> float:
        """The part of `delivery_seconds` that is not reserved for the commit."""
        return self.delivery_seconds - self.firestore_timeout_seconds

    @property
    def detect_seconds(self) -> float:
        """How many seconds a call of `/v1/detect` may take, before the hang timeout."""
        return min(self.detect_timeout_seconds, 0.75 * self.hang_timeout_seconds)

    @property
    def server_threads(self) -> int:
        """One thread for each image in flight, and 8 more for 429 responses and health probes."""
        return self.max_in_flight + 8
