"""Workers alone: what a batch leaves open."""

from collections.abc import Sequence

import pytest

from service.concurrency.workers import Waiting, Workers
from service.deadline import Deadline
from tests.fakes import PATIENCE_SECONDS

Item = Waiting[int, int]


def soon() -> Deadline:
    return Deadline.after(PATIENCE_SECONDS)


def first_three(queue: Sequence[Item]) -> list[Item]:
    return list(queue)[:3]


def test_an_item_that_its_batch_leaves_open_fails() -> None:
    def forget(batch: list[Item]) -> None:
        """Settle nothing."""

    workers: Workers[int, int] = Workers(forget, take=first_three, count=1, name="worker")
    with pytest.raises(RuntimeError, match="A worker failed"):
        workers.call(1, soon())
    workers.close(timeout_seconds=PATIENCE_SECONDS)
