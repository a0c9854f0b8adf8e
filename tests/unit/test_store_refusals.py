"""Refusals and outages of Firestore. The client is a fake, because the emulator never refuses."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from google.api_core import exceptions
from google.auth.exceptions import RefreshError

from service.domain import CommittedResult, ErrorCode, ImageRef, ImageResult
from service.errors import FirestoreRefusedError, FirestoreUnavailableError
from service.gcp.collection import RetryBudget
from service.gcp.firestore import ResultStore
from service.gcp.outages import Outages
from tests.loglines import logged_by

NOW = datetime(2026, 11, 21, tzinfo=UTC)


class RefusingClient:
    """A Firestore client whose calls raise `error`, unless it is None."""

    project = "p"
    _database = "(default)"

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.writes = 0

    def collection(self, name: str) -> Any:
        return self

    def document(self, document_id: str) -> Any:
        return self

    def batch(self) -> Any:
        return self

    def create(self, reference: object, document: object) -> None:
        """Accept a write, which `commit` sends."""
        self.writes += 1

    def commit(self, **call: object) -> list[Any]:
        writes, self.writes = self.writes, 0
        if self.error:
            raise self.error
        return [SimpleNamespace(transform_results=[SimpleNamespace(timestamp_value=NOW)])] * writes

    def get_all(self, references: object, **call: object) -> list[Any]:
        self.commit()
        return []


def store_of(client: Any, **options: Any) -> ResultStore:
    return ResultStore(client, collection="c", timeout_seconds=1, **options)


REFUSALS = {
    exceptions.PermissionDenied("billing is disabled"): "roles/datastore.user",
    exceptions.NotFound("no database"): "FIRESTORE_DATABASE",
    exceptions.Unauthenticated("who?"): "service account",
    RefreshError("account disabled"): "service account",
    exceptions.FailedPrecondition("Datastore mode"): "Native mode",
}


@pytest.mark.parametrize(("error", "advice"), REFUSALS.items(), ids=lambda v: type(v).__name__)
def test_database_that_refuses_everything_is_logged_once(
    error: Exception, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = RefusingClient(error)
    store = store_of(client)
    results = [ImageResult(ImageRef("uploads", name, 1)) for name in "ab"]
    for _ in range(5):
        with pytest.raises(FirestoreRefusedError, match=advice):
            store.is_final("a")
        for outcome in store.commit(results):
            assert isinstance(outcome, FirestoreRefusedError)
            assert advice in str(outcome)
    client.error = None
    store.is_final("a")
    store.is_final("a")
    store.commit(results)
    store.commit(results)
    lines = logged_by(caplog, "service.gcp.outages")
    levels = [(line.levelname, line.__dict__["subject"]) for line in lines]
    reads, writes = (f"Firestore database (default), {one}ing" for one in ("read", "writ"))
    assert levels == [("ERROR", reads), ("ERROR", writes), ("WARNING", reads), ("WARNING", writes)]
    for began in lines[:2]:
        assert advice in began.__dict__["reason"]
        assert str(error) in began.__dict__["cause"]


def test_account_that_may_only_read_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class ReadOnly(RefusingClient):
        def get_all(self, references: object, **call: object) -> list[Any]:
            return []

    client = ReadOnly(exceptions.PermissionDenied("no"))
    now = [0.0]
    outages = Outages(clock=lambda: now[0])
    store = store_of(client, outages=outages)
    for _ in range(20):
        now[0] += 60
        store.is_final("a")
        assert {type(outcome) for outcome in store.commit(RESULTS)} == {FirestoreRefusedError}
    [line] = logged_by(caplog, "service.gcp.outages")
    assert line.__dict__["subject"].endswith("writing")


class Sequence(RefusingClient):
    """A client whose commits end as listed, one after another. The last entry repeats."""

    def __init__(self, *errors: Exception | None) -> None:
        super().__init__(None)
        self.errors = list(errors)
        self.commits = 0

    def commit(self, **call: object) -> list[Any]:
        self.commits += 1
        self.error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        return super().commit()


RESULTS = [ImageResult(ImageRef("uploads", name, 1)) for name in "abcdefgh"]


@pytest.mark.parametrize(
    "away", [exceptions.RetryError("away", None), TimeoutError("away")], ids=repr
)
def test_store_that_fails_during_isolation_is_called_once(away: Exception) -> None:
    client = Sequence(exceptions.InvalidArgument("bad"), None, away)
    outcomes = store_of(client).commit(RESULTS)
    assert client.commits == 3
    assert outcomes[0] == CommittedResult(RESULTS[0])
    assert all(isinstance(outcome, FirestoreUnavailableError) for outcome in outcomes[1:])


def test_unavailable_store_is_not_called_for_the_next_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.gcp.firestore._MAX_COMMIT_BYTES", 1)  # one document per group
    client = Sequence(exceptions.RetryError("away", None))
    outcomes = store_of(client).commit(RESULTS)
    assert {type(outcome) for outcome in outcomes} == {FirestoreUnavailableError}
    assert client.commits == 1


UNEXPECTED = [
    RuntimeError("can't start new thread"),
    OSError(24, "Too many open files"),
    ValueError("x"),
]


@pytest.mark.parametrize("error", UNEXPECTED, ids=repr)
def test_unexpected_error_is_retried_alone_and_returned(error: Exception) -> None:
    passing = Sequence(error, None)
    assert store_of(passing).commit(RESULTS[:1]) == [CommittedResult(RESULTS[0])]
    lasting = Sequence(error)
    assert store_of(lasting).commit(RESULTS[:1]) == [error]
    assert lasting.commits == 2


def test_only_a_single_image_waits_before_its_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("service.gcp.firestore.time.sleep", waits.append)
    store_of(Sequence(UNEXPECTED[0], None)).commit(RESULTS)
    assert waits == []
    store_of(Sequence(UNEXPECTED[0], None)).commit(RESULTS[:1])
    assert len(waits) == 1


def test_an_attempt_gets_a_third_of_its_calls_time() -> None:
    asked: list[float] = []
    attempt = RetryBudget(90.0).limits["timeout"](lambda timeout: asked.append(timeout))
    attempt()
    assert asked == [30.0]


REFUSED = exceptions.InvalidArgument("bad")
NO_MEMORY = {
    "together": (MemoryError(),),
    "one by one": (RuntimeError("error"), MemoryError()),
    "for the record of a refusal": (REFUSED, REFUSED, MemoryError()),
}


@pytest.mark.parametrize("errors", NO_MEMORY.values(), ids=NO_MEMORY)
def test_without_memory_a_commit_ends_at_once(errors: tuple[Exception, ...]) -> None:
    client = Sequence(*errors)
    with pytest.raises(MemoryError):
        store_of(client).commit(RESULTS)
    assert client.commits == len(errors)


def test_endless_commit_conflicts_are_given_up() -> None:
    class Undecided(RefusingClient):
        commits = 0

        def commit(self, **call: object) -> list[Any]:
            self.commits += 1
            raise exceptions.AlreadyExists("there")

        def get_all(self, references: object, **call: object) -> list[Any]:
            return []

    client = Undecided(None)
    [outcome] = store_of(client).commit(RESULTS[:1])
    assert isinstance(outcome, FirestoreUnavailableError)
    assert client.commits == 10


@pytest.mark.parametrize("refusal", [ValueError("bad"), TypeError("bad"), OverflowError("bad")])
def test_document_that_cannot_be_built_is_recorded(refusal: Exception) -> None:
    class Unbuildable(RefusingClient):
        def create(self, reference: object, document: Any) -> None:
            if document["status"] == "done":
                raise refusal
            super().create(reference, document)

    store = store_of(Unbuildable(None))
    [recorded] = store.commit(RESULTS[:1])
    assert isinstance(recorded, CommittedResult) and recorded.result.failure
    assert recorded.result.failure.code == ErrorCode.UNSTORABLE_RESULT


def test_unavailable_database_is_not_reported_as_refusing(caplog: pytest.LogCaptureFixture) -> None:
    store = store_of(RefusingClient(exceptions.ServiceUnavailable("away")))
    with pytest.raises(FirestoreUnavailableError) as raised:
        store.is_final("a")
    assert not isinstance(raised.value, FirestoreRefusedError)
    assert logged_by(caplog, "service.gcp.outages") == []
