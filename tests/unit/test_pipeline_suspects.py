"""What a picture may cost the others: a death in the network or a decoder, the sandbox's time."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import cv2
import numpy as np
import pytest

from devtools.fuzz.corpus import CASES
from service import pipeline
from service.budget import Budget
from service.domain import Event, ImageRef, Outcome
from service.errors import DecoderBusyError, TooLateError, TransientError
from service.images import sandbox
from service.images.decode import is_sandboxed
from service.images.pixels import Picture
from service.pipeline import Pipeline, PipelineOptions
from service.suspects import Suspects
from tests.fakes import (
    PATIENCE_SECONDS,
    FakeDetector,
    FakeStorage,
    FakeStore,
    Gate,
    color_of,
    in_thread,
    loaded,
    picture,
)

CORES = 2
GIF = CASES["GIF"].make()


class World:
    """The fakes, and pipelines on a machine of two cores."""

    def __init__(self) -> None:
        self.storage = FakeStorage()
        self.store = FakeStore()
        self.detector = FakeDetector()
        self.gates: list[Gate] = []
        self.pipelines: list[Pipeline] = []

    def pipeline(self, suspects: Suspects | None = None, **options: Any) -> Pipeline:
        made = Pipeline(
            self.storage,
            self.store,
            loaded(self.detector),
            PipelineOptions(**{"max_batch_delay_seconds": 0.0} | options),
        )
        if suspects:
            made.learn_from(suspects)
        self.pipelines.append(made)
        return made

    def put(self, name: str, data: bytes | None = None) -> ImageRef:
        return self.storage.put(name, data or picture())

    def gate(self) -> Gate:
        """A closed one, which opens at the end at the latest."""
        gate = Gate()
        gate.close()
        self.gates.append(gate)
        return gate


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(pipeline, "cores", lambda: CORES)
    world = World()
    yield world
    for gate in (world.storage.gate, *world.gates):
        gate.open()
    for made in world.pipelines:
        made.close(timeout_seconds=PATIENCE_SECONDS)


def handling(made: Pipeline, *refs: ImageRef, **options: Any) -> "Future[list[Outcome]]":
    """Handle images, each by a message of its own, all at once."""
    futures = [
        in_thread(lambda ref=ref: made.handle(Event(ref), **options))  # type: ignore[misc]
        for ref in refs
    ]
    return in_thread(lambda: [outcome for future in futures for outcome in result(future)])


def result(future: "Future[list[Outcome]]") -> list[Outcome]:
    return future.result(PATIENCE_SECONDS)


def wait_for_waiting(budget: Budget, count: int) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while len(budget._waiting) < count:
        assert time.monotonic() < end, f"fewer than {count} wait"
        threading.Event().wait(0.001)


def gate_before(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, gate: Gate) -> None:
    call = getattr(where, name)

    def gated(*args: Any, **options: Any) -> Any:
        gate.enter()
        return call(*args, **options)

    monkeypatch.setattr(where, name, gated)


# Deaths


def next_process(suspects: Suspects) -> Suspects:
    """What one would learn that was started now."""
    successor = Suspects()
    successor._at_work_memory.write(suspects._at_work_memory.read([[], []]))
    successor.mourn()
    return successor


@pytest.mark.parametrize("data", [picture(), picture()[:100]], ids=["good", "bad"])
def test_picture_is_noted_while_it_is_decoded_and_no_longer(
    world: World, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    gate = world.gate()
    gate_before(monkeypatch, pipeline, "decode", gate)
    suspects = Suspects()
    ref = world.put("noted", data)
    handled = handling(world.pipeline(suspects), ref)
    gate.wait_for_arrivals()
    assert next_process(suspects).must_decode_apart(ref.document_id)
    gate.open()
    result(handled)
    assert not next_process(suspects).must_decode_apart(ref.document_id)


def test_picture_for_the_sandbox_is_noted_while_its_header_is_read_and_no_longer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, pixels = world.gate(), world.gate()
    gate_before(monkeypatch, pipeline, "inspect", header)
    gate_before(monkeypatch, pipeline, "decode", pixels)
    suspects = Suspects()
    ref = world.put("picture.gif", GIF)
    handled = handling(world.pipeline(suspects), ref)
    header.wait_for_arrivals()
    assert next_process(suspects).must_decode_apart(ref.document_id)
    header.open()
    pixels.wait_for_arrivals()
    assert not next_process(suspects).must_decode_apart(ref.document_id)
    pixels.open()
    assert result(handled) == [Outcome.DONE]


def test_picture_that_was_decoded_at_a_death_is_decoded_apart_and_no_other_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspects = Suspects()
    poison, other = (world.put(str(i), picture(color_of(i))) for i in range(2))
    suspects.begin_decode(poison.document_id)
    made = world.pipeline(suspects)
    apart: list[bytes] = []
    decode_apart = sandbox.read

    def read_apart(data: bytes, **options: Any) -> Any:
        apart.append(data)
        return decode_apart(data, **options)

    monkeypatch.setattr(sandbox, "read", read_apart)
    assert result(handling(made, poison, other)) == [Outcome.DONE] * 2
    assert apart == [world.storage.objects[poison.bucket, poison.name, 1]]


def test_picture_that_crashes_its_decoder_apart_too_is_corrupt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "read", lambda *_, **__: None)  # as of a fork that died
    suspects = Suspects()
    ref = world.put("poison")
    suspects.begin_decode(ref.document_id)
    assert result(handling(world.pipeline(suspects), ref)) == [Outcome.FAILED]
    assert world.store.document("poison")["error"]["code"] == "corrupt_image"


def test_suspect_runs_while_nothing_is_decoded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process dies then, it is clear of what."""
    suspects = Suspects()
    suspect, other = world.put("suspect"), world.put("other", picture(width=64))
    suspects.begin([suspect.document_id])
    made = world.pipeline(suspects)
    gate = world.gate()
    decode = pipeline.decode

    def decode_slowly(data: bytes, **options: Any) -> Picture:
        found = decode(data, **options)
        if found.info.width == 64:
            gate.enter()
        return found

    monkeypatch.setattr(pipeline, "decode", decode_slowly)
    slow = handling(made, other)
    gate.wait_for_arrivals()
    handled = handling(made, suspect)
    wait_for_waiting(made._decoders, 1)
    assert world.detector.batch_sizes == []
    gate.open()
    assert result(handled) == result(slow) == [Outcome.DONE]
    assert not suspects.must_run_alone(suspect.document_id)


