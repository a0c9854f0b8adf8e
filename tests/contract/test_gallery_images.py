"""Which image the gallery shows of a result, on the emulators of Firestore and Cloud Storage."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
import requests
from google.cloud import firestore, storage
from PIL import Image

from service.deadline import Deadline
from service.derived import NOTHING, DeriveOptions, Redaction
from service.domain import ErrorCode, Failure, ImageRef, ImageResult, SourceVersion
from service.errors import SourcesUnknownError
from service.gallery.images import GalleryImages, NoImageError, ShownImage, View
from service.gcp.result_objects import ResultObjects
from service.gcp.result_pages import ResultPages
from service.gcp.storage import ImageStorage
from service.images.decoders import build_decoders
from service.settings import Settings
from service.sources.current import CurrentSources, SourceSettings
from tests.contract.conftest import BUCKET
from tests.fakes import PATIENCE_SECONDS
from tests.gallery import Gallery, running_gallery

SIZE = (400, 300)
COLOR = {"upload": (200, 30, 30), "thumbnail": (30, 200, 30), "redacted": (30, 30, 200)}
REDACTING = DeriveOptions(redaction=Redaction())
ORIENTATION = 0x0112


def encoded(what: str = "upload", file_format: str = "JPEG", **options: Any) -> bytes:
    """Return an image of one color, so that a test sees which image was shown."""
    file = io.BytesIO()
    Image.new("RGB", SIZE, COLOR[what]).save(file, file_format, **options)
    return file.getvalue()


def color_of(shown: ShownImage) -> str:
    pixel = cast(tuple[int, int, int], decoded(shown).convert("RGB").getpixel((5, 5)))
    return min(
        COLOR, key=lambda name: sum(abs(a - b) for a, b in zip(COLOR[name], pixel, strict=True))
    )


def decoded(shown: ShownImage) -> Image.Image:
    return Image.open(io.BytesIO(shown.data))


class Sources:
    """The current settings of every image, which a test changes."""

    derive: DeriveOptions | None = DeriveOptions()  # None: nobody knows
    version = SourceVersion("gate")

    def settings_of(self, ref: ImageRef, deadline: Deadline) -> SourceSettings:
        if self.derive is None:
            raise SourcesUnknownError
        return SourceSettings(version=self.version, derive=self.derive)


class Shop:
    """Documents and objects, and what shows their images."""

    def __init__(self, collection: str, objects: ResultObjects) -> None:
        self.documents = firestore.Client().collection(collection)
        self.sources = Sources()
        self.pages = ResultPages(
            firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS
        )
        self.objects = objects
        self.uploads = ImageStorage(
            storage.Client(), timeout_seconds=PATIENCE_SECONDS, max_bytes=10**7, connections=4
        )
        self.collection = collection
        self.opened: list[GalleryImages] = []

    def images(self, *, originals: bool = True) -> GalleryImages:
        """Return a new object, which knows no document yet."""
        images = GalleryImages(
            self.pages,
            cast(CurrentSources, self.sources),
            self.objects,
            uploads=self.uploads if originals else None,
            decoders=lambda: build_decoders(replace(Settings(), decoders=1)),
        )
        self.opened.append(images)
        return images

    def upload(self, data: bytes, name: str = "a.jpg") -> ImageRef:
        blob = storage.Client().bucket(BUCKET).blob(f"{self.collection}/{name}")
        blob.upload_from_string(data, content_type="text/html")
        return ImageRef(BUCKET, blob.name, int(blob.generation))

    def derive(self, ref: ImageRef, *kinds: str) -> list[dict[str, str]]:
        """Create derived images, and return the document's field."""
        items = []
        for kind in kinds:
            name = f"{ref.document_id}-{kind}-{'0' * 64}.jpg"
            data = encoded("redacted" if kind == "redacted" else "thumbnail")
            storage.Client().bucket(self.objects.bucket).blob(name).upload_from_string(data)
            items.append({"kind": kind, "uri": self.objects.uri(name)})
        return items

    def document(self, ref: ImageRef, **edited: Any) -> ImageRef:
        fields: dict[str, Any] = {
            "bucket": ref.bucket,
            "name": ref.name,
            "generation": ref.generation,
            "status": "done",
            "image": {"width": SIZE[0], "height": SIZE[1]},
        }
        self.documents.document(ref.document_id).set(fields | edited)
        return ref


