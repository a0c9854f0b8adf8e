"""What one process leaves to the next."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.suspects import Suspects
from tests.fakes import PATIENCE_SECONDS
from tests.loglines import logged_by

ROOT = Path(__file__).parents[2]
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
    [record] = logged_by(caplog, "service.suspects")
    assert record.levelno == logging.ERROR
    assert vars(record)["document_ids"] == [IDS[3]]


def dies_decoding(suspects: Suspects, *decoded: str, ran: Sequence[str] = ()) -> None:
    """A process dies while it decodes these, with or without a batch in the network."""
    suspects.begin(ran)
    for document_id in decoded:
        suspects.begin_decode(document_id)
    suspects.mourn()


def test_what_was_decoded_at_a_death_is_decoded_apart_and_stays_it() -> None:
    suspects = Suspects()
    dies_decoding(suspects, *IDS[:2])
    dies_decoding(suspects, IDS[5])
    assert [suspects.must_decode_apart(one) for one in IDS[:3]] == [True, True, False]
    assert suspects.must_decode_apart(IDS[5])
    assert not any(map(suspects.must_run_alone, IDS[:6]))


def test_what_was_decoded_to_the_end_is_not_decoded_apart() -> None:
    suspects = Suspects()
    suspects.begin_decode(IDS[0])
    suspects.begin_decode(IDS[1])
    suspects.end_decode(IDS[0])
    suspects.mourn()
    assert not suspects.must_decode_apart(IDS[0])
    assert suspects.must_decode_apart(IDS[1])


def test_end_of_what_could_not_be_begun_is_none() -> None:
    suspects = Suspects()
    suspects.begin_decode(IDS[1])
    suspects.end_decode(IDS[0])
    suspects.mourn()
    assert [suspects.must_decode_apart(one) for one in IDS[:2]] == [False, True]


def test_nobody_is_the_culprit_of_a_death_while_something_was_decoded() -> None:
    suspects = Suspects()
    dies_of(suspects, *IDS[:2])
    dies_decoding(suspects, IDS[5], ran=[IDS[0]])
    assert not suspects.is_culprit(IDS[0]) and suspects.must_run_alone(IDS[0])
    dies_of(suspects, IDS[0])
    assert suspects.is_culprit(IDS[0])


def test_culprit_stays_it_whatever_is_decoded() -> None:
    suspects = Suspects()
    dies_of(suspects, IDS[0])
    dies_of(suspects, IDS[0])
    dies_decoding(suspects, IDS[5], ran=[IDS[0]])
    assert suspects.is_culprit(IDS[0])


FORK = """
import os, signal
from service.suspects import Suspects
suspects = Suspects()
suspects.begin(["before"])
suspects.mourn()
child = os.fork()
if not child:
    suspects.begin(["ran"])
    suspects.begin_decode("decoded")
    os.kill(os.getpid(), signal.SIGKILL)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
suspects.mourn()
assert suspects.must_decode_apart("decoded")
assert suspects.must_run_alone("before") and suspects.must_run_alone("ran")
"""


def test_another_process_finds_what_this_one_died_of() -> None:
    """As gunicorn's next worker, which shares nothing but the memory.

    The fork is of a process without threads: those that other tests left may hold locks.
    """
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_notes_of_many_threads_lose_nothing() -> None:
    suspects = Suspects()

    def decode_many(ids: list[str]) -> None:
        for document_id in ids:
            suspects.begin_decode(document_id)
            suspects.end_decode(document_id)
        suspects.begin_decode(ids[0])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decode_many, [IDS[start : start + 200] for start in range(0, 1600, 200)]))
    suspects.mourn()
    apart = [place for place, one in enumerate(IDS) if suspects.must_decode_apart(one)]
    assert apart == list(range(0, 1600, 200))


def test_longer_note_before_leaves_nothing_behind_a_shorter_one() -> None:
    suspects = Suspects()
    suspects.begin(IDS[:64])
    suspects.end(IDS[:64])
    dies_of(suspects, IDS[100])
    assert suspects.must_run_alone(IDS[100])
    assert not suspects.must_run_alone(IDS[1])


def test_half_a_note_is_none_and_takes_nothing_along() -> None:
    suspects = Suspects()
    dies_of(suspects, IDS[0])
    suspects.begin(IDS[1:3])
    suspects._at_work_memory._memory[20:40] = bytes(20)
    suspects.mourn()
    assert suspects.must_run_alone(IDS[0])
    assert not suspects.must_run_alone(IDS[1])


def test_as_much_as_can_be_known_has_room() -> None:
    suspects = Suspects()
    for start in range(0, len(IDS), 50):
        dies_decoding(suspects, *IDS[start : start + 50], ran=IDS[start : start + 50])
    suspects.mourn()
    assert suspects.must_decode_apart(IDS[-1]) and suspects.must_run_alone(IDS[-1])
    assert not suspects.must_decode_apart(IDS[0])


def test_death_while_decoding_is_logged_with_its_pictures(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dies_decoding(Suspects(), IDS[3])
    [record] = logged_by(caplog, "service.suspects")
    assert record.levelno == logging.ERROR
    assert vars(record)["decoded_ids"] == [IDS[3]]
