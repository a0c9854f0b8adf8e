"""What Firestore refuses for everybody; the emulator refuses nobody, so the client is a fake."""

from typing import Any

import pytest
from google.api_core import exceptions
from google.auth.exceptions import RefreshError

from service.domain import ImageRef, ImageResult
from service.errors import StoreRefusedError, StoreUnavailableError
from service.store import ResultStore


class RefusingClient:
    """A Firestore that answers every call with one error, until there is none."""

    project = "p"
    _database = "(default)"

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def collection(self, name: str) -> Any:
        return self

    def document(self, document_id: str) -> Any:
        return self

    def batch(self) -> Any:
        return self

    def create(self, reference: object, document: object) -> None:
        """Take a write, which `commit` sends."""

    def commit(self, **call: object) -> None:
        if self.error:
            raise self.error

    def get(self, **call: object) -> Any:
        self.commit()
        return self

    def get_all(self, references: object, **call: object) -> list[Any]:
        self.commit()
        return []

    exists = False


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
    store = ResultStore(client, collection="c", timeout_seconds=1)
    results = [ImageResult(ImageRef("uploads", name, 1)) for name in "ab"]
    for _ in range(5):
        with pytest.raises(StoreRefusedError, match=advice):
            store.is_final("a")
        with pytest.raises(StoreRefusedError, match=advice):
            store.commit(results)
    client.error = None
    store.is_final("a")
    store.is_final("a")
    began, ended = caplog.records
    assert (began.levelname, ended.levelname) == ("ERROR", "WARNING")
    assert advice in began.__dict__["reason"]
    assert str(error) in began.__dict__["cause"]


def test_database_that_is_away_is_not_called_refusing(caplog: pytest.LogCaptureFixture) -> None:
    store = ResultStore(
        RefusingClient(exceptions.ServiceUnavailable("away")), collection="c", timeout_seconds=1
    )
    with pytest.raises(StoreUnavailableError) as raised:
        store.is_final("a")
    assert not isinstance(raised.value, StoreRefusedError)
    assert caplog.messages == []