@pytest.fixture
def shop(collection: str, result_objects: ResultObjects) -> Iterator[Shop]:
    shop = Shop(collection, result_objects)
    yield shop
    for images in shop.opened:
        images.close()


def shown(
    shop: Shop, ref: ImageRef, view: View = View.THUMBNAIL, *, originals: bool = True
) -> ShownImage:
    return shop.images(originals=originals).read(ref.document_id, ref.generation or 0, view)


# --- Without redaction


def test_thumbnail_is_the_derived_one(shop: Shop) -> None:
    ref = shop.upload(encoded())
    shop.document(ref, derived=shop.derive(ref, "thumbnail"))
    assert color_of(shown(shop, ref)) == "thumbnail"
    assert color_of(shown(shop, ref, View.LARGE)) == "upload"


def test_thumbnail_is_made_if_none_was_derived(shop: Shop) -> None:
    ref = shop.document(shop.upload(encoded()))
    made = shown(shop, ref)
    assert (color_of(made), decoded(made).size) == ("upload", (320, 240))


def test_thumbnail_is_made_if_the_derived_one_is_gone(shop: Shop) -> None:
    ref = shop.upload(encoded())
    gone = {"kind": "thumbnail", "uri": shop.objects.uri(f"{ref.document_id}-thumbnail-0.jpg")}
    shop.document(ref, derived=[gone])
    assert color_of(shown(shop, ref)) == "upload"


def test_large_without_uploads_is_the_best_derived_image(shop: Shop) -> None:
    ref = shop.upload(encoded())
    shop.document(ref, derived=shop.derive(ref, "thumbnail"))
    assert color_of(shown(shop, ref, View.LARGE, originals=False)) == "thumbnail"
    shop.document(ref)
    with pytest.raises(NoImageError, match="GALLERY_ORIGINALS"):
        shown(shop, ref, originals=False)


def test_html_is_never_shown_by_its_content_type(shop: Shop) -> None:
    ref = shop.document(shop.upload(b"<script>alert(1)</script>"))
    for view in View:
        with pytest.raises(NoImageError):
            shown(shop, ref, view)


