"""The daily limit against the official Firestore emulator."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from google.cloud import firestore

from service.daily_limit import DailyLimit
from service.deadline import NO_DEADLINE
from service.domain import (
    CommittedResult,
    ErrorCode,
    Failure,
    ImageRef,
    ImageResult,
    Outcome,
    Replace,
)
from service.errors import DocumentKeptError, FirestoreUnavailableError, TooLateError
from service.gcp.daily_count import DailyCount
from service.gcp.firestore import ResultStore
from service.gcp.result_reader import ResultReader
from tests.contract.test_store import by, done, failed, read
from tests.fakes import PATIENCE_SECONDS

DAY = date(2026, 11, 30)
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


def parked(name: str) -> ImageResult:
    return ImageResult(
        ImageRef("uploads", name, 1),
        failure=Failure(ErrorCode.DAILY_IMAGE_LIMIT, "The limit was reached."),
    )


def outcomes(committed: list[CommittedResult | Exception]) -> list[Outcome | type]:
    return [each.outcome if isinstance(each, CommittedResult) else type(each) for each in committed]


# The count


def test_count_returns_the_new_total_of_the_day(daily_count: DailyCount) -> None:
    assert [daily_count.add(DAY, images) for images in (0, 3, 4)] == [0, 3, 7]
    assert daily_count.add(DAY + timedelta(days=1), 5) == 5
    assert (daily_count.read(DAY), daily_count.read(date(2026, 1, 1))) == (7, 0)


@pytest.mark.parametrize(
    ("edited", "known"),
    [(5.0, 5), ("5", 0), (None, 0), (float("nan"), 0), ([5], 0)],
    ids=["double", "string", "null", "nan", "list"],
)
def test_count_that_a_person_edited_is_read_and_continued(
    edited: object, known: int, daily_count: DailyCount
) -> None:
    daily_count._document(DAY).set({"images": edited})
    assert daily_count.read(DAY) == known
    assert daily_count.add(DAY, 3) == (0 if edited != edited else known + 3)
    daily_count._document(DAY).set({"other": 1})
    assert daily_count.read(DAY) == 0


def test_count_of_many_writers_at_once_is_exact(daily_count: DailyCount) -> None:
    lost = threading.Semaphore(0)

    def add(images: int) -> None:
        while True:  # as an instance does, a minute later
            try:
                daily_count.add(DAY, images)
                return
            except FirestoreUnavailableError:
                lost.release()

    with ThreadPoolExecutor(16) as writers:
        list(writers.map(add, range(1, 41)))
    total = daily_count.read(DAY)
    assert total == sum(range(1, 41)) or lost.acquire(blocking=False)
    assert total >= sum(range(1, 41))


def test_count_is_never_among_the_results(
    daily_count: DailyCount, store: ResultStore, collection: str
) -> None:
    daily_count.add(DAY, 3)
    store.commit([done("a.jpg")])
    assert len(list(firestore.Client().collection(collection).stream())) == 1


def test_count_that_is_not_confirmed_raises(collection: str) -> None:
    count = DailyCount(firestore.Client(), collection=collection, timeout_seconds=1e-6)
    with pytest.raises(FirestoreUnavailableError):
        count.add(DAY, 1)
    late = replace(NO_DEADLINE, ends_at=0.0)
    with pytest.raises(TooLateError):
        count.add(DAY, 1, late)


# Parked documents


def test_result_replaces_a_parked_document_once(store: ResultStore, collection: str) -> None:
    first, again = by(1, done("a.jpg", "cat")), by(2, done("a.jpg", "dog"))
    assert outcomes(store.commit([parked("a.jpg")])) == [Outcome.PARKED]
    assert not store.is_final(first.ref.document_id)
    assert outcomes(store.commit([first])) == [Outcome.DONE]
    assert store.is_final(first.ref.document_id)
    assert outcomes(store.commit([again])) == [Outcome.SUPERSEDED]
    document = read(collection, first)
    assert document and (document["status"], document["error"]) == ("done", None)
    assert document["labels"] == ["cat"]


def test_parked_document_is_written_once(store: ResultStore, collection: str) -> None:
    store.commit([parked("a.jpg")])
    before = read(collection, parked("a.jpg"))
    assert outcomes(store.commit([parked("a.jpg"), parked("b.jpg")])) == [Outcome.PARKED] * 2
    assert read(collection, parked("a.jpg")) == before
    assert before
    assert before.keys() - {"created_at"} == (read(collection, parked("b.jpg")) or {}).keys() - {
        "created_at"
    }


@pytest.mark.parametrize("final", [done("a.jpg", "cat"), failed("a.jpg")], ids=["done", "failed"])
def test_parking_never_replaces_a_final_document(
    final: ImageResult, store: ResultStore, collection: str
) -> None:
    store.commit([final])
    before = read(collection, final)
    assert before
    assert outcomes(store.commit([parked("a.jpg")])) == [Outcome.SUPERSEDED]
    permission = Replace(datetime.now(UTC) + timedelta(days=1))
    again = replace(parked("a.jpg"), ref=replace(final.ref, replace=permission))
    assert outcomes(store.commit([again])) == [DocumentKeptError]
    assert read(collection, final) == before


def test_parked_and_done_at_once_end_as_done(store: ResultStore, collection: str) -> None:
    """Two instances commit the same images: one knows that the limit is reached, one does not."""
    names = [f"{i}.jpg" for i in range(40)]
    results = [result for name in names for result in (parked(name), by(1, done(name, "cat")))]
    with ThreadPoolExecutor(16) as committers:
        list(committers.map(lambda result: store.commit([result]), results))
    statuses = {(read(collection, done(name)) or {}).get("status") for name in names}
    assert statuses == {"done"}


def test_parked_images_are_found_without_the_others(
    store: ResultStore, reader: ResultReader
) -> None:
    names = [f"{i}.jpg" for i in range(7)]
    store.commit([parked(name) for name in names])
    store.commit([by(1, done(names[0])), done("done.jpg"), failed("failed.jpg")])
    found = list(reader.parked(page_size=2))
    assert sorted(ref.name for _, ref in found) == names[1:]
    assert {(ref.bucket, ref.generation) for _, ref in found} == {("uploads", 1)}
    assert all(isinstance(parked_at, datetime) for parked_at, _ in found)


# The bound


@pytest.mark.parametrize("instances", [1, 4])
def test_overshoot_is_what_instances_process_in_a_minute(
    daily_count: DailyCount, instances: int
) -> None:
    """Simulate instances that each process images at a constant rate, several at a time."""
    limit, per_second, in_flight = 300, 1, 3
    clock = [NOON]
    limits = [DailyLimit(limit, daily_count, now=lambda: clock[0]) for _ in range(instances)]
    for each in limits:
        each.share(NO_DEADLINE, is_due=True)
    total = 0
    for _ in range(600):
        for each in limits:
            # `in_flight` images are admitted before the first of them ends.
            admitted = [each.admit() for _ in range(per_second * in_flight)]
            total += sum(admitted)
            for _ in admitted:
                each.share(NO_DEADLINE)
        clock[0] += timedelta(seconds=in_flight)
    minute = 60 * per_second
    assert limit <= total <= limit + instances * (minute + in_flight)
    if instances == 1:
        assert total == limit
    for each in limits:
        each.share(NO_DEADLINE, is_due=True)
    assert daily_count.read(DAY) == total


# A process that is one instance: it counts for several simulated minutes, and is then killed.
_INSTANCE = """
import os, signal, sys
from datetime import UTC, datetime, timedelta
from google.cloud import firestore
from service.daily_limit import DailyLimit
from service.deadline import NO_DEADLINE
from service.gcp.daily_count import DailyCount
now = datetime(2026, 11, 30, 12, tzinfo=UTC)
count = DailyCount(firestore.Client(), collection=sys.argv[1], timeout_seconds=60)
limit = DailyLimit(300, count, now=lambda: now)
limit.share(NO_DEADLINE, is_due=True)
admitted = 0
for second in range(330):
    admitted += limit.admit()
    limit.share(NO_DEADLINE)
    now += timedelta(seconds=1)
print(admitted, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_instances_lose_at_most_a_minute_each(collection: str) -> None:
    """Run four processes at once, which are killed at the end and so do not share their rest."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _INSTANCE, collection], stdout=subprocess.PIPE, env=os.environ
        )
        for _ in range(4)
    ]
    outputs = [process.communicate(timeout=PATIENCE_SECONDS * 2)[0] for process in processes]
    total = sum(map(int, outputs))
    count = DailyCount(firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS)
    assert 300 <= total <= 300 + 4 * 61  # 60 images, and the one that shares
    assert total - 4 * 61 <= count.read(DAY) <= total
    # A later instance knows what they counted.
    later = DailyLimit(300, count, now=lambda: NOON)
    later.share(NO_DEADLINE, is_due=True)
    assert sum(later.admit() for _ in range(400)) <= 4 * 61
