"""Verdicts in a database of their own, on Firestore's emulator."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import firestore

from service.errors import FirestoreRefusedError
from service.gcp.result_pages import Usage
from service.gcp.verdict_store import COLLECTION, VerdictsDatabaseError, VerdictStore
from service.verdicts import MAX_EARLIER, VerdictChangedError
from tests.fakes import PATIENCE_SECONDS

RESULT = "a" * 40


@pytest.fixture
def client() -> firestore.Client:
    """The client of a database that only this test uses."""
    return firestore.Client(database=f"v{uuid.uuid4().hex[:12]}")


@pytest.fixture
def usage() -> Usage:
    return Usage()


@pytest.fixture
def store(client: firestore.Client, usage: Usage) -> VerdictStore:
    return VerdictStore(client, timeout_seconds=PATIENCE_SECONDS, usage=lambda: usage)


def verdict(image: str = "correct", reviewer: str = "local", **fields: Any) -> dict[str, Any]:
    judged = {"index": 0, "label": "star", "confidence": 0.5, "verdict": image}
    return {"image": image, "reviewer": reviewer, "detections": [judged]} | fields


def stored(client: firestore.Client, document_id: str = RESULT) -> dict[str, Any] | None:
    fields: dict[str, Any] | None = (
        client.collection(COLLECTION).document(document_id).get().to_dict()
    )
    return fields


def test_verdict_is_stored_in_its_own_database(
    store: VerdictStore, client: firestore.Client
) -> None:
    before = datetime.now(UTC)
    written = store.write(RESULT, verdict())
    assert written.items() >= verdict().items()
    assert abs((written["reviewed_at"] - before).total_seconds()) < PATIENCE_SECONDS
    assert store.read([RESULT, "b" * 40]) == {RESULT: written | {"earlier": []}}
    assert not firestore.Client().collection(COLLECTION).document(RESULT).get().exists


def test_same_verdict_again_changes_nothing(store: VerdictStore, client: firestore.Client) -> None:
    store.write(RESULT, verdict())
    first = stored(client)
    again = store.write(RESULT, verdict())
    assert again == first == stored(client)


def test_undo_restores_one_verdict_after_the_other(store: VerdictStore) -> None:
    first = store.write(RESULT, verdict("correct", "a@example.com"))
    second = store.write(RESULT, verdict("wrong", "b@example.com"))
    third = store.write(RESULT, verdict("correct", "b@example.com"))
    assert store.undo(RESULT, third["revision"], "b@example.com") == second
    assert store.undo(RESULT, second["revision"], "b@example.com") == first
    assert store.read([RESULT]) == {RESULT: first | {"earlier": []}}
    assert store.undo(RESULT, first["revision"], "a@example.com") is None
    assert store.read([RESULT]) == {}


def test_undo_never_removes_the_verdict_of_another(store: VerdictStore) -> None:
    first = store.write(RESULT, verdict("correct", "a@example.com"))
    second = store.write(RESULT, verdict("wrong", "b@example.com"))
    for revision in (first["revision"], second["revision"], "", "x"):
        with pytest.raises(VerdictChangedError, match="Somebody else"):
            store.undo(RESULT, revision, "a@example.com")
    assert store.read([RESULT])[RESULT]["revision"] == second["revision"]
    with pytest.raises(VerdictChangedError):
        store.undo("b" * 40, first["revision"], "a@example.com")


def test_two_reviewers_at_once_lose_no_verdict(
    store: VerdictStore, client: firestore.Client
) -> None:
    reviewers = [f"{number}@example.com" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        written = list(
            pool.map(lambda reviewer: store.write(RESULT, verdict("wrong", reviewer)), reviewers)
        )
    found = stored(client)
    assert found is not None
    everything = [*found["earlier"], found]
    assert {each["reviewer"] for each in everything} == set(reviewers)
    assert found["revision"] in {each["revision"] for each in written}


def test_earlier_verdicts_are_few_and_fit(store: VerdictStore, client: firestore.Client) -> None:
    for number in range(MAX_EARLIER + 3):
        store.write(RESULT, verdict(order=str(number)))
    found = stored(client)
    assert found is not None
    orders = [each["order"] for each in found["earlier"]]
    assert orders == [str(number) for number in range(2, MAX_EARLIER + 2)]
    for number in range(4):
        store.write(RESULT, verdict(order=str(number) * 300_000))
    found = stored(client)
    assert found is not None
    assert len(found["earlier"]) == 1


def test_newest_verdicts_come_first_and_are_bounded(store: VerdictStore, usage: Usage) -> None:
    for number in range(5):
        store.write(f"{number:040x}", verdict(order=str(number)))
    usage.queries = usage.documents = 0
    found = list(store.newest(3))
    assert [each["order"] for each in found] == ["4", "3", "2"]
    assert "earlier" not in found[0]
    assert (usage.queries, usage.documents) == (1, 3)
    assert len(list(store.newest(10))) == 5


def test_newest_reads_page_by_page(
    store: VerdictStore, usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        store.write(f"{number:040x}", verdict(order=str(number)))
    monkeypatch.setattr("service.gcp.verdict_store._PAGE_SIZE", 2)
    usage.queries = 0
    assert [each["order"] for each in store.newest(10)] == ["4", "3", "2", "1", "0"]
    assert usage.queries == 3


def test_count_has_conditions(store: VerdictStore, usage: Usage) -> None:
    store.write("a" * 40, verdict(source="gate", labels=["star", "fox"], found=True))
    store.write("b" * 40, verdict(source="gate", labels=["star"], found=True))
    store.write("c" * 40, verdict(source="yard", labels=[], found=False))
    usage.queries = usage.documents = 0
    assert store.count({}) == 3
    assert store.count({"source": "gate", "labels": "fox", "found": True}) == 1
    assert store.count({"found": False}) == 1
    assert (usage.queries, usage.documents) == (3, 3)


def test_reads_are_counted_also_without_a_verdict(store: VerdictStore, usage: Usage) -> None:
    assert store.read([f"{number:040x}" for number in range(30)]) == {}
    assert store.read([]) == {}
    assert (usage.queries, usage.documents) == (1, 30)


def test_edited_verdict_can_be_replaced_and_undone(
    store: VerdictStore, client: firestore.Client
) -> None:
    client.collection(COLLECTION).document(RESULT).set({"earlier": 5, "image": []})
    written = store.write(RESULT, verdict())
    assert store.undo(RESULT, written["revision"], "local") == {"image": []}


def test_missing_database_says_how_to_create_it(
    store: VerdictStore, client: firestore.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator has every database."""

    def missing(*_: Any, **__: Any) -> Any:
        raise exceptions.NotFound("The database does not exist")

    monkeypatch.setattr(client, "get_all", missing)
    with pytest.raises(VerdictsDatabaseError, match=f"--database={client._database} "):
        store.read([RESULT])
    assert issubclass(VerdictsDatabaseError, FirestoreRefusedError)
