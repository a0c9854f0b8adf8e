"""`purge` removes the results of deleted objects, and nothing else."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli.exit_codes import ExitCode
from service.cli.purge import purge as command
from service.deadline import Deadline
from service.domain import ImageRef, StoredImage
from service.errors import PubSubUnavailableError, StorageUnavailableError
from service.operate.purge import (
    LOOKUPS,
    OtherBucketError,
    Remover,
    Tally,
    parse_before,
    purge,
)
from tests.fakes import FakeTopic

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
BEFORE = NOW - timedelta(days=1)


def image(name: str, *, age_days: float = 2, generation: int | None = 1) -> StoredImage:
    ref = ImageRef("uploads", name, generation)
    return StoredImage(f"id of {name}", ref, NOW - timedelta(days=age_days))


class Bucket:
    """Objects whose names begin with `kept` exist. Those of `new` have another generation."""

    def __init__(self, error_at: str | None = None) -> None:
        self.asked: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self._error_at = error_at
        self._lock = threading.Lock()

    def exists(self, ref: ImageRef, deadline: Deadline) -> bool:
        with self._lock:
            self.asked.append(ref.name)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if ref.name == self._error_at:
                raise StorageUnavailableError("403")
            is_new = ref.name.startswith("new") and ref.generation is None
            return ref.name.startswith("kept") or is_new
        finally:
            with self._lock:
                self._at_once -= 1


def run(*pages: Sequence[StoredImage], **options: Any) -> tuple[Tally, list[str]]:
    """Purge, and return the counts and the removed ids."""
    removed: list[str] = []
    lock = threading.Lock()

    def remove(images: Sequence[StoredImage]) -> None:
        with lock:
            removed.extend(image.document_id for image in images)

    defaults: dict[str, Any] = {"objects": Bucket(), "before": BEFORE, "remove": remove}
    return purge(pages, **defaults | options), sorted(removed)


def test_only_old_results_of_deleted_objects_are_removed() -> None:
    page = [image("gone"), image("kept"), image("new"), image("gone-young", age_days=0.5)]
    tally, removed = run(page)
    assert removed == ["id of gone"]
    assert tally == Tally(existing=1, overwritten=1, deleted=1, newer=1, selected=1)
    assert tally.results == 4


def test_results_of_overwritten_objects_are_removed_on_request() -> None:
    tally, removed = run([image("gone"), image("new"), image("kept")], with_overwritten=True)
    assert removed == ["id of gone", "id of new"]
    assert tally.selected == 2


def test_dry_run_only_counts() -> None:
    tally, removed = run([image("gone"), image("kept")], remove=None)
    assert (tally.selected, removed) == (1, [])


def test_objects_of_young_results_are_not_looked_up() -> None:
    bucket = Bucket()
    run([image("gone", age_days=0.5), image("at-the-limit", age_days=1)], objects=bucket)
    assert bucket.asked == []


def test_unknown_object_stops_the_run_before_its_page_is_removed() -> None:
    removed: list[StoredImage] = []
    pages = [[image("gone")], [image("gone too"), image("unclear")], [image("not reached")]]
    bucket = Bucket(error_at="unclear")
    with pytest.raises(StorageUnavailableError):
        purge(pages, bucket, before=BEFORE, remove=removed.extend)
    assert [each.document_id for each in removed] == ["id of gone"]
    assert "not reached" not in bucket.asked


@pytest.mark.parametrize("results_bucket", [None, "results", "result"])
def test_object_in_another_bucket_is_not_left_behind(results_bucket: str | None) -> None:
    large = replace(image("gone"), object_uris=frozenset({"gs://results/1.json.gz"}))
    if results_bucket == "results":
        assert run([large], results_bucket=results_bucket)[1] == ["id of gone"]
        return
    assert run([large], results_bucket=results_bucket, remove=None)[0].selected == 1
    with pytest.raises(OtherBucketError, match="set RESULTS_BUCKET"):
        run([large], results_bucket=results_bucket)


def test_pages_are_read_one_by_one_with_bounded_lookups() -> None:
    bucket, read = Bucket(), []

    def pages() -> Iterator[Sequence[StoredImage]]:
        for number in range(3):
            read.append((number, len(bucket.asked)))
            yield [image(f"gone {number}-{i}") for i in range(100)]

    tally = purge(pages(), bucket, before=BEFORE, remove=lambda images: None)
    assert tally.selected == 300
    assert read == [(0, 0), (1, 200), (2, 400)]  # two lookups an image
    assert bucket.most_at_once <= LOOKUPS


def test_large_page_is_removed_in_small_commits() -> None:
    sizes: list[int] = []
    purge(
        [[image(f"gone {i}") for i in range(300)]],
        Bucket(),
        before=BEFORE,
        remove=lambda images: sizes.append(len(images)),
    )
    assert sum(sizes) == 300 and max(sizes) <= 100


class FakeDeleter:
    """Notes the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def write_tombstones(self, document_ids: Sequence[str]) -> datetime:
        self.calls.append(f"tombstones {len(document_ids)}")
        return NOW

    def remove(self, document_ids: Sequence[str]) -> None:
        self.calls.append(f"removed {len(document_ids)}")


