"""Downloads that break on their way: what comes after is checked as a whole."""

import gzip
import os
from collections.abc import Iterator

import pytest
from google.cloud import storage

from devtools.chaos.plan import FaultKind
from devtools.chaos.storage_proxy import StorageProxy
from service.domain import ErrorCode, ImageRef
from service.errors import BadImageError, StorageUnavailableError
from service.gcp.storage import ImageStorage
from tests.contract.conftest import BUCKET
from tests.fakes import PATIENCE_SECONDS

DATA = bytes(range(256)) * 1024  # the client hands it on in pieces of 8 KB


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
        return service.download(ref).data


@pytest.mark.parametrize("fault", [FaultKind.STORAGE_CUT, FaultKind.STORAGE_RESET])
def test_broken_download_is_tried_again(
    ref: ImageRef, proxy: StorageProxy, fault: FaultKind
) -> None:
    proxy.armed.arm(fault, 1)
    assert download(ref) == DATA
    assert proxy.armed.struck == {fault: 1}


@pytest.mark.parametrize("fault", [FaultKind.STORAGE_FLIPPED, FaultKind.STORAGE_SHORT])
@pytest.mark.parametrize("broken", [FaultKind.STORAGE_CUT, FaultKind.STORAGE_SHORT])
def test_damaged_rest_of_a_broken_download_is_not_taken(
    ref: ImageRef, proxy: StorageProxy, broken: FaultKind, fault: FaultKind
) -> None:
    """The client's own retry asks for the rest only, and does not check it."""
    proxy.armed.arm(broken, 1)
    proxy.armed.arm(fault, 1)
    try:
        assert download(ref) == DATA
    except StorageUnavailableError:
        return


@pytest.fixture
def encoded(bucket: storage.Bucket) -> ImageRef:
    """An object that is stored compressed: the client unpacks it before it looks at its sum."""
    blob = bucket.blob("encoded.jpg")
    blob.content_encoding = "gzip"
    blob.upload_from_string(gzip.compress(DATA), content_type="image/jpeg")
    return ImageRef(BUCKET, blob.name, blob.generation)


def test_encoded_download_that_was_damaged_on_its_way_is_tried_again(
    encoded: ImageRef, proxy: StorageProxy
) -> None:
    proxy.armed.arm(FaultKind.STORAGE_FLIPPED, 1)
    assert download(encoded) == DATA
    assert proxy.armed.struck == {FaultKind.STORAGE_FLIPPED: 1}


def test_download_that_is_twice_not_in_its_encoding_is_a_bad_image(
    encoded: ImageRef, proxy: StorageProxy
) -> None:
    proxy.armed.arm(FaultKind.STORAGE_FLIPPED, 2)
    with pytest.raises(BadImageError) as refused:
        download(encoded)
    assert refused.value.code == ErrorCode.CORRUPT_IMAGE
    assert proxy.armed.struck == {FaultKind.STORAGE_FLIPPED: 2}
