"""Reconciliation: exact counts, the right jobs, and checkpoints to resume from."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.domain import (
    SCHEMA,
    ImageRef,
    ObjectMetadata,
    Replace,
    StoredDocument,
    StoredDocuments,
)
from service.errors import FirestoreUnavailableError
from service.object_metadata import RESULT_MARKER
from service.operate.reconcile import (
    Enqueue,
    ResumeError,
    Scope,
    State,
    Tally,
    last_run,
    last_started_at,
    load,
    parse_since,
    reconcile,
    save,
    since_last,
)

BUCKET = "uploads"
START = datetime(2026, 11, 21, tzinfo=UTC)
OURS, THEIRS = "a" * 64, "b" * 64
PART = "gcloud/tmp/parallel_composite_uploads/see_gcloud_storage_cp_help_for_details/x_0"


@dataclass
class FakeBucket:
    """A bucket in pages. Generations are 7, and `ages` has the objects' ages in days."""

    names: Sequence[str]
    page_size: int = 2
    ages: Mapping[str, int] = field(default_factory=dict)
    fails_after: int | None = None  # pages

    def pages(self, bucket: str, prefix: str, *, after: str = "") -> Iterator[Sequence[ImageRef]]:
        names = [name for name in self.names if name.startswith(prefix) and name > after]
        for start in range(0, len(names), self.page_size):
            if start // self.page_size == self.fails_after:
                raise FirestoreUnavailableError("down")
            yield [self._ref(bucket, name) for name in names[start : start + self.page_size]]

    def _ref(self, bucket: str, name: str) -> ImageRef:
        age = self.ages.get(name)
        created_at = None if age is None else START - timedelta(days=age)
        return ImageRef(bucket, name, 7, ObjectMetadata(created_at=created_at))


@dataclass
class FakeRecords:
    """Documents by name. The clock advances with each call."""

    by_name: dict[str, tuple[str, str | None]]
    schemas: Mapping[str, int | None] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)

    def stored_documents(self, refs: Sequence[ImageRef]) -> StoredDocuments:
        assert refs
        self.calls.append(len(refs))
        now = START + timedelta(seconds=len(self.calls))
        found = {
            ref.document_id: StoredDocument(
                *self.by_name[ref.name], START, START, schema=self.schemas.get(ref.name, SCHEMA)
            )
            for ref in refs
            if ref.name in self.by_name
        }
        return StoredDocuments(found, now)


@dataclass
class Published:
    jobs: list[tuple[list[str], Replace | None]] = field(default_factory=list)

    def __call__(self, uris: Sequence[str], permission: Replace | None) -> None:
        self.jobs.append((list(uris), permission))

    @property
    def uris(self) -> list[str]:
        return [uri for uris, _ in self.jobs for uri in uris]


DOCUMENTS: dict[str, tuple[str, str | None]] = {
    "b.jpg": ("done", OURS),
    "c.jpg": ("done", THEIRS),
    "d.jpg": ("failed", None),
    "gone.jpg": ("done", OURS),  # its object is no longer in the bucket
}
NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "dir/", "e#5.jpg", PART]


def uris(*names: str) -> list[str]:
    return [f"gs://uploads/{name}#7" for name in names]


def test_every_object_is_counted_once() -> None:
    tally = reconcile(Scope(BUCKET, model=OURS), FakeBucket(NAMES), FakeRecords(DOCUMENTS))
    assert (tally.objects, tally.done, tally.failed, tally.missing) == (7, 2, 1, 2)
    assert (tally.ignored, tally.stale, tally.selected) == (2, 1, 0)


class MarkedBucket(FakeBucket):
    """All objects have the marker of objects that the service made."""

    def _ref(self, bucket: str, name: str) -> ImageRef:
        made = ObjectMetadata(custom={RESULT_MARKER: "true"})
        return replace(super()._ref(bucket, name), metadata=made)


def test_objects_that_the_service_made_are_not_missing() -> None:
    records = FakeRecords({})
    tally = reconcile(Scope(BUCKET, model=OURS), MarkedBucket(["a.jpg"]), records)
    assert (tally.ignored, tally.missing, records.calls) == (1, 0, [])


def test_without_a_model_nothing_is_stale() -> None:
    tally = reconcile(Scope(BUCKET), FakeBucket(NAMES), FakeRecords(DOCUMENTS))
    assert (tally.done, tally.stale) == (2, 0)


def test_of_an_empty_bucket_counts_nothing() -> None:
    tally = reconcile(Scope(BUCKET), FakeBucket([]), FakeRecords({}))
    assert asdict(tally) == asdict(Tally())