def test_removal_is_published_before_its_document_is_removed() -> None:
    deleter, topic = FakeDeleter(), FakeTopic()
    removals = [image("a.jpg"), image("b.jpg", generation=None)]
    topic.errors.append(PubSubUnavailableError("Pub/Sub is unavailable."))
    with pytest.raises(PubSubUnavailableError):
        Remover(deleter, topic).remove(removals)
    assert deleter.calls == ["tombstones 2"]
    Remover(deleter, topic).remove(removals)
    assert deleter.calls == ["tombstones 2", "tombstones 2", "removed 2"]
    assert [(m["document_id"], m["status"]) for m in topic.messages] == [
        ("id of a.jpg", "deleted"),
        ("id of b.jpg", "deleted"),
    ]
    assert {m["created_at"] for m in topic.messages} == {"2026-11-30T12:00:00Z"}


def test_without_a_topic_results_are_only_removed() -> None:
    deleter = FakeDeleter()
    Remover(deleter).remove([image("a.jpg")])
    assert deleter.calls == ["tombstones 1", "removed 1"]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-21", datetime(2026, 11, 21, tzinfo=UTC)),
        ("2026-11-21T06:00:00+02:00", datetime(2026, 11, 21, 4, tzinfo=UTC)),
        ("2026-11-21T06:00:00Z", datetime(2026, 11, 21, 6, tzinfo=UTC)),
        ("90d", NOW - timedelta(days=90)),
        ("12h", NOW - timedelta(hours=12)),
    ],
)
def test_before_is_a_date_a_time_or_an_age(text: str, time: datetime) -> None:
    assert parse_before(text, NOW) == time


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-31", "2026-11-21T06:00:00", "5"])
def test_other_values_of_before_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_before(text, NOW)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["uploads/a", "--before", "1d"], "it must be gs://bucket or gs://bucket/prefix"),
        (["gs://uploads"], "--before"),
        (["gs://uploads", "--before", "soon", "--yes"], "it must be a date (2026-11-21)"),
        (["gs://uploads", "--before", "999999d", "--yes"], "it must be a date (2026-11-21)"),
        (["gs://uploads", "--before", "1d"], "give --yes to remove results, or --dry-run"),
    ],
    ids=["uri", "missing", "before", "far", "unasked"],
)
def test_wrong_arguments_of_purge_are_named(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == ExitCode.USAGE
    assert sentence in " ".join(done.output.split())


_EMULATORS = {"FIRESTORE_EMULATOR_HOST", "PUBSUB_EMULATOR_HOST", "STORAGE_EMULATOR_HOST"}


@pytest.mark.parametrize(
    "names",
    [
        {"FIRESTORE_EMULATOR_HOST"},
        {"STORAGE_EMULATOR_HOST"},
        {"FIRESTORE_EMULATOR_HOST", "STORAGE_EMULATOR_HOST"},  # and a real RESULTS_TOPIC
    ],
)
def test_purge_refuses_some_emulators_and_some_real_services(
    monkeypatch: pytest.MonkeyPatch, names: set[str]
) -> None:
    for each in _EMULATORS:
        monkeypatch.delenv(each, raising=False)
    for each in names:
        monkeypatch.setenv(each, "127.0.0.1:9")
    monkeypatch.setenv("RESULTS_TOPIC", "results")
    done = CliRunner().invoke(command, ["gs://uploads", "--before", "1d", "--yes"])
    assert done.exit_code == ExitCode.USAGE
    assert "Set all of" in done.output
