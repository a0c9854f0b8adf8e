"""What the vendor's client makes of Cloud Storage's refusals, and what we make of that.

The server is ours: no emulator refuses.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
from google.auth.credentials import Credentials
from google.auth.exceptions import RefreshError
from google.cloud import storage

from service.domain import ErrorCode, ImageRef
from service.errors import (
    BadImageError,
    ObjectGoneError,
    StorageRefusedError,
    StorageUnavailableError,
)
from service.gcp.listing import NoBucketError, ObjectLister
from service.gcp.storage import ImageStorage
from tests.contract.conftest import fetched
from tests.fakes import PATIENCE_SECONDS
from tests.loglines import logged_by
from tests.refusing_storage import (
    BUCKET,
    CUSTOMER_KEY,
    DISABLED,
    FORBIDDEN,
    KMS_KEY,
    PERMISSIONS,
    REQUESTER_PAYS,
    TOO_FAST,
    ErrorResponse,
    RefusingStorage,
    ref,
    refusing_storage,
)

CALLS = [ImageStorage.resolve, fetched]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RefusingStorage]:
    with refusing_storage() as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        yield running


class Clock:
    """A clock that a test moves by minutes."""

    minutes = 0.0

    def __call__(self) -> float:
        return self.minutes * 60


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(server: RefusingStorage, clock: Clock) -> Iterator[ImageStorage]:
    with storage.Client() as client:
        yield ImageStorage(
            client,
            timeout_seconds=PATIENCE_SECONDS,
            max_bytes=1000,
            connections=4,
            clock=clock,
        )


def reason_of(service: ImageStorage, image: ImageRef) -> str:
    """Return the message of an object whose download is permanently refused."""
    with pytest.raises(BadImageError) as refused:
        fetched(service, image)
    assert refused.value.code == ErrorCode.UNREADABLE_OBJECT
    return refused.value.message


def refuse_for_now(service: ImageStorage, image: ImageRef) -> None:
    """Check that a refused download is only unavailable."""
    with pytest.raises(StorageUnavailableError) as refused:
        fetched(service, image)
    assert not isinstance(refused.value, StorageRefusedError)


def refuse_for_ten_minutes(service: ImageStorage, clock: Clock, image: ImageRef) -> None:
    """Repeat refused downloads as Pub/Sub delivers, for ten minutes."""
    for _ in range(5):
        refuse_for_now(service, image)
        clock.minutes += 2


KMS_DENIED = ErrorResponse(403, "forbidden", "Permission denied on Cloud KMS key.")
PAGE = ErrorResponse(400, "", "<!DOCTYPE html><title>Error 400 (Bad Request)!!1</title>")


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        (CUSTOMER_KEY, "Upload the object again without that key"),
        (KMS_KEY, "Enable the key"),
        (REQUESTER_PAYS, "Turn Requester Pays off"),
        (replace(REQUESTER_PAYS, reason="required"), "Turn Requester Pays off"),
        (replace(KMS_KEY, reason="invalid"), "Enable the key"),
        (ErrorResponse(451, "legal", "removed"), "for legal reasons"),
    ],
    ids=["customer-key", "kms", "pays", "pays-required", "kms-invalid", "legal"],
)
def test_permanent_refusal_has_a_reason_and_a_remedy(
    server: RefusingStorage, service: ImageStorage, refusal: ErrorResponse, advice: str
) -> None:
    image = server.refuse("a.jpg", refusal)
    message = reason_of(service, image)
    assert advice in message
    with pytest.raises(BadImageError) as refused:
        service.resolve(ImageRef(BUCKET, "a.jpg"))
    assert refused.value.code == ErrorCode.UNREADABLE_OBJECT


@pytest.mark.parametrize("refusal", [CUSTOMER_KEY, KMS_KEY])
def test_object_whose_bytes_alone_are_refused_is_unreadable(
    server: RefusingStorage, service: ImageStorage, refusal: ErrorResponse
) -> None:
    server.media["a.jpg"] = refusal
    assert reason_of(service, ref("a.jpg"))


def test_refusal_of_unknown_generation_advises_to_submit(
    server: RefusingStorage, service: ImageStorage
) -> None:
    server.refuse("a.jpg", REQUESTER_PAYS)
    with pytest.raises(BadImageError) as refused:
        service.resolve(ImageRef(BUCKET, "a.jpg"))
    assert refused.value.message.endswith("Then submit the object again.")


MAY_PASS = {
    "forbidden": (FORBIDDEN, "not to the bucket"),
    "kms-denied": (KMS_DENIED, "grant the Cloud Storage service agent"),
    "kms-disabled-403": (replace(KMS_KEY, status=403), "Enable the key"),
    "kms-not-found": (
        ErrorResponse(400, "cloudKmsDecryptionKeyNotFound", "no key"),
        "Enable the key",
    ),
    "other": (
        ErrorResponse(400, "invalidArgument", "odd"),
        "this object (400 invalidArgument: odd)",
    ),
    "page": (PAGE, "serve this object (400)."),
}


@pytest.mark.parametrize("bytes_only", [True, False])
@pytest.mark.parametrize(("refusal", "message"), MAY_PASS.values(), ids=MAY_PASS)
def test_unclear_refusal_is_recorded_after_ten_minutes(
    server: RefusingStorage,
    service: ImageStorage,
    clock: Clock,
    refusal: ErrorResponse,
    message: str,
    bytes_only: bool,
) -> None:
    image = server.refuse("a.jpg", refusal)
    if bytes_only:
        server.metadata.clear()
    refuse_for_ten_minutes(service, clock, image)
    # From the metadata's refusal, which has the reason, or from the download's text.
    assert bytes_only or message in reason_of(service, image)
    assert "<" not in reason_of(service, image)


@pytest.mark.parametrize(("refusal", "_"), MAY_PASS.values(), ids=MAY_PASS)
def test_ended_refusal_starts_anew(
    server: RefusingStorage, service: ImageStorage, clock: Clock, refusal: ErrorResponse, _: str
) -> None:
    refuse_for_ten_minutes(service, clock, server.refuse("a.jpg", refusal))
    server.media.clear()
    assert fetched(service, ref("a.jpg")).data == server.data
    refuse_for_ten_minutes(service, clock, server.refuse("a.jpg", refusal))
    assert reason_of(service, ref("a.jpg"))


def test_denied_key_is_recorded_although_metadata_are_readable(
    server: RefusingStorage, service: ImageStorage, clock: Clock
) -> None:
    server.media["a.jpg"] = KMS_DENIED
    for _ in range(10):
        service.resolve(ref("a.jpg"))
        refuse_for_now(service, ref("a.jpg"))
        clock.minutes += 1
    assert "grant the Cloud Storage service agent" in reason_of(service, ref("a.jpg"))


def test_denied_key_is_not_logged_as_a_missing_role(
    server: RefusingStorage, service: ImageStorage, caplog: pytest.LogCaptureFixture
) -> None:
    server.permissions = []
    refuse_for_now(service, server.refuse("a.jpg", KMS_DENIED))
    assert logged_by(caplog, "service.gcp.outages") == []


def test_forbidden_metadata_are_recorded_after_ten_minutes(
    server: RefusingStorage, service: ImageStorage, clock: Clock
) -> None:
    server.refuse("a.jpg", FORBIDDEN)
    job = ImageRef(BUCKET, "a.jpg")
    with pytest.raises(StorageUnavailableError):
        service.resolve(job)
    clock.minutes += 10
    with pytest.raises(BadImageError):
        service.resolve(job)


@pytest.mark.parametrize("refusal", [FORBIDDEN, PAGE, KMS_DENIED], ids=lambda one: one.text[:9])
def test_no_refusal_is_recorded_while_the_bucket_is_unreadable(
    server: RefusingStorage, service: ImageStorage, clock: Clock, refusal: ErrorResponse
) -> None:
    image = server.refuse("a.jpg", refusal)
    server.refuse("b.jpg", refusal)
    fetched(service, ref("before.jpg"))
    server.permissions = []
    for _ in range(6):
        clock.minutes += 10
        for one in (image, ref("b.jpg")):
            with pytest.raises(StorageUnavailableError):
                fetched(service, one)


def test_object_that_is_410_is_gone(server: RefusingStorage, service: ImageStorage) -> None:
    image = server.refuse("a.jpg", ErrorResponse(410, "gone"))
    for call in CALLS:
        with pytest.raises(ObjectGoneError):
            call(service, image)


def test_forbidden_object_is_unreadable_once_others_were_read(
    server: RefusingStorage, service: ImageStorage, clock: Clock
) -> None:
    """The account has no permission on the bucket, but ACLs allow it the other objects."""
    server.permissions = []
    image = server.refuse("a.jpg", FORBIDDEN)
    with pytest.raises(StorageRefusedError):
        fetched(service, image)
    clock.minutes += 10
    with pytest.raises(StorageRefusedError):
        fetched(service, image)
    fetched(service, ref("b.jpg"))
    assert reason_of(service, image)


def test_refused_bucket_is_no_fault_of_an_object(
    server: RefusingStorage, service: ImageStorage
) -> None:
    server.permissions = []
    for name in ("a.jpg", "b.jpg", "a.jpg"):
        with pytest.raises(StorageRefusedError, match="roles/storage.objectViewer"):
            fetched(service, server.refuse(name, FORBIDDEN))
    assert server.requests.count("permissions") == 1


@pytest.mark.parametrize(
    "refusal",
    [
        DISABLED,
        ErrorResponse(401, "authError"),
        ErrorResponse(403, "countryBlocked"),
        ErrorResponse(403, "sslRequired"),
    ],
    ids=lambda refusal: refusal.reason,
)
def test_refused_project_is_no_fault_of_an_object(
    server: RefusingStorage, service: ImageStorage, refusal: ErrorResponse
) -> None:
    image = server.refuse("a.jpg", refusal)
    for call in 2 * CALLS:
        with pytest.raises(StorageRefusedError):
            call(service, image)
        fetched(service, ref("other.jpg"))


@pytest.mark.parametrize("reason", ["rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"])
def test_too_many_requests_as_403_is_only_unavailable(
    server: RefusingStorage, service: ImageStorage, reason: str
) -> None:
    image = server.refuse("a.jpg", replace(TOO_FAST, reason=reason))
    for call in CALLS:
        with pytest.raises(StorageUnavailableError) as refused:
            call(service, image)
        assert not isinstance(refused.value, StorageRefusedError)


def test_permission_that_was_just_granted_is_no_refusal(
    server: RefusingStorage, service: ImageStorage
) -> None:
    server.permissions = []
    image = server.refuse("a.jpg", FORBIDDEN)
    with pytest.raises(StorageRefusedError):
        fetched(service, image)
    server.media.clear()
    server.metadata.clear()
    assert fetched(service, image).data == server.data


def test_outage_of_a_bucket_is_logged_once_and_its_end(
    server: RefusingStorage, service: ImageStorage, caplog: pytest.LogCaptureFixture
) -> None:
    server.permissions = []
    for name in "abc":
        with pytest.raises(StorageRefusedError):
            fetched(service, server.refuse(name, FORBIDDEN))
    server.media.clear()
    fetched(service, ref("a"))
    fetched(service, ref("b"))
    lines = logged_by(caplog, "service.gcp.outages")
    assert [(line.levelno, line.getMessage()) for line in lines] == [
        (logging.ERROR, "Messages are rejected until this is repaired"),
        (logging.WARNING, "Messages are accepted again"),
    ]
    assert "roles/storage.objectViewer" in lines[0].__dict__["reason"]


def test_perimeter_differs_from_a_missing_role(
    server: RefusingStorage, service: ImageStorage, caplog: pytest.LogCaptureFixture
) -> None:
    server.permissions = []
    policy = ErrorResponse(
        403, "forbidden", "Request is prohibited by organization's policy. vpcS: 1"
    )
    for _ in range(3):
        for refusal, advice in ((policy, "perimeter"), (FORBIDDEN, "roles/storage.objectViewer")):
            with pytest.raises(StorageRefusedError, match=advice):
                fetched(service, server.refuse("a.jpg", refusal))
    assert len(logged_by(caplog, "service.gcp.outages")) == 2


def test_organisations_policy_is_not_a_gone_object(
    server: RefusingStorage, service: ImageStorage
) -> None:
    image = server.refuse("a.jpg", ErrorResponse(412, "orgPolicyConstraintFailed"))
    with pytest.raises(StorageRefusedError):
        service.resolve(image)


@pytest.mark.parametrize("refusal", [FORBIDDEN, REQUESTER_PAYS], ids=lambda one: one.reason)
def test_listing_that_is_refused_says_why(server: RefusingStorage, refusal: ErrorResponse) -> None:
    server.listing = refusal
    with pytest.raises(StorageRefusedError, match=f"refuses to list gs://{BUCKET}.*{refusal.text}"):
        list(ObjectLister(storage.Client()).pages(BUCKET, ""))


def test_listing_of_a_bucket_that_is_410_says_so(server: RefusingStorage) -> None:
    server.listing = ErrorResponse(410, "gone")
    with pytest.raises(NoBucketError):
        list(ObjectLister(storage.Client()).pages(BUCKET, ""))


@pytest.mark.parametrize("call", ["exists", "pages"])
def test_expired_credentials_have_a_clear_error(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Expired(Credentials):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]

        def refresh(self, request: object) -> None:
            raise RefreshError("Reauthentication is needed.")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    lister = ObjectLister(storage.Client(credentials=Expired(), project="p"), timeout_seconds=1)
    with pytest.raises(StorageRefusedError, match="expired: run `gcloud auth application-default"):
        lister.exists(ref("a")) if call == "exists" else list(lister.pages(BUCKET, ""))


class PageResponse(ErrorResponse):
    """An HTML page of something before Cloud Storage."""

    def as_json(self) -> bytes:
        return b"<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>"


def test_own_404_means_that_an_object_does_not_exist(
    server: RefusingStorage, service: ImageStorage
) -> None:
    image = server.refuse("a.jpg", ErrorResponse(404, "notFound", "No such object: uploads/a.jpg"))
    assert not service.exists(image)
    assert service.exists(ref("b.jpg"))


@pytest.mark.parametrize(
    "refusal",
    [
        FORBIDDEN,
        DISABLED,
        TOO_FAST,
        CUSTOMER_KEY,
        KMS_DENIED,
        PAGE,
        PageResponse(404),
        ErrorResponse(410, "gone"),
        ErrorResponse(412, "conditionNotMet"),
        ErrorResponse(451, "legal", "removed"),
    ],
    ids=lambda refusal: f"{refusal.status}-{refusal.reason}",
)
def test_other_responses_do_not_say_whether_it_exists(
    server: RefusingStorage, service: ImageStorage, clock: Clock, refusal: ErrorResponse
) -> None:
    image = server.refuse("a.jpg", refusal)
    for permissions in (PERMISSIONS, []):
        server.permissions = list(permissions)
        for _ in range(8):  # a refusal counts as one of the object after ten minutes
            with pytest.raises(StorageUnavailableError):
                service.exists(image)
            clock.minutes += 2


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_outage_does_not_say_whether_an_object_exists(server: RefusingStorage, status: int) -> None:
    image = server.refuse("a.jpg", ErrorResponse(status, "backendError"))
    with storage.Client() as client:
        service = ImageStorage(client, timeout_seconds=1.0, max_bytes=1000, connections=4)
        with pytest.raises(StorageUnavailableError):
            service.exists(image)