@pytest.mark.parametrize(
    ("enqueue", "expected", "permission"),
    [
        ("missing", uris("a.jpg", "e#5.jpg"), None),
        ("failed", uris("d.jpg"), Replace(START + timedelta(seconds=1))),
        ("stale", uris("c.jpg"), Replace(START + timedelta(seconds=1), OURS)),
        (
            "all",
            uris("a.jpg", "c.jpg", "d.jpg", "e#5.jpg"),
            Replace(START + timedelta(seconds=1), OURS),
        ),
    ],
)
def test_enqueue_publishes_what_was_asked_for(
    enqueue: str, expected: list[str], permission: Replace | None
) -> None:
    publish = Published()
    scope = Scope(BUCKET, model=OURS, enqueue=Enqueue(enqueue))
    bucket = FakeBucket(NAMES, page_size=100)
    tally = reconcile(scope, bucket, FakeRecords(DOCUMENTS), publish=publish)
    assert publish.jobs == [(expected, permission)]
    assert tally.selected == len(expected)


@pytest.mark.parametrize("schema", [None, SCHEMA - 1, SCHEMA + 1])
def test_document_of_another_schema_is_stale(schema: int | None) -> None:
    """The job for it may replace the document, although the deployed model wrote it."""
    records = FakeRecords(DOCUMENTS, {"b.jpg": schema})
    published = Published()
    scope = Scope(BUCKET, model=OURS, enqueue=Enqueue.STALE)
    tally = reconcile(scope, FakeBucket(["b.jpg"]), records, publish=published)
    assert (tally.done, tally.stale) == (1, 1)
    [(jobs, permission)] = published.jobs
    assert jobs == uris("b.jpg")
    assert permission and permission.replaces(START, OURS, schema)
    assert not permission.replaces(START, OURS, SCHEMA)
    assert not permission.replaces(START + timedelta(days=1), OURS, schema)


def test_counting_only_publishes_nothing() -> None:
    scope = Scope(BUCKET, model=OURS, enqueue=Enqueue.ALL)
    tally = reconcile(scope, FakeBucket(NAMES), FakeRecords(DOCUMENTS))
    assert tally.selected == 4


def test_documents_are_read_in_groups_and_not_if_ignored() -> None:
    names = [f"{i:04}.jpg" for i in range(1000)] + ["x/"]
    store = FakeRecords({})
    reconcile(Scope(BUCKET), FakeBucket(names, page_size=1001), store)
    assert store.calls == [250] * 4


def test_jobs_of_a_page_are_published_before_the_next_page() -> None:
    names = [f"{i}.jpg" for i in range(10)]
    publish = Published()
    scope = Scope(BUCKET, enqueue=Enqueue.MISSING)
    reconcile(scope, FakeBucket(names, page_size=4), FakeRecords({}), publish=publish)
    assert [len(group) for group, _ in publish.jobs] == [4, 4, 2]
    assert publish.uris == uris(*names)


def test_checkpoint_follows_each_page_with_jobs() -> None:
    names = [f"{i:03}.jpg" for i in range(60)]
    documents: dict[str, tuple[str, str | None]] = {
        name: ("done", OURS) for name in names if name != "010.jpg"
    }
    places: list[str] = []
    reconcile(
        Scope(BUCKET, enqueue=Enqueue.MISSING),
        FakeBucket(names),
        FakeRecords(documents),
        publish=Published(),
        checkpoint=lambda tally: places.append(tally.after),
    )
    assert places == ["011.jpg", "019.jpg", "039.jpg", "059.jpg", "059.jpg"]


# By age

AGES = {"a.jpg": 1, "b.jpg": 1, "c.jpg": 3, "d.jpg": 4, "e#5.jpg": 5, PART: 5}


def test_documents_of_older_objects_are_not_read() -> None:
    store, publish = FakeRecords(DOCUMENTS), Published()
    scope = Scope(BUCKET, model=OURS, enqueue=Enqueue.ALL)
    bucket = FakeBucket(NAMES, page_size=100, ages=AGES)
    since = START - timedelta(days=3)
    tally = reconcile(scope, bucket, store, since=since, publish=publish)
    assert (tally.objects, tally.done, tally.missing, tally.failed) == (7, 2, 1, 0)
    assert (tally.ignored, tally.older, tally.selected) == (2, 2, 2)
    assert publish.uris == uris("a.jpg", "c.jpg")  # c is as old as `since`
    assert store.calls == [3]


