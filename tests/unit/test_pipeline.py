"""The promise: `handle` returns when every picture is final, and raises when some may not be."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from service.domain import (
    ErrorCode,
    Event,
    Failure,
    ImageRef,
    ImageResult,
    ObjectMetadata,
    Outcome,
    Rerun,
)
from service.errors import (
    BadImageError,
    DetectorError,
    DocumentKeptError,
    ModelError,
    ModelNotReadyError,
    QueueFullError,
    ShuttingDownError,
    StorageUnavailableError,
    StoreUnavailableError,
    TooLateError,
    TransientError,
)
from service.inference.detector import Detector
from service.pipeline import Pipeline, PipelineOptions, _Delivery
from service.suspects import Suspects
from service.watchdog import Watchdog
from tests.fakes import (
    BUCKET,
    PATIENCE_SECONDS,
    Color,
    FakeDetector,
    FakeStorage,
    FakeStore,
    color_of,
    in_thread,
    label_of,
    loaded,
    picture,
    wait_until,
)

EVENT_TIME = datetime(2026, 9, 24, 11, 12, 11, tzinfo=UTC)
POISON: Color = (1, 2, 3)


class World:
    """The fakes, and the pipelines made of them."""

    def __init__(self) -> None:
        self.storage = FakeStorage()
        self.store = FakeStore()
        self.detector = FakeDetector()
        self.pipelines: list[Pipeline] = []

    def pipeline(self, *, detector: "Future[Detector] | None" = None, **options: Any) -> Pipeline:
        pipeline = Pipeline(
            self.storage,
            self.store,
            detector or loaded(self.detector),
            PipelineOptions(**{"max_batch_delay_seconds": 60.0} | options),
        )
        self.pipelines.append(pipeline)
        return pipeline

    def put(self, count: int) -> tuple[ImageRef, ...]:
        """Pictures `0`, `1`, ..., each of a colour of its own."""
        return tuple(self.storage.put(str(i), picture(color_of(i))) for i in range(count))

    def labels(self) -> dict[str, list[str]]:
        return {one["name"]: one["labels"] for one in self.store.documents.values()}


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for gate in (world.storage.gate, world.detector.gate, world.store.gate):
        gate.open()
    for pipeline in world.pipelines:
        pipeline.close(timeout_seconds=PATIENCE_SECONDS)


def handle(pipeline: Pipeline, *refs: ImageRef) -> list[Outcome]:
    """Handle images, each by a message of its own, all at once; their outcomes in order."""
    futures = [
        in_thread(lambda ref=ref: pipeline.handle(Event(ref, EVENT_TIME)))  # type: ignore[misc]
        for ref in refs
    ]
    return [outcome for future in futures for outcome in result(future)]


def handling(pipeline: Pipeline, *refs: ImageRef) -> "Future[list[Outcome]]":
    return in_thread(lambda: handle(pipeline, *refs))


def result(future: "Future[list[Outcome]]") -> list[Outcome]:
    return future.result(timeout=PATIENCE_SECONDS)


# One picture


def test_handle_of_a_picture_commits_its_detections(world: World) -> None:
    ref = world.storage.put("dir/cat.bmp", picture((10, 20, 30), width=32, height=24))
    assert handle(world.pipeline(), ref) == [Outcome.DONE]
    document = world.store.documents[ref.document_id]
    assert document["status"] == "done"
    assert document["image"] == {"width": 32, "height": 24, "format": "BMP"}
    assert document["model"]["name"] == "fake.pt"
    assert document["labels"] == ["10-20-30"]
    assert document["detections"][0]["box"] == {"x1": 8.0, "y1": 6.0, "x2": 24.0, "y2": 18.0}
    assert (document["batch_size"], document["event_time"]) == (1, EVENT_TIME)


def test_handle_records_what_the_storage_says_of_the_picture(world: World) -> None:
    ref = world.storage.put("cat.bmp", picture())
    handle(world.pipeline(), ref)
    document = world.store.document("cat.bmp")
    assert (document["size"], document["content_type"]) == (len(picture()), "image/bmp")


def test_handle_of_a_large_picture_gives_boxes_of_the_full_one(world: World) -> None:
    ref = world.storage.put("large.bmp", picture(width=1280, height=960))
    handle(world.pipeline(), ref)
    assert world.detector.shapes == [(480, 640, 3)]
    document = world.store.document("large.bmp")
    assert document["image"] == {"width": 1280, "height": 960, "format": "BMP"}
    box = document["detections"][0]["box"]
    assert box == {"x1": 320.0, "y1": 240.0, "x2": 960.0, "y2": 720.0}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_object"),
        (b"just a note", "unsupported_media"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "corrupt_image"),
        (picture(width=200, height=100), "image_too_large"),
    ],
    ids=["empty", "text", "corrupt", "large"],
)
def test_handle_of_what_is_no_picture_commits_a_failure(
    world: World, data: bytes, code: str
) -> None:
    ref = world.storage.put("bad", data)
    assert handle(world.pipeline(max_image_pixels=10_000), ref) == [Outcome.FAILED]
    document = world.store.documents[ref.document_id]
    assert (document["status"], document["error"]["code"]) == ("failed", code)
    assert document["event_time"] == EVENT_TIME
    assert world.detector.batch_sizes == []


def test_handle_of_an_object_over_the_bytes_allowed_commits_a_failure(world: World) -> None:
    ref = world.storage.put("huge", b"")
    world.storage.errors["huge"] = BadImageError(ErrorCode.IMAGE_TOO_LARGE, "Too many bytes.")
    assert handle(world.pipeline(), ref) == [Outcome.FAILED]
    error = {"code": "image_too_large", "message": "Too many bytes."}
    assert world.store.documents[ref.document_id]["error"] == error


def test_handle_of_an_object_that_only_its_event_calls_too_large_detects_it(world: World) -> None:
    """Else whoever can forge an event could have any picture recorded as failed, for good."""
    [ref] = world.put(1)
    forged = replace(ref, metadata=ObjectMetadata(size=2**40))
    assert handle(world.pipeline(), forged) == [Outcome.DONE]
    assert [one.metadata.size for one in world.storage.downloads] == [len(picture())]


def test_handle_holds_no_more_bytes_of_files_than_allowed(world: World) -> None:
    """Further files are downloaded when those before are decoded."""
    model: Future[Detector] = Future()
    pipeline = world.pipeline(detector=model, max_held_bytes=100, max_queue=8)
    sizes = [40, 60, None, 30]  # what the message does not tell is asked for
    refs = [
        replace(ref, metadata=ObjectMetadata(size=size))
        for ref, size in zip(world.put(4), sizes, strict=True)
    ]
    first = [handling(pipeline, ref) for ref in refs[:2]]
    world.storage.gate.wait_for_arrivals(2)
    rest = [handling(pipeline, ref) for ref in refs[2:]]
    wait_until(lambda: waiting_to_hold(pipeline) == 2, "the rest does not come, or does not wait")
    assert len(world.storage.downloads) == 2  # both are held while the model loads
    assert {ref.name for ref in world.storage.resolved} <= {refs[2].name}
    model.set_result(world.detector)
    assert [result(one) for one in first + rest] == [[Outcome.DONE]] * 4
    assert len(world.storage.downloads) == 4


def waiting_to_hold(pipeline: Pipeline) -> int:
    """How many pictures wait until they may hold their bytes."""
    budget = pipeline._held_bytes
    with budget._changed:
        return len(budget._waiting)


def test_handle_of_no_picture_does_not_wait_for_the_model(world: World) -> None:
    ref = world.storage.put("note.txt", b"just a note")
    assert handle(world.pipeline(detector=Future()), ref) == [Outcome.FAILED]


@pytest.mark.parametrize("data", [picture(), b"just a note"], ids=["done", "failed"])
def test_handle_of_a_final_picture_neither_downloads_nor_detects(world: World, data: bytes) -> None:
    ref = world.storage.put("again", data)
    pipeline = world.pipeline()
    handle(pipeline, ref)
    world.storage.downloads.clear()
    world.detector.batch_sizes.clear()
    assert handle(pipeline, ref) == [Outcome.ALREADY_FINAL]
    assert (world.storage.downloads, world.detector.batch_sizes) == ([], [])
    assert world.store.commits == [["again"]]


def test_handle_of_a_new_generation_detects_again(world: World) -> None:
    pipeline = world.pipeline()
    old = world.storage.put("cat", picture((1, 1, 1)), generation=1)
    assert handle(pipeline, old) == [Outcome.DONE]
    new = world.storage.put("cat", picture((9, 9, 9)), generation=2)
    assert handle(pipeline, new) == [Outcome.DONE]
    assert world.store.documents[old.document_id]["labels"] == ["1-1-1"]
    assert world.store.documents[new.document_id]["labels"] == ["9-9-9"]


def test_handle_of_a_gone_generation_commits_nothing(world: World) -> None:
    world.storage.put("cat", picture(), generation=2)
    pipeline = world.pipeline()
    assert handle(pipeline, ImageRef(BUCKET, "cat", 1)) == [Outcome.GONE]
    assert handle(pipeline, ImageRef(BUCKET, "never")) == [Outcome.GONE]
    assert world.store.commits == []


def test_gone_image_is_logged_with_how_to_look(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    handle(world.pipeline(), ImageRef(BUCKET, "it's a typo.jpg"))
    [line] = [one for one in caplog.records if "is gone" in one.getMessage()]
    look = """gcloud storage ls --all-versions 'gs://uploads/it'"'"'s a typo.jpg'"""
    assert line.__dict__["look"] == look


UNREADABLE = BadImageError(ErrorCode.UNREADABLE_OBJECT, "It needs a key.")


def test_object_that_cannot_be_read_is_recorded_as_failed(world: World) -> None:
    ref = world.storage.put("cat", picture())
    world.storage.errors["cat"] = UNREADABLE
    pipeline = world.pipeline()
    assert handle(pipeline, ref) == [Outcome.FAILED]
    error = world.store.document("cat")["error"]
    assert error == {"code": "unreadable_object", "message": "It needs a key."}
    assert handle(pipeline, ref) == [Outcome.ALREADY_FINAL]


def test_object_with_refused_metadata_is_recorded_as_failed(world: World) -> None:
    ref = world.storage.put("cat", picture())
    world.storage.unresolvable["cat"] = UNREADABLE
    assert handle(world.pipeline(), ref) == [Outcome.FAILED]
    assert world.store.document("cat")["generation"] == ref.generation


def test_refused_object_of_unknown_generation_is_recorded(world: World) -> None:
    """A job need not name the generation, and Cloud Storage does not either."""
    world.storage.unresolvable["cat"] = UNREADABLE
    job = ImageRef(BUCKET, "cat")
    pipeline = world.pipeline()
    assert handle(pipeline, job) == [Outcome.FAILED]
    assert world.store.document("cat")["generation"] == 0
    assert handle(pipeline, job) == [Outcome.ALREADY_FINAL]
    del world.storage.unresolvable["cat"]
    world.storage.put("cat", picture())
    assert handle(pipeline, job) == [Outcome.DONE]


def test_result_that_cannot_be_stored_fails_its_image_alone(world: World) -> None:
    refs = world.put(4)
    failure = Failure(ErrorCode.UNSTORABLE_RESULT, "It is too large.")
    world.store.outcomes = {"1": ImageResult(refs[1], failure=failure)}
    outcomes = handle(world.pipeline(max_batch_size=4), *refs)
    assert outcomes == [Outcome.DONE, Outcome.FAILED, Outcome.DONE, Outcome.DONE]
    assert world.store.document("1")["error"]["code"] == "unstorable_result"


def test_image_that_is_not_recorded_fails_alone(world: World) -> None:
    refs = world.put(4)
    world.storage.objects[BUCKET, "3", 1] = b"no image"
    world.store.outcomes = {name: StoreUnavailableError("away") for name in "13"}
    pipeline = world.pipeline(max_batch_size=4, max_batch_delay_seconds=0)
    done = [handling(pipeline, ref) for ref in refs]
    assert result(done[0]) == result(done[2]) == [Outcome.DONE]
    for number in (1, 3):
        with pytest.raises(StoreUnavailableError):
            result(done[number])
    assert set(world.labels()) == {"0", "2"}


@pytest.mark.parametrize(
    "name",
    [
        "dir/",
        "a/gsutil/tmp/parallel_composite_uploads/for_details_see/gsutil_help_cp/x_0",
        "/gsutil/tmp/parallel_composite_uploads/for_details_see/gsutil_help_cp/x_0",
        "gcloud/tmp/parallel_composite_uploads/see_gcloud_storage_cp_help_for_details/x_0",
        "dir/gcloud/tmp/parallel_composite_uploads/see_gcloud_storage_cp_help/x_0",
    ],
    ids=["folder", "gsutil", "gsutil-root", "gcloud-root", "gcloud"],
)
def test_handle_of_what_no_user_uploaded_is_ignored(world: World, name: str) -> None:
    ref = world.storage.put(name, picture())
    assert handle(world.pipeline(), ref) == [Outcome.IGNORED]
    assert (world.storage.downloads, world.store.lookups, world.store.commits) == ([], [], [])


@pytest.mark.parametrize(
    "name", ["gsutil/tmp/cat.bmp", "my-gsutil/tmp/parallel_composite_uploads/cat.bmp", "dir/a"]
)
def test_handle_of_a_name_like_a_part_is_not_ignored(world: World, name: str) -> None:
    assert handle(world.pipeline(), world.storage.put(name, picture())) == [Outcome.DONE]


def test_handle_of_another_bucket_is_refused(world: World) -> None:
    ref = world.storage.put("cat", picture(), bucket="theirs")
    unresolved = ImageRef("theirs", "cat")
    pipeline = world.pipeline(allowed_buckets=("mine", BUCKET))
    assert handle(pipeline, ref) == [Outcome.REFUSED]
    assert handle(pipeline, unresolved) == [Outcome.REFUSED]
    assert (world.storage.downloads, world.storage.resolved) == ([], [])
    assert (world.store.lookups, world.store.commits) == ([], [])
    assert handle(pipeline, world.storage.put("cat", picture())) == [Outcome.DONE]


def test_handle_without_generation_takes_the_live_one(world: World) -> None:
    world.storage.put("cat", picture((1, 1, 1)), generation=1)
    live = world.storage.put("cat", picture((9, 9, 9)), generation=2)
    pipeline = world.pipeline()
    assert handle(pipeline, ImageRef(BUCKET, "cat")) == [Outcome.DONE]
    assert world.store.documents[live.document_id]["generation"] == 2
    assert world.labels() == {"cat": ["9-9-9"]}
    assert handle(pipeline, ImageRef(BUCKET, "cat")) == [Outcome.ALREADY_FINAL]


def test_handle_of_an_ignored_event_does_nothing(world: World) -> None:
    assert world.pipeline().handle(Event(ignored="a deletion")) == []
    assert (world.storage.downloads, world.store.lookups) == ([], [])


def test_handle_of_an_event_without_pictures_does_nothing(world: World) -> None:
    assert world.pipeline().handle(Event()) == []


# At once


class WatchedId(str):
    """A document id that tells when a flight looks it up."""

    seen: threading.Event

    def __hash__(self) -> int:
        self.seen.set()
        return super().__hash__()


@dataclass(frozen=True)
class WatchedRef(ImageRef):
    """The same picture, by a caller whose arrival in the flight can be waited for."""

    seen: threading.Event = field(default_factory=threading.Event, compare=False)

    @property
    def document_id(self) -> str:
        watched = WatchedId(super().document_id)
        watched.seen = self.seen
        return watched


def test_handle_of_the_same_picture_twice_at_once_detects_once(world: World) -> None:
    ref = world.storage.put("cat", picture())
    pipeline = world.pipeline()
    world.detector.gate.close()
    first = handling(pipeline, ref)
    world.detector.gate.wait_for_arrivals()
    again = WatchedRef(ref.bucket, ref.name, ref.generation)
    second = handling(pipeline, again)
    assert again.seen.wait(PATIENCE_SECONDS)
    world.detector.gate.open()
    assert (result(first), result(second)) == ([Outcome.DONE], [Outcome.DONE])
    assert world.detector.batch_sizes == [1]
    assert (len(world.storage.downloads), world.store.commits) == (1, [["cat"]])


def test_handle_of_the_same_picture_twice_in_a_job_detects_once(world: World) -> None:
    ref = world.storage.put("cat", picture())
    outcomes = handle(world.pipeline(), ref, ImageRef(BUCKET, "cat"))
    assert set(outcomes) <= {Outcome.DONE, Outcome.ALREADY_FINAL}
    assert world.detector.batch_sizes == [1]
    assert world.store.commits == [["cat"]]


def test_handle_of_many_uploads_at_once_batches_and_commits_them_together(world: World) -> None:
    first, *rest = world.put(5)
    pipeline = world.pipeline(max_batch_size=4)
    world.detector.gate.close()
    futures = [handling(pipeline, first)]
    world.detector.gate.wait_for_arrivals()
    futures += [handling(pipeline, ref) for ref in rest]
    world.storage.gate.wait_for_arrivals(5)  # all are on the way: the batch waits for them
    world.detector.gate.open()
    assert [result(future) for future in futures] == [[Outcome.DONE]] * 5
    assert world.detector.batch_sizes == [1, 4]
    assert [sorted(names) for names in world.store.commits] == [["0"], ["1", "2", "3", "4"]]
    assert world.labels() == {str(i): [label_of(color_of(i))] for i in range(5)}
    assert [one["batch_size"] for one in world.store.documents.values()] == [1, 4, 4, 4, 4]


def test_batch_weighs_what_the_network_sees(world: World) -> None:
    """A picture of 32x24 pixels is one of 640x480 to the network."""
    first, *rest = world.put(5)
    pipeline = world.pipeline(max_batch_size=4, max_batch_pixels=2 * 640 * 480)
    world.detector.gate.close()
    futures = [handling(pipeline, first)]
    world.detector.gate.wait_for_arrivals()
    futures += [handling(pipeline, ref) for ref in rest]
    world.storage.gate.wait_for_arrivals(5)
    world.detector.gate.open()
    assert [result(future) for future in futures] == [[Outcome.DONE]] * 5
    assert world.detector.batch_sizes[0] == 1
    assert max(world.detector.batch_sizes) == 2


def test_handle_from_many_threads_crosses_nothing(world: World) -> None:
    refs = world.put(160)
    pipeline = world.pipeline(max_batch_delay_seconds=0.001, max_queue=16)

    def deliver(mine: tuple[ImageRef, ...]) -> list[list[Outcome]]:
        return [handle(pipeline, ref) for ref in mine]

    futures = [in_thread(partial(deliver, refs[i::8])) for i in range(8)]
    for future in futures:
        assert future.result(timeout=PATIENCE_SECONDS) == [[Outcome.DONE]] * 20
    assert world.labels() == {str(i): [label_of(color_of(i))] for i in range(160)}


def test_handle_beyond_the_queue_raises_before_anything_is_asked(world: World) -> None:
    one, two = world.put(2)
    pipeline = world.pipeline(max_batch_size=1, max_queue=1)
    world.detector.gate.close()
    first = handling(pipeline, one)
    world.detector.gate.wait_for_arrivals()
    with pytest.raises(QueueFullError):
        handle(pipeline, two)
    assert world.store.lookups == [one.document_id]
    assert world.storage.downloads == [one]
    world.detector.gate.open()
    assert result(first) == [Outcome.DONE]
    assert handle(pipeline, two) == [Outcome.DONE]


@pytest.mark.parametrize(
    "name", ["0", "bad", "gone", "down"], ids=["done", "failed", "gone", "outage"]
)
def test_handle_gives_its_place_back_however_it_ends(world: World, name: str) -> None:
    world.put(1)
    world.storage.put("bad", b"just a note")
    world.storage.errors["down"] = StorageUnavailableError("down")
    pipeline = world.pipeline(max_batch_size=1, max_queue=1)
    for _ in range(3):
        try:
            handle(pipeline, ImageRef(BUCKET, name, 1))
        except StorageUnavailableError:
            assert name == "down"
    assert handle(pipeline, world.storage.put("last", picture())) == [Outcome.DONE]


# Jobs


def test_handle_of_a_job_with_one_bad_picture_detects_the_others(world: World) -> None:
    refs = world.put(8)
    world.storage.put("3", b"just a note")
    outcomes = handle(world.pipeline(), *refs)
    assert [i for i, outcome in enumerate(outcomes) if outcome is Outcome.FAILED] == [3]
    assert len(world.store.documents) == 8
    assert world.store.document("3")["status"] == "failed"


def test_handle_of_a_poison_picture_raises_detector_error(world: World) -> None:
    """As `handle` documents: not whatever the network's library raised."""
    ref = world.storage.put("poison", picture(POISON))
    world.detector.poison = POISON
    with pytest.raises(DetectorError):
        handle(world.pipeline(), ref)


