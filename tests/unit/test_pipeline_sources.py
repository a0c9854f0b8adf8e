"""The settings of sources in the pipeline."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from service.deadline import NO_DEADLINE, Deadline
from service.domain import (
    Capture,
    CapturedAtSource,
    Event,
    GeoPoint,
    ImageRef,
    Outcome,
    SourceVersion,
)
from service.errors import SourcesUnknownError
from service.images.pixels import DecodedImage
from service.pipeline import Pipeline
from service.sources.current import SourceSettings
from service.sources.rules import Rules
from tests.fakes import (
    PATIENCE_SECONDS,
    DecodersHere,
    FakeDetector,
    FakeStorage,
    FakeStore,
    bmp_image,
    pipeline_of,
)
from tests.loglines import logged_by

VERSION = SourceVersion("yard", datetime(2026, 1, 1, tzinfo=UTC))
CAPTURE = Capture(datetime(2026, 6, 30, 23, 30), location=GeoPoint(1.0, 2.0))
EVENT_TIME = datetime(2026, 7, 2, 22, 30, tzinfo=UTC)


class FakeSources:
    """Settings by the first letter of an object's name."""

    def __init__(self, settings: Mapping[str, SourceSettings]) -> None:
        self.settings = settings

    def settings_of(self, ref: ImageRef, deadline: Deadline) -> SourceSettings:
        if ref.name[0] not in self.settings:
            raise SourcesUnknownError
        return self.settings[ref.name[0]]


class CapturingDecoders(DecodersHere):
    """Decoders whose files all have the same EXIF data."""

    def decode(self, data: bytes, **options: Any) -> DecodedImage:
        return replace(super().decode(data, **options), capture=CAPTURE)


Make = Callable[..., Pipeline]


@pytest.fixture
def storage() -> FakeStorage:
    return FakeStorage()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def make(storage: FakeStorage, store: FakeStore) -> Iterator[Make]:
    made = []

    def pipeline(**settings: SourceSettings) -> Pipeline:
        made.append(
            pipeline_of(
                storage,
                store,
                FakeDetector(),
                decoders=CapturingDecoders(),
                sources=FakeSources(settings),
            )
        )
        return made[-1]

    yield pipeline
    for each in made:
        each.close(timeout_seconds=PATIENCE_SECONDS)


def handle(pipeline: Pipeline, ref: ImageRef) -> Outcome:
    return pipeline.handle(Event(ref, EVENT_TIME), NO_DEADLINE)


def test_images_of_two_sources_have_their_own_rules(
    storage: FakeStorage, store: FakeStore, make: Make
) -> None:
    strict = SourceSettings(Rules(0.9), VERSION)
    pipeline = make(a=strict, b=SourceSettings(Rules(0.1)))
    for name in ("a", "b"):
        handle(pipeline, storage.put(name, bmp_image((0, 0, 128))))  # confidence 0.502
    assert store.document("a")["num_detections"] == 0
    assert store.document("a")["faint"]
    assert store.document("a")["source"] == {"id": "yard", "version": VERSION.version}
    assert store.document("b")["num_detections"] == 1
    assert store.document("b")["source"] == {"id": None, "version": None}


def test_image_of_a_disabled_source_is_recorded_nowhere(
    storage: FakeStorage, store: FakeStore, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = make(a=SourceSettings(is_enabled=False))
    assert handle(pipeline, storage.put("a", bmp_image())) is Outcome.DISABLED
    assert not (store.documents or store.lookups or storage.downloads or storage.resolved)
    with caplog.at_level("INFO"):
        pipeline.close(timeout_seconds=PATIENCE_SECONDS)
    [record] = logged_by(caplog, "service.recorder")
    assert vars(record)["disabled"] == 1


def test_failed_image_names_its_source_too(
    storage: FakeStorage, store: FakeStore, make: Make
) -> None:
    assert handle(make(a=SourceSettings(version=VERSION)), storage.put("a", b"x")) is Outcome.FAILED
    assert store.document("a")["source"]["id"] == "yard"


def test_image_with_unknown_settings_is_rejected(
    storage: FakeStorage, store: FakeStore, make: Make
) -> None:
    with pytest.raises(SourcesUnknownError):
        handle(make(), storage.put("a", bmp_image()))
    assert not store.documents and not storage.downloads


def test_time_zone_of_a_source_dates_its_images(
    storage: FakeStorage, store: FakeStore, make: Make
) -> None:
    berlin = SourceSettings(timezone=ZoneInfo("Europe/Berlin"))
    pipeline = make(a=berlin, b=SourceSettings())
    for name in ("a", "b"):
        handle(pipeline, storage.put(name, bmp_image()))
    local, unknown = store.document("a"), store.document("b")
    assert local["captured_at"] == CAPTURE.local_time.replace(tzinfo=UTC) - timedelta(hours=2)  # type: ignore[union-attr]
    assert local["captured_at_source"] == str(CapturedAtSource.EXIF_WITH_SOURCE_TIMEZONE)
    assert local["day"] == str(date(2026, 6, 30))
    assert unknown["captured_at"] is None
    assert unknown["day"] == str(date(2026, 7, 2))


def test_place_is_recorded_only_if_the_source_allows_it(
    storage: FakeStorage, store: FakeStore, make: Make
) -> None:
    pipeline = make(a=SourceSettings(store_location=True), b=SourceSettings())
    for name in ("a", "b"):
        handle(pipeline, storage.put(name, bmp_image()))
    assert store.document("a")["location"] == GeoPoint(1.0, 2.0)
    assert store.document("b")["location"] is None
