"""Slots: never more images in flight than allowed, and uploads keep half of the slots."""

from contextlib import ExitStack

import pytest

from service.concurrency.slots import Slots
from service.errors import NoFreeSlotError, ShuttingDownError


def test_an_image_beyond_the_slots_is_rejected_at_once() -> None:
    slots = Slots(2, jobs=1)
    with ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(slots.take(is_job=False))
        with pytest.raises(NoFreeSlotError):
            taken.enter_context(slots.take(is_job=False))


def test_jobs_leave_the_other_slots_to_uploads() -> None:
    slots = Slots(4, jobs=2)
    with slots.take(is_job=True), slots.take(is_job=True):
        with pytest.raises(NoFreeSlotError), slots.take(is_job=True):
            pass
        with slots.take(is_job=False), slots.take(is_job=False):
            pass


def test_uploads_may_take_every_slot() -> None:
    slots = Slots(4, jobs=2)
    with ExitStack() as taken:
        for _ in range(4):
            taken.enter_context(slots.take(is_job=False))
        with pytest.raises(NoFreeSlotError), slots.take(is_job=True):
            pass
    with slots.take(is_job=True), slots.take(is_job=True):  # the rejected job took no slot
        pass


@pytest.mark.parametrize("is_job", [False, True])
def test_a_slot_is_free_again_after_an_error(is_job: bool) -> None:
    slots = Slots(1, jobs=1)
    for _ in range(3):
        with pytest.raises(ValueError), slots.take(is_job=is_job):
            raise ValueError
    with slots.take(is_job=False):
        pass


def test_nothing_is_admitted_after_a_stop() -> None:
    slots = Slots(1, jobs=1)
    with slots.take(is_job=False):
        slots.stop()  # images in flight continue
    with pytest.raises(ShuttingDownError), slots.take(is_job=False):
        pass