# Deaths


def after_a_death(world: World, *refs: ImageRef) -> Suspects:
    """What a process leaves that died with these pictures in the network."""
    suspects = Suspects()
    suspects.begin([ref.document_id for ref in refs])
    return suspects


def test_handle_after_a_death_runs_the_suspects_alone_and_the_others_together(
    world: World,
) -> None:
    refs = world.put(6)
    pipeline = world.pipeline(max_batch_size=8)
    pipeline.learn_from(after_a_death(world, *refs[:3]))
    world.storage.gate.close()
    job = handling(pipeline, *refs)
    world.storage.gate.wait_for_arrivals(6)
    world.storage.gate.open()
    assert result(job) == [Outcome.DONE] * 6
    assert sorted(world.detector.batch_sizes) == [1, 1, 1, 3]


def test_handle_of_a_suspect_that_lives_is_a_picture_like_any_other_again(world: World) -> None:
    [ref] = world.put(1)
    pipeline = world.pipeline()
    suspects = after_a_death(world, ref)
    pipeline.learn_from(suspects)
    assert handle(pipeline, ref) == [Outcome.DONE]
    assert not suspects.must_run_alone(ref.document_id)


def test_handle_of_a_culprit_runs_it_no_more_and_all_others(world: World) -> None:
    culprit, *refs = world.put(4)
    suspects = after_a_death(world, culprit, *refs)
    suspects.mourn()
    suspects.begin([culprit.document_id])  # and the process died again
    pipeline = world.pipeline()
    pipeline.learn_from(suspects)
    with pytest.raises(DetectorError):
        handle(pipeline, culprit)
    assert world.storage.downloads == []
    assert handle(pipeline, *refs) == [Outcome.DONE] * 3


