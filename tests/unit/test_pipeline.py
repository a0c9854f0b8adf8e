"""`handle` returns when the image has its final document, and raises if it may have none."""

import io
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from PIL import ExifTags, Image

from service.deadline import NO_DEADLINE, Deadline
from service.domain import ErrorCode, Event, Failure, ImageRef, ImageResult, Outcome, Replace, Task
from service.errors import (
    BadImageError,
    DetectorError,
    DocumentKeptError,
    FirestoreUnavailableError,
    NoFreeSlotError,
    OtherModelError,
    ShuttingDownError,
    StorageUnavailableError,
    TooLateError,
)
from service.health import Health
from service.pipeline import Pipeline
from tests.fakes import (
    BUCKET,
    PATIENCE_SECONDS,
    Color,
    DecodersHere,
    FakeCounter,
    FakeDetector,
    FakeStorage,
    FakeStore,
    bmp_image,
    color_of,
    in_thread,
    label_of,
    pipeline_of,
    wait_until,
)
from tests.loglines import logged_by

EVENT_TIME = datetime(2026, 9, 24, 11, 12, 11, tzinfo=UTC)
POISON: Color = (1, 2, 3)


class World:
    """The fakes, and the pipelines made of them."""

    def __init__(self) -> None:
        self.storage = FakeStorage()
        self.decoders = DecodersHere()
        self.detector = FakeDetector()
        self.store = FakeStore()
        self.health = Health(hang_timeout_seconds=300)
        self.pipelines: list[Pipeline] = []

    def pipeline(self, *, max_batch_size: int = 8, **options: Any) -> Pipeline:
        pipeline = pipeline_of(
            self.storage,
            self.store,
            self.detector,
            decoders=self.decoders,
            health=self.health,
            max_batch_size=max_batch_size,
            **options,
        )
        self.pipelines.append(pipeline)
        return pipeline

    def put(self, count: int) -> tuple[ImageRef, ...]:
        """Store images `0`, `1`, ..., each of another colour."""
        return tuple(self.storage.put(str(i), bmp_image(color_of(i))) for i in range(count))

    def labels(self) -> dict[str, list[str]]:
        return {one["name"]: one["labels"] for one in self.store.documents.values()}


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for gate in (world.storage.gate, world.decoders.gate, world.detector.gate, world.store.gate):
        gate.open()
    for pipeline in world.pipelines:
        pipeline.close(timeout_seconds=PATIENCE_SECONDS)


def handle(
    pipeline: Pipeline, ref: ImageRef, deadline: Deadline = NO_DEADLINE, **event: Any
) -> Outcome:
    return pipeline.handle(Event(ref, EVENT_TIME, **event), deadline)


def handling(
    pipeline: Pipeline, ref: ImageRef, deadline: Deadline = NO_DEADLINE, **event: Any
) -> "Future[Outcome]":
    return in_thread(lambda: handle(pipeline, ref, deadline, **event))


def result(future: "Future[Outcome]") -> Outcome:
    return future.result(timeout=PATIENCE_SECONDS)


# One image


@pytest.mark.parametrize(
    ("task", "shape"), [(Task.CLASSIFY, (640, 640, 3)), (Task.SEGMENT, (24, 32, 3))]
)
def test_only_a_classification_model_gets_a_crop(
    world: World, task: Task, shape: tuple[int, ...]
) -> None:
    world.detector.info = replace(world.detector.info, task=task)
    [ref] = world.put(1)
    assert handle(world.pipeline(), ref) is Outcome.DONE
    assert world.detector.shapes == [shape]
    [stored] = world.store.documents.values()
    assert (stored["image"]["width"], stored["image"]["height"]) == (32, 24)


