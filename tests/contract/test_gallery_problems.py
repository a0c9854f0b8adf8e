"""The gallery's pages of failed and parked images, and of objects without a result."""

import json
import re
import shlex
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest
from google.cloud import pubsub_v1, storage  # type: ignore[attr-defined]  # published without types

from service.domain import ErrorCode, ImageRef
from service.errors import PubSubUnavailableError
from service.gallery.access import LocalAccess
from service.gallery.again import Recently
from service.gallery.build import build_gallery
from service.gallery.parts import GalleryOptions
from service.gallery.settings import GallerySettings
from service.object_metadata import RESULT_MARKER
from service.settings import Settings
from service.sources.schema import Source
from tests.fakes import PATIENCE_SECONDS, Clock
from tests.gallery_pages import HOSTILE, Pages, Visitor, failed, found, reads, sources_of

pytestmark = pytest.mark.emulator

PARKED = ErrorCode.DAILY_IMAGE_LIMIT
PART = "cam1/gsutil/tmp/parallel_composite_uploads/part"


class Published:
    """Keeps the jobs, or fails."""

    def __init__(self) -> None:
        self.jobs: list[tuple[ImageRef, datetime]] = []
        self.errors: list[Exception] = []

    def __call__(self, image: ImageRef, created_at: datetime) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.jobs.append((image, created_at))


@pytest.fixture
def pages(collection: str) -> Pages:
    return Pages(collection)


@pytest.fixture
def images_bucket() -> Iterator[storage.Bucket]:
    yield storage.Client().create_bucket(f"images-{uuid.uuid4().hex}")


def plain_text(html: str) -> str:
    html = re.sub(r"<script.*?</script>", "", html)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def upload(bucket: storage.Bucket, *names: str) -> None:
    for name in names:
        bucket.blob(name).upload_from_string(b"12345")


def test_failures_are_grouped_by_their_reason(pages: Pages) -> None:
    for name, code in (("a", "corrupt_image"), ("b", "empty_object"), ("c", "corrupt_image")):
        pages.put(failed(f"{name}.jpg", ErrorCode(code)))
    pages.put(found("fine.jpg"))
    html = pages.client().text("/problems")
    text = plain_text(html)
    assert html.count('<section class="group"') == 2
    assert text.index("c.jpg") < text.index("a.jpg") < text.index("b.jpg")
    for code in (ErrorCode.CORRUPT_IMAGE, ErrorCode.EMPTY_OBJECT):
        assert code.description in text
        assert code.remedy in text
    assert "The reason of a.jpg." in text
    assert "fine.jpg" not in text


def test_parked_images_say_what_will_happen(pages: Pages) -> None:
    pages.put(failed("later.jpg", PARKED))
    text = plain_text(pages.client(try_again=Published()).text("/problems"))
    assert "later.jpg" in text
    assert "the nightly reconcile job continues it on another day" in text
    assert "Try again" not in text


def test_page_of_one_reason_continues_with_a_cursor(pages: Pages) -> None:
    for number in range(45):
        pages.put(failed(f"{number}.jpg"))
    pages.put(failed("other.jpg", ErrorCode.EMPTY_OBJECT))
    client = pages.client()
    path = "/problems?error_code=corrupt_image"
    first = client.get(path)
    assert reads(first) <= 41
    [following] = re.findall(r'<a rel="next" href="([^"]*)"', first.text)
    second = client.text(unescape(following))
    names = re.findall(r"<bdi>(\d+)\.jpg</bdi>", first.text + second)
    assert names == [str(number) for number in reversed(range(45))]
    assert "other.jpg" not in first.text + second


@pytest.mark.parametrize("count", [3, 60])
def test_first_page_reads_a_bounded_number(pages: Pages, count: int) -> None:
    for number in range(count):
        pages.put(failed(f"{number}.jpg"))
        pages.put(failed(f"{number}.png", PARKED))
    assert reads(pages.client().get("/problems")) <= 62


def test_counts_are_asked_once_a_minute(pages: Pages) -> None:
    for number in range(3):
        pages.put(failed(f"{number}.jpg"))
    pages.put(failed("later.jpg", PARKED))
    client = pages.client()
    first, second = (client.get("/api/problems/counts") for _ in range(2))
    assert first.json["counts"]["corrupt_image"] == 3
    assert first.json["counts"]["parked"] == 1
    assert first.json["documents"] == 7
    assert (second.json["counts"], second.json["documents"]) == (first.json["counts"], 0)


def test_problems_of_a_source_are_counted_alone(pages: Pages) -> None:
    pages.put(failed("a.jpg"), source={"id": "gate", "version": None})
    pages.put(failed("b.jpg"))
    client = pages.client()
    assert client.get("/api/problems/counts?source=gate").json["counts"]["corrupt_image"] == 1
    text = plain_text(client.text("/problems?source=gate"))
    assert ("a.jpg" in text, "b.jpg" in text) == (True, False)


