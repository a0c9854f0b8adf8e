"""What the vendor's client makes of Cloud Storage's refusals, and what we make of that.

The server is ours: no emulator refuses.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
from google.cloud import storage

from service.domain import ErrorCode, ImageRef
from service.errors import (
    BadImageError,
    ObjectGoneError,
    StorageRefusedError,
    StorageUnavailableError,
)
from service.storage import ImageStorage, NoBucketError, ObjectLister
from tests.fakes import PATIENCE_SECONDS
from tests.refusing_storage import (
    BUCKET,
    CUSTOMER_KEY,
    DISABLED,
    FORBIDDEN,
    KMS_KEY,
    REQUESTER_PAYS,
    TOO_FAST,
    Answer,
    RefusingStorage,
    ref,
    refusing_storage,
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RefusingStorage]:
    with refusing_storage() as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        yield running


@pytest.fixture
def service(server: RefusingStorage) -> Iterator[ImageStorage]:
    with storage.Client() as client:
        yield ImageStorage(client, timeout_seconds=PATIENCE_SECONDS, max_bytes=1000, connections=4)


def reason_of(service: ImageStorage, image: ImageRef) -> str:
    """Why an object can never be read, when its download is refused."""
    with pytest.raises(BadImageError) as refused:
        service.download(image)
    assert refused.value.code == ErrorCode.UNREADABLE_OBJECT
    return refused.value.message


def refuse_once(service: ImageStorage, image: ImageRef) -> None:
    """Be refused for the first time, which decides nothing."""
    with pytest.raises(StorageUnavailableError) as refused:
        service.download(image)
    assert not isinstance(refused.value, StorageRefusedError)


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (CUSTOMER_KEY, "Upload it again without that key"),
        (KMS_KEY, "Enable the key"),
        (Answer(403, "forbidden", "Permission denied on Cloud KMS key."), "grant it to the Cloud"),
        (REQUESTER_PAYS, "Turn Requester Pays off"),
        (replace(REQUESTER_PAYS, reason="required"), "Turn Requester Pays off"),
        (Answer(400, "invalidArgument", "odd name"), "400 invalidArgument: odd name"),
        (Answer(451, "legal", "removed"), "for legal reasons"),
    ],
    ids=["customer-key", "kms", "kms-denied", "pays", "pays-required", "other", "legal"],
)
def test_object_refused_for_good_says_why_and_what_to_do(
    server: RefusingStorage, service: ImageStorage, answer: Answer, advice: str
) -> None:
    image = server.refuse("a.jpg", answer)
    message = reason_of(service, image)
    assert advice in message
    with pytest.raises(BadImageError) as refused:
        service.resolve(ImageRef(BUCKET, "a.jpg"))
    assert refused.value.code == ErrorCode.UNREADABLE_OBJECT


@pytest.mark.parametrize("answer", [CUSTOMER_KEY, KMS_KEY, Answer(400, "", "no")])
def test_object_whose_bytes_alone_are_refused_is_unreadable(
    server: RefusingStorage, service: ImageStorage, answer: Answer
) -> None:
    server.media["a.jpg"] = answer
    assert reason_of(service, ref("a.jpg"))


def test_object_that_is_410_is_gone(server: RefusingStorage, service: ImageStorage) -> None:
    image = server.refuse("a.jpg", Answer(410, "gone"))
    for call in (service.resolve, service.download):
        with pytest.raises(ObjectGoneError):
            call(image)


def test_forbidden_object_of_a_readable_bucket_is_unreadable(
    server: RefusingStorage, service: ImageStorage
) -> None:
    image = server.refuse("a.jpg", FORBIDDEN)
    refuse_once(service, image)
    message = reason_of(service, image)
    assert "not to the bucket" in message
    assert "storage.objects.get" in message


def test_forbidden_bytes_with_readable_metadata_are_unreadable(
    server: RefusingStorage, service: ImageStorage
) -> None:
    server.rights = []
    server.media["a.jpg"] = FORBIDDEN
    refuse_once(service, ref("a.jpg"))
    assert reason_of(service, ref("a.jpg"))


def test_forbidden_object_is_unreadable_once_others_were_read(
    server: RefusingStorage, service: ImageStorage
) -> None:
    """Its ACL: the account has no right on the bucket, but on the other objects."""
    server.rights = []
    image = server.refuse("a.jpg", FORBIDDEN)
    with pytest.raises(StorageRefusedError):
        service.download(image)
    with pytest.raises(StorageRefusedError):
        service.download(image)
    service.download(ref("b.jpg"))
    assert reason_of(service, image)


def test_bucket_that_refuses_everything_is_no_objects_fault(
    server: RefusingStorage, service: ImageStorage
) -> None:
    server.rights = []
    service.download(ref("before.jpg"))
    for name in ("a.jpg", "b.jpg", "a.jpg"):
        with pytest.raises(StorageRefusedError, match="roles/storage.objectViewer"):
            service.download(server.refuse(name, FORBIDDEN))
    assert server.asked.count("rights") == 1


@pytest.mark.parametrize(
    "answer",
    [DISABLED, Answer(401, "authError"), Answer(403, "countryBlocked"), Answer(403, "sslRequired")],
    ids=lambda answer: answer.reason,
)
def test_project_that_is_refused_is_no_objects_fault(
    server: RefusingStorage, service: ImageStorage, answer: Answer
) -> None:
    image = server.refuse("a.jpg", answer)
    for call in (service.resolve, service.download, service.resolve, service.download):
        with pytest.raises(StorageRefusedError):
            call(image)
        service.download(ref("other.jpg"))


@pytest.mark.parametrize("reason", ["rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"])
def test_too_many_requests_as_403_is_only_unavailable(
    server: RefusingStorage, service: ImageStorage, reason: str
) -> None:
    image = server.refuse("a.jpg", replace(TOO_FAST, reason=reason))
    for call in (service.download, service.resolve):
        with pytest.raises(StorageUnavailableError) as refused:
            call(image)
        assert not isinstance(refused.value, StorageRefusedError)


def test_right_that_was_just_granted_is_no_refusal(
    server: RefusingStorage, service: ImageStorage
) -> None:
    server.rights = []
    image = server.refuse("a.jpg", FORBIDDEN)
    with pytest.raises(StorageRefusedError):
        service.download(image)
    server.media.clear()
    server.metadata.clear()
    assert service.download(image).data == server.data


def test_outage_of_a_bucket_is_logged_once_and_its_end(
    server: RefusingStorage, service: ImageStorage, caplog: pytest.LogCaptureFixture
) -> None:
    server.rights = []
    for name in "abc":
        with pytest.raises(StorageRefusedError):
            service.download(server.refuse(name, FORBIDDEN))
    server.media.clear()
    service.download(ref("a"))
    service.download(ref("b"))
    logged = [(one.levelno, one.getMessage()) for one in caplog.records]
    assert logged == [
        (logging.ERROR, "Messages are rejected until this is repaired"),
        (logging.WARNING, "Messages are accepted again"),
    ]
    assert "roles/storage.objectViewer" in caplog.records[0].__dict__["reason"]


def test_organisations_policy_is_not_a_gone_object(
    server: RefusingStorage, service: ImageStorage
) -> None:
    image = server.refuse("a.jpg", Answer(412, "orgPolicyConstraintFailed"))
    with pytest.raises(StorageRefusedError):
        service.resolve(image)


@pytest.mark.parametrize("answer", [FORBIDDEN, REQUESTER_PAYS], ids=lambda one: one.reason)
def test_listing_that_is_refused_says_why(server: RefusingStorage, answer: Answer) -> None:
    server.listing = answer
    with pytest.raises(StorageRefusedError, match=f"refuses to list gs://{BUCKET}.*{answer.text}"):
        list(ObjectLister(storage.Client()).pages(BUCKET, ""))


def test_listing_of_a_bucket_that_is_410_says_so(server: RefusingStorage) -> None:
    server.listing = Answer(410, "gone")
    with pytest.raises(NoBucketError):
        list(ObjectLister(storage.Client()).pages(BUCKET, ""))