def test_handle_of_a_culprit_that_is_recorded_by_another_process_is_done(world: World) -> None:
    [culprit] = world.put(1)
    assert handle(world.pipeline(), culprit) == [Outcome.DONE]
    suspects = after_a_death(world, culprit)
    suspects.mourn()
    suspects.begin([culprit.document_id])
    pipeline = world.pipeline()
    pipeline.learn_from(suspects)
    assert handle(pipeline, culprit) == [Outcome.ALREADY_FINAL]


def test_handle_watches_each_picture_from_the_time_that_the_network_is_loaded(
    world: World,
) -> None:
    stuck = threading.Event()
    detector: Future[Detector] = Future()
    pipeline = Pipeline(
        world.storage, world.store, detector, watchdog=Watchdog(0.05, on_stuck=stuck.set)
    )
    [ref] = world.put(1)
    job = handling(pipeline, ref)
    assert not stuck.wait(0.2)
    world.detector.gate.close()
    detector.set_result(world.detector)
    assert stuck.wait(PATIENCE_SECONDS)
    world.detector.gate.open()
    assert result(job) == [Outcome.DONE]
    pipeline.close()


def test_handle_of_a_picture_on_which_the_network_raises_kills_nobody(world: World) -> None:
    world.detector.poison = POISON
    ref = world.storage.put("poison", picture(POISON))
    suspects = Suspects()
    pipeline = world.pipeline()
    pipeline.learn_from(suspects)
    with pytest.raises(DetectorError):
        handle(pipeline, ref)
    suspects.mourn()
    assert not suspects.must_run_alone(ref.document_id)


