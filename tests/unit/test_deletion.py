"""Deletion events remove a result only if Cloud Storage confirms the deletion."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from service.deadline import NO_DEADLINE, Deadline
from service.deletion import Deletion, ObjectState, state_of
from service.domain import (
    CommittedResult,
    Event,
    ImageRef,
    ImageResult,
    Outcome,
    PreparedResult,
    ResultObject,
)
from service.errors import (
    FirestoreUnavailableError,
    NoFreeSlotError,
    ObjectGoneError,
    StorageUnavailableError,
    TooLateError,
    TransientError,
)
from service.health import Health
from service.pipeline import Pipeline
from service.recorder import Recorder
from tests.fakes import (
    BUCKET,
    PATIENCE_SECONDS,
    FakeDetector,
    FakeStorage,
    FakeStore,
    Gate,
    bmp_image,
    in_thread,
    pipeline_of,
)
from tests.loglines import logged_by

REF = ImageRef(BUCKET, "cat.jpg", 7)
DELETED_AT = datetime(2026, 11, 30, tzinfo=UTC)


@dataclass
class FakeObjects:
    """The generations that exist, and what was asked."""

    generations: set[int | None] = field(default_factory=set)
    errors: list[Exception] = field(default_factory=list)
    asked: list[int | None] = field(default_factory=list)

    def exists(self, ref: ImageRef, deadline: Deadline) -> bool:
        self.asked.append(ref.generation)
        if self.errors:
            raise self.errors.pop(0)
        return ref.generation in self.generations


@dataclass
class FakeResults:
    """The removed documents."""

    removed: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def delete(self, document_ids: Sequence[str], deadline: Deadline) -> datetime:
        if self.errors:
            raise self.errors.pop(0)
        self.removed += document_ids
        return DELETED_AT


class World:
    """The fakes, and a pipeline made of them."""

    def __init__(self) -> None:
        self.storage, self.store = FakeStorage(), FakeStore()
        self.objects, self.results = FakeObjects(), FakeResults()
        self.pipelines: list[Pipeline] = []

    def pipeline(
        self, *, with_overwritten: bool = False, is_on: bool = True, **options: Any
    ) -> Pipeline:
        deletion = Deletion(self.objects, self.results, with_overwritten=with_overwritten)
        pipeline = pipeline_of(
            self.storage,
            self.store,
            FakeDetector(),
            deletion=deletion if is_on else None,
            **options,
        )
        self.pipelines.append(pipeline)
        return pipeline


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.storage.gate.open()
    for pipeline in world.pipelines:
        pipeline.close(timeout_seconds=PATIENCE_SECONDS)


def deleted(*, is_overwritten: bool | None = False, ref: ImageRef = REF) -> Event:
    return Event(ref, is_deletion=True, is_overwritten=is_overwritten)


def test_result_of_a_deleted_object_is_removed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert world.pipeline().handle(deleted(), NO_DEADLINE) is Outcome.DELETED
    assert world.results.removed == [REF.document_id]
    assert world.storage.downloads == [] and world.store.lookups == []
    [line] = logged_by(caplog, "service.deletion")
    assert (vars(line)["uri"], vars(line)["generation"]) == (REF.uri, 7)


def test_deletions_are_ignored_by_default(world: World) -> None:
    assert world.pipeline(is_on=False).handle(deleted(), NO_DEADLINE) is Outcome.IGNORED
    assert (world.objects.asked, world.results.removed) == ([], [])


@pytest.mark.parametrize("with_overwritten", [False, True])
def test_forged_deletion_of_an_existing_object_is_ignored(
    world: World, with_overwritten: bool
) -> None:
    world.objects.generations = {7}
    pipeline = world.pipeline(with_overwritten=with_overwritten)
    assert pipeline.handle(deleted(), NO_DEADLINE) is Outcome.IGNORED
    assert world.results.removed == []


def test_overwritten_object_keeps_its_result_without_lookup(world: World) -> None:
    pipeline = world.pipeline()
    assert pipeline.handle(deleted(is_overwritten=True), NO_DEADLINE) is Outcome.IGNORED
    assert (world.objects.asked, world.results.removed) == ([], [])


@pytest.mark.parametrize("is_overwritten", [True, False, None])
def test_results_of_overwritten_objects_can_be_removed(
    world: World, is_overwritten: bool | None
) -> None:
    world.objects.generations = {None, 8}
    event = deleted(is_overwritten=is_overwritten)
    assert world.pipeline(with_overwritten=True).handle(event, NO_DEADLINE) is Outcome.DELETED
    assert world.objects.asked == [7]


@pytest.mark.parametrize(
    ("live", "outcome"), [(None, Outcome.DELETED), (8, Outcome.IGNORED)], ids=["none", "newer"]
)
def test_live_generation_decides_if_the_event_does_not(
    world: World, live: int | None, outcome: Outcome
) -> None:
    if live:
        world.objects.generations = {None, live}
    assert world.pipeline().handle(deleted(is_overwritten=None), NO_DEADLINE) is outcome
    assert world.objects.asked == [7, None]


def test_object_that_was_uploaded_again_loses_its_old_result(world: World) -> None:
    world.objects.generations = {None, 8}
    assert world.pipeline().handle(deleted(), NO_DEADLINE) is Outcome.DELETED


@pytest.mark.parametrize("error", [StorageUnavailableError("503"), TooLateError()], ids=repr)
@pytest.mark.parametrize("answered", [0, 1], ids=["generation", "live"])
def test_deletion_without_proof_is_redelivered(
    world: World, error: TransientError, answered: int
) -> None:
    world.objects.errors = [error]
    if answered:
        exists = world.objects.exists
        world.objects.exists = (  # type: ignore[method-assign]
            lambda ref, deadline: ref.generation is None and exists(ref, deadline)
        )
    with pytest.raises(type(error)):
        world.pipeline().handle(deleted(is_overwritten=None), NO_DEADLINE)
    assert world.results.removed == []


def test_deletion_that_is_not_committed_is_redelivered(world: World) -> None:
    world.results.errors = [FirestoreUnavailableError("down")]
    pipeline = world.pipeline()
    with pytest.raises(FirestoreUnavailableError):
        pipeline.handle(deleted(), NO_DEADLINE)
    assert pipeline.handle(deleted(), NO_DEADLINE) is Outcome.DELETED


def test_deletion_of_another_bucket_is_acknowledged(world: World) -> None:
    pipeline = world.pipeline(allowed_buckets=("mine",))
    assert pipeline.handle(deleted(), NO_DEADLINE) is Outcome.BUCKET_NOT_ALLOWED
    assert (world.objects.asked, world.results.removed) == ([], [])


def test_deletion_of_a_folder_marker_is_ignored(world: World) -> None:
    event = deleted(ref=ImageRef(BUCKET, "folder/", 7))
    assert world.pipeline().handle(event, NO_DEADLINE) is Outcome.IGNORED
    assert world.objects.asked == []


def test_deletion_needs_a_free_slot(world: World) -> None:
    pipeline = world.pipeline()
    pipeline.stop()
    with pytest.raises(TransientError):
        pipeline.handle(deleted(), NO_DEADLINE)
    full = world.pipeline(max_in_flight=2)
    slots = full._slots
    with slots.take(is_job=False), slots.take(is_job=False), pytest.raises(NoFreeSlotError):
        full.handle(deleted(), NO_DEADLINE)
    assert world.results.removed == []


def test_deletions_leave_half_of_the_slots_to_uploads(world: World) -> None:
    gate = Gate()
    gate.close()
    exists = world.objects.exists

    def wait(ref: ImageRef, deadline: Deadline) -> bool:
        gate.enter()
        return exists(ref, deadline)

    world.objects.exists = wait  # type: ignore[method-assign]
    pipeline = world.pipeline(max_in_flight=4)
    deleting = [in_thread(lambda: pipeline.handle(deleted(), NO_DEADLINE)) for _ in range(2)]
    gate.wait_for_arrivals(2)
    with pytest.raises(NoFreeSlotError):
        pipeline.handle(deleted(), NO_DEADLINE)
    upload = world.storage.put("dog.jpg", bmp_image())
    assert pipeline.handle(Event(upload), NO_DEADLINE) is Outcome.DONE
    gate.open()
    outcomes = [each.result(timeout=PATIENCE_SECONDS) for each in deleting]
    assert outcomes == [Outcome.DELETED] * 2


def test_image_that_is_deleted_while_it_is_detected_is_gone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    ref = world.storage.put("cat.jpg", bmp_image(), generation=7)
    world.store.outcomes["cat.jpg"] = ObjectGoneError("deleted")
    assert world.pipeline().handle(Event(ref), NO_DEADLINE) is Outcome.GONE
    assert "An image is gone" in caplog.text


def test_image_without_a_known_generation_is_any_generation() -> None:
    objects = FakeObjects({None, 8})
    assert state_of(replace(REF, generation=None), objects) is ObjectState.EXISTS
    objects.generations = set()
    assert state_of(replace(REF, generation=None), objects) is ObjectState.DELETED


# The objects of a result


class FakeUploads:
    """The objects of one image. They exist already, and `settle` creates one again."""

    def __init__(self) -> None:
        self.objects: set[str] = set()

    def prepare(self, result: ImageResult, deadline: Deadline) -> PreparedResult:
        uri = "gs://results/1"
        self.objects.add(uri)
        content = ResultObject("1", b"", "application/gzip")
        return PreparedResult(replace(result, detections_uri=uri), {uri: content})

    def settle(
        self, prepared: PreparedResult, committed: CommittedResult, deadline: Deadline
    ) -> None:
        self.objects.add("gs://results/1")

    def remove_all(self, document_id: str, deadline: Deadline) -> None:
        assert document_id == REF.document_id
        self.objects.clear()


@pytest.mark.parametrize("is_deleted", [False, True])
def test_removal_right_after_the_commit_leaves_no_object(is_deleted: bool) -> None:
    uploads = FakeUploads()
    recorder = Recorder(
        FakeStore(),
        Health(hang_timeout_seconds=300),
        uploads,
        is_deleted=lambda document_id, deadline: is_deleted,
    )
    assert recorder.record(ImageResult(REF), NO_DEADLINE).outcome is Outcome.DONE
    recorder.close(timeout_seconds=PATIENCE_SECONDS)
    assert bool(uploads.objects) is not is_deleted


def test_unknown_tombstone_keeps_the_result_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def is_deleted(document_id: str, deadline: Deadline) -> bool:
        raise FirestoreUnavailableError("down")

    recorder = Recorder(FakeStore(), Health(hang_timeout_seconds=300), FakeUploads(), is_deleted)
    assert recorder.record(ImageResult(REF), NO_DEADLINE).outcome is Outcome.DONE
    recorder.close(timeout_seconds=PATIENCE_SECONDS)
    [line] = [each for each in logged_by(caplog, "service.recorder") if each.levelno > 20]
    assert vars(line)["document_id"] == REF.document_id
