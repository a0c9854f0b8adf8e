"""The smoke test: its sample, the wait for its document, and the vendor's errors."""

from typing import Any

import cv2
import numpy as np
import pytest
from google.api_core import exceptions

from service.domain import ImageRef
from service.errors import FirestoreUnavailableError, SmokeError, StorageUnavailableError
from service.gcp.samples import CloudSamples
from service.operate.smoke import draw_sample, sample_name, wait_for_result

REF = ImageRef("uploads", "smoke/1.jpg", 7)
DONE = {"generation": 7, "status": "done", "error": None}
FAILED = {
    "generation": 7,
    "status": "failed",
    "error": {"code": "corrupt_image", "message": "The JPEG is cut short."},
}
PARKED = {
    "generation": 7,
    "status": "parked",
    "error": {"code": "daily_image_limit", "message": "The limit of 10 images a day was reached."},
}


class FakeResults:
    """Returns or raises the given items, one for each read. The last item repeats."""

    def __init__(self, *looks: dict[str, Any] | Exception | None):
        self.looks = list(looks)
        self.asked: list[str] = []

    def document(self, document_id: str) -> dict[str, Any] | None:
        self.asked.append(document_id)
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return look


class FakeBlob:
    """An object in Cloud Storage whose calls all raise the same error."""

    def __init__(self, error: Exception):
        self.error = error

    def upload_from_string(self, *_: object, **__: object) -> None:
        raise self.error

    def delete(self, **_: object) -> None:
        raise self.error


class FakeClient:
    """A client with such objects."""

    def __init__(self, error: Exception):
        self.error = error

    def bucket(self, _: str) -> "FakeClient":
        return self

    def blob(self, _: str) -> FakeBlob:
        return FakeBlob(self.error)


def wait(results: FakeResults, timeout_seconds: float = 600) -> dict[str, Any]:
    return wait_for_result(REF, results, timeout_seconds=timeout_seconds, poll_seconds=0)


def test_sample_is_a_jpeg_of_two_colours_on_grey() -> None:
    data = draw_sample()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert data[:2] == b"\xff\xd8"
    assert image is not None
    assert image.shape == (240, 320, 3)
    assert image.std() > 10


@pytest.mark.parametrize(
    ("prefix", "folder"),
    [("", "smoke/"), ("in/", "in/smoke/"), ("cam1", "cam1/smoke/")],
    ids=["none", "folder", "bare"],
)
def test_sample_has_a_name_of_its_own_under_the_prefix(prefix: str, folder: str) -> None:
    names = {sample_name(prefix) for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(folder) and name.endswith(".jpg") for name in names)


def test_wait_reads_the_document_of_this_generation() -> None:
    results = FakeResults(None, None, DONE)
    assert wait(results) == DONE
    assert results.asked == [REF.document_id] * 3


def test_timeout_names_the_generation_and_what_to_check() -> None:
    with pytest.raises(SmokeError, match="has no document after 0 s") as raised:
        wait(FakeResults(None), timeout_seconds=0)
    sentence = str(raised.value)
    assert "gs://uploads/smoke/1.jpg (generation 7)" in sentence
    assert "service's log" in sentence
    assert "subscription" in sentence
    assert "dead letters" in sentence


def test_failed_document_is_an_error_with_its_reason() -> None:
    with pytest.raises(SmokeError, match="has status failed: corrupt_image: The JPEG is cut short"):
        wait(FakeResults(FAILED))


def test_wait_continues_while_firestore_is_unavailable() -> None:
    away = FirestoreUnavailableError("Firestore is unavailable.")
    assert wait(FakeResults(away, away, DONE)) == DONE


def test_firestore_that_stays_unavailable_is_reported() -> None:
    away = FirestoreUnavailableError("Firestore refused access.")
    with pytest.raises(SmokeError, match="Firestore refused access"):
        wait(FakeResults(away), timeout_seconds=0)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (exceptions.NotFound("no"), "Cannot upload gs://b/n: there is no such bucket"),
        (exceptions.Forbidden("no"), "roles/storage.objectUser"),
    ],
    ids=["bucket", "access"],
)
def test_failed_upload_is_an_error_in_one_sentence(error: Exception, sentence: str) -> None:
    with pytest.raises(SmokeError, match=sentence):
        CloudSamples(FakeClient(error)).upload("b", "n", b"")


def test_upload_without_a_server_is_transient() -> None:
    error = exceptions.RetryError("no", cause=None)
    with pytest.raises(StorageUnavailableError, match="Cannot upload gs://b/n: Cloud Storage is"):
        CloudSamples(FakeClient(error)).upload("b", "n", b"")


def test_removal_of_a_gone_object_is_no_error() -> None:
    CloudSamples(FakeClient(exceptions.NotFound("no"))).remove(REF)


def test_refused_removal_is_an_error() -> None:
    with pytest.raises(SmokeError, match="Cannot delete gs://uploads/smoke/1.jpg: access refused"):
        CloudSamples(FakeClient(exceptions.Forbidden("no"))).remove(REF)


def test_parked_sample_fails_the_test_and_says_why() -> None:
    with pytest.raises(SmokeError, match="parked, so the model was not tested. The limit of 10"):
        wait(FakeResults(None, PARKED))