# Deadlines


def test_handle_when_it_is_too_late_asks_nobody(world: World) -> None:
    [ref] = world.put(1)
    with pytest.raises(TransientError):
        world.pipeline().handle(Event(ref), begin_by=time.monotonic() - 1)
    assert world.store.lookups == []
    assert world.storage.downloads == []


def test_handle_of_a_picture_that_waits_until_it_is_too_late_gives_it_back(world: World) -> None:
    [ref] = world.put(1)
    pipeline = world.pipeline()
    begin_by = time.monotonic() + 0.3
    world.storage.gate.close()
    late = in_thread(lambda: pipeline.handle(Event(ref), begin_by=begin_by))
    while time.monotonic() <= begin_by:
        time.sleep(0.01)
    world.storage.gate.open()
    with pytest.raises(TooLateError):
        result(late)
    assert world.detector.batch_sizes == []
    assert handle(pipeline, ref) == [Outcome.DONE]


@pytest.mark.parametrize(("left", "margin"), [(4, 2), (594, 10)], ids=["short", "long"])
def test_picture_must_be_prepared_some_time_before_it_must_begin(left: int, margin: int) -> None:
    """Or an overload would decode late pictures alone, and deliver none."""
    delivery = _Delivery.of(Event(), time.monotonic() + left)
    assert delivery.begin_by - delivery.prepare_by == pytest.approx(margin, abs=1)


