"""When the pipeline makes derived images, from which detections, and what happens if it fails."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from service.deadline import NO_DEADLINE, Deadline
from service.derived import LARGEST_OPTIONS, DeriveOptions, Redaction
from service.domain import (
    Box,
    DerivedImage,
    DerivedKind,
    Detection,
    ErrorCode,
    Event,
    ImageRef,
    ObjectMetadata,
    Outcome,
    Prediction,
    Task,
)
from service.errors import BadImageError, DecoderUnavailableError, StorageUnavailableError
from service.faint import unpack
from service.health import Health
from service.object_metadata import RESULT_MARKER
from service.pipeline import Pipeline
from service.sources.current import SourceSettings
from service.sources.rules import Rules
from tests.fakes import (
    BUCKET,
    PATIENCE_SECONDS,
    DecodersHere,
    FakeDetector,
    FakeStorage,
    FakeStore,
    FakeUploads,
    bmp_image,
    in_thread,
    pipeline_of,
)
from tests.loglines import logged_by

THUMBNAIL = DerivedImage(DerivedKind.THUMBNAIL, b"small", "image/jpeg", 32, 24)
PERSON = Detection("person", 0, 0.9, Box(1, 1, 9, 9))
FAINT_PERSON = Detection("person", 0, 0.06, Box(11, 1, 19, 9))
CAR = Detection("car", 2, 0.8, Box(2, 2, 8, 8))
HIDE_PERSONS = DeriveOptions(redaction=Redaction(("person",)))
MARKED = ObjectMetadata(custom={RESULT_MARKER: "true"})


class Detector(FakeDetector):
    """Finds the same in every image."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = {0: "person", 2: "car"}
        self.found = Prediction((PERSON, CAR, FAINT_PERSON))

    def detect(self, images: Any) -> list[Prediction]:
        return [self.found for _ in images]


