"""Which sources an instance uses while their document changes, breaks or disappears."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from service.deadline import NO_DEADLINE, Deadline
from service.derived import NOTHING
from service.domain import ImageRef
from service.errors import FirestoreUnavailableError, SourcesUnknownError
from service.sources.current import CurrentSources, SourceSettings, StoredSources
from tests.fakes import Clock, Gate, in_thread

IMAGE = ImageRef("uploads", "a.jpg", 1)
START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeDocuments:
    """The two documents in memory, with a gate before each read."""

    def __init__(self) -> None:
        self.stored: StoredSources | None = None
        self.good: StoredSources | None = None
        self.errors: list[Exception] = []  # each read raises the next one, if there is one
        self.reads = 0
        self.writes = 0
        self.gate = Gate()

    def edit(self, **fields: Any) -> None:
        """Write a document with one source."""
        source = {"id": "yard", "bucket": "uploads"} | fields
        version = (self.stored.version if self.stored else START) + timedelta(seconds=1)
        self.stored = StoredSources({"sources": [source]}, version)

    def read(self, deadline: Deadline) -> StoredSources | None:
        self.gate.enter()
        self.reads += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.stored

    def last_good(self, deadline: Deadline) -> StoredSources | None:
        return self.good

    def remember(self, good: StoredSources, deadline: Deadline) -> None:
        self.writes += 1
        self.good = good


@pytest.fixture
def documents() -> FakeDocuments:
    return FakeDocuments()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def instance(
    documents: FakeDocuments, clock: Clock, *, results_bucket: str | None = None
) -> CurrentSources:
    """A new instance, after its first look."""
    sources = CurrentSources(
        documents,
        min_confidence=0.25,
        store_confidence=0.05,
        refresh_seconds=60,
        results_bucket=results_bucket,
        clock=clock,
    )
    sources.look(NO_DEADLINE)
    return sources


def settings_of(sources: CurrentSources) -> SourceSettings:
    return sources.settings_of(IMAGE, NO_DEADLINE)


def test_without_a_document_images_have_the_default_settings(
    documents: FakeDocuments, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(instance(documents, clock))
    assert settings == SourceSettings()
    assert not caplog.records


def test_source_of_an_image_sets_its_settings(documents: FakeDocuments, clock: Clock) -> None:
    documents.edit(min_confidence=0.6, timezone="Europe/Berlin", store_location=True)
    settings = settings_of(instance(documents, clock))
    assert settings.rules.min_confidence == 0.6
    assert (settings.version.id, settings.timezone) == ("yard", ZoneInfo("Europe/Berlin"))
    assert settings.version.version == START + timedelta(seconds=1)
    assert settings.store_location and settings.is_enabled


def test_image_without_a_source_names_the_version_too(
    documents: FakeDocuments, clock: Clock
) -> None:
    documents.edit(prefix="other/")
    version = settings_of(instance(documents, clock)).version
    assert (version.id, version.version) == (None, START + timedelta(seconds=1))


def test_change_is_seen_after_the_refresh_time(documents: FakeDocuments, clock: Clock) -> None:
    documents.edit(min_confidence=0.6)
    sources = instance(documents, clock)
    documents.edit(min_confidence=0.7)
    clock.now += 59
    assert settings_of(sources).rules.min_confidence == 0.6
    assert documents.reads == 1
    clock.now += 1
    assert settings_of(sources).rules.min_confidence == 0.7
    assert settings_of(sources).rules.min_confidence == 0.7
    assert documents.reads == 2


def test_one_request_reads_and_the_others_do_not_wait(
    documents: FakeDocuments, clock: Clock
) -> None:
    documents.edit(min_confidence=0.6)
    sources = instance(documents, clock)
    documents.edit(min_confidence=0.7)
    documents.gate.wait_for_arrivals()
    documents.gate.close()
    clock.now += 60
    looking = in_thread(lambda: settings_of(sources))
    documents.gate.wait_for_arrivals()
    assert settings_of(sources).rules.min_confidence == 0.6
    documents.gate.open()
    assert looking.result().rules.min_confidence == 0.7
    assert documents.reads == 2


def test_outage_keeps_the_sources(documents: FakeDocuments, clock: Clock) -> None:
    documents.edit(keep_faint=False)
    sources = instance(documents, clock)
    documents.errors = [FirestoreUnavailableError("Firestore is unavailable.")]
    clock.now += 60
    assert not settings_of(sources).rules.keep_faint
    assert settings_of(sources).version.id == "yard"


def test_unexpected_error_keeps_the_sources(
    documents: FakeDocuments, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    documents.edit(keep_faint=False)
    sources = instance(documents, clock)
    documents.errors = [RuntimeError("unexpected")]
    clock.now += 60
    assert not settings_of(sources).rules.keep_faint
    assert "unexpected" in caplog.text


def test_images_are_rejected_until_the_sources_are_known(
    documents: FakeDocuments, clock: Clock
) -> None:
    documents.edit(enabled=False)
    documents.errors = [FirestoreUnavailableError("Firestore is unavailable.")] * 2
    sources = instance(documents, clock)
    with pytest.raises(FirestoreUnavailableError):
        settings_of(sources)
    assert not settings_of(sources).is_enabled  # without waiting for the refresh time


@pytest.mark.parametrize("is_new", [False, True], ids=["same instance", "new instance"])
@pytest.mark.parametrize("is_deleted", [False, True], ids=["broken", "deleted"])
def test_broken_document_never_turns_privacy_off(
    documents: FakeDocuments,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    is_new: bool,
    is_deleted: bool,
) -> None:
    documents.edit(keep_faint=False, enabled=False)
    sources = instance(documents, clock)
    documents.edit(keep_faint="no")
    if is_deleted:
        documents.stored = None
    clock.now += 60
    sources = instance(documents, clock) if is_new else sources
    settings = settings_of(sources)
    assert not settings.rules.keep_faint and not settings.is_enabled
    assert settings.version.version == START + timedelta(seconds=1)
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    reason = "deleted" if is_deleted else "Expected `bool`, got `str`"
    assert reason in vars(record)["reason"]
    assert vars(record)["reads"] == 1


def test_last_good_version_of_another_instance_is_used(
    documents: FakeDocuments, clock: Clock
) -> None:
    documents.edit(keep_faint=True)
    sources = instance(documents, clock)
    documents.edit(keep_faint=False)
    instance(documents, clock)
    documents.edit(keep_faint="no")
    clock.now += 60
    assert not settings_of(sources).rules.keep_faint


def test_sources_that_only_another_instance_saw_stay_in_force(
    documents: FakeDocuments, clock: Clock
) -> None:
    sources = instance(documents, clock)  # there are none yet
    documents.edit(enabled=False)
    instance(documents, clock)
    documents.stored = None
    clock.now += 60
    assert not settings_of(sources).is_enabled


def test_repaired_document_is_used_again(documents: FakeDocuments, clock: Clock) -> None:
    documents.edit(min_confidence=0.6)
    sources = instance(documents, clock)
    documents.edit(min_confidence="high")
    clock.now += 60
    assert settings_of(sources).rules.min_confidence == 0.6
    documents.edit(min_confidence=0.7)
    clock.now += 60
    assert settings_of(sources).rules.min_confidence == 0.7


def test_each_read_of_a_broken_document_is_counted(
    documents: FakeDocuments, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    documents.edit(min_confidence="high")
    sources = instance(documents, clock)
    for _ in range(2):
        clock.now += 60
        settings_of(sources)
    reads = [vars(each)["reads"] for each in caplog.records if each.levelno == logging.ERROR]
    assert reads == [1, 2, 3]


def test_broken_document_before_any_good_one_derives_nothing(
    documents: FakeDocuments, clock: Clock
) -> None:
    """It may ask for a redaction, so a thumbnail could show what must be hidden."""
    documents.edit(min_confidence="high", derived={"redacted": {}})
    sources = instance(documents, clock)
    assert settings_of(sources) == SourceSettings(derive=NOTHING)
    documents.stored = None
    clock.now += 60
    assert settings_of(sources) == SourceSettings()
    documents.stored = StoredSources({"sources": 1}, START)
    clock.now += 60
    assert settings_of(sources) == SourceSettings(derive=NOTHING)


def test_images_are_rejected_if_both_documents_are_broken(
    documents: FakeDocuments, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    documents.good = StoredSources({"sources": 1}, START)
    sources = instance(documents, clock)
    for _ in range(3):
        with pytest.raises(SourcesUnknownError):
            settings_of(sources)
    assert caplog.text.count("sources apply") == 1
    documents.edit(min_confidence=0.6)
    clock.now += 60
    assert settings_of(sources).rules.min_confidence == 0.6


def test_empty_list_is_a_good_document(documents: FakeDocuments, clock: Clock) -> None:
    documents.edit(enabled=False)
    sources = instance(documents, clock)
    documents.stored = StoredSources({"sources": []}, START + timedelta(seconds=9))
    clock.now += 60
    assert settings_of(sources).is_enabled
    assert documents.good == documents.stored


def test_last_good_sources_are_stored_once(documents: FakeDocuments, clock: Clock) -> None:
    documents.edit(min_confidence=0.6)
    sources = instance(documents, clock)
    for _ in range(3):
        clock.now += 60
        settings_of(sources)
    assert documents.writes == 1


def test_last_good_sources_that_could_not_be_stored_are_later(
    documents: FakeDocuments, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(good: StoredSources, deadline: Deadline) -> None:
        raise FirestoreUnavailableError("Firestore is unavailable.")

    documents.edit(min_confidence=0.6)
    with monkeypatch.context() as patch:
        patch.setattr(documents, "remember", fail)
        sources = instance(documents, clock)
    assert settings_of(sources).rules.min_confidence == 0.6
    clock.now += 60
    settings_of(sources)
    assert documents.good == documents.stored