@pytest.mark.parametrize("query", ["shown=found", "day=x", "cursor=%00", "cursor=bm8"])
def test_damaged_address_is_refused_with_a_sentence(pages: Pages, query: str) -> None:
    response = pages.client().get(f"/problems?{query}")
    assert (response.status_code, "Error 400" in response.text) == (400, True)


def test_hostile_document_is_shown_as_text(pages: Pages) -> None:
    pages.put(failed("a.jpg"), name=HOSTILE, error={"code": HOSTILE, "message": HOSTILE})
    pages.put(failed("b.jpg"), name=7, error="text", created_at=datetime(1, 1, 1, tzinfo=UTC))
    html = pages.client(try_again=Published()).text("/problems")
    assert "<script>window" not in html
    assert "does not know this code" in html


def test_try_again_publishes_a_job_once_a_minute(pages: Pages) -> None:
    document_id = pages.put(failed("a.jpg"))
    published = Published()
    client = pages.client(try_again=published)
    responses = [client.post(f"/api/again/{document_id}") for _ in range(2)]
    assert [response.status_code for response in responses] == [202, 202]
    [(image, created_at)] = published.jobs
    assert (image, created_at.tzinfo) == (failed("a.jpg").ref, UTC)
    assert "less than a minute ago" in responses[1].json["text"]


def test_try_again_after_an_outage_is_possible_at_once(pages: Pages) -> None:
    document_id = pages.put(failed("a.jpg"))
    published = Published()
    published.errors = [PubSubUnavailableError("Pub/Sub did not respond.")]
    client = pages.client(try_again=published)
    first = client.post(f"/api/again/{document_id}")
    assert (first.status_code, first.json) == (503, {"error": "Pub/Sub did not respond."})
    assert client.post(f"/api/again/{document_id}").status_code == 202
    assert len(published.jobs) == 1


def test_try_again_is_for_failed_images_only(pages: Pages) -> None:
    published = Published()
    client = pages.client(try_again=published)
    edited = pages.put(failed("a.jpg"), name="another.jpg")
    odd = pages.put(failed("b.jpg"), generation="1")
    done, parked = pages.put(found("c.jpg")), pages.put(failed("d.jpg", PARKED))
    codes = [client.post(f"/api/again/{each}").status_code for each in (edited, odd, done, parked)]
    assert (codes, published.jobs) == ([409] * 4, [])
    assert client.post("/api/again/unknown").status_code == 404


def test_try_again_needs_the_role_and_the_csrf_token(pages: Pages) -> None:
    document_id = pages.put(failed("a.jpg"))
    refused = pages.client().post(f"/api/again/{document_id}")
    assert (refused.status_code, "reconcile" in refused.json["error"]) == (403, True)
    published = Published()
    client = pages.client(try_again=published)
    assert client.post(f"/api/again/{document_id}", token="wrong").status_code == 403
    assert not published.jobs
    assert "Try again" not in plain_text(pages.client().text("/problems"))


def test_image_can_be_tried_again_after_a_minute() -> None:
    clock = Clock()
    recently = Recently(clock=clock)
    assert [recently.add("a"), recently.add("a"), recently.add("b")] == [True, False, True]
    clock.now += 61
    assert recently.add("a")


def test_job_replaces_only_the_document_that_was_seen(topic: str) -> None:
    seen_at = datetime(2026, 11, 29, 12, 0, 0, 123456, UTC)
    own = GallerySettings(jobs_topic=topic)
    parts = build_gallery(Settings.from_env(), own, LocalAccess(8000), is_emulator=True)
    assert parts.try_again
    parts.try_again(ImageRef("uploads", "a b.jpg", 7), seen_at)
    parts.try_again(ImageRef("uploads", "a b.jpg", 0), seen_at)  # the generation is not known
    parts.images.close()
    subscription = topic.replace("/topics/", "/subscriptions/")
    received: list[dict[str, Any]] = []
    with pubsub_v1.SubscriberClient() as subscriber:
        while len(received) < 2:
            response = subscriber.pull(
                subscription=subscription, max_messages=2, timeout=PATIENCE_SECONDS
            )
            received += [json.loads(each.message.data) for each in response.received_messages]
    assert {job["uri"] for job in received} == {"gs://uploads/a b.jpg#7", "gs://uploads/a b.jpg"}
    assert received[0]["replace"] == {
        "if_created_before": "2026-11-29T12:00:00.123456+00:00",
        "unless_model": None,
    }