@pytest.mark.parametrize("file_format", ["TIFF", "BMP", "GIF"])
def test_other_formats_become_a_jpeg(shop: Shop, file_format: str) -> None:
    ref = shop.document(shop.upload(encoded(file_format=file_format)))
    large = shown(shop, ref, View.LARGE)
    assert (large.content_type, decoded(large).size) == ("image/jpeg", SIZE)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_turned_image_is_shown_upright(shop: Shop, file_format: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    size = {"width": SIZE[1], "height": SIZE[0]}
    data = encoded(file_format=file_format, exif=exif)
    ref = shop.document(shop.upload(data), image=size)
    for view in View:
        assert decoded(shown(shop, ref, view)).size[0] < decoded(shown(shop, ref, view)).size[1]


def test_jpeg_is_unchanged_because_browsers_turn_it(shop: Shop) -> None:
    data = encoded()
    ref = shop.document(shop.upload(data))
    assert shown(shop, ref, View.LARGE).data == data


def test_huge_image_is_made_smaller(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.gallery.images._MAX_SHOWN_PIXELS", 1000)
    data = encoded()
    ref = shop.document(shop.upload(data))
    assert shown(shop, ref, View.LARGE).data != data


# --- With redaction


def test_redacted_result_shows_only_redacted_copies(shop: Shop) -> None:
    ref = shop.upload(encoded())
    shop.document(ref, derived=shop.derive(ref, "thumbnail", "redacted"))
    assert color_of(shown(shop, ref)) == "thumbnail"  # it was made from redacted pixels
    assert color_of(shown(shop, ref, View.LARGE)) == "redacted"


def test_redacted_copy_replaces_a_missing_thumbnail(shop: Shop) -> None:
    ref = shop.upload(encoded())
    shop.document(ref, derived=shop.derive(ref, "redacted"))
    assert color_of(shown(shop, ref)) == "redacted"


@pytest.mark.parametrize("view", list(View))
def test_redaction_since_then_hides_earlier_images(shop: Shop, view: View) -> None:
    ref = shop.upload(encoded())
    shop.document(ref, derived=shop.derive(ref, "thumbnail", "normalized"))
    images = shop.images()
    images.read(ref.document_id, ref.generation or 0, view)
    shop.sources.derive = REDACTING
    with pytest.raises(NoImageError, match="redacted"):
        images.read(ref.document_id, ref.generation or 0, view)


@pytest.mark.parametrize("view", list(View))
def test_missing_redacted_copies_never_show_the_upload(shop: Shop, view: View) -> None:
    ref = shop.upload(encoded())
    gone = {"kind": "redacted", "uri": shop.objects.uri(f"{ref.document_id}-redacted-0.jpg")}
    shop.document(ref, derived=[gone])
    with pytest.raises(NoImageError, match="redacted"):
        shown(shop, ref, view)


@pytest.mark.parametrize("view", list(View))
def test_nothing_is_shown_while_sources_are_unknown(shop: Shop, view: View) -> None:
    ref = shop.document(shop.upload(encoded()))
    shop.sources.derive = None
    with pytest.raises(NoImageError, match="sources"):
        shown(shop, ref, view)
    shop.sources.derive, shop.sources.version = NOTHING, SourceVersion()
    with pytest.raises(NoImageError, match="sources"):
        shown(shop, ref, view)


@pytest.mark.parametrize("view", list(View))
def test_error_of_the_derived_images_hides_the_image(shop: Shop, view: View) -> None:
    ref = shop.document(shop.upload(encoded()), derived_error="The labels changed.")
    with pytest.raises(NoImageError, match="The labels changed"):
        shown(shop, ref, view)


@pytest.mark.parametrize("view", list(View))
@pytest.mark.parametrize(
    "edited",
    [
        {"derived": [{"kind": "redacted"}]},
        {"derived": [{"kind": "redacted", "uri": 1}]},
        {"derived": {"kind": "redacted"}},
        {"derived": ["redacted"]},
        {"derived": [{"kind": ["redacted"], "uri": "gs://a/b"}]},
        {"derived": "redacted"},
        {"derived_error": ["The labels changed."]},
        {"derived_error": True},
    ],
)
def test_edited_redaction_never_shows_the_upload(
    shop: Shop, edited: dict[str, Any], view: View
) -> None:
    ref = shop.document(shop.upload(encoded()), **edited)
    with pytest.raises(NoImageError, match="redacted"):
        shown(shop, ref, view)


# --- Documents that a person has edited


@pytest.mark.parametrize("kind", ["thumbnail", "redacted"])
def test_edited_document_shows_no_other_objects(shop: Shop, kind: str) -> None:
    other = shop.upload(encoded(), "other.jpg")
    foreign = shop.derive(other, "thumbnail")[0]["uri"]
    ref = shop.upload(encoded())
    own = shop.derive(ref, "thumbnail")[0]["uri"]
    bucket = self_named(shop, ref)
    for uri in (
        foreign,
        bucket,
        other.uri,
        own.replace("-thumbnail-", "-0-"),
        "",
        "gs://",
        "file:///etc/passwd",
    ):
        shop.document(ref, derived=[{"kind": kind, "uri": uri}])
        with pytest.raises(NoImageError):
            shown(shop, ref, originals=False)


def self_named(shop: Shop, ref: ImageRef) -> str:
    """Create an object in another bucket, with the name of a derived image."""
    name = f"{ref.document_id}-thumbnail-{'0' * 64}.jpg"
    storage.Client().bucket(BUCKET).blob(name).upload_from_string(encoded())
    return f"gs://{BUCKET}/{name}"


def test_edited_document_cannot_name_another_upload(shop: Shop) -> None:
    other = shop.upload(encoded(), "secret.jpg")
    ref = shop.upload(encoded())
    shop.documents.document(ref.document_id).set(
        {"bucket": BUCKET, "name": other.name, "generation": ref.generation, "status": "done"}
    )
    with pytest.raises(NoImageError, match="another object"):
        shown(shop, ref)


@pytest.mark.parametrize(
    "edited",
    [
        {"image": None},
        {"image": {"width": 10**18, "height": 10**18}},
        {"image": {"width": 10**6, "height": 1}},
        {"image": {"width": True, "height": "1"}},
        {"generation": "1"},
        {"status": ["done"]},
    ],
)
def test_edited_fields_are_no_defect(shop: Shop, edited: dict[str, Any]) -> None:
    ref = shop.document(shop.upload(encoded()), **edited)
    try:
        assert color_of(shown(shop, ref)) == "upload"
    except NoImageError as exc:
        assert str(exc).endswith(".")


# --- Generations, limits and the address


def test_generation_that_is_gone_says_so(shop: Shop) -> None:
    ref = shop.document(shop.upload(encoded()))
    shop.upload(encoded())
    with pytest.raises(NoImageError, match="generation"):
        shown(shop, ref)
    with pytest.raises(NoImageError, match="generation"):
        shop.images().read(ref.document_id, 1, View.THUMBNAIL)


def test_remembered_document_is_not_read_again(shop: Shop) -> None:
    ref = shop.upload(encoded())
    shop.document(ref, derived=shop.derive(ref, "thumbnail"))
    images = shop.images()
    images.remember(ref.document_id, shop.documents.document(ref.document_id).get().to_dict() or {})
    shop.pages.reset_usage()
    images.read(ref.document_id, ref.generation or 0, View.THUMBNAIL)
    assert shop.pages.usage().documents == 0


def test_broken_file_disturbs_no_other_thumbnail(shop: Shop) -> None:
    good = [shop.document(shop.upload(encoded(), f"{n}.jpg")) for n in range(30)]
    broken = [shop.document(shop.upload(encoded()[:300], f"broken-{n}.jpg")) for n in range(30)]
    images = shop.images()

    def color(ref: ImageRef) -> str | None:
        try:
            return color_of(images.read(ref.document_id, ref.generation or 0, View.THUMBNAIL))
        except NoImageError:
            return None

    mixed = [ref for pair in zip(good, broken, strict=True) for ref in pair]
    with ThreadPoolExecutor(60) as threads:
        colors = list(threads.map(color, mixed))
    assert colors == ["upload", None] * 30


@pytest.fixture
def running() -> Iterator[Gallery]:
    with running_gallery() as running:
        yield running


def test_address_of_an_image(running: Gallery) -> None:
    document_id = running.add_image("a.jpg")
    generation = running.results[document_id].ref.generation
    path = f"{running.address}/images/{document_id}"
    with requests.Session() as session:
        assert session.get(f"{path}/{generation}/thumbnail").status_code == 403
        session.get(running.url)
        response = session.get(f"{path}/{generation}/thumbnail")
        assert response.headers["Content-Type"] == "image/jpeg"
        assert response.headers["Cache-Control"] == "private, max-age=31536000, immutable"
        again = {"If-None-Match": response.headers["ETag"]}
        assert session.get(f"{path}/{generation}/thumbnail", headers=again).status_code == 304
        for wrong in ("1/thumbnail", f"{generation}/huge", f"{'9' * 5000}/large", "-1/large"):
            missing = session.get(f"{path}/{wrong}")
            assert missing.status_code == 404
            assert missing.headers["Cache-Control"] == "no-store"
        for other in ("../etc/passwd", "0" * 40, "%2e%2e", "gs:"):
            response = session.get(f"{running.address}/images/{other}/1/large")
            assert response.status_code == 404


def test_failed_image_is_not_shown(running: Gallery) -> None:
    ref = running.upload("failed.jpg", b"no image")
    failure = Failure(ErrorCode.CORRUPT_IMAGE, ErrorCode.CORRUPT_IMAGE.description)
    document_id = running.add(ImageResult(ref, failure=failure))
    with pytest.raises(NoImageError, match="without a result"):
        running.parts.images.read(document_id, ref.generation or 0, View.LARGE)
