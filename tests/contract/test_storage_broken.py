"""Downloads that break: the retried download is verified as a whole."""

import gzip
import os
from collections.abc import Iterator

import pytest
from google.cloud import storage

from devtools.chaos.plan import FaultKind
from devtools.chaos.storage_proxy import StorageProxy
from service.domain import ImageRef
from service.errors import StorageUnavailableError
from service.gcp.storage import ImageStorage
from tests.contract.conftest import BUCKET, fetched
from tests.fakes import PATIENCE_SECONDS

DATA = bytes(range(256)) * 1024


@pytest.fixture
def ref(bucket: storage.Bucket) -> ImageRef:
    blob = bucket.blob("broken.jpg")
    blob.upload_from_string(DATA, content_type="image/jpeg")
    return ImageRef(BUCKET, blob.name, blob.generation)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[StorageProxy]:
    upstream = os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://")
    with StorageProxy(upstream) as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        yield running


def download(ref: ImageRef) -> bytes:
    with storage.Client() as client:
        service = ImageStorage(
            client, timeout_seconds=PATIENCE_SECONDS, max_bytes=10**6, connections=4
        )
        return fetched(service, ref).data


@pytest.mark.parametrize("fault", [FaultKind.STORAGE_CUT, FaultKind.STORAGE_RESET])
def test_broken_download_is_tried_again(
    ref: ImageRef, proxy: StorageProxy, fault: FaultKind
) -> None:
    proxy.armed.arm(fault, 1)
    assert download(ref) == DATA
    assert proxy.armed.struck == {fault: 1}


@pytest.mark.parametrize("fault", [FaultKind.STORAGE_FLIPPED, FaultKind.STORAGE_SHORT])
@pytest.mark.parametrize("broken", [FaultKind.STORAGE_CUT, FaultKind.STORAGE_SHORT])
def test_damaged_rest_of_a_broken_download_is_rejected(
    ref: ImageRef, proxy: StorageProxy, broken: FaultKind, fault: FaultKind
) -> None:
    """The vendor's own retry requests only the rest, and does not verify it."""
    proxy.armed.arm(broken, 1)
    proxy.armed.arm(fault, 1)
    try:
        assert download(ref) == DATA
    except StorageUnavailableError:
        return


@pytest.mark.parametrize("is_damaged", [False, True])
def test_compressed_object_is_fetched_as_it_is_stored(
    bucket: storage.Bucket, proxy: StorageProxy, is_damaged: bool
) -> None:
    blob, stored = bucket.blob("encoded.jpg"), gzip.compress(DATA)
    blob.content_encoding = "gzip"
    blob.upload_from_string(stored, content_type="image/jpeg")
    if is_damaged:
        proxy.armed.arm(FaultKind.STORAGE_FLIPPED, 1)
    assert download(ImageRef(BUCKET, blob.name, blob.generation)) == stored
    assert proxy.armed.struck == ({FaultKind.STORAGE_FLIPPED: 1} if is_damaged else {})
