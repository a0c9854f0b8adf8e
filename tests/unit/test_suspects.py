"""What one process leaves to the next."""

import logging

import pytest

from service.suspects import Suspects

IDS = [f"{number:040x}" for number in range(2000)]


def dies_of(suspects: Suspects, *document_ids: str) -> None:
    """A process begins, and the next one starts without its end."""
    suspects.begin(document_ids)
    suspects.mourn()


def test_nobody_is_suspected_at_first() -> None:
    suspects = Suspects()
    suspects.mourn()
    assert not suspects.must_run_alone(IDS[0])
    assert not suspects.is_culprit(IDS[0])


def test_batch_that_died_is_suspected_and_nobody_is_the_culprit_yet() -> None:
    suspects = Suspects()
    dies_of(suspects, *IDS[:8])
    assert all(suspects.must_run_alone(one) for one in IDS[:8])
    assert not any(suspects.is_culprit(one) for one in IDS[:9])
    assert not suspects.must_run_alone(IDS[8])


def test_one_that_dies_alone_once_more_is_the_culprit_and_stays_it() -> None:
    suspects = Suspects()
    dies_of(suspects, *IDS[:2])
    dies_of(suspects, IDS[0])
    dies_of(suspects, IDS[5])
    assert suspects.is_culprit(IDS[0])
    assert suspects.must_run_alone(IDS[1]) and not suspects.is_culprit(IDS[1])


def test_one_that_died_alone_the_first_time_has_a_second_chance() -> None:
    """Somebody may have killed the process."""
    suspects = Suspects()
    dies_of(suspects, IDS[0])
    assert suspects.must_run_alone(IDS[0])
    assert not suspects.is_culprit(IDS[0])


def test_suspect_that_is_run_to_the_end_is_cleared() -> None:
    suspects = Suspects()
    dies_of(suspects, *IDS[:2])
    suspects.begin(IDS[:1])
    suspects.end(IDS[:1])
    suspects.mourn()
    assert not suspects.must_run_alone(IDS[0])
    assert suspects.must_run_alone(IDS[1])


def test_batch_that_was_run_to_the_end_leaves_nothing() -> None:
    suspects = Suspects()
    suspects.begin(IDS[:8])
    suspects.end(IDS[:8])
    suspects.mourn()
    assert not suspects.must_run_alone(IDS[0])


def test_oldest_are_forgotten_before_there_is_no_room() -> None:
    suspects = Suspects()
    for start in range(0, len(IDS), 64):
        dies_of(suspects, *IDS[start : start + 64])
    assert suspects.must_run_alone(IDS[-1])
    assert not suspects.must_run_alone(IDS[0])


def test_death_is_logged_with_its_pictures(caplog: pytest.LogCaptureFixture) -> None:
    dies_of(Suspects(), IDS[3])
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert vars(record)["document_ids"] == [IDS[3]]