# Trouble


def test_handle_when_the_commit_fails_raises_and_a_second_delivery_succeeds(world: World) -> None:
    [ref] = world.put(1)
    world.store.errors.append(StoreUnavailableError("down"))
    pipeline = world.pipeline()
    with pytest.raises(StoreUnavailableError):
        handle(pipeline, ref)
    assert world.store.documents == {}
    assert handle(pipeline, ref) == [Outcome.DONE]
    assert world.store.commits == [["0"]]


def test_handle_when_the_commit_of_a_failure_fails_raises(world: World) -> None:
    ref = world.storage.put("note", b"just a note")
    world.store.errors.append(StoreUnavailableError("down"))
    pipeline = world.pipeline()
    with pytest.raises(StoreUnavailableError):
        handle(pipeline, ref)
    assert world.store.documents == {}
    assert handle(pipeline, ref) == [Outcome.FAILED]


def test_handle_when_the_commit_of_a_batch_fails_acknowledges_none_of_it(world: World) -> None:
    refs = world.put(3)
    world.storage.gate.close()
    pipeline = world.pipeline()
    futures = [handling(pipeline, ref) for ref in refs]
    world.storage.gate.wait_for_arrivals(3)
    world.store.errors.append(StoreUnavailableError("down"))
    world.storage.gate.open()
    for future in futures:
        assert isinstance(future.exception(PATIENCE_SECONDS), StoreUnavailableError)
    assert world.detector.batch_sizes == [3]
    assert [handle(pipeline, ref) for ref in refs] == [[Outcome.DONE]] * 3