def test_an_image_is_recorded_with_its_capture_but_no_place(world: World) -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Model] = "P1448-LE"
    details, gps = tags.get_ifd(ExifTags.IFD.Exif), tags.get_ifd(ExifTags.IFD.GPSInfo)
    details[ExifTags.Base.DateTimeOriginal] = "2026:07:01 00:30:05"
    details[ExifTags.Base.OffsetTimeOriginal] = "+02:00"
    gps |= {
        ExifTags.GPS.GPSLatitudeRef: "N",
        ExifTags.GPS.GPSLatitude: (52.0, 30.0, 0.0),
        ExifTags.GPS.GPSLongitudeRef: "E",
        ExifTags.GPS.GPSLongitude: (13.0, 24.0, 0.0),
    }
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), "teal").save(buffer, "JPEG", exif=tags)
    ref = world.storage.put("phone.jpg", buffer.getvalue())
    assert handle(world.pipeline(), ref) is Outcome.DONE
    document = world.store.documents[ref.document_id]
    assert document["captured_at"] == datetime(2026, 6, 30, 22, 30, 5, tzinfo=UTC)
    assert document["captured_at_source"] == "exif_offset"
    assert document["camera"] == {"make": None, "model": "P1448-LE", "serial": None}
    assert document["day"] == "2026-06-30"
    assert document["location"] is None


def test_day_of_an_image_without_a_capture_is_that_of_its_upload(world: World) -> None:
    ref = world.storage.put("cat.bmp", bmp_image((10, 20, 30)))
    assert handle(world.pipeline(), ref) is Outcome.DONE
    document = world.store.documents[ref.document_id]
    assert (document["captured_at"], document["captured_at_source"]) == (None, "none")
    assert document["day"] == EVENT_TIME.date().isoformat()


def test_an_image_is_recorded_with_its_detections(world: World) -> None:
    ref = world.storage.put("dir/cat.bmp", bmp_image((10, 20, 30), width=32, height=24))
    assert handle(world.pipeline(), ref) is Outcome.DONE
    document = world.store.documents[ref.document_id]
    assert document["status"] == "done"
    assert document["image"] == {"width": 32, "height": 24, "format": "BMP"}
    assert document["model"]["name"] == "fake.pt"
    assert document["labels"] == ["10-20-30"]
    assert document["detections"][0]["box"] == {"x1": 8.0, "y1": 6.0, "x2": 24.0, "y2": 18.0}
    assert (document["batch_size"], document["event_time"]) == (1, EVENT_TIME)
    assert (document["size"], document["content_type"]) == (len(bmp_image()), "image/bmp")


def test_boxes_of_a_large_image_are_in_its_own_pixels(world: World) -> None:
    ref = world.storage.put("big.bmp", bmp_image(width=1920, height=960))
    handle(world.pipeline(), ref)
    assert world.detector.shapes == [(320, 640, 3)]
    document = world.store.document("big.bmp")
    assert document["image"] == {"width": 1920, "height": 960, "format": "BMP"}
    box = {"x1": 480.0, "y1": 240.0, "x2": 1440.0, "y2": 720.0}
    assert document["detections"][0]["box"] == pytest.approx(box)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", ErrorCode.EMPTY_OBJECT),
        (b"no image", ErrorCode.UNSUPPORTED_MEDIA),
        (bmp_image()[:-100], ErrorCode.CORRUPT_IMAGE),
    ],
    ids=["empty", "text", "cut"],
)
def test_a_file_that_is_no_image_is_recorded_as_failed(
    world: World, data: bytes, code: ErrorCode
) -> None:
    ref = world.storage.put("bad", data)
    assert handle(world.pipeline(), ref) is Outcome.FAILED
    document = world.store.documents[ref.document_id]
    assert (document["status"], document["error"]["code"]) == ("failed", code)
    assert document["size"] == len(data)
    assert world.detector.batch_sizes == []


def test_an_object_that_cannot_be_read_is_recorded_as_failed(world: World) -> None:
    ref = world.storage.put("secret", bmp_image())
    world.storage.errors["secret"] = BadImageError(ErrorCode.UNREADABLE_OBJECT, "Refused.")
    assert handle(world.pipeline(), ref) is Outcome.FAILED
    assert world.store.document("secret")["error"]["message"] == "Refused."


