"""Which bytes the gallery shows for a result, on the emulators."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from google.cloud import firestore, storage
from PIL import Image

from service.deadline import NO_DEADLINE
from service.domain import ImageRef
from service.gallery.images import GalleryImages, NoImageError, View
from service.gcp.result_objects import ResultObjects
from service.gcp.result_pages import ResultPages
from service.gcp.source_store import SourceStore
from service.gcp.storage import ImageStorage
from service.images.decoders import build_decoders
from service.settings import Settings
from service.sources.current import CurrentSources
from service.sources.schema import parse
from tests.fakes import PATIENCE_SECONDS

pytestmark = pytest.mark.emulator

Make = Callable[..., GalleryImages]


def jpeg(width: int = 640, height: int = 480, orientation: int | None = None) -> bytes:
    pixels = np.full((height, width, 3), 90, np.uint8)
    pixels[: height // 2] = 200
    file = io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def size_of(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return image.size


@pytest.fixture
def source_store(collection: str) -> SourceStore:
    return SourceStore(
        firestore.Client(), timeout_seconds=PATIENCE_SECONDS, collection=f"config-{collection}"
    )


@pytest.fixture
def sources(source_store: SourceStore) -> CurrentSources:
    return CurrentSources(
        source_store, min_confidence=0.25, store_confidence=0.05, refresh_seconds=0
    )


@pytest.fixture
def make(collection: str, sources: CurrentSources, result_objects: ResultObjects) -> Iterator[Make]:
    made: list[GalleryImages] = []

    def make(*, reads_uploads: bool = True) -> GalleryImages:
        uploads = ImageStorage(
            storage.Client(), timeout_seconds=PATIENCE_SECONDS, max_bytes=10**7, connections=4
        )
        results = ResultPages(
            firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS
        )
        made.append(
            GalleryImages(
                results,
                sources,
                result_objects,
                uploads=uploads if reads_uploads else None,
                decoders=lambda: build_decoders(Settings(decoders=1)),
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def images(make: Make) -> GalleryImages:
    return make()


@pytest.fixture
def add(collection: str, bucket: storage.Bucket) -> Callable[..., ImageRef]:
    """Upload an image, and store a document as the service does. Return the image."""

    def add(
        data: bytes,
        size: tuple[int, int] = (640, 480),
        content_encoding: str | None = None,
        **edited: Any,
    ) -> ImageRef:
        blob = bucket.blob(f"{collection}/a.jpg")
        blob.content_encoding = content_encoding
        blob.upload_from_string(data, content_type="image/jpeg")
        ref = ImageRef(bucket.name, blob.name, int(blob.generation))
        document: dict[str, Any] = {
            "bucket": ref.bucket,
            "name": ref.name,
            "generation": ref.generation,
            "status": "done",
            "image": {"width": size[0], "height": size[1], "format": "JPEG"},
            "derived": [],
            "derived_error": None,
        }
        documents = firestore.Client().collection(collection)
        documents.document(ref.document_id).set(document | edited)
        return ref

    return add


def derived(
    objects: ResultObjects, document_id: str, kind: str, data: bytes, name: str = "a.jpg"
) -> dict[str, Any]:
    """Store a derived image, and return its entry in a document."""
    full = f"{document_id}-{kind}-{name}"
    blob = storage.Client().bucket(objects.bucket).blob(full)
    blob.upload_from_string(data, content_type="image/jpeg")
    return {"kind": kind, "uri": objects.uri(full)}


def edit(collection: str, ref: ImageRef, **fields: Any) -> None:
    firestore.Client().collection(collection).document(ref.document_id).update(fields)


def read(images: GalleryImages, ref: ImageRef, view: View = View.THUMBNAIL) -> bytes:
    assert ref.generation
    return images.read(ref.document_id, ref.generation, view).data


def test_large_view_has_the_uploads_own_bytes(
    images: GalleryImages, add: Callable[..., ImageRef]
) -> None:
    data = jpeg()
    assert read(images, add(data), View.LARGE) == data


def test_thumbnail_is_made_where_there_is_none(
    images: GalleryImages, add: Callable[..., ImageRef]
) -> None:
    assert size_of(read(images, add(jpeg()))) == (320, 240)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_thumbnail_is_upright(
    images: GalleryImages, add: Callable[..., ImageRef], orientation: int
) -> None:
    size = (640, 480) if orientation < 5 else (480, 640)
    thumbnail = read(images, add(jpeg(orientation=orientation), size))
    assert size_of(thumbnail) == (size[0] // 2, size[1] // 2)


@pytest.mark.parametrize("suffix", [".tiff", ".bmp"])
def test_format_that_browsers_do_not_show_becomes_a_jpeg(
    images: GalleryImages, add: Callable[..., ImageRef], suffix: str
) -> None:
    encoded = cv2.imencode(suffix, np.zeros((480, 640, 3), np.uint8))[1].tobytes()
    shown = read(images, add(encoded), View.LARGE)
    assert shown.startswith(b"\xff\xd8")
    assert size_of(shown) == (640, 480)


def test_file_that_is_no_image_is_refused(
    images: GalleryImages, add: Callable[..., ImageRef]
) -> None:
    for data in (b"<svg onload=alert(1)>", b"<html>", b""):
        ref = add(data)
        for view in View:
            with pytest.raises(NoImageError):
                read(images, ref, view)


def test_derived_thumbnail_is_preferred(
    images: GalleryImages,
    add: Callable[..., ImageRef],
    collection: str,
    result_objects: ResultObjects,
) -> None:
    ref = add(jpeg())
    entry = derived(result_objects, ref.document_id, "thumbnail", jpeg(64, 48))
    edit(collection, ref, derived=[entry])
    assert size_of(read(images, ref)) == (64, 48)


def test_without_uploads_only_derived_images_are_shown(
    make: Make, add: Callable[..., ImageRef], collection: str, result_objects: ResultObjects
) -> None:
    ref = add(jpeg())
    images = make(reads_uploads=False)
    for view in View:
        with pytest.raises(NoImageError, match="GALLERY_ORIGINALS"):
            read(images, ref, view)
    entry = derived(result_objects, ref.document_id, "annotated", jpeg(320, 240))
    edit(collection, ref, derived=[entry])
    assert size_of(read(make(reads_uploads=False), ref, View.LARGE)) == (320, 240)


def test_with_redaction_only_redacted_copies_are_shown(
    images: GalleryImages,
    add: Callable[..., ImageRef],
    collection: str,
    result_objects: ResultObjects,
) -> None:
    ref = add(jpeg())
    entries = [
        derived(result_objects, ref.document_id, kind, jpeg(side, side))
        for kind, side in (("thumbnail", 40), ("redacted", 60), ("annotated", 80))
    ]
    edit(collection, ref, derived=entries)
    assert size_of(read(images, ref)) == (40, 40)
    assert size_of(read(images, ref, View.LARGE)) == (60, 60)


def test_redaction_that_was_asked_for_later_hides_the_upload(
    images: GalleryImages,
    add: Callable[..., ImageRef],
    source_store: SourceStore,
    collection: str,
    result_objects: ResultObjects,
) -> None:
    ref = add(jpeg())
    entry = derived(result_objects, ref.document_id, "thumbnail", jpeg(64, 48))
    edit(collection, ref, derived=[entry])
    assert read(images, ref, View.LARGE) == jpeg()
    redacted = {"redacted": {"labels": ["person"]}}
    source_store.write(
        parse({"sources": [{"id": "a", "bucket": ref.bucket, "derived": redacted}]}),
        None,
    )
    for view in View:
        with pytest.raises(NoImageError, match="redacted"):
            read(images, ref, view)


def test_broken_sources_hide_every_upload(
    images: GalleryImages, add: Callable[..., ImageRef], collection: str
) -> None:
    ref = add(jpeg())
    document = firestore.Client().collection(f"config-{collection}").document("sources")
    document.set({"sources": "broken"})
    for view in View:
        with pytest.raises(NoImageError, match="sources apply"):
            read(images, ref, view)


def test_derived_images_that_failed_hide_the_upload(
    images: GalleryImages, add: Callable[..., ImageRef]
) -> None:
    ref = add(jpeg(), derived_error="The model has no label 'person'.")
    for view in View:
        with pytest.raises(NoImageError, match="no label"):
            read(images, ref, view)


@pytest.mark.parametrize("kind", ["thumbnail", "redacted"])
def test_edited_document_shows_no_other_object(
    images: GalleryImages,
    add: Callable[..., ImageRef],
    collection: str,
    result_objects: ResultObjects,
    kind: str,
) -> None:
    ref = add(jpeg())
    foreign = derived(result_objects, "b" * 40, kind, jpeg(16, 16))["uri"]
    other_bucket = f"gs://{ref.bucket}/{ref.document_id}-{kind}-a.jpg"
    storage.Client().bucket(ref.bucket).blob(f"{ref.document_id}-{kind}-a.jpg").upload_from_string(
        jpeg(16, 16)
    )
    for uri in (foreign, other_bucket, "gs://x/../y", "http://127.0.0.1/", "/etc/passwd", "", 5):
        edit(collection, ref, derived=[{"kind": kind, "uri": uri}])
        images.remember(ref.document_id, _document(collection, ref))
        for view in View:
            try:
                assert size_of(read(images, ref, view)) != (16, 16)
            except NoImageError:
                continue


def _document(collection: str, ref: ImageRef) -> dict[str, Any]:
    snapshot = firestore.Client().collection(collection).document(ref.document_id).get()
    return snapshot.to_dict() or {}


def test_generation_that_is_gone_is_refused(
    images: GalleryImages, add: Callable[..., ImageRef], bucket: storage.Bucket
) -> None:
    ref = add(jpeg())
    bucket.blob(ref.name).delete()
    for view in View:
        with pytest.raises(NoImageError, match="no longer exists"):
            read(images, ref, view)


def test_other_generation_or_id_is_refused(
    images: GalleryImages, add: Callable[..., ImageRef]
) -> None:
    ref = add(jpeg())
    assert ref.generation
    for document_id, generation in ((ref.document_id, ref.generation + 1), ("b" * 40, 1)):
        with pytest.raises(NoImageError, match="generation"):
            images.read(document_id, generation, View.LARGE)


@pytest.mark.parametrize("status", ["failed", "parked", None, 5])
def test_image_without_a_result_is_not_shown(
    images: GalleryImages, add: Callable[..., ImageRef], status: Any
) -> None:
    ref = add(jpeg(), status=status)
    with pytest.raises(NoImageError, match="without a result"):
        read(images, ref)


@pytest.mark.parametrize(
    "fields",
    [
        {"image": None},
        {"image": {"width": "640"}},
        {"image": {"width": 0, "height": -5}},
        {"derived": 5},
        {"derived": [5, {"kind": 5}, {"kind": "thumbnail"}]},
    ],
)
def test_edited_document_never_breaks_the_view(
    images: GalleryImages, add: Callable[..., ImageRef], fields: dict[str, Any]
) -> None:
    ref = add(jpeg(), **fields)
    try:
        assert read(images, ref)
    except NoImageError as exc:
        assert str(exc)


def test_listed_result_is_not_read_again(
    images: GalleryImages, add: Callable[..., ImageRef], collection: str
) -> None:
    ref = add(jpeg())
    images.remember(ref.document_id, _document(collection, ref))
    read(images, ref)
    usage = images._results.usage()
    assert (usage.queries, usage.documents) == (0, 0)


def test_thumbnails_are_made_once(
    images: GalleryImages, add: Callable[..., ImageRef], bucket: storage.Bucket
) -> None:
    ref = add(jpeg())
    first = read(images, ref)
    bucket.blob(ref.name).delete()
    assert read(images, ref) == first
    assert images._sources.settings_of(ref, NO_DEADLINE).derive.redaction is None