def test_handle_answers_only_after_the_commit(world: World) -> None:
    [ref] = world.put(1)
    world.store.gate.close()
    future = handling(world.pipeline(), ref)
    world.store.gate.wait_for_arrivals()
    assert not future.done()
    world.store.gate.open()
    assert result(future) == [Outcome.DONE]
    assert ref.document_id in world.store.documents


@pytest.mark.parametrize("missing", [1, -1], ids=["too-few", "too-many"])
def test_handle_when_the_network_answers_the_wrong_length_raises(
    world: World, missing: int
) -> None:
    class WrongLength(FakeDetector):
        def detect(self, images: Any) -> Any:
            found = super().detect(images)
            return found[:-1] if missing > 0 else [*found, found[0]]

    refs = world.put(3)
    with pytest.raises(DetectorError):
        handle(world.pipeline(detector=loaded(WrongLength())), *refs)
    assert (world.store.documents, world.store.commits) == ({}, [])


def test_handle_when_the_model_did_not_load_raises(world: World) -> None:
    [ref] = world.put(1)
    failed: Future[Detector] = Future()
    failed.set_exception(ModelError("the file is broken"))
    pipeline = world.pipeline(detector=failed)
    with pytest.raises(ModelNotReadyError):
        handle(pipeline, ref)
    assert world.store.commits == []
    assert pipeline.status() == "failed"