def test_an_object_without_a_generation_is_its_live_one(world: World) -> None:
    world.storage.put("cat", bmp_image((1, 1, 1)), generation=3)
    live = world.storage.put("cat", bmp_image((2, 2, 2)), generation=5)
    assert handle(world.pipeline(), ImageRef(BUCKET, "cat"), is_job=True) is Outcome.DONE
    assert world.store.documents[live.document_id]["labels"] == ["2-2-2"]


def test_an_object_whose_generation_is_refused_is_recorded(world: World) -> None:
    world.storage.unresolvable["cat"] = BadImageError(ErrorCode.UNREADABLE_OBJECT, "Refused.")
    assert handle(world.pipeline(), ImageRef(BUCKET, "cat"), is_job=True) is Outcome.FAILED
    assert world.store.document("cat")["generation"] == 0


def test_a_new_generation_is_detected_again(world: World) -> None:
    pipeline = world.pipeline()
    for generation in (1, 2):
        ref = world.storage.put("cat", bmp_image(color_of(generation)), generation=generation)
        assert handle(pipeline, ref) is Outcome.DONE
    assert len(world.store.documents) == 2


# Images without a document


def test_a_gone_image_is_acknowledged_and_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    assert handle(world.pipeline(), ImageRef(BUCKET, "it's gone", 7)) is Outcome.GONE
    [line] = [one for one in logged_by(caplog, "service.pipeline") if one.levelname == "WARNING"]
    assert vars(line)["look"] == """gcloud storage ls --all-versions 'gs://uploads/it'"'"'s gone'"""
    assert world.store.documents == {}


@pytest.mark.parametrize("name", ["folder/", "gcloud/tmp/parallel_composite_uploads/x"])
def test_folder_markers_and_upload_parts_are_ignored(world: World, name: str) -> None:
    assert handle(world.pipeline(), ImageRef(BUCKET, name, 1)) is Outcome.IGNORED
    assert world.storage.downloads == []


def test_an_ignored_request_does_nothing(world: World) -> None:
    outcome = world.pipeline().handle(Event(ignored="a deletion"), NO_DEADLINE)
    assert outcome is Outcome.IGNORED


def test_an_image_of_a_bucket_not_allowed_is_acknowledged(world: World) -> None:
    pipeline = world.pipeline(allowed_buckets=("mine",))
    assert handle(pipeline, world.storage.put("cat", bmp_image())) is Outcome.BUCKET_NOT_ALLOWED
    assert world.storage.downloads == [] and world.store.lookups == []


# Redelivered


@pytest.mark.parametrize("event", [{}, {"delivery_attempt": 2}, {"is_job": True}], ids=str)
def test_a_recorded_image_is_neither_downloaded_nor_detected(
    world: World, event: dict[str, Any]
) -> None:
    pipeline, ref = world.pipeline(), world.storage.put("cat", bmp_image())
    handle(pipeline, ref)
    assert handle(pipeline, ref, **event) is Outcome.ALREADY_RECORDED
    assert len(world.storage.downloads) == 1


def test_the_first_delivery_of_an_upload_reads_no_document(world: World) -> None:
    ref = world.storage.put("cat", bmp_image())
    assert handle(world.pipeline(), ref, delivery_attempt=1) is Outcome.DONE
    assert world.store.lookups == []


@pytest.mark.parametrize(("age", "lookups"), [(1, 0), (60, 1)], ids=["young", "old"])
def test_a_young_event_reads_no_document(world: World, age: int, lookups: int) -> None:
    ref = world.storage.put("cat", bmp_image())
    event = Event(ref, datetime.now(UTC) - timedelta(seconds=age))
    assert world.pipeline().handle(event, NO_DEADLINE) is Outcome.DONE
    assert len(world.store.lookups) == lookups


def test_the_first_delivery_of_a_job_reads_its_document(world: World) -> None:
    ref = world.storage.put("cat", bmp_image())
    handle(world.pipeline(), ref, delivery_attempt=1, is_job=True)
    assert world.store.lookups == [ref.document_id]


