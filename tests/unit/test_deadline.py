"""Every wait of a delivery ends with its deadline."""

import pytest

from service.deadline import NO_DEADLINE, Deadline
from service.errors import TooLateError


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr("service.deadline.time.monotonic", lambda: clock[0])
    return clock


def test_a_wait_takes_its_own_limit_while_enough_time_is_left(now: list[float]) -> None:
    assert Deadline.after(60, commit_seconds=10).wait_seconds(6) == 6


def test_a_wait_ends_before_the_seconds_reserved_for_the_commit(now: list[float]) -> None:
    deadline = Deadline.after(60, commit_seconds=10)
    now[0] += 47
    assert deadline.wait_seconds(6) == 3


def test_no_wait_starts_in_the_seconds_of_the_commit(now: list[float]) -> None:
    deadline = Deadline.after(60, commit_seconds=10)
    now[0] += 50
    with pytest.raises(TooLateError):
        deadline.wait_seconds(6)


def test_the_commit_may_use_the_reserved_seconds(now: list[float]) -> None:
    deadline = Deadline.after(60, commit_seconds=10)
    now[0] += 55
    assert deadline.for_commit().wait_seconds() == 5


def test_seconds_left_are_negative_after_the_end(now: list[float]) -> None:
    deadline = Deadline.after(60)
    now[0] += 61
    assert deadline.seconds_left() == -1


def test_without_a_deadline_a_wait_takes_its_own_limit() -> None:
    assert NO_DEADLINE.wait_seconds(6) == 6
