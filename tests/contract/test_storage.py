"""`ImageStorage` against a real server of the Cloud Storage protocol."""

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from google.cloud import storage

from service.domain import ErrorCode, ImageRef, ObjectMetadata
from service.errors import (
    BadImageError,
    CredentialsError,
    ObjectGoneError,
    StorageUnavailableError,
)
from service.gcp.clients import build_storage
from service.gcp.listing import NoBucketError, ObjectLister, connect_lister
from service.gcp.storage import ImageStorage
from service.settings import Settings
from tests.contract.conftest import BUCKET, fetched
from tests.fakes import PATIENCE_SECONDS


def upload(bucket: storage.Bucket, name: str, data: bytes, kind: str = "image/jpeg") -> ImageRef:
    blob = bucket.blob(name)
    blob.upload_from_string(data, content_type=kind)
    return ImageRef(BUCKET, name, blob.generation)


def test_download_returns_bytes_and_metadata(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    download = fetched(image_storage, upload(bucket, "plain.jpg", b"content"))
    assert download.data == b"content"
    assert download.metadata.size == 7
    assert download.metadata.content_type == "image/jpeg"
    assert download.metadata.md5 == base64.b64encode(hashlib.md5(b"content").digest()).decode()


def test_download_does_not_look_up_the_bucket(bucket: storage.Bucket) -> None:
    client = storage.Client()
    service = ImageStorage(client, timeout_seconds=PATIENCE_SECONDS, max_bytes=1000, connections=4)
    assert fetched(service, upload(bucket, "no-lookup.jpg", b"content")).data == b"content"
    lookups = client._bucket_metadata_cache
    assert not lookups._inflight_fetches and lookups.get(BUCKET) is None


@pytest.mark.parametrize(
    "name",
    ["a b.jpg", "dir/é日本.jpg", "what?#1%2F.jpg", "..hidden", "x" * 200 + ".jpg"],
    ids=["space", "unicode", "reserved", "dots", "long"],
)
def test_download_of_unusual_name_returns_its_bytes(
    image_storage: ImageStorage, bucket: storage.Bucket, name: str
) -> None:
    assert fetched(image_storage, upload(bucket, name, name.encode())).data == name.encode()


def test_download_after_overwrite_is_gone(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    first = upload(bucket, "overwritten.jpg", b"first")
    second = upload(bucket, "overwritten.jpg", b"second")
    with pytest.raises(ObjectGoneError):
        fetched(image_storage, first)
    assert fetched(image_storage, second).data == b"second"


def test_download_after_delete_is_gone(image_storage: ImageStorage, bucket: storage.Bucket) -> None:
    ref = upload(bucket, "deleted.jpg", b"content")
    bucket.blob("deleted.jpg").delete()
    with pytest.raises(ObjectGoneError):
        fetched(image_storage, ref)


def test_download_from_missing_bucket_is_gone(image_storage: ImageStorage) -> None:
    with pytest.raises(ObjectGoneError):
        fetched(image_storage, ImageRef("no-such-bucket", "image.jpg", 1))


def test_download_of_empty_object_returns_no_bytes(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    assert fetched(image_storage, upload(bucket, "empty.jpg", b"")).data == b""


def test_download_over_the_limit_fails_whatever_the_event_says(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    ref = upload(bucket, "large.jpg", b"x" * 1001)
    said_small = ImageRef(BUCKET, ref.name, ref.generation, ObjectMetadata(size=10))
    for large in (ref, said_small):
        with pytest.raises(BadImageError) as refused:
            fetched(image_storage, large)
        assert refused.value.code == ErrorCode.IMAGE_TOO_LARGE


FORGED = ObjectMetadata(size=8, content_type="image/x", md5="forged", crc32c="forged")


def test_metadata_of_an_event_are_not_trusted(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    """Events can be forged, so the recorded metadata must be those of Cloud Storage."""
    ref = upload(bucket, "sums.jpg", b"content")
    metadata = fetched(image_storage, ref).metadata
    forged = replace(ref, metadata=FORGED)
    assert fetched(image_storage, forged).metadata == metadata
    resolved = image_storage.resolve(forged).metadata
    assert replace(resolved, created_at=None) == metadata
    assert resolved.created_at == bucket.get_blob("sums.jpg").time_created


CUSTOM = {"Camera-Id": "Gate é 日本", "door": "", "pct": "100%25"}
READ = {key.lower(): value for key, value in CUSTOM.items()}


def test_metadata_of_the_uploader_are_read_with_the_bytes(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    blob = bucket.blob("custom.jpg")
    blob.metadata = CUSTOM
    blob.upload_from_string(b"content")
    job = ImageRef(BUCKET, "custom.jpg", blob.generation)
    assert fetched(image_storage, job).metadata.custom == READ
    assert image_storage.resolve(ImageRef(BUCKET, "custom.jpg")).metadata.custom == READ
    forged = replace(job, metadata=replace(FORGED, custom={"camera-id": "forged"}))
    assert fetched(image_storage, forged).metadata.custom == READ


def test_keys_that_no_header_can_have_are_those_of_the_event(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    blob = bucket.blob("unicode.jpg")
    blob.metadata = {"kéy": "v"}
    blob.upload_from_string(b"content")
    ref = image_storage.resolve(ImageRef(BUCKET, "unicode.jpg"))
    assert fetched(image_storage, ref).metadata.custom == {"kéy": "v"}


def test_large_metadata_of_the_uploader_are_cut(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    blob = bucket.blob("large.jpg")
    blob.metadata = {"a": "x" * 1500, "b": "y" * 1500, "c": "z"}
    blob.upload_from_string(b"content")
    for metadata in (
        fetched(image_storage, ImageRef(BUCKET, "large.jpg", blob.generation)).metadata,
        image_storage.resolve(ImageRef(BUCKET, "large.jpg")).metadata,
    ):
        assert metadata.custom == {"a": "x" * 1500, "c": "z"}
        assert metadata.is_custom_cut


def test_resolve_names_the_live_generation(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    upload(bucket, "live.jpg", b"first")
    second = upload(bucket, "live.jpg", b"second!")
    resolved = image_storage.resolve(ImageRef(BUCKET, "live.jpg"))
    assert resolved.generation == second.generation
    assert resolved.metadata.size == 7


def test_resolve_of_a_generation_returns_its_size(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    ref = upload(bucket, "sized.jpg", b"four")
    resolved = image_storage.resolve(ImageRef(BUCKET, "sized.jpg", ref.generation))
    assert (resolved.generation, resolved.metadata.size) == (ref.generation, 4)


def test_resolve_of_an_overwritten_generation_is_gone(
    image_storage: ImageStorage, bucket: storage.Bucket
) -> None:
    first = upload(bucket, "twice.jpg", b"first")
    upload(bucket, "twice.jpg", b"second")
    with pytest.raises(ObjectGoneError):
        image_storage.resolve(ImageRef(BUCKET, "twice.jpg", first.generation))


def test_resolve_of_missing_object_is_gone(image_storage: ImageStorage) -> None:
    with pytest.raises(ObjectGoneError):
        image_storage.resolve(ImageRef(BUCKET, "never-there.jpg"))


@pytest.mark.parametrize("status", [400, 401, 403, 408, 429, 500, 502, 503, 504])
def test_download_refused_by_server_is_unavailable(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        server_answering(status) as url,
        impatient_storage(url, monkeypatch) as impatient,
        pytest.raises(StorageUnavailableError),
    ):
        fetched(impatient, ImageRef(BUCKET, "image.jpg", 1))


@pytest.mark.parametrize("status", [404, 412])
def test_download_that_can_never_succeed_is_gone(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        server_answering(status) as url,
        storage_at(url, monkeypatch) as image_storage,
        pytest.raises(ObjectGoneError),
    ):
        fetched(image_storage, ImageRef(BUCKET, "image.jpg", 1))


def test_download_of_damaged_bytes_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"X-Goog-Hash": "crc32c=AAAAAA=="}  # every object has this checksum, composite or not
    with (
        server_answering(200, wrong) as url,
        impatient_storage(url, monkeypatch) as impatient,
        pytest.raises(StorageUnavailableError),
    ):
        fetched(impatient, ImageRef(BUCKET, "image.jpg", 1))


def test_download_without_a_server_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        impatient_storage("http://127.0.0.1:9", monkeypatch) as impatient,
        pytest.raises(StorageUnavailableError),
    ):
        fetched(impatient, ImageRef(BUCKET, "image.jpg", 1))


@contextmanager
def storage_at(
    url: str, monkeypatch: pytest.MonkeyPatch, *, timeout_seconds: float = PATIENCE_SECONDS
) -> Iterator[ImageStorage]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    with storage.Client() as client:
        yield ImageStorage(client, timeout_seconds=timeout_seconds, max_bytes=1000, connections=4)


impatient_storage = partial(storage_at, timeout_seconds=0.3)  # stops retrying soon


@contextmanager
def server_answering(status: int, headers: dict[str, str] | None = None) -> Iterator[str]:
    """A server with always the same response, because the emulator cannot fail like that."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"content"
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def listed(bucket: storage.Bucket) -> list[ImageRef]:
    """Return the objects in the order of a listing: by the bytes of their names."""
    names = ["list/10.jpg", "list/2.jpg", "list/A.jpg", "list/a#5.jpg", "list/é.jpg", "list/😀.jpg"]
    return [upload(bucket, name, b"x") for name in names]


@pytest.mark.parametrize("index", [None, 0, 2, 5], ids=["all", "first", "middle", "last"])
def test_lister_goes_on_after_any_name(listed: list[ImageRef], index: int | None) -> None:
    after = "" if index is None else listed[index].name
    pages = list(connect_lister(None).pages(BUCKET, "list/", after=after))
    refs = [ref for page in pages for ref in page]
    assert refs == listed[0 if index is None else index + 1 :]
    assert all(ref.metadata.size == 1 for ref in refs)
    assert all(pages)


def test_lister_returns_only_live_generations(bucket: storage.Bucket) -> None:
    upload(bucket, "live/a.jpg", b"first")
    second = upload(bucket, "live/a.jpg", b"second")
    upload(bucket, "live/b.jpg", b"x")
    bucket.blob("live/b.jpg").delete()
    assert list(connect_lister(None).pages(BUCKET, "live/")) == [[second]]


def test_lister_of_no_bucket_says_so() -> None:
    with pytest.raises(NoBucketError, match="There is no bucket gs://nowhere"):
        list(connect_lister(None).pages("nowhere", ""))


def test_lister_without_a_server_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(StorageUnavailableError):
        list(ObjectLister(storage.Client(), timeout_seconds=0.3).pages(BUCKET, ""))


def test_without_credentials_the_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    with pytest.raises(CredentialsError):
        build_storage(Settings())