TTL = timedelta(days=7)
# Days since the last successful run, or None to compare all objects.
LAST_RUNS = pytest.mark.parametrize("last", [1, 30, 365, None], ids=str)


@LAST_RUNS
@pytest.mark.parametrize("enqueue", [Enqueue.MISSING, Enqueue.ALL])
def test_expired_results_are_never_recreated(last: int | None, enqueue: Enqueue) -> None:
    names = [f"{i}.jpg" for i in range(10)]
    bucket = FakeBucket(names, ages=dict.fromkeys(names, 8) | {"0.jpg": 7, "9.jpg": 1})
    store, publish = FakeRecords({}), Published()
    since = since_last(START - timedelta(days=last), START) if last else None
    tally = reconcile(
        Scope(BUCKET, enqueue=enqueue), bucket, store,
        since=since, results_ttl=TTL, now=lambda: START, publish=publish,
    )  # fmt: skip
    assert publish.uris == uris("9.jpg")
    assert (tally.older, sum(store.calls)) == (9, 1)


@LAST_RUNS
def test_missing_results_that_cannot_have_expired_are_found(last: int | None) -> None:
    names = ["1.jpg", "6.jpg", "8.jpg"]
    bucket = FakeBucket(names, ages={"1.jpg": 1, "6.jpg": 6, "8.jpg": 8})
    publish = Published()
    since = since_last(START - timedelta(days=last), START) if last else None
    reconcile(
        Scope(BUCKET, enqueue=Enqueue.MISSING), bucket, FakeRecords({}),
        since=since, results_ttl=TTL, now=lambda: START, publish=publish,
    )  # fmt: skip
    assert publish.uris == (uris("1.jpg") if last == 1 else uris("1.jpg", "6.jpg"))


def test_results_that_expire_during_a_long_run_count_as_expired() -> None:
    names = ["0.jpg", "1.jpg"]
    bucket = FakeBucket(names, page_size=1, ages=dict.fromkeys(names, 6))
    times = iter([START, START + timedelta(days=1)])  # of the two pages
    tally = reconcile(
        Scope(BUCKET), bucket, FakeRecords({}), results_ttl=TTL, now=lambda: next(times)
    )
    assert (tally.missing, tally.older) == (1, 1)


def test_full_comparison_reads_every_document_if_none_expires() -> None:
    names = [f"{i}.jpg" for i in range(10)]
    store = FakeRecords({})
    reconcile(Scope(BUCKET), FakeBucket(names, ages=dict.fromkeys(names, 30)), store)
    assert sum(store.calls) == 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2d", timedelta(days=2)),
        ("36h", timedelta(hours=36)),
        ("2026-11-20T00:00:00Z", START - timedelta(days=1)),
        ("2026-11-20T01:00:00+01:00", START - timedelta(days=1)),
    ],
)
def test_since_is_an_age_or_a_time(text: str, expected: timedelta | datetime) -> None:
    assert parse_since(text) == expected


@pytest.mark.parametrize("text", ["", "d", "2", "2w", "-2d", "1.5d", "last", "2026-11-20T00:00:00"])
def test_since_of_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_since(text)


@pytest.mark.parametrize(
    ("last", "days"), [(None, 2), (0.5, 2), (2, 2), (7, 7)], ids=["first", "hours", "two", "week"]
)
def test_run_looks_back_to_the_last_one_but_at_least_two_days(
    last: float | None, days: int
) -> None:
    started_at = None if last is None else START - timedelta(days=last)
    assert since_last(started_at, START) == START - timedelta(days=days)


def test_nightly_run_reads_two_days_of_a_large_bucket() -> None:
    """A bucket of 100 days with 50 uploads a day: 100 documents are read, not 5,000."""
    ages = {f"{day:03}/{i}.jpg": day for day in range(100) for i in range(50)}
    store = FakeRecords(dict.fromkeys(ages, ("done", OURS)))
    since = since_last(START - timedelta(days=1), START) + timedelta(seconds=1)
    bucket = FakeBucket(sorted(ages), page_size=1000, ages=ages)
    tally = reconcile(replace(NIGHTLY, model=None), bucket, store, since=since)
    assert (tally.objects, tally.done, tally.older) == (5000, 100, 4900)
    assert sum(store.calls) == 100


NIGHTLY = Scope(BUCKET, model=OURS, enqueue=Enqueue.MISSING, since="gs://state/last-run")