# The sandbox


def test_files_that_wait_for_the_sandbox_keep_no_others_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = world.gate()
    gate_before(monkeypatch, sandbox, "read", gate)
    made = world.pipeline()
    slow = [handling(made, world.put(f"{i}.gif", GIF)) for i in range(2 * CORES)]
    gate.wait_for_arrivals()
    wait_for_waiting(made._sandbox, 2 * CORES - 1)
    assert result(handling(made, world.put("ordinary"))) == [Outcome.DONE]
    gate.open()
    assert [result(one) for one in slow] == [[Outcome.DONE]] * 2 * CORES


def test_one_file_of_the_sandbox_is_in_memory_in_full_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = world.gate()
    gate_before(monkeypatch, pipeline, "shrink", gate)
    decoded: list[bytes] = []
    decode_apart = sandbox.read

    def read_apart(data: bytes, **options: Any) -> Any:
        decoded.append(data)
        return decode_apart(data, **options)

    monkeypatch.setattr(sandbox, "read", read_apart)
    made = world.pipeline()
    handled = [handling(made, world.put(f"{i}.gif", GIF)) for i in range(3)]
    gate.wait_for_arrivals()
    wait_for_waiting(made._sandbox, 2)
    assert len(decoded) == 1
    gate.open()
    assert [result(one) for one in handled] == [[Outcome.DONE]] * 3


@pytest.mark.parametrize(
    ("budget", "data", "error"),
    [
        ("_held_bytes", picture(), TooLateError),
        ("_decoders", picture(), TooLateError),
        ("_sandbox", GIF, TransientError),
    ],
    ids=["bytes", "decoder", "sandbox"],
)
def test_picture_that_waits_until_it_is_too_late_is_given_back(
    world: World, budget: str, data: bytes, error: type[TransientError]
) -> None:
    made = world.pipeline()
    ref = world.put("late", data)
    with getattr(made, budget).hold_all():
        late = handling(made, ref, begin_by=time.monotonic() + 0.5)
        with pytest.raises(error):
            result(late)
    assert result(handling(made, ref)) == [Outcome.DONE]


def test_file_that_waits_for_slow_ones_is_given_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a queue of them would take longer than the watchdog lets anything take."""
    monkeypatch.setattr(pipeline, "_TURN_PATIENCE_SECONDS", 0.1)
    made = world.pipeline()
    with made._sandbox.hold(1), pytest.raises(DecoderBusyError):
        result(handling(made, world.put("picture.gif", GIF)))


# Jobs


def test_gif_of_these_tests_is_one_for_the_sandbox() -> None:
    assert is_sandboxed(GIF)
    assert cv2.imdecode(np.frombuffer(GIF, np.uint8), cv2.IMREAD_COLOR) is not None
