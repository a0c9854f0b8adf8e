"""The objects of a result: their names, and which are created and removed."""

import hashlib
import re
from collections import defaultdict
from dataclasses import replace
from unittest.mock import Mock

import pytest
from google.api_core import exceptions

from service.deadline import NO_DEADLINE
from service.domain import CommittedResult, DerivedImage, DerivedKind, ImageRef, ImageResult
from service.errors import DocumentKeptError, ObjectGoneError, StorageUnavailableError
from service.gcp.result_objects import ResultObjects
from service.gcp.result_uploads import ResultUploads
from service.health import Health
from service.object_metadata import RESULT_MARKER
from service.recorder import Recorder
from tests.loglines import logged_by

REF = ImageRef("uploads", "Secret place/cat & dog.jpg", 7)
JPEG, PNG, TEXT = "image/jpeg", "image/png", "text/plain"
IMAGES = (
    DerivedImage(DerivedKind.THUMBNAIL, b"1", JPEG, 32, 24),
    DerivedImage(DerivedKind.NORMALIZED, b"2", PNG, 32, 24),
    DerivedImage(DerivedKind.LABELS, b"3", TEXT),
    DerivedImage(DerivedKind.CROP, b"4", JPEG, 9, 9, class_id=17),
    DerivedImage(DerivedKind.CROP, b"4", JPEG, 9, 9, class_id=17),
)
RESULT = ImageResult(REF, derived=IMAGES)


def uploads_of(client: Mock) -> ResultUploads:
    return ResultUploads(ResultObjects(client, "results", timeout_seconds=1))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_names_have_ids_and_hashes_only() -> None:
    prepared = uploads_of(Mock()).prepare(RESULT)
    names = [f"{image.uri}".removeprefix("gs://results/") for image in prepared.result.derived]
    start = REF.document_id
    assert names == [
        f"{start}-thumbnail-{sha256(b'1')}.jpg",
        f"{start}-normalized-{sha256(b'2')}.png",
        f"{start}-labels-{sha256(b'3')}.txt",
        f"{start}-crop-17-3-{sha256(b'4')}.jpg",
        f"{start}-crop-17-4-{sha256(b'4')}.jpg",
    ]
    assert all(re.fullmatch(r"[0-9a-z.-]+", name) for name in names)


def test_objects_have_their_type_and_the_marker() -> None:
    client = Mock()
    blobs: dict[str, Mock] = defaultdict(Mock)
    client.bucket().blob.side_effect = blobs.__getitem__
    prepared = uploads_of(client).prepare(RESULT)
    for image in prepared.result.derived:
        blob = blobs[f"{image.uri}".removeprefix("gs://results/")]
        assert blob.metadata == {RESULT_MARKER: "true"}
        [call] = blob.upload_from_string.call_args_list
        assert call.args == (image.data,)
        assert call.kwargs["content_type"] == image.content_type
        assert call.kwargs["if_generation_match"] == 0
    assert len(blobs) == len(IMAGES)


def test_result_without_objects_makes_no_call() -> None:
    client = Mock()
    uploads = uploads_of(client)
    prepared = uploads.prepare(ImageResult(REF))
    uploads.settle(prepared, CommittedResult(prepared.result))
    client.bucket.assert_not_called()


def test_created_objects_are_not_looked_up_after_the_commit() -> None:
    """Only an object that another delivery created can have been removed by it."""
    client, store = Mock(), Mock()
    store.commit = lambda results, deadline: [CommittedResult(each) for each in results]
    recorder = Recorder(store, Health(hang_timeout_seconds=60), uploads_of(client), Mock())
    recorder.record(RESULT, NO_DEADLINE)
    recorder.close(timeout_seconds=1)
    assert client.bucket().blob().upload_from_string.call_count == len(IMAGES)
    client.bucket().blob().delete.assert_not_called()
    client.bucket().list_blobs.assert_not_called()


def test_found_objects_are_created_again_if_they_are_missing() -> None:
    client = Mock()
    upload = client.bucket().blob().upload_from_string
    upload.side_effect = exceptions.PreconditionFailed("conditionNotMet")
    uploads = uploads_of(client)
    prepared = uploads.prepare(RESULT)
    assert len(prepared.found) == len(IMAGES)
    upload.reset_mock(side_effect=True)
    uploads.settle(prepared, CommittedResult(prepared.result))
    assert upload.call_count == len(IMAGES)