def test_last_run_is_kept_with_what_it_compared() -> None:
    assert last_started_at(NIGHTLY, None) is None
    kept = last_run(NIGHTLY, START)
    assert last_started_at(NIGHTLY, kept) == START
    assert last_started_at(replace(NIGHTLY, model=THEIRS), kept) == START  # deployed since then
    for other in (
        replace(NIGHTLY, bucket="other"),
        replace(NIGHTLY, prefix="cam1/"),
        replace(NIGHTLY, enqueue=Enqueue.FAILED),
    ):
        with pytest.raises(ResumeError, match="of runs with another"):
            last_started_at(other, kept)


@pytest.mark.parametrize(
    "kept", [b"", b"{", b"[]", b"{}", b"\xff", b'{"started_at": 7}', b'{"started_at": "now"}']
)
def test_last_run_that_is_not_ours_is_refused(kept: bytes) -> None:
    with pytest.raises(ResumeError, match="was not written by `reconcile --since`"):
        last_started_at(NIGHTLY, kept)


def test_last_run_stays_valid_when_parked_images_get_jobs() -> None:
    kept = last_run(NIGHTLY, START)
    assert last_started_at(replace(NIGHTLY, parked=True), kept) == START


# Parked images


def test_parked_images_are_counted_and_not_missing() -> None:
    documents = DOCUMENTS | {"a.jpg": ("parked", None)}
    publish = Published()
    scope = Scope(BUCKET, model=OURS, enqueue=Enqueue.ALL)
    bucket = FakeBucket(NAMES, page_size=100)
    tally = reconcile(scope, bucket, FakeRecords(documents), publish=publish)
    assert (tally.objects, tally.parked, tally.missing, tally.done) == (7, 1, 1, 2)
    assert publish.uris == uris("c.jpg", "d.jpg", "e#5.jpg")


@pytest.mark.parametrize(
    ("enqueue", "parked", "text", "is_compared"),
    [
        (None, False, None, True),
        (Enqueue.MISSING, False, "missing", True),
        (Enqueue.MISSING, True, "missing,parked", True),
        (Enqueue.ALL, True, "all", True),
        (None, True, "parked", False),
    ],
)
def test_scope_says_what_gets_a_job(
    enqueue: Enqueue | None, parked: bool, text: str | None, is_compared: bool
) -> None:
    scope = Scope(BUCKET, enqueue=enqueue, parked=parked)
    assert (scope.enqueued, scope.is_compared) == (text, is_compared)


# Resuming


@pytest.mark.parametrize("fails_after", [0, 1, 9, 10, 11, 14])
def test_resumed_run_adds_up_its_counts(fails_after: int, tmp_path: Path) -> None:
    names = [f"{i:03}.jpg" for i in range(30)]
    documents: dict[str, tuple[str, str | None]] = {
        name: ("done", OURS) for name in names if int(name[:3]) % 2
    }
    scope = Scope(BUCKET, enqueue=Enqueue.MISSING)
    path, publish = tmp_path / "state", Published()

    def run(bucket: FakeBucket) -> Tally:
        return reconcile(
            scope,
            bucket,
            FakeRecords(documents),
            tally=load(path, scope, START)[1],
            publish=publish,
            checkpoint=lambda tally: save(path, scope, START, tally),
        )

    with pytest.raises(FirestoreUnavailableError):
        run(FakeBucket(names, fails_after=fails_after))
    tally = run(FakeBucket(names))
    assert (tally.objects, tally.done, tally.missing, tally.selected) == (30, 15, 15, 15)
    assert publish.uris == uris(*names[::2])  # jobs before the checkpoint are not published again


def test_failed_publish_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    scope = Scope(BUCKET, enqueue=Enqueue.MISSING)
    path = tmp_path / "state"
    bucket = FakeBucket([f"{i}.jpg" for i in range(8)])
    attempts: list[list[str]] = []

    def publish(group: Sequence[str], permission: Replace | None) -> None:
        attempts.append(list(group))
        if len(attempts) == 2:
            raise FirestoreUnavailableError("down")

    def run() -> Tally:
        return reconcile(
            scope, bucket, FakeRecords({}), tally=load(path, scope, START)[1], publish=publish,
            checkpoint=lambda tally: save(path, scope, START, tally),
        )  # fmt: skip

    with pytest.raises(FirestoreUnavailableError):
        run()
    assert load(path, scope, START)[1] == Tally(after="1.jpg", missing=2, selected=2)
    assert run() == Tally(after="7.jpg", missing=8, selected=8)
    assert attempts[1] == attempts[2] == uris("2.jpg", "3.jpg")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"scope": {}, "tally": 7}',
        '{"scope": {}, "tally": {"done": "1"}}',
        '{"scope": {}, "tally": {}}',
        '{"scope": {}, "tally": {}, "started_at": "today"}',
    ],
)
def test_load_of_another_file_says_so(text: str, tmp_path: Path) -> None:
    (tmp_path / "state").write_text(text)
    with pytest.raises(ResumeError, match="was not written by --resume"):
        load(tmp_path / "state", Scope(BUCKET), START)


