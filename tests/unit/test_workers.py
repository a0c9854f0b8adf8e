"""Workers: items without an outcome, and errors of a worker itself."""

from collections.abc import Sequence

import pytest

from service.concurrency.workers import Waiting, Workers
from service.deadline import Deadline
from tests.fakes import PATIENCE_SECONDS
from tests.loglines import logged_by

Item = Waiting[int, int]


def soon() -> Deadline:
    return Deadline.after(PATIENCE_SECONDS)


def first_three(queue: Sequence[Item]) -> list[Item]:
    return list(queue)[:3]


def test_an_item_that_its_batch_leaves_open_fails() -> None:
    def forget(batch: list[Item]) -> None:
        """Settle nothing."""

    workers: Workers[int, int] = Workers(forget, take=first_three, count=1, name="worker")
    with pytest.raises(RuntimeError, match="The batch has no result"):
        workers.call(1, soon())
    workers.close(timeout_seconds=PATIENCE_SECONDS)


def test_an_error_of_a_worker_itself_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The caller's error refers to the log."""
    error = ValueError("odd")

    def fail(batch: list[Item]) -> None:
        raise error

    workers: Workers[int, int] = Workers(fail, take=first_three, count=1, name="worker")
    with pytest.raises(RuntimeError, match="See the log") as raised:
        workers.call(1, soon())
    assert raised.value.__cause__ is error
    workers.close(timeout_seconds=PATIENCE_SECONDS)
    [line] = logged_by(caplog, "service.concurrency.workers")
    assert line.exc_info and line.exc_info[1] is error
