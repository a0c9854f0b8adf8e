"""The documents of the sources in Firestore, also as a person edits them in the console."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.cloud import firestore

from service.deadline import NO_DEADLINE
from service.domain import ImageRef
from service.errors import SourcesError
from service.gcp.source_store import SourceStore
from service.sources.current import CurrentSources, StoredSources
from service.sources.schema import Sources, parse
from tests.fakes import PATIENCE_SECONDS

pytestmark = pytest.mark.emulator

IMAGE = ImageRef("uploads", "a.jpg", 1)
TRIANGLE = [[0, 0], [1, 0], [0.5, 1]]


@pytest.fixture
def source_store(collection: str) -> SourceStore:
    return SourceStore(firestore.Client(), timeout_seconds=PATIENCE_SECONDS, collection=collection)


@pytest.fixture
def console(collection: str) -> Any:
    """The document `sources`, without any check."""
    return firestore.Client().collection(collection).document("sources")


def sources_of(**fields: Any) -> Sources:
    return parse({"sources": [{"id": "yard", "bucket": "uploads"} | fields]})


def instance(source_store: SourceStore) -> CurrentSources:
    sources = CurrentSources(
        source_store, min_confidence=0.25, store_confidence=0.05, refresh_seconds=0
    )
    sources.look(NO_DEADLINE)
    return sources


def test_written_sources_read_back(source_store: SourceStore) -> None:
    sources = sources_of(
        zones=[{"name": "gate", "mode": "include", "points": TRIANGLE, "labels": ["car"]}],
        min_confidence_by_label={"traffic light": 0.5, "a.b/c": 0.1},
    )
    assert source_store.read() is None
    version = source_store.write(sources, None)
    stored = source_store.read()
    assert stored and stored.version == version
    assert parse(stored.data) == sources


def test_write_is_refused_if_the_document_changed_meanwhile(
    source_store: SourceStore, console: Any
) -> None:
    first = source_store.write(sources_of(min_confidence=0.4), None)
    with pytest.raises(SourcesError, match="changed meanwhile"):
        source_store.write(sources_of(min_confidence=0.5), None)
    console.update({"note": "edited"})
    with pytest.raises(SourcesError, match="changed meanwhile"):
        source_store.write(sources_of(min_confidence=0.5), first)
    edited = source_store.read()
    assert edited
    second = source_store.write(sources_of(min_confidence=0.5), edited.version)
    stored = source_store.read()
    assert stored and stored.version == second > first
    assert "note" not in stored.data


def test_sources_over_the_limit_are_not_written(source_store: SourceStore) -> None:
    points = [[i / 1000, 0] for i in range(99)] + [[0, 1]]
    zones = [{"name": f"z{i}", "mode": "include", "points": points} for i in range(50)]
    many = [{"id": f"s{i}", "bucket": "uploads", "prefix": f"{i}/"} for i in range(12)]
    sources = parse({"sources": [source | {"zones": zones} for source in many]})
    with pytest.raises(SourcesError, match="at most 900,000 can be stored"):
        source_store.write(sources, None)
    assert source_store.read() is None


def test_older_version_never_replaces_a_newer_last_good(source_store: SourceStore) -> None:
    first = source_store.write(sources_of(min_confidence=0.4), None)
    old = source_store.read()
    second = source_store.write(sources_of(min_confidence=0.5), first)
    assert old
    source_store.remember(old, NO_DEADLINE)  # an instance that was slow
    good = source_store.last_good()
    assert good and good.version == second
    assert parse(good.data) == sources_of(min_confidence=0.5)


def test_newest_version_wins_if_many_instances_store_theirs(source_store: SourceStore) -> None:
    version = None
    versions = []
    for threshold in range(1, 7):
        version = source_store.write(sources_of(min_confidence=threshold / 10), version)
        stored = source_store.read()
        assert stored
        versions.append(stored)
    source_store.remember(StoredSources(versions[0].data, versions[0].version))
    with ThreadPoolExecutor(6) as instances:
        list(instances.map(source_store.remember, reversed(versions)))
    good = source_store.last_good()
    assert good == versions[-1]


def test_forged_version_of_the_last_good_is_replaced(
    source_store: SourceStore, collection: str
) -> None:
    forged = firestore.Client().collection(collection).document("sources_last_good")
    for version in (datetime.now(UTC) + timedelta(days=999), "soon", None):
        forged.set({"sources": [], "version": version})
        stored = source_store.read()
        new = source_store.write(sources_of(), stored.version if stored else None)
        good = source_store.last_good()
        assert good and good.version == new


@pytest.mark.parametrize(
    "edit",
    [
        {"sources": "all"},
        {"sources": [{"id": "yard", "bucket": "uploads", "keep_faint": None}]},
        {"sources": [{"id": "yard", "bucket": "uploads", "keep_faint": b"no"}]},
        {"sources": [{"id": "yard", "bucket": firestore.GeoPoint(1, 2)}]},
        {"sources": [{"id": datetime(2026, 1, 1, tzinfo=UTC), "bucket": "uploads"}]},
        {"sources": [{"id": "yard", "bucket": "uploads", "min_confidence": float("nan")}]},
        {"sources": [], "note": "empty for now"},
        {},
    ],
    ids=str,
)
def test_document_broken_in_the_console_is_not_used(
    source_store: SourceStore, console: Any, edit: dict[str, Any]
) -> None:
    source_store.write(sources_of(enabled=False), None)
    running = instance(source_store)
    console.set(edit)
    for sources in (running, instance(source_store)):
        assert not sources.settings_of(IMAGE, NO_DEADLINE).is_enabled


def test_deleted_document_is_replaced_by_the_last_good_sources(
    source_store: SourceStore, console: Any
) -> None:
    source_store.write(sources_of(enabled=False), None)
    console.delete()
    assert not instance(source_store).settings_of(IMAGE, NO_DEADLINE).is_enabled
    source_store.write(parse({"sources": []}), None)
    assert instance(source_store).settings_of(IMAGE, NO_DEADLINE).is_enabled


def test_document_written_in_the_console_becomes_the_last_good(
    source_store: SourceStore, console: Any
) -> None:
    console.set({"sources": [{"id": "yard", "bucket": "uploads", "min_confidence": 1}]})
    assert instance(source_store).settings_of(IMAGE, NO_DEADLINE).rules.min_confidence == 1
    good, stored = source_store.last_good(), source_store.read()
    assert good == stored
    assert isinstance(good, StoredSources)
