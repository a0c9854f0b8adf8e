"""The daily limit: what each instance counts, shares and learns."""

import logging
from datetime import timedelta

import pytest

from service.daily_limit import SHARE_EVERY, DailyLimit
from service.deadline import NO_DEADLINE
from service.domain import ErrorCode
from service.errors import FirestoreUnavailableError
from tests.fakes import FakeCounter
from tests.loglines import logged_by


@pytest.fixture
def counter() -> FakeCounter:
    return FakeCounter()


def admitted(limit: DailyLimit, offered: int) -> int:
    """Offer images one after the other. Return how many were admitted."""
    count = 0
    for _ in range(offered):
        count += limit.admit()
        limit.share(NO_DEADLINE)
    return count


def test_one_instance_admits_exactly_the_limit(counter: FakeCounter) -> None:
    assert admitted(counter.limit(10), 30) == 10


def test_count_is_shared_at_most_once_a_minute(counter: FakeCounter) -> None:
    limit = counter.limit(1000)
    admitted(limit, 10)
    assert counter.added == [0]
    counter.now += SHARE_EVERY - timedelta(seconds=1)
    admitted(limit, 10)
    assert counter.added == [0]
    counter.now += timedelta(seconds=1)
    admitted(limit, 10)
    assert counter.added == [0, 21]
    counter.now += SHARE_EVERY
    admitted(limit, 1)
    assert counter.added == [0, 21, 10]


def test_nothing_is_shared_if_nothing_was_admitted(counter: FakeCounter) -> None:
    limit = counter.limit(0)
    counter.now += SHARE_EVERY
    assert admitted(limit, 10) == 0
    assert counter.added == [0]


def test_new_instance_knows_the_count_of_the_others(counter: FakeCounter) -> None:
    counter.counts[counter.now.date()] = 8
    assert admitted(counter.limit(10), 30) == 2


def test_restarts_do_not_add_to_the_limit(counter: FakeCounter) -> None:
    total = 0
    for _ in range(20):  # instances that stop in order, each of which offers 3 images
        limit = counter.limit(10)
        total += admitted(limit, 3)
        limit.share(NO_DEADLINE, is_due=True)
    assert total == 10


def test_limit_is_learnt_within_a_minute(counter: FakeCounter) -> None:
    first, second = counter.limit(10), counter.limit(10)
    assert admitted(first, 10) == 10
    first.share(NO_DEADLINE, is_due=True)
    assert admitted(second, 1) == 1  # it does not know yet
    counter.now += SHARE_EVERY
    assert admitted(second, 1) == 1  # this image shares the count, and learns the total
    assert admitted(second, 10) == 0


def test_new_day_starts_at_zero(counter: FakeCounter) -> None:
    limit = counter.limit(10)
    assert admitted(limit, 30) == 10
    counter.now += timedelta(hours=12) - timedelta(seconds=1)
    assert admitted(limit, 30) == 0
    counter.now += timedelta(seconds=1)
    assert admitted(limit, 30) == 10
    counter.now += SHARE_EVERY
    admitted(limit, 1)
    assert sorted(counter.counts.values()) == [10, 10]


def test_failed_count_is_kept_and_shared_later(
    counter: FakeCounter, caplog: pytest.LogCaptureFixture
) -> None:
    limit = counter.limit(100)
    counter.errors = [FirestoreUnavailableError("down"), BaseException("a panic")]
    for _ in range(3):
        counter.now += SHARE_EVERY
        assert admitted(limit, 5) == 5
    assert counter.counts[counter.now.date()] == 11  # the last four are shared next
    assert counter.added == [0, 1, 6, 11]
    lines = logged_by(caplog, "service.daily_limit")
    assert [line.levelno for line in lines] == [logging.WARNING] * 2
    assert [vars(line)["reason"] for line in lines] == ["down", "a panic"]


def test_without_the_counter_an_instance_counts_its_own(counter: FakeCounter) -> None:
    counter.errors = [FirestoreUnavailableError("down")] * 100
    limit = counter.limit(10)
    total = 0
    for _ in range(50):
        total += admitted(limit, 1)
        counter.now += SHARE_EVERY
    assert total == 10


def test_count_that_was_deleted_does_not_raise_the_limit(counter: FakeCounter) -> None:
    limit = counter.limit(10)
    total = 0
    for _ in range(20):
        total += admitted(limit, 3)
        counter.counts.clear()
        counter.now += SHARE_EVERY
    assert total == 10


def test_reached_limit_is_logged_once_a_day(
    counter: FakeCounter, caplog: pytest.LogCaptureFixture
) -> None:
    limit = counter.limit(10)
    for _ in range(2):
        admitted(limit, 30)
        counter.now += timedelta(days=1)
    lines = logged_by(caplog, "service.daily_limit")
    assert [line.getMessage() for line in lines] == [
        "The day's limit of images is reached: further images are parked"
    ] * 2


def test_clock_that_was_set_back_does_not_stop_the_count(counter: FakeCounter) -> None:
    limit = counter.limit(100)
    counter.now -= timedelta(hours=1)
    admitted(limit, 1)
    assert counter.added == [0, 1]


def test_count_of_yesterday_is_not_taken_for_today(counter: FakeCounter) -> None:
    limit = counter.limit(10)
    admitted(limit, 10)
    counter.now += SHARE_EVERY
    add = counter.add

    def add_at_midnight(*arguments: object) -> int:
        total = add(*arguments)  # type: ignore[arg-type]
        counter.now += timedelta(days=1)
        assert limit.admit()
        return total

    counter.add = add_at_midnight  # type: ignore[method-assign, assignment]
    limit.share(NO_DEADLINE, is_due=True)
    counter.add = add  # type: ignore[method-assign]
    assert admitted(limit, 30) == 9


def test_reason_names_the_limit_and_what_continues(counter: FakeCounter) -> None:
    failure = counter.limit(10).failure()
    assert failure.code is ErrorCode.DAILY_IMAGE_LIMIT
    assert "10 images a day (DAILY_IMAGE_LIMIT) was reached on 2026-01-01" in failure.message
    assert "`yolo-batch reconcile --enqueue parked` continues it" in failure.message
