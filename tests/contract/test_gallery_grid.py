"""The data of the grid, on the emulators."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from google.cloud import firestore

from service.domain import ErrorCode, Failure, ImageRef, ImageResult
from service.gallery.app import create_app
from tests.gallery import Gallery, detection, running_gallery

pytestmark = pytest.mark.emulator

Get = Callable[..., Any]


@pytest.fixture
def gallery(emulator_environment: None) -> Iterator[Gallery]:
    with running_gallery() as running:
        yield running


@pytest.fixture
def get(gallery: Gallery) -> Get:
    """Return a function that gets a page, with the filter's arguments."""
    client = create_app(gallery.parts).test_client()
    first = gallery.url.removeprefix(gallery.address)
    client.get(first, base_url=gallery.address)

    def response(path: str, arguments: Any = ()) -> Any:
        return client.get(f"{path}?{urlencode(arguments)}", base_url=gallery.address)

    return response


def add(gallery: Gallery, name: str, *labels: str, **edited: Any) -> str:
    """Store a result without an image."""
    ref = ImageRef("uploads", name, 1)
    found = tuple(detection(label, 0.75) for label in labels)
    return gallery.add(ImageResult(ref, detections=found), **edited)


def test_page_costs_one_query_and_one_more_document(gallery: Gallery, get: Get) -> None:
    for number in range(3):
        add(gallery, f"{number}.jpg", "fox")
    response = get("/api/results")
    assert len(response.json["results"]) == 3
    assert response.json["usage"] == {"queries": 1, "documents": 3}
    assert response.headers["X-Firestore-Usage"] == "queries=1, documents=3"


def test_outcomes_are_listed_separately(gallery: Gallery, get: Get) -> None:
    add(gallery, "found.jpg", "fox")
    add(gallery, "nothing.jpg")
    for name, code in (
        ("failed.jpg", ErrorCode.CORRUPT_IMAGE),
        ("parked.jpg", ErrorCode.DAILY_IMAGE_LIMIT),
    ):
        gallery.add(ImageResult(ImageRef("uploads", name, 1), failure=Failure(code, "reason")))
    for shown in ("found", "nothing_found", "failed", "parked"):
        [card] = get("/api/results", {"shown": shown}).json["results"]
        assert (card["shown"], card["name"]) == (shown, f"{shown.split('_')[0]}.jpg")


def test_unreadable_document_does_not_break_its_page(gallery: Gallery, get: Get) -> None:
    add(gallery, "a.jpg", "fox")
    damaged = add(gallery, "b.jpg", "fox")
    fields = {"name": 7, "status": [], "image": "x", "detections": {"a": 1}, "faint": b"\xff"}
    reference = firestore.Client().collection(gallery.collection).document(damaged)
    reference.update(fields)
    cards = {card["id"]: card for card in get("/api/results").json["results"]}
    assert len(cards) == 2
    assert cards[damaged]["shown"] is None


@pytest.mark.parametrize(
    ("arguments", "field", "reason"),
    [
        ({}, "zone", "choose the source"),
        ({"source": "gate"}, "bucket", "A source is not possible"),
        ({"order": "confident"}, "day", "A day is not possible"),
        ({"order": "confident", "source": "gate"}, "label", "choose a label or a source"),
        ({"order": "name", "bucket": "uploads"}, "source", "A source is not possible"),
    ],
    ids=str,
)
def test_impossible_field_comes_with_its_reason(
    get: Get, arguments: dict[str, str], field: str, reason: str
) -> None:
    assert reason in get("/api/results", arguments).json["impossible"][field]


def test_impossible_orders_come_with_their_reason(get: Get) -> None:
    orders = get("/api/results", {"shown": "failed"}).json["impossible_orders"]
    assert sorted(orders) == ["confident", "name", "random", "uncertain"]
    assert "choose a bucket" in orders["name"]
    assert (
        "newest" in get("/api/results", {"order": "name", "bucket": "a"}).json["impossible_orders"]
    )


def test_impossible_combination_is_refused_as_text(get: Get) -> None:
    response = get("/api/results", {"zone": "door"})
    assert (response.status_code, "choose the source" in response.json["error"]) == (400, True)


@pytest.mark.parametrize("cursor", ["x", "%00", "W10", "a" * 3000])
def test_damaged_cursor_says_where_to_begin(get: Get, cursor: str) -> None:
    response = get("/api/results", {"cursor": cursor})
    assert response.status_code == 400
    assert "Begin at the first page" in response.json["error"]


def test_counts_are_read_once_a_minute(gallery: Gallery, get: Get) -> None:
    for number in range(3):
        add(gallery, f"{number}.jpg", "fox", *(["hare"] if number else []))
    asked = [("of", "fox"), ("of", "hare"), ("of", "unknown")]
    first = get("/api/counts", asked).json
    assert first == {"counts": {"fox": 3, "hare": 2, "unknown": 0}, "reads": 3}
    assert get("/api/counts", asked).json == first | {"reads": 0}


def test_counts_of_odd_labels_are_left_out(gallery: Gallery, get: Get) -> None:
    add(gallery, "a.jpg", "<b>")
    asked = [("of", "x" * 1600), ("of", ""), ("of", "<b>")]
    assert get("/api/counts", asked).json["counts"] == {"<b>": 1}


def test_counts_do_not_depend_on_the_order(gallery: Gallery, get: Get) -> None:
    add(gallery, "a.jpg", "fox", source={"id": "gate", "version": None})
    add(gallery, "b.jpg", "fox")
    asked = [("order", "confident"), ("source", "gate"), ("of", "fox")]
    assert get("/api/counts", asked).json["counts"] == {"fox": 1}


def test_page_links_the_formats_of_exports(get: Get) -> None:
    page = get("/").text
    assert '"name": "csv"' in page
    assert "one row for each detection" in page