@pytest.mark.parametrize("is_superseded", [True, False])
def test_useless_objects_are_removed(is_superseded: bool) -> None:
    client = Mock()
    uploads = uploads_of(client)
    prepared = uploads.prepare(RESULT)
    old = f"gs://results/{REF.document_id}-thumbnail-{sha256(b'old')}.jpg"
    unused = prepared.result.object_uris if is_superseded else frozenset({old})
    committed = CommittedResult(prepared.result, is_superseded=is_superseded, unused_uris=unused)
    client.bucket().blob.reset_mock()
    uploads.settle(prepared, committed)
    removed = {f"gs://results/{call.args[0]}" for call in client.bucket().blob.call_args_list}
    assert removed == unused


def test_superseded_delivery_keeps_what_it_found() -> None:
    client = Mock()
    upload = client.bucket().blob().upload_from_string
    upload.side_effect = exceptions.PreconditionFailed("conditionNotMet")
    uploads = uploads_of(client)
    prepared = uploads.prepare(RESULT)
    superseded = CommittedResult(
        prepared.result, is_superseded=True, unused_uris=prepared.result.object_uris
    )
    uploads.settle(prepared, superseded)
    client.bucket().blob().delete.assert_not_called()


def test_objects_of_an_image_deleted_meanwhile_are_removed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever created them: their other delivery may have crashed."""
    client, store = Mock(), Mock()
    client.bucket().blob().upload_from_string.side_effect = exceptions.PreconditionFailed("exists")
    client.bucket().list_blobs.return_value = []
    store.commit = lambda results, deadline: [ObjectGoneError("deleted")] * len(results)
    recorder = Recorder(store, Health(hang_timeout_seconds=60), uploads_of(client))
    with pytest.raises(ObjectGoneError):
        recorder.record(RESULT, NO_DEADLINE)
    client.bucket().list_blobs.side_effect = exceptions.ServiceUnavailable("away")
    with pytest.raises(ObjectGoneError):
        recorder.record(RESULT, NO_DEADLINE)
    recorder.close(timeout_seconds=1)
    prefixes = [call.kwargs["prefix"] for call in client.bucket().list_blobs.call_args_list]
    assert prefixes == [f"{REF.document_id}-"] * 2
    [line] = [each for each in logged_by(caplog, "service.recorder") if each.levelno > 20]
    assert line.__dict__["document_id"] == REF.document_id


def test_objects_of_a_failed_replacement_are_removed() -> None:
    client, store = Mock(), Mock()
    upload = client.bucket().blob().upload_from_string
    upload.side_effect = [None, exceptions.PreconditionFailed("conditionNotMet")]
    store.commit = lambda results, deadline: [DocumentKeptError("kept")] * len(results)
    recorder = Recorder(store, Health(hang_timeout_seconds=60), uploads_of(client))
    with pytest.raises(DocumentKeptError):
        recorder.record(replace(RESULT, derived=IMAGES[:2]), NO_DEADLINE)
    recorder.close(timeout_seconds=1)
    client.bucket().blob().delete.assert_called_once()  # not what was found


def test_ended_upload_does_not_count_as_a_deleted_image() -> None:
    """A deleted image is acknowledged without a result."""
    client = Mock()
    error = exceptions.from_http_status(410, "The session has ended.")
    client.bucket().blob().upload_from_string.side_effect = error
    with pytest.raises(StorageUnavailableError):
        uploads_of(client).prepare(RESULT)


def test_failed_upload_commits_nothing() -> None:
    client, store = Mock(), Mock()
    client.bucket().blob().upload_from_string.side_effect = exceptions.RetryError("away", None)
    recorder = Recorder(store, Health(hang_timeout_seconds=60), uploads_of(client))
    with pytest.raises(StorageUnavailableError):
        recorder.record(replace(RESULT, derived=IMAGES[:1]), NO_DEADLINE)
    recorder.close(timeout_seconds=1)
    store.commit.assert_not_called()
