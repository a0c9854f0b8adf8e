"""Objects that Cloud Storage refuses, with the real service. The refusing server is a fake."""

from collections.abc import Callable, Iterator

import pytest

from tests.refusing_storage import (
    CUSTOMER_KEY,
    FORBIDDEN,
    KMS_KEY,
    REQUESTER_PAYS,
    ErrorResponse,
    RefusingStorage,
    ref,
    refusing_storage,
)
from tests.system.conftest import Service, document

Start = Callable[..., Service]


@pytest.fixture
def server() -> Iterator[RefusingStorage]:
    with refusing_storage() as running:
        yield running


def test_refused_objects_end_as_failed_documents(
    server: RefusingStorage, start_service: Start
) -> None:
    service = start_service(STORAGE_EMULATOR_HOST=server.url)
    refusals = {"key.jpg": CUSTOMER_KEY, "kms.jpg": KMS_KEY, "pays.jpg": REQUESTER_PAYS}
    for _ in range(2):  # new permissions may take a while to apply
        assert service.post(server.refuse("acl.jpg", FORBIDDEN)).status_code == 503
    for name, refusal in refusals.items():
        assert service.post(server.refuse(name, refusal)).status_code == 204
        recorded = document(ref(name))
        assert recorded and recorded["error"]["code"] == "unreadable_object"
    assert document(ref("acl.jpg")) is None
    for name in refusals:
        assert service.post_job(ref(name)).status_code == 204
    assert service.post(server.refuse("gone.jpg", ErrorResponse(410, "gone"))).status_code == 204
    assert document(ref("gone.jpg")) is None


def test_refused_bucket_returns_503_and_is_logged_once(
    server: RefusingStorage, start_service: Start
) -> None:
    server.permissions = []
    service = start_service(STORAGE_EMULATOR_HOST=server.url)
    for number in range(5):
        assert service.post(server.refuse(f"{number}.jpg", FORBIDDEN)).status_code == 503
    lines = [line for line in service.log() if line["severity"] in ("WARNING", "ERROR")]
    [line] = [line for line in lines if "rejected" in line["message"]]
    assert line["severity"] == "ERROR"
    assert "roles/storage.objectViewer" in line["reason"]
    assert not [line for line in lines if "Rejected a message" in line["message"]]
    server.data = b"no image"
    assert service.post(ref("readable.jpg")).status_code == 204
    assert "Messages are accepted again" in [line["message"] for line in service.log()]