class Sources:
    """The same settings for every image."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings

    def settings_of(self, ref: ImageRef, deadline: Deadline) -> SourceSettings:
        return self.settings


class World:
    def __init__(self) -> None:
        self.storage = FakeStorage()
        self.store = FakeStore()
        self.decoders = DecodersHere()
        self.decoders.derived = (THUMBNAIL,)
        self.detector = Detector()
        self.uploads = FakeUploads()
        self.health = Health(hang_timeout_seconds=300)
        self.settings = SourceSettings()
        self.pipelines: list[Pipeline] = []

    def pipeline(self, *, results_bucket: str | None = "results", **options: Any) -> Pipeline:
        pipeline = pipeline_of(
            self.storage,
            self.store,
            self.detector,
            decoders=self.decoders,
            health=self.health,
            sources=Sources(self.settings),
            uploads=self.uploads,
            results_bucket=results_bucket,
            **options,
        )
        self.pipelines.append(pipeline)
        return pipeline

    def handle(self, ref: ImageRef, **event: Any) -> Outcome:
        return self.pipeline().handle(Event(ref, **event), NO_DEADLINE)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for gate in (world.storage.gate, world.decoders.derive_gate, world.store.gate):
        gate.open()
    for pipeline in world.pipelines:
        pipeline.close(timeout_seconds=PATIENCE_SECONDS)


def test_image_without_a_source_gets_a_thumbnail(world: World) -> None:
    assert world.handle(world.storage.put("a", bmp_image())) is Outcome.DONE
    [plan] = world.decoders.plans
    assert plan.options == DeriveOptions()
    document = world.store.document("a")
    [uri] = world.uploads.objects
    assert document["derived"] == [
        {
            "kind": "thumbnail",
            "uri": uri,
            "size": 5,
            "width": 32,
            "height": 24,
            "class_id": None,
        }
    ]
    assert document["derived_error"] is None


def test_nothing_is_derived_without_a_bucket(world: World) -> None:
    pipeline = world.pipeline(results_bucket=None)
    ref = world.storage.put("a", bmp_image())
    assert pipeline.handle(Event(ref), NO_DEADLINE) is Outcome.DONE
    assert not world.decoders.plans and not world.uploads.objects
    assert world.store.document("a")["derived"] == []


def test_nothing_is_derived_if_the_source_asks_for_nothing(world: World) -> None:
    world.settings = SourceSettings(derive=DeriveOptions(thumbnail_side=None))
    assert world.handle(world.storage.put("a", bmp_image())) is Outcome.DONE
    assert not world.decoders.plans


@pytest.mark.parametrize("keep_faint", [True, False])
def test_plan_has_every_detection_whatever_is_recorded(world: World, keep_faint: bool) -> None:
    rules = Rules(keep_labels=frozenset({"car"}), keep_faint=keep_faint)
    world.settings = SourceSettings(rules, derive=HIDE_PERSONS)
    world.handle(world.storage.put("a", bmp_image()))
    [plan] = world.decoders.plans
    assert (plan.detections, plan.faint) == ((CAR,), (PERSON, FAINT_PERSON))
    assert (world.store.document("a")["faint"] is not None) is keep_faint


def test_what_is_no_detection_is_redacted_but_not_recorded(world: World) -> None:
    """For example, a person whose mask is empty, or whose box has a number that is not finite."""
    broken = replace(PERSON, box=replace(PERSON.box, x1=float("nan")))
    world.detector.found = Prediction((CAR, broken), unusable=(FAINT_PERSON,))
    world.settings = SourceSettings(derive=HIDE_PERSONS)
    world.handle(world.storage.put("a", bmp_image()))
    (plan,) = world.decoders.plans
    assert plan.detections == (CAR,) and len(plan.redacted_regions(32, 24)) == 2
    assert plan.redacted_regions(32, 24)[0] == (0, 0, 32, 24)
    document = world.store.document("a")
    assert document["num_detections"] == 1
    assert document["faint"] is not None and not list(unpack(document["faint"]))


def test_file_that_cannot_be_derived_is_done_with_the_reason(world: World) -> None:
    world.decoders.derive_errors = [BadImageError(ErrorCode.CORRUPT_IMAGE, "It takes too long.")]
    assert world.handle(world.storage.put("a", bmp_image())) is Outcome.DONE
    document = world.store.document("a")
    assert (document["derived"], document["derived_error"]) == ([], "It takes too long.")
    assert document["num_detections"] == 2 and not world.uploads.objects


@pytest.mark.parametrize(
    ("task", "labels", "reason"),
    [
        (Task.CLASSIFY, ("person",), "A model of the task classify finds no boxes."),
        (Task.DETECT, ("person", "persn"), "The model has no label 'persn'."),
    ],
)
def test_nothing_is_shown_if_the_redaction_is_impossible(
    world: World, task: Task, labels: tuple[str, ...], reason: str
) -> None:
    world.detector.info = replace(world.detector.info, task=task)
    world.settings = SourceSettings(derive=DeriveOptions(redaction=Redaction(labels)))
    assert world.handle(world.storage.put("a", bmp_image())) is Outcome.DONE
    document = world.store.document("a")
    assert document["derived"] == []
    assert document["derived_error"].startswith(reason)
    assert not world.decoders.plans and not world.uploads.objects


def test_every_label_of_the_model_can_be_redacted(world: World) -> None:
    world.settings = SourceSettings(derive=DeriveOptions(redaction=Redaction()))
    world.handle(world.storage.put("a", bmp_image()))
    assert world.store.document("a")["derived_error"] is None


def test_missing_decoder_rejects_the_image_and_counts(world: World) -> None:
    for number in range(5):
        world.decoders.derive_errors = [DecoderUnavailableError("none")]
        with pytest.raises(DecoderUnavailableError):
            world.handle(world.storage.put(str(number), bmp_image()))
    assert not world.store.documents
    assert "failed on 5 different images" in (world.health.probe() or "")


def test_failed_upload_rejects_the_image_until_the_next_delivery(world: World) -> None:
    world.uploads.errors = [StorageUnavailableError("away")]
    ref = world.storage.put("a", bmp_image())
    with pytest.raises(StorageUnavailableError):
        world.handle(ref)
    assert not world.store.documents
    assert world.handle(ref) is Outcome.DONE


def test_failed_image_has_no_derived_images(world: World) -> None:
    assert world.handle(world.storage.put("a", b"no image")) is Outcome.FAILED
    document = world.store.document("a")
    assert (document["derived"], document["derived_error"]) == ([], None)
    assert not world.decoders.plans


# Memory


def test_file_is_kept_until_its_images_are_made(world: World) -> None:
    """The next file is not downloaded before."""
    data = bmp_image()
    pipeline = world.pipeline(max_buffered_bytes=len(data))
    first, second = world.storage.put("a", data), world.storage.put("b", data)
    world.decoders.derive_gate.close()
    deriving = in_thread(lambda: pipeline.handle(Event(first), NO_DEADLINE))
    world.decoders.derive_gate.wait_for_arrivals()
    waiting = in_thread(lambda: pipeline.handle(Event(second), NO_DEADLINE))
    world.storage.gate.wait_for_arrivals()  # the first
    assert len(world.decoders.plans) == 1 and not waiting.done()
    world.decoders.derive_gate.open()
    assert {deriving.result(PATIENCE_SECONDS), waiting.result(PATIENCE_SECONDS)} == {Outcome.DONE}


def test_derived_images_in_memory_are_bounded(world: World) -> None:
    """Until the first image is committed, a second one with the largest outputs has to wait."""
    world.settings = SourceSettings(derive=LARGEST_OPTIONS)
    world.decoders.derived = (replace(THUMBNAIL, data=bytes(1000)),)
    pipeline = world.pipeline()
    first, second = (world.storage.put(name, bmp_image()) for name in ("a", "b"))
    world.store.gate.close()
    committing = in_thread(lambda: pipeline.handle(Event(first), NO_DEADLINE))
    world.store.gate.wait_for_arrivals()
    waiting = in_thread(lambda: pipeline.handle(Event(second), Deadline.after(0.3)))
    assert waiting.exception(PATIENCE_SECONDS) is not None
    assert len(world.decoders.plans) == 1
    world.store.gate.open()
    assert committing.result(PATIENCE_SECONDS) is Outcome.DONE
    assert pipeline.handle(Event(second), NO_DEADLINE) is Outcome.DONE


def test_small_outputs_of_many_images_wait_together(world: World) -> None:
    world.settings = SourceSettings(derive=replace(LARGEST_OPTIONS, normalized=None))
    pipeline = world.pipeline()
    world.store.gate.close()
    handling = []
    for name in "abcdef":  # their bounds together exceed the limit, their sizes do not
        ref = world.storage.put(name, bmp_image())
        handling.append(in_thread(partial(pipeline.handle, Event(ref), NO_DEADLINE)))
        world.decoders.derive_gate.wait_for_arrivals()
    world.store.gate.open()
    assert [each.result(PATIENCE_SECONDS) for each in handling] == [Outcome.DONE] * 6


# Objects that the service made


def test_marked_upload_is_ignored_before_any_call(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    ref = replace(world.storage.put("a", bmp_image()), metadata=MARKED)
    with caplog.at_level(logging.INFO):
        assert world.handle(ref) is Outcome.IGNORED
    assert not (world.storage.downloads or world.store.lookups or world.store.documents)
    [line] = logged_by(caplog, "service.pipeline")
    assert "the service made" in line.__dict__["reason"]


class MarkedStorage(FakeStorage):
    """All objects have the marker, which events do not report."""

    def resolve(self, ref: ImageRef, deadline: Deadline) -> ImageRef:
        return replace(super().resolve(ref, deadline), metadata=MARKED)

    def download(self, ref: ImageRef, *args: Any) -> Any:
        return super().download(replace(ref, metadata=MARKED), *args)


@pytest.mark.parametrize(("generation", "downloads"), [(1, 1), (None, 0)])
def test_marked_object_of_a_job_is_ignored(
    world: World, generation: int | None, downloads: int
) -> None:
    world.storage = MarkedStorage()
    ref = replace(world.storage.put("a", bmp_image()), generation=generation)
    assert world.handle(ref, is_job=True) is Outcome.IGNORED
    assert len(world.storage.downloads) == downloads
    assert not world.store.documents and not world.decoders.plans


@pytest.mark.parametrize("event", [{}, {"is_job": True}, {"is_deletion": True}])
def test_object_of_the_results_bucket_is_ignored(world: World, event: dict[str, bool]) -> None:
    ref = world.storage.put("a", bmp_image(), bucket="results")
    assert world.handle(ref, **event) is Outcome.IGNORED
    assert not (world.storage.downloads or world.storage.resolved or world.store.lookups)


def test_marker_never_keeps_a_result_from_its_deletion(world: World) -> None:
    """Somebody may set the marker on an image that has a result."""
    deleted = []

    class Deletion:
        def is_wanted(self, event: Event) -> bool:
            return True

        def handle(self, ref: ImageRef, event: Event, deadline: Deadline) -> Outcome:
            deleted.append(ref)
            return Outcome.DELETED

    ref = ImageRef(BUCKET, "a", 1, MARKED)
    pipeline = world.pipeline(deletion=Deletion())
    assert pipeline.handle(Event(ref, is_deletion=True), NO_DEADLINE) is Outcome.DELETED
    assert deleted == [ref]
