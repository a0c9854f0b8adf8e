"""The daily limit with the real service: uploads beyond it are parked, and done on the next day."""

import os
import signal
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.cloud import firestore

from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from service.gcp.daily_count import DailyCount
from tests.system.conftest import Service, put_aside, run_cli, wait_for_deliveries

Samples = list[tuple[Path, Scene]]
LIMIT = 10


@pytest.fixture
def collection(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a collection of this test, because the count is one for each collection and day."""
    name = f"limited-{uuid.uuid4().hex}"
    monkeypatch.setenv("FIRESTORE_COLLECTION", name)
    return name


@pytest.fixture
def refs(stack: Stack, samples: Samples) -> list[ImageRef]:
    prefix = f"limit-{uuid.uuid4().hex}"
    data = samples[0][0].read_bytes()
    return [put_aside(stack, f"{prefix}/{i:02}.jpg", data) for i in range(30)]


def documents(collection: str) -> dict[str, dict[str, object]]:
    snapshots = firestore.Client().collection(collection).stream()
    return {snapshot.id: snapshot.to_dict() or {} for snapshot in snapshots}


def statuses(collection: str) -> Counter[object]:
    return Counter(document["status"] for document in documents(collection).values())


def count(collection: str) -> DailyCount:
    return DailyCount(firestore.Client(), collection=collection, timeout_seconds=60)


def begin_next_day(collection: str) -> None:
    """Forget the day's count, as the next day does, whose document does not exist yet."""
    for document in firestore.Client().collection(f"{collection}-images-per-day").stream():
        document.reference.delete()


def wait_for_done(collection: str, done: int) -> None:
    wait_for_deliveries(lambda: statuses(collection)["done"] == done, f"{done} are not done")


def continue_parked(
    refs: list[ImageRef], topic: str, monkeypatch: pytest.MonkeyPatch, limit: int
) -> str:
    monkeypatch.setenv("DAILY_IMAGE_LIMIT", str(limit))
    prefix = refs[0].name.partition("/")[0]
    options = ["--enqueue", "parked", "--yes", "--topic", topic]
    done = run_cli("reconcile", f"gs://{refs[0].bucket}/{prefix}/", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_uploads_beyond_the_limit_are_done_on_other_days(
    refs: list[ImageRef],
    collection: str,
    start_service: Callable[..., Service],
    make_topic: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = start_service(DAILY_IMAGE_LIMIT=str(LIMIT))
    assert first.post_all(refs) == {204}
    assert statuses(collection) == {"done": LIMIT, "parked": 20}
    before = documents(collection)
    assert first.post_all(refs) == {204}  # a second delivery changes nothing
    assert documents(collection) == before
    first.stop()
    assert first.outcomes()["parked"] == 40
    assert count(collection).read(datetime.now(UTC).date()) == LIMIT

    # An instance that starts on the same day processes no more.
    second = start_service(DAILY_IMAGE_LIMIT=str(LIMIT))
    assert second.post_all(refs) == {204}
    assert documents(collection) == before
    second.stop()

    for day in (1, 2):
        begin_next_day(collection)
        service = start_service(DAILY_IMAGE_LIMIT=str(LIMIT))
        topic = make_topic(push_config={"push_endpoint": service.url})
        output = continue_parked(refs, topic, monkeypatch, LIMIT)
        assert f"Published {LIMIT} jobs" in output
        wait_for_done(collection, LIMIT * (day + 1))
        service.stop()
        assert service.outcomes()["done"] == LIMIT
    after = documents(collection)
    assert set(after) == {ref.document_id for ref in refs}
    assert all(after[key] == before[key] for key in before if before[key]["status"] == "done")


def test_killed_service_loses_no_image_and_bounds_the_rest(
    refs: list[ImageRef],
    collection: str,
    start_service: Callable[..., Service],
    make_topic: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = start_service(DAILY_IMAGE_LIMIT=str(LIMIT))
    assert first.post_all(refs[:6]) == {204}
    for pid in (first.child.process.pid, first.worker):  # it had not shared its count
        os.kill(pid, signal.SIGKILL)
    second = start_service(DAILY_IMAGE_LIMIT=str(LIMIT))
    assert second.post_all(refs) == {204}
    found = statuses(collection)
    assert LIMIT <= found["done"] <= LIMIT + 6
    assert sum(found.values()) == 30
    done = {key for key, each in documents(collection).items() if each["status"] == "done"}
    kept = {key: documents(collection)[key] for key in done}
    second.stop()

    begin_next_day(collection)
    third = start_service(DAILY_IMAGE_LIMIT="100")
    topic = make_topic(push_config={"push_endpoint": third.url})
    continue_parked(refs, topic, monkeypatch, 100)
    wait_for_done(collection, 30)
    after = documents(collection)
    assert {key: after[key] for key in kept} == kept