def test_two_deliveries_at_once_make_one_document(world: World) -> None:
    pipeline, ref = world.pipeline(), world.storage.put("cat", bmp_image())
    world.decoders.gate.close()
    both = [handling(pipeline, ref) for _ in range(2)]
    world.decoders.gate.wait_for_arrivals(2)
    world.decoders.gate.open()
    assert sorted(map(result, both)) == [Outcome.DONE, Outcome.SUPERSEDED]
    assert len(world.store.documents) == 1


# Many at the same time


def test_images_from_many_threads_are_never_crossed(world: World) -> None:
    pipeline, refs = world.pipeline(max_in_flight=64), world.put(64)
    outcomes = [result(future) for future in [handling(pipeline, ref) for ref in refs]]
    assert outcomes == [Outcome.DONE] * 64
    assert world.labels() == {str(i): [label_of(color_of(i))] for i in range(64)}


def test_images_that_wait_together_share_batches_and_commits(world: World) -> None:
    pipeline, refs = world.pipeline(), world.put(9)
    world.detector.gate.close()
    first = handling(pipeline, refs[0])
    world.detector.gate.wait_for_arrivals()
    others = [handling(pipeline, ref) for ref in refs[1:]]
    wait_until(lambda: len(world.storage.downloads) == 9, "not all were downloaded")
    world.detector.gate.open()
    assert [result(future) for future in [first, *others]] == [Outcome.DONE] * 9
    assert sum(world.detector.batch_sizes) == 9
    assert sum(len(commit) for commit in world.store.commits) == 9


@pytest.mark.parametrize("side", [64, 4096])
def test_images_of_any_size_keep_every_runner_busy(world: World, side: int) -> None:
    world.detector.runners, world.detector.shape = 4, (side, side)
    pipeline, refs = world.pipeline(), world.put(4)
    world.detector.gate.close()
    futures = [handling(pipeline, ref) for ref in refs]
    world.detector.gate.wait_for_arrivals(4)  # all at once: none has finished
    world.detector.gate.open()
    assert [result(future) for future in futures] == [Outcome.DONE] * 4


def test_a_model_failure_on_one_image_spares_its_batch(world: World) -> None:
    world.detector.poison = POISON
    pipeline, refs = world.pipeline(), world.put(4)
    poison = world.storage.put("poison", bmp_image(POISON))
    world.detector.gate.close()
    futures = [handling(pipeline, ref) for ref in (*refs, poison)]
    world.detector.gate.wait_for_arrivals()
    world.detector.gate.open()
    with pytest.raises(DetectorError):
        result(futures[-1])
    assert [result(future) for future in futures[:-1]] == [Outcome.DONE] * 4


def test_images_beyond_the_slots_are_rejected_before_a_read(world: World) -> None:
    pipeline, refs = world.pipeline(max_in_flight=2), world.put(3)
    world.storage.gate.close()
    in_flight = [handling(pipeline, ref) for ref in refs[:2]]
    world.storage.gate.wait_for_arrivals(2)
    with pytest.raises(NoFreeSlotError):
        handle(pipeline, refs[2])
    assert refs[2] not in world.storage.downloads
    world.storage.gate.open()
    assert [result(future) for future in in_flight] == [Outcome.DONE] * 2
    assert handle(pipeline, refs[2]) is Outcome.DONE


def test_jobs_leave_half_of_the_slots_to_uploads(world: World) -> None:
    pipeline, refs = world.pipeline(max_in_flight=4), world.put(5)
    world.storage.gate.close()
    jobs = [handling(pipeline, ref, is_job=True) for ref in refs[:2]]
    world.storage.gate.wait_for_arrivals(2)
    with pytest.raises(NoFreeSlotError):
        handle(pipeline, refs[2], is_job=True)
    uploads = [handling(pipeline, ref) for ref in refs[3:]]
    world.storage.gate.wait_for_arrivals(2)
    world.storage.gate.open()
    assert [result(future) for future in [*jobs, *uploads]] == [Outcome.DONE] * 4