def test_objects_without_a_result_are_listed(pages: Pages, images_bucket: storage.Bucket) -> None:
    upload(images_bucket, "cam1/a.jpg", "cam1/b.jpg", PART, "cam2/c.jpg", "x/d.jpg")
    marked = images_bucket.blob("cam1/thumbnail.jpg")
    marked.metadata = {RESULT_MARKER: "true"}
    marked.upload_from_string(b"1")
    blob = images_bucket.get_blob("cam1/a.jpg")
    ref = ImageRef(images_bucket.name, "cam1/a.jpg", blob.generation)
    pages.put_raw(ref.document_id, {"status": "done"})
    text = plain_text(pages.client().text(f"/not-run?bucket={images_bucket.name}&prefix=cam"))
    assert "2 of 3 images have no result" in text
    assert "cam1/b.jpg 5 bytes" in text and "cam2/c.jpg 5 bytes" in text
    assert "The service ignores 2 other objects" in text
    assert "Not processed yet" in text
    assert "x/d.jpg" not in text


def test_command_is_safe_to_paste_into_a_shell(pages: Pages, images_bucket: storage.Bucket) -> None:
    name = "a'; touch hacked; $(id)"
    upload(images_bucket, f"{name}.jpg")
    address = f"/not-run?{urlencode({'bucket': images_bucket.name, 'prefix': name})}"
    [command] = re.findall("<code>(yolo-batch reconcile .*)</code>", pages.client().text(address))
    uri = f"gs://{images_bucket.name}/{name}"
    assert shlex.split(unescape(command)) == [
        "yolo-batch", "reconcile", uri, "--enqueue", "missing"
    ]  # fmt: skip


def test_object_of_a_disabled_source_says_so(pages: Pages, images_bucket: storage.Bucket) -> None:
    upload(images_bucket, "off/a.jpg", "on/b.jpg")
    source = Source(id="gate", bucket=images_bucket.name, prefix="off/", enabled=False)
    client = pages.client(sources=sources_of(source))
    text = plain_text(client.text(f"/not-run?bucket={images_bucket.name}"))
    assert "Its source gate is disabled on/b.jpg" in text


def test_unknown_sources_do_not_hide_the_objects(
    pages: Pages, images_bucket: storage.Bucket
) -> None:
    upload(images_bucket, "a.jpg")
    client = pages.client(sources=sources_of(broken=True))
    text = plain_text(client.text(f"/not-run?bucket={images_bucket.name}"))
    assert "does not know which are disabled" in text and "a.jpg" in text


def test_listing_goes_on_after_the_last_name(pages: Pages, images_bucket: storage.Bucket) -> None:
    names = [f"{number:03}.jpg" for number in range(130)]
    upload(images_bucket, *names)
    client = pages.client()
    path: str | None = f"/not-run?bucket={images_bucket.name}"
    shown: list[str] = []
    while path:
        response = client.get(path)
        assert reads(response) <= 60
        shown += re.findall(r'<th scope="row"><bdi>(.*?)</bdi>', response.text)
        links = re.findall(r'<a rel="next" href="([^"]*)"', response.text)
        path = unescape(links[0]) if links else None
    assert shown == names


def test_hostile_names_of_objects_are_text(pages: Pages, images_bucket: storage.Bucket) -> None:
    upload(images_bucket, HOSTILE[:60])  # the emulator has a file of each name
    html = pages.client().text(f"/not-run?bucket={images_bucket.name}")
    assert "<script>window" not in html
    assert "window.hacked = 1" in html


def test_default_bucket_is_allowed_or_of_the_newest_result(pages: Pages) -> None:
    def chosen(client: Visitor) -> str:
        return plain_text(client.text("/not-run"))

    assert "Enter its name" in chosen(pages.client())
    pages.put(found("a.jpg"))
    assert 'value="uploads"' in pages.client().text("/not-run")
    options = GalleryOptions(allowed_buckets=("uploads", "other"))
    assert "<option selected>uploads" in pages.client(options=options).text("/not-run")


@pytest.mark.parametrize("query", ["bucket=other", "bucket=a/b", "bucket=..", "prefix=%00"])
def test_bucket_that_may_not_be_listed_is_refused(pages: Pages, query: str) -> None:
    client = pages.client(options=GalleryOptions(allowed_buckets=("uploads",)))
    assert client.get(f"/not-run?{query}").status_code == 400


def test_missing_bucket_is_a_sentence(pages: Pages) -> None:
    text = plain_text(pages.client().text("/not-run?bucket=never-made-bucket"))
    assert "There is no bucket gs://never-made-bucket" in text


def test_gallery_that_lists_nothing_names_the_command(pages: Pages) -> None:
    text = plain_text(pages.client(objects=None).text("/not-run"))
    assert "yolo-batch reconcile gs://BUCKET/PREFIX" in text
