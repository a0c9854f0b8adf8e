"""The three parsers of untrusted input, each with checks that must hold for any bytes."""

import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from devtools.fuzz.corpus import CASES
from service.domain import ImageRef
from service.errors import BadImageError, EnvelopeError, SettingsError
from service.events import parse_event
from service.images.decode import decode
from service.images.details import Details
from service.images.letterbox import shrink
from service.settings import Settings

EVENTS = Path(__file__).parents[2] / "tests" / "data" / "events"
MAX_PIXELS = 1_000_000
IMAGE_SIZE = 64
MAX_SEED_BYTES = 20_000  # small files, so that the fuzzer runs more often


@dataclass(frozen=True)
class Target:
    """A parser: the check for any bytes, and the inputs to start with."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def check_envelope(data: bytes) -> None:
    """Read a request: lines of headers, an empty line, the body."""
    head, _, body = data.partition(b"\n\n")
    lines = (line.partition(":") for line in head.decode("latin-1").split("\n"))
    headers = {name: value.strip() for name, _, value in lines}
    try:
        event = parse_event(headers, body)
    except EnvelopeError as exc:
        assert 0 < len(str(exc)) < 120  # the service's own sentence
        return
    assert bool(event.ref) != bool(event.ignored)
    assert event.event_time is None or event.event_time.tzinfo
    assert event.delivery_attempt is None or event.delivery_attempt > 0
    if event.ref:
        check_image(event.ref)


def check_image(image: ImageRef) -> None:
    assert 0 < len(image.name.encode()) <= 1024
    assert image.bucket.isascii() and 3 <= len(image.bucket) <= 222
    assert image.generation is None or 0 < image.generation < 2**63
    assert image.metadata.size is None or 0 <= image.metadata.size < 2**63
    assert image.uri.startswith("gs://")
    if image.generation is not None:
        assert len(image.document_id) < 1500


def check_file(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged headers
        try:
            decoded = decode(data, max_pixels=MAX_PIXELS, image_size=IMAGE_SIZE)
        except BadImageError as exc:
            assert 0 < len(exc.message) < 200
            return
        except MemoryError:  # a decoder process would end here, and the image would fail
            return
    height, width, channels = decoded.pixels.shape
    assert channels == 3 and decoded.pixels.dtype == np.uint8
    assert 0 < width * height <= MAX_PIXELS
    assert width <= decoded.info.width and height <= decoded.info.height
    assert max(shrink(decoded.pixels, image_size=IMAGE_SIZE).shape) <= IMAGE_SIZE
    assert Details.from_bytes(Details.of(decoded).to_bytes()).capture == decoded.capture


def check_settings(data: bytes) -> None:
    """Read lines of VARIABLE=value."""
    lines = (line.partition("=") for line in data.decode("utf-8", "surrogateescape").split("\n"))
    environ = {name: value for name, _, value in lines}
    try:
        settings = Settings.from_env(environ)
    except SettingsError as exc:
        assert str(exc).split("=")[0].split(" ")[0].isupper()  # names the variable
        return
    assert 0 < settings.port < 2**16
    assert settings.max_in_flight < settings.server_threads
    assert all(name and "/" not in name for name in settings.allowed_buckets)


def envelope_seeds() -> Iterable[bytes]:
    for file in sorted(EVENTS.glob("*-input.json")):
        request = json.loads(file.read_text(encoding="utf-8"))
        text = request["body_text"] if "body_text" in request else json.dumps(request["body"])
        head = "\n".join(f"{name}: {value}" for name, value in request["headers"].items())
        yield f"{head}\n\n{text}".encode()


def image_seeds() -> Iterable[bytes]:
    heavy = ("million", "7000x7000", "4000x3000", "000 ", "MB", "8000x6000", "200 scans")
    for case in CASES.values():
        if not any(word in case.name for word in heavy):
            data = case.make()
            if len(data) <= MAX_SEED_BYTES:
                yield data


def settings_seeds() -> Iterable[bytes]:
    texts = ("1", "0.5", "true", "INFO", "uploads,other", "a@b.iam.gserviceaccount.com")
    for spec in fields(Settings):
        for text in texts:
            yield f"{spec.name.upper()}={text}".encode()
    yield b"PUSH_AUDIENCE=https://x\nPUSH_SERVICE_ACCOUNTS=a@b.c"
    yield b"MAX_IN_FLIGHT=128\nMAX_BATCH_SIZE=32"


TARGETS = {
    "envelope": Target(check_envelope, envelope_seeds),
    "image": Target(check_file, image_seeds),
    "settings": Target(check_settings, settings_seeds),
}