@pytest.mark.parametrize(
    "other",
    [
        Scope("other"),
        Scope(BUCKET, "cam1/"),
        Scope(BUCKET, model=OURS),
        Scope(BUCKET, enqueue=Enqueue.MISSING),
        Scope(BUCKET, since="2d"),
    ],
    ids=["bucket", "prefix", "model", "enqueue", "since"],
)
def test_load_of_another_scope_says_so(other: Scope, tmp_path: Path) -> None:
    save(tmp_path / "state", Scope(BUCKET), START, Tally(after="a", done=3))
    with pytest.raises(ResumeError, match="of a run with another"):
        load(tmp_path / "state", other, START)


def test_resumed_run_counts_ages_from_its_first_start(tmp_path: Path) -> None:
    scope, later = Scope(BUCKET, since="2d"), START + timedelta(days=1)
    assert load(tmp_path / "state", scope, later) == (later, Tally())
    save(tmp_path / "state", scope, START, Tally(after="a", done=3))
    assert load(tmp_path / "state", scope, later) == (START, Tally(after="a", done=3))


def test_enqueue_all_means_every_state_that_can_be_enqueued() -> None:
    assert Enqueue.ALL.states == {State.MISSING, State.FAILED, State.STALE}
    assert [one for one in Enqueue if one.needs_model] == [Enqueue.STALE, Enqueue.ALL]


class Endless:
    """A bucket with this many objects, which are created when they are listed."""

    def __init__(self, count: int) -> None:
        self._count = count

    def pages(self, bucket: str, prefix: str, *, after: str = "") -> Iterator[Sequence[ImageRef]]:
        for start in range(0, self._count, 1000):
            yield [ImageRef(bucket, f"{i:09}.jpg", 7) for i in range(start, start + 1000)]


# In a new process, because other tests determine the peak memory of this one.
MEASURED = """
import resource
from service.operate.reconcile import Enqueue, Scope, reconcile
from tests.unit.test_reconcile import Endless, FakeRecords, Published

class Counted(Published):
    count = 0
    def __call__(self, uris, permission):
        self.count += len(uris)

for count in (10_000, 300_000):
    publish = Counted()
    scope = Scope("uploads", enqueue=Enqueue.MISSING)
    bucket, store = Endless(count), FakeRecords({})
    tally = reconcile(scope, bucket, store, publish=publish)
    assert tally.missing == publish.count == count
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_bucket() -> None:
    """Keeping each object would take at least 75 bytes: over 20 MB for 300,000 objects."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", MEASURED]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    few, many = (int(kilobytes) for kilobytes in done.stdout.split())
    assert many - few < 10_000  # kilobytes


def test_permission_has_the_time_of_the_first_read() -> None:
    names = [f"{i:03}.jpg" for i in range(300)]
    publish = Published()
    scope = Scope(BUCKET, enqueue=Enqueue.FAILED)
    store = FakeRecords(dict.fromkeys(names, ("failed", None)))
    reconcile(scope, FakeBucket(names, page_size=300), store, publish=publish)
    assert store.calls == [250, 50]
    assert [permission for _, permission in publish.jobs] == [Replace(START + timedelta(seconds=1))]


def test_images_of_disabled_sources_are_not_missing() -> None:
    records = FakeRecords({"on.jpg": ("done", OURS), "off/a.jpg": ("failed", OURS)})
    published: list[str] = []
    tally = reconcile(
        Scope(BUCKET, enqueue=Enqueue.ALL, model=OURS),
        FakeBucket(["off/a.jpg", "off/b.jpg", "on.jpg", "on2.jpg"], page_size=4),
        records,
        is_enabled=lambda ref: not ref.name.startswith("off/"),
        publish=lambda uris, permission: published.extend(uris),
    )
    assert (tally.disabled, tally.done, tally.failed, tally.missing) == (2, 1, 0, 1)
    assert tally.objects == 4
    assert published == [f"gs://{BUCKET}/on2.jpg#7"]
    assert records.calls == [2]
