"""Waiting until every image has a result: what is counted, what is read, and when it ends."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from service.cli.exit_codes import ExitCode
from service.cli.watch import conclude, shown
from service.domain import ImageRef, ObjectMetadata, StoredDocument, StoredDocuments
from service.object_metadata import RESULT_MARKER
from service.operate.watch import Counts, watch
from tests.fakes import Clock

NOW = datetime(2026, 11, 30, tzinfo=UTC)
MARKED = ObjectMetadata(custom={RESULT_MARKER: "true"})
FOLDER, PART = "dir/", "gcloud/tmp/parallel_composite_uploads/x_0"


@dataclass
class World:
    """A bucket and its documents. `events` happen one by one, between two passes."""

    images: dict[str, int]  # generations
    documents: dict[tuple[str, int], str] = field(default_factory=dict)  # statuses
    events: list[Callable[[], Any]] = field(default_factory=list)
    page_size: int = 2
    reads: list[list[str]] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    waits: list[float] = field(default_factory=list)

    def pages(self) -> Iterator[Sequence[ImageRef]]:
        refs = [
            ImageRef("uploads", name, generation, MARKED if name == "marked" else ObjectMetadata())
            for name, generation in sorted(self.images.items())
        ]
        for start in range(0, len(refs), self.page_size):
            yield refs[start : start + self.page_size]

    def stored_documents(self, refs: Sequence[ImageRef]) -> StoredDocuments:
        self.reads.append([ref.name for ref in refs])
        statuses = {
            ref.document_id: self.documents.get((ref.name, ref.generation or 0)) for ref in refs
        }
        return StoredDocuments(
            {key: StoredDocument(s, None, NOW, NOW) for key, s in statuses.items() if s}, NOW
        )

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.now += seconds
        if self.events:
            self.events.pop(0)()

    def done(self, *names: str, status: str = "done") -> None:
        self.documents |= {(name, self.images[name]): status for name in names}

    def watch(self, **options: Any) -> Counts:
        return watch(self.pages, self, clock=self.clock, sleep=self.sleep, **options)


def test_every_image_is_counted_in_one_state() -> None:
    world = World(dict.fromkeys(["a", "b", "c", "d", FOLDER, PART, "marked"], 7))
    world.done("a")
    world.done("b", status="failed")
    world.done("c", status="parked")
    counts = world.watch(is_enabled=lambda ref: ref.name != "d")
    assert (counts.done, counts.failed, counts.parked, counts.disabled) == (1, 1, 1, 1)
    assert (counts.uploaded, counts.missing) == (4, 0)
    assert world.waits == []


def test_it_ends_when_the_last_image_has_its_document() -> None:
    world = World({"a": 1, "b": 1})
    world.events = [lambda: world.done("a"), lambda: world.done("b", status="failed")]
    counts = world.watch(interval_seconds=3)
    assert (counts.done, counts.failed, counts.missing) == (1, 1, 0)
    assert world.waits == [3, 3]


def test_final_documents_are_read_once() -> None:
    world = World({"a": 1, "b": 1, "c": 1}, page_size=3)
    world.done("a")
    world.done("b", status="failed")
    world.events = [lambda: None, lambda: world.done("c")]
    world.watch()
    assert world.reads == [["a", "b", "c"], ["c"], ["c"]]


def test_image_uploaded_meanwhile_counts() -> None:
    world = World({"a": 1})

    def upload() -> None:
        world.done("a")
        world.images["b"] = 1

    world.events = [upload, lambda: world.done("b")]
    assert world.watch().done == 2


@pytest.mark.parametrize("change", ["deleted", "overwritten"])
def test_image_that_is_gone_meanwhile_is_not_missing(change: str) -> None:
    world = World({"a": 1, "b": 1})
    world.done("b")

    def replace() -> None:
        del world.images["a"]
        if change == "overwritten":
            world.images["a"] = 2
            world.done("a")

    world.events = [replace]
    counts = world.watch()
    assert (counts.done, counts.missing) == (2 if change == "overwritten" else 1, 0)


def test_final_image_that_is_deleted_is_not_counted_any_more() -> None:
    world = World({"a": 1, "b": 1})
    world.done("a")
    world.events = [lambda: world.images.pop("a"), lambda: world.done("b")]
    assert world.watch().uploaded == 1


def test_parked_images_are_read_again_before_the_end() -> None:
    world = World({"a": 1, "b": 1})
    world.done("a", status="parked")

    def next_day() -> None:
        world.done("a", "b")

    world.events = [lambda: None, next_day]
    counts = world.watch()
    assert (counts.done, counts.parked) == (2, 0)
    assert sum(names.count("a") for names in world.reads) == 2


def test_source_that_is_disabled_meanwhile_is_not_waited_for() -> None:
    world = World({"a": 1})
    disabled: set[str] = set()
    world.events = [lambda: disabled.add("a")]
    counts = world.watch(is_enabled=lambda ref: ref.name not in disabled)
    assert (counts.disabled, counts.missing) == (1, 0)


def test_submitted_image_that_is_gone_is_counted_as_gone() -> None:
    world = World({"a": 1, "b": 1})
    world.done("a")
    counts = world.watch(are_live=lambda refs: [False for ref in refs])
    assert (counts.done, counts.missing, counts.gone, counts.uploaded) == (1, 0, 1, 1)


def test_time_out_ends_it_with_missing_images_and_names_some() -> None:
    world = World({f"{i:02}": 1 for i in range(20)})
    counts = world.watch(interval_seconds=4, timeout_seconds=10)
    assert world.waits == [4, 4, 2]
    assert counts.missing == 20
    assert counts.missing_uris[:2] == ["gs://uploads/00#1", "gs://uploads/01#1"]
    assert len(counts.missing_uris) == 5


def test_no_time_means_one_pass() -> None:
    world = World({"a": 1})
    assert world.watch(timeout_seconds=0).missing == 1
    assert world.waits == []


def test_progress_is_reported_by_page_then_by_pass() -> None:
    world = World(dict.fromkeys("abcd", 1))
    world.done("a", "b", "c")
    world.events = [lambda: world.done("d")]
    seen: list[tuple[int, int]] = []
    world.watch(progressed=lambda counts: seen.append((counts.uploaded, counts.missing)))
    assert seen == [(2, 0), (4, 1), (4, 1), (4, 0)]


def test_many_images_are_read_in_groups_and_remembered() -> None:
    names = [f"{i:05}" for i in range(3000)]
    world = World(dict.fromkeys(names, 1), page_size=1000)
    world.done(*names[:-1])
    world.events = [lambda: world.done(names[-1])]
    assert world.watch().done == 3000
    assert [len(read) for read in world.reads] == [250] * 12 + [1]


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        (Counts(done=2, disabled=1), ExitCode.DONE),
        (Counts(done=2, failed=1), ExitCode.NOT_ALL_DONE),
        (Counts(done=2, parked=1), ExitCode.NOT_ALL_DONE),
        (Counts(done=2, gone=1), ExitCode.NOT_ALL_DONE),
        (Counts(done=2, failed=1, missing=1), ExitCode.NOT_FINISHED),
    ],
    ids=str,
)
def test_exit_code_says_how_it_ended(counts: Counts, code: ExitCode) -> None:
    assert conclude(counts) == code


def test_counts_add_up_in_the_shown_line() -> None:
    counts = Counts(done=1200, failed=3, parked=4, disabled=5, missing=6, gone=7)
    assert shown(counts) == (
        "1,218 uploaded = 1,200 done + 3 failed + 4 parked + 5 disabled + 6 missing + 7 gone"
    )