def test_files_in_memory_are_bounded(world: World) -> None:
    size = len(bmp_image())
    pipeline, refs = world.pipeline(max_buffered_bytes=2 * size), world.put(6)
    world.decoders.gate.close()
    futures = [handling(pipeline, ref) for ref in refs]
    world.decoders.gate.wait_for_arrivals(2)
    wait_until(lambda: len(world.storage.downloads) == 6, "not all have begun")
    assert world.decoders.gate.waiting == 2
    world.decoders.gate.open()
    assert [result(future) for future in futures] == [Outcome.DONE] * 6


@pytest.mark.parametrize("name", ["good", "bad", "gone", "away"])
def test_a_slot_is_free_again_however_an_image_ends(world: World, name: str) -> None:
    pipeline = world.pipeline(max_in_flight=2)
    good = world.storage.put("good", bmp_image())
    refs = {
        "good": good,
        "bad": world.storage.put("bad", b"no image"),
        "gone": ImageRef(BUCKET, "gone", 1),
        "away": world.storage.put("away", bmp_image()),
    }
    world.storage.errors["away"] = StorageUnavailableError("Cloud Storage is down.")
    for _ in range(3):
        try:
            handle(pipeline, refs[name])
        except StorageUnavailableError:
            assert name == "away"
    assert handle(pipeline, good) in (Outcome.DONE, Outcome.ALREADY_RECORDED)


# Faults


def test_a_failed_commit_raises_and_a_second_delivery_succeeds(world: World) -> None:
    pipeline, ref = world.pipeline(), world.storage.put("cat", bmp_image())
    world.store.errors = [FirestoreUnavailableError("Firestore is down.")]
    with pytest.raises(FirestoreUnavailableError):
        handle(pipeline, ref)
    assert world.store.documents == {}
    assert handle(pipeline, ref) is Outcome.DONE


def test_handle_returns_only_after_the_commit(world: World) -> None:
    pipeline, ref = world.pipeline(), world.storage.put("cat", bmp_image())
    world.store.gate.close()
    future = handling(pipeline, ref)
    world.store.gate.wait_for_arrivals()
    assert not future.done()
    world.store.gate.open()
    assert result(future) is Outcome.DONE


def test_a_result_that_cannot_be_stored_fails_its_image_alone(world: World) -> None:
    pipeline, refs = world.pipeline(), world.put(2)
    failure = Failure(ErrorCode.UNSTORABLE_RESULT, "Firestore refuses the document.")
    world.store.outcomes["0"] = ImageResult(refs[0], failure=failure)
    assert handle(pipeline, refs[0]) is Outcome.FAILED
    assert handle(pipeline, refs[1]) is Outcome.DONE


def test_too_few_results_of_a_model_record_nothing(world: World) -> None:
    world.detector.missing_results = 1
    with pytest.raises(DetectorError):
        handle(world.pipeline(), world.storage.put("cat", bmp_image()))
    assert world.store.documents == {}


def test_a_model_that_fails_on_every_image_is_a_fault(world: World) -> None:
    world.detector.missing_results = 1
    pipeline, refs = world.pipeline(), world.put(20)
    assert pipeline.status() == ("ready", None)
    for ref in refs:
        with pytest.raises(DetectorError):
            handle(pipeline, ref)
    assert "failed on" in str(pipeline.status())
    world.detector.missing_results = 0
    handle(pipeline, refs[0])
    assert pipeline.status() == ("ready", None)


def test_one_image_that_always_fails_is_no_fault(world: World) -> None:
    world.detector.missing_results = 1
    pipeline, ref = world.pipeline(), world.storage.put("cat", bmp_image())
    for _ in range(50):
        with pytest.raises(DetectorError):
            handle(pipeline, ref)
    assert pipeline.status() == ("ready", None)


# The deadline


def test_a_late_delivery_makes_no_call(world: World) -> None:
    ref = world.storage.put("cat", bmp_image())
    with pytest.raises(TooLateError):
        handle(world.pipeline(), ref, Deadline.after(-1))
    assert world.store.documents == {} and world.detector.batch_sizes == []


def test_an_image_late_in_the_models_queue_is_rejected(world: World) -> None:
    pipeline, refs = world.pipeline(), world.put(2)
    world.detector.gate.close()
    first = handling(pipeline, refs[0])
    world.detector.gate.wait_for_arrivals()
    with pytest.raises(TooLateError):
        handle(pipeline, refs[1], Deadline.after(0.3))
    world.detector.gate.open()
    assert result(first) is Outcome.DONE
    assert world.detector.batch_sizes == [1]