def test_handle_while_the_model_loads_waits_for_it(world: World) -> None:
    [ref] = world.put(1)
    loading: Future[Detector] = Future()
    pipeline = world.pipeline(detector=loading)
    assert pipeline.status() == "loading"
    future = handling(pipeline, ref)
    world.storage.gate.wait_for_arrivals()  # fetched meanwhile
    assert not future.done()
    loading.set_result(world.detector)
    assert result(future) == [Outcome.DONE]
    assert pipeline.status() == "ready"


def test_handle_when_the_storage_raises_the_unexpected_commits_nothing(world: World) -> None:
    [ref] = world.put(1)
    world.storage.errors["0"] = RuntimeError("a bug")
    pipeline = world.pipeline()
    with pytest.raises(RuntimeError, match="a bug"):
        handle(pipeline, ref)
    assert world.store.commits == []
    world.storage.errors.clear()
    assert handle(pipeline, ref) == [Outcome.DONE]


# Stopping


def test_stop_refuses_new_events_and_lets_those_in_flight_finish(world: World) -> None:
    one, two = world.put(2)
    pipeline = world.pipeline()
    world.detector.gate.close()
    future = handling(pipeline, one)
    world.detector.gate.wait_for_arrivals()
    pipeline.stop()
    assert pipeline.status() == "stopping"
    with pytest.raises(ShuttingDownError):
        handle(pipeline, two)
    with pytest.raises(ShuttingDownError):
        handle(pipeline, two, one)
    world.detector.gate.open()
    assert result(future) == [Outcome.DONE]
    assert world.labels() == {"0": ["0-0-200"]}


# Reruns


def handle_rerun(pipeline: Pipeline, ref: ImageRef, rerun: Rerun) -> list[Outcome]:
    return handle(pipeline, replace(ref, rerun=rerun))


def test_handle_of_a_rerun_replaces_what_was_seen_and_only_once(world: World) -> None:
    ref = world.storage.put("cat", b"just a note")
    pipeline = world.pipeline()
    assert handle(pipeline, ref) == [Outcome.FAILED]
    world.storage.put("cat", picture((9, 9, 9)))
    rerun = Rerun(world.store.now)
    assert handle_rerun(pipeline, ref, rerun) == [Outcome.DONE]
    assert world.labels() == {"cat": ["9-9-9"]}
    assert handle_rerun(pipeline, ref, rerun) == [Outcome.ALREADY_FINAL]
    assert world.store.commits == [["cat"], ["cat"]]


def test_rerun_whose_done_document_is_kept_is_final_and_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    [ref] = world.put(1)
    pipeline = world.pipeline()
    handle(pipeline, ref)
    world.store.outcomes["0"] = DocumentKeptError("It needs a key.")
    assert handle_rerun(pipeline, ref, Rerun(world.store.now)) == [Outcome.ALREADY_FINAL]
    [line] = [one for one in caplog.records if "A rerun failed" in one.getMessage()]
    assert (line.__dict__["uri"], line.__dict__["reason"]) == (ref.uri, "It needs a key.")


def test_handle_of_a_rerun_without_a_document_creates_it(world: World) -> None:
    [ref] = world.put(1)
    assert handle_rerun(world.pipeline(), ref, Rerun(world.store.now)) == [Outcome.DONE]


def test_handle_of_a_rerun_leaves_what_was_recorded_since(world: World) -> None:
    [ref] = world.put(1)
    rerun = Rerun(world.store.now)
    pipeline = world.pipeline()
    handle(pipeline, ref)
    assert handle_rerun(pipeline, ref, rerun) == [Outcome.ALREADY_FINAL]


def test_handle_of_a_rerun_leaves_what_its_own_model_recorded(world: World) -> None:
    [ref] = world.put(1)
    pipeline = world.pipeline()
    handle(pipeline, ref)
    rerun = Rerun(world.store.now, world.detector.info.sha256)
    assert handle_rerun(pipeline, ref, rerun) == [Outcome.ALREADY_FINAL]


def test_handle_of_a_rerun_for_another_model_gives_it_back(world: World) -> None:
    [ref] = world.put(1)
    with pytest.raises(ModelNotReadyError, match="another model"):
        handle_rerun(world.pipeline(), ref, Rerun(world.store.now, "f" * 64))
    assert world.store.commits == []


def test_handle_of_a_rerun_beside_a_plain_delivery_is_not_lost_in_it(world: World) -> None:
    [ref] = world.put(1)
    pipeline = world.pipeline()
    handle(pipeline, ref)
    world.detector.gate.close()
    rerun = in_thread(lambda: handle_rerun(pipeline, ref, Rerun(world.store.now)))
    world.detector.gate.wait_for_arrivals(2)
    assert handle(pipeline, ref) == [Outcome.ALREADY_FINAL]
    world.detector.gate.open()
    assert result(rerun) == [Outcome.DONE]