# Stopping


def test_a_stopped_pipeline_only_finishes_images_in_flight(world: World) -> None:
    pipeline, refs = world.pipeline(), world.put(2)
    world.store.gate.close()
    in_flight = handling(pipeline, refs[0])
    world.store.gate.wait_for_arrivals()
    pipeline.stop()
    with pytest.raises(ShuttingDownError):
        handle(pipeline, refs[1])
    world.store.gate.open()
    assert result(in_flight) is Outcome.DONE


def test_close_ends_the_decoders(world: World) -> None:
    world.pipeline().close()
    assert world.decoders.is_closed


# Replacing a document


def replacing(ref: ImageRef, world: World, **changes: Any) -> ImageRef:
    return replace(ref, replace=Replace(**{"if_created_before": world.store.now} | changes))


def test_a_replacement_replaces_a_document_once(world: World) -> None:
    pipeline, ref = world.pipeline(), world.storage.put("cat", b"no image")
    handle(pipeline, ref)
    world.storage.put("cat", bmp_image((9, 9, 9)))
    replacement = replacing(ref, world)
    assert handle(pipeline, replacement, is_job=True) is Outcome.DONE
    assert handle(pipeline, replacement, is_job=True) is Outcome.ALREADY_RECORDED
    assert world.store.document("cat")["labels"] == ["9-9-9"]


def test_a_replacement_keeps_the_document_of_its_own_model(world: World) -> None:
    pipeline, ref = world.pipeline(), world.storage.put("cat", bmp_image())
    handle(pipeline, ref)
    replacement = replacing(ref, world, unless_model=world.detector.info.sha256)
    assert handle(pipeline, replacement, is_job=True) is Outcome.ALREADY_RECORDED


def test_a_replacement_by_another_model_waits_for_that_model(world: World) -> None:
    ref = replacing(world.storage.put("cat", bmp_image()), world, unless_model="f" * 64)
    with pytest.raises(OtherModelError):
        handle(world.pipeline(), ref, is_job=True)


def test_a_kept_document_is_acknowledged_and_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    ref = replacing(world.storage.put("cat", bmp_image()), world)
    world.store.outcomes["cat"] = DocumentKeptError("Cloud Storage refuses the object.")
    assert handle(world.pipeline(), ref, is_job=True) is Outcome.ALREADY_RECORDED
    assert "Kept a document" in logged_by(caplog, "service.pipeline")[-1].getMessage()


# Counting


def test_outcomes_are_counted_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pipeline, ref = world.pipeline(), world.storage.put("cat", bmp_image())
    for _ in range(3):
        handle(pipeline, ref)
    handle(pipeline, world.storage.put("bad", b"no image"))
    handle(pipeline, ImageRef(BUCKET, "gone", 1))
    pipeline.close()
    lines = [vars(line) for line in logged_by(caplog, "service.recorder")]
    totals = {key: sum(line.get(key, 0) for line in lines) for key in map(str, Outcome)}
    assert {key: count for key, count in totals.items() if count} == {
        "done": 1,
        "already_recorded": 2,
        "failed": 1,
        "gone": 1,
    }


def test_threads_end_when_a_pipeline_is_closed(world: World) -> None:
    before = threading.active_count()
    pipeline = world.pipeline()
    handle(pipeline, world.storage.put("cat", bmp_image()))
    pipeline.close(timeout_seconds=PATIENCE_SECONDS)
    wait_until(lambda: threading.active_count() <= before, "threads are left")


# The daily limit


@pytest.fixture
def counter() -> FakeCounter:
    return FakeCounter()


def statuses(world: World) -> Counter[str]:
    return Counter(document["status"] for document in world.store.documents.values())


def test_images_beyond_the_daily_limit_are_parked(world: World, counter: FakeCounter) -> None:
    pipeline, refs = world.pipeline(limit=counter.limit(2)), world.put(5)
    outcomes = [handle(pipeline, ref) for ref in refs]
    assert outcomes == [Outcome.DONE] * 2 + [Outcome.PARKED] * 3
    assert [ref.name for ref in world.storage.downloads] == ["0", "1"]
    parked = world.store.document("4")
    assert (parked["uri"], parked["generation"]) == (refs[4].uri, 1)
    assert (parked["status"], parked["error"]["code"]) == ("parked", "daily_image_limit")
    assert parked["event_time"] == EVENT_TIME


def test_parked_image_is_acknowledged_after_its_commit(world: World, counter: FakeCounter) -> None:
    pipeline, [ref] = world.pipeline(limit=counter.limit(0)), world.put(1)
    world.store.errors = [FirestoreUnavailableError("down")]
    with pytest.raises(FirestoreUnavailableError):
        handle(pipeline, ref)
    assert not world.store.documents
    assert handle(pipeline, ref) is Outcome.PARKED


def test_parked_image_is_not_written_twice_in_a_day(world: World, counter: FakeCounter) -> None:
    pipeline, [ref] = world.pipeline(limit=counter.limit(0)), world.put(1)
    first = handle(pipeline, ref)
    written_at = world.store.now
    assert [first, handle(pipeline, ref, delivery_attempt=2)] == [Outcome.PARKED] * 2
    assert world.store.now == written_at


def test_parked_image_is_done_on_the_next_day(world: World, counter: FakeCounter) -> None:
    pipeline, refs = world.pipeline(limit=counter.limit(2)), world.put(4)
    for ref in refs:
        handle(pipeline, ref)
    counter.now += timedelta(days=1)
    outcomes = [handle(pipeline, ref, is_job=True) for ref in refs]
    assert outcomes == [Outcome.ALREADY_RECORDED] * 2 + [Outcome.DONE] * 2
    assert statuses(world) == {"done": 4}
    assert len(world.detector.shapes) == 4


def test_recorded_images_do_not_count(world: World, counter: FakeCounter) -> None:
    pipeline, refs = world.pipeline(limit=counter.limit(2)), world.put(2)
    for _ in range(3):
        assert handle(pipeline, refs[0], is_job=True)
    assert handle(pipeline, refs[1]) is Outcome.DONE


@pytest.mark.parametrize("data", [bmp_image(), b"no image"], ids=["done", "failed"])
def test_a_final_document_is_never_parked(world: World, counter: FakeCounter, data: bytes) -> None:
    ref = world.storage.put("cat", data)
    handle(world.pipeline(), ref)
    before = world.store.document("cat")
    pipeline = world.pipeline(limit=counter.limit(0))
    assert handle(pipeline, ref, delivery_attempt=1) is Outcome.SUPERSEDED
    assert handle(pipeline, ref) is Outcome.ALREADY_RECORDED
    assert handle(pipeline, replacing(ref, world), is_job=True) is Outcome.ALREADY_RECORDED
    assert world.store.document("cat") == before


def test_uncounted_images_are_processed(world: World, counter: FakeCounter) -> None:
    counter.errors = [FirestoreUnavailableError("down")] * 10
    pipeline, refs = world.pipeline(limit=counter.limit(3)), world.put(3)
    for ref in refs:
        counter.now += timedelta(minutes=2)
        assert handle(pipeline, ref) is Outcome.DONE


def test_close_shares_the_count(world: World, counter: FakeCounter) -> None:
    pipeline, refs = world.pipeline(limit=counter.limit(9)), world.put(4)
    for ref in refs:
        handle(pipeline, ref)
    pipeline.close()
    assert counter.counts[counter.now.date()] == 4


def test_failed_delivery_shares_the_count_too(world: World, counter: FakeCounter) -> None:
    pipeline, [ref] = world.pipeline(limit=counter.limit(9)), world.put(1)
    counter.now += timedelta(minutes=2)
    world.storage.errors["0"] = StorageUnavailableError("down")
    with pytest.raises(StorageUnavailableError):
        handle(pipeline, ref)
    assert counter.counts[counter.now.date()] == 1
