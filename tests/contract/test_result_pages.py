"""Pages of results by a filter, on Firestore's emulator."""

import base64
import json
import math
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.cloud import firestore

from service.document import SHARDS
from service.gcp.result_pages import ResultPages, StoredResult
from service.result_filter import FilterError, Order, ResultFilter, Shown
from tests.fakes import PATIENCE_SECONDS
from tests.filters import possible_filters

START = datetime(2026, 11, 29, 23, tzinfo=UTC)
LABELS = ("traffic light", "person", "a/b", "`")


def documents(count: int, seed: int = 1) -> dict[str, dict[str, Any]]:
    """Return documents with many equal values, so that an order must also sort by the id."""
    chosen = random.Random(seed)
    return {f"{chosen.getrandbits(160):040x}": document(chosen) for _ in range(count)}


def document(chosen: random.Random) -> dict[str, Any]:
    status = chosen.choice(("done", "done", "done", "failed", "parked"))
    labels = chosen.sample(LABELS, chosen.randrange(3)) if status == "done" else []
    best = {label: chosen.randrange(1, 4) / 4 for label in labels}
    zones = chosen.sample(("door", "street"), chosen.randrange(3)) if labels else []
    failed = {"code": chosen.choice(("corrupt_image", "empty_object"))}
    return {
        "bucket": chosen.choice(("uploads", "uploads", "other")),
        "name": chosen.choice(("cam1/", "cam2/", "cam1")) + str(chosen.randrange(20)),
        "generation": chosen.randrange(5),
        "status": status,
        "found": bool(labels) if status == "done" else None,
        "error": failed if status == "failed" else None,
        "labels": labels,
        "best": best,
        "max_confidence": max(best.values(), default=None),
        "uncertain_confidence": min(best.values(), default=None),
        "zone_labels": [*zones, *(f"{zone}/{label}" for zone in zones for label in labels)],
        "source": {"id": chosen.choice(("gate", "yard", None))},
        "day": chosen.choice(("2026-11-30", "2026-12-01", None)),
        "shard": chosen.randrange(SHARDS),
        "created_at": START + timedelta(minutes=chosen.randrange(120)),
    }


def matches(item: dict[str, Any], chosen: ResultFilter) -> bool:
    """Return what a filter means, in Python."""
    key = f"{chosen.zone}/{chosen.label}" if chosen.label else chosen.zone
    is_found = {Shown.FOUND: True, Shown.NOTHING_FOUND: False}
    path = "max_confidence" if chosen.order is Order.CONFIDENT else "uncertain_confidence"
    is_by_confidence = chosen.order in (Order.CONFIDENT, Order.UNCERTAIN)
    return (
        (not chosen.label or chosen.label in item["labels"])
        and (not chosen.zone or key in item["zone_labels"])
        and (chosen.shown not in is_found or item["found"] is is_found[chosen.shown])
        and (chosen.shown not in (Shown.FAILED, Shown.PARKED) or item["status"] == chosen.shown)
        and (not chosen.error_code or (item["error"] or {}).get("code") == chosen.error_code)
        and (not chosen.source or item["source"]["id"] == chosen.source)
        and (not chosen.day or item["day"] == chosen.day.isoformat())
        and (not chosen.until or item["created_at"] < chosen.until)
        and (not chosen.bucket or item["bucket"] == chosen.bucket)
        and (not chosen.prefix or item["name"].startswith(chosen.prefix))
        and (not is_by_confidence or item[path] is not None)
    )


def expected(items: dict[str, dict[str, Any]], chosen: ResultFilter) -> list[str]:
    def key(pair: tuple[str, dict[str, Any]]) -> tuple[Any, str]:
        item = pair[1]
        if chosen.order in (Order.CONFIDENT, Order.UNCERTAIN) and chosen.label:
            return item["best"][chosen.label], pair[0]
        if chosen.order is Order.RANDOM:
            return pair[0], pair[0]
        path = {
            Order.NEWEST: "created_at",
            Order.NAME: "name",
            Order.CONFIDENT: "max_confidence",
            Order.UNCERTAIN: "uncertain_confidence",
        }
        return item[path[chosen.order]], pair[0]

    found = [pair for pair in items.items() if matches(pair[1], chosen)]
    is_falling = chosen.order in (Order.NEWEST, Order.CONFIDENT)
    return [document_id for document_id, _ in sorted(found, key=key, reverse=is_falling)]


@pytest.fixture
def write(collection: str) -> Callable[[dict[str, dict[str, Any]]], None]:
    client = firestore.Client()

    def write(items: dict[str, dict[str, Any]]) -> None:
        writer = client.bulk_writer()
        for document_id, item in items.items():
            writer.set(client.collection(collection).document(document_id), item)
        writer.close()  # type: ignore[no-untyped-call]

    return write


@pytest.fixture
def pages(collection: str) -> ResultPages:
    return ResultPages(firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS)


def walk(pages: ResultPages, chosen: ResultFilter, size: int) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = pages.page(chosen, size, cursor)
        found += [result.id for result in page.results]
        if (cursor := page.following) is None:
            return found
        assert len(page.results) == size


def ids(results: Iterable[StoredResult | None]) -> list[str | None]:
    return [result.id if result else None for result in results]


def test_each_filter_finds_exactly_its_results_in_order(
    pages: ResultPages, write: Callable[..., None]
) -> None:
    items = documents(150)
    write(items)
    wrong = []
    count = 0
    for chosen in possible_filters():
        wanted = expected(items, chosen)
        count += bool(wanted)
        if ids(pages.page(chosen, 200).results) != wanted or pages.count(chosen) != len(wanted):
            wrong.append(chosen)
    assert not wrong
    assert count > 50  # many filters find something


@pytest.mark.parametrize("order", Order)
def test_pages_neither_repeat_nor_skip_a_result(
    pages: ResultPages, write: Callable[..., None], order: Order
) -> None:
    items = documents(50)
    write(items)
    chosen = ResultFilter(order=order, bucket="uploads" if order is Order.NAME else None)
    assert walk(pages, chosen, 7) == expected(items, chosen)
    assert [result.id for result, _ in pages.stream(chosen, page_size=7)] == expected(items, chosen)


def test_new_results_do_not_move_the_next_page(
    pages: ResultPages, write: Callable[..., None]
) -> None:
    items = documents(30)
    write(items)
    first = pages.page(ResultFilter(), 10)
    write(
        {
            key: item | {"created_at": START + timedelta(days=1)}
            for key, item in documents(5, 2).items()
        }
    )
    second = pages.page(ResultFilter(), 10, first.following)
    assert ids([*first.results, *second.results]) == expected(items, ResultFilter())[:20]


ORDERS = [
    ResultFilter(),
    ResultFilter(label="person", until=START + timedelta(minutes=100)),
    ResultFilter(order=Order.NAME, bucket="uploads", prefix="cam1"),
    ResultFilter(order=Order.CONFIDENT),
    ResultFilter(order=Order.CONFIDENT, label="a/b"),
    ResultFilter(order=Order.UNCERTAIN, source="gate"),
    ResultFilter(order=Order.UNCERTAIN, label="`"),
]


@pytest.mark.parametrize("chosen", ORDERS, ids=str)
def test_results_that_arrive_do_not_disturb_pages(
    pages: ResultPages, write: Callable[..., None], chosen: ResultFilter
) -> None:
    items = documents(80)
    write(items)
    found: list[str] = []
    cursor, seed = None, 10
    while True:
        page = pages.page(chosen, 4, cursor)
        found += [result.id for result in page.results]
        if (cursor := page.following) is None:
            break
        new = documents(3, seed := seed + 1)  # anywhere in the order
        write(new if seed < 40 else {})
    assert [key for key in found if key in items] == expected(items, chosen)
    assert len(set(found)) == len(found)


INFINITE = (float("nan"), float("inf"), float("-inf"))
EDITED = ({"a": 1}, "yesterday", True, None, b"x", [1], 5, firestore.GeoPoint(1, 2), *INFINITE)


@pytest.mark.parametrize(
    ("chosen", "path"),
    [
        (ResultFilter(), "created_at"),
        (ResultFilter(until=START + timedelta(days=1)), "created_at"),
        (ResultFilter(order=Order.NAME, bucket="uploads"), "name"),
        (ResultFilter(order=Order.CONFIDENT), "max_confidence"),
        (ResultFilter(order=Order.UNCERTAIN, source="gate"), "uncertain_confidence"),
    ],
    ids=str,
)
def test_values_of_other_types_do_not_end_the_pages(
    pages: ResultPages, write: Callable[..., None], chosen: ResultFilter, path: str
) -> None:
    items = documents(30)
    base = next(iter(items.values())) | {"bucket": "uploads", "source": {"id": "gate"}}
    edited = {f"{n:040x}": base | {path: value} for n, value in enumerate(EDITED)}
    write(items | edited)
    found = walk(pages, chosen, 1)
    assert [key for key in found if key in items] == expected(items, chosen)
    assert len(found) == pages.count(chosen) == len(set(found))


def test_stream_continues_behind_any_result(pages: ResultPages, write: Callable[..., None]) -> None:
    items = documents(20)
    write(items)
    for index, (_, cursor) in enumerate(pages.stream(ResultFilter(), page_size=6)):
        rest = [result.id for result, _ in pages.stream(ResultFilter(), cursor, page_size=6)]
        assert rest == expected(items, ResultFilter())[index + 1 :]


@pytest.mark.parametrize("count", [200, 2000])
def test_page_reads_as_much_of_a_large_collection(
    pages: ResultPages, write: Callable[..., None], count: int
) -> None:
    write(documents(count))
    for chosen in (
        ResultFilter(),
        ResultFilter(label="person", shown=Shown.FOUND, source="gate"),
        ResultFilter(order=Order.CONFIDENT),
        ResultFilter(order=Order.UNCERTAIN, label="person"),
        ResultFilter(order=Order.NAME, bucket="uploads", prefix="cam1/"),
    ):
        pages.reset_usage()
        first = pages.page(chosen, 5)
        pages.page(chosen, 5, first.following)
        assert (pages.usage().queries, pages.usage().documents) == (2, 12)
    pages.reset_usage()
    assert pages.count(ResultFilter()) == count
    assert pages.usage().documents == math.ceil(count / 1000)


def test_count_and_empty_page_cost_a_read(pages: ResultPages) -> None:
    assert pages.count(ResultFilter()) == 0
    assert pages.page(ResultFilter(), 10).results == ()
    assert (pages.usage().queries, pages.usage().documents) == (2, 2)
    assert pages.usage().seconds > 0


def test_neighbours_are_those_of_the_same_source(
    pages: ResultPages, write: Callable[..., None]
) -> None:
    items = documents(40)
    write(items)
    for source in ("gate", None):
        falling = [
            key for key in expected(items, ResultFilter()) if items[key]["source"]["id"] == source
        ]
        for newer, middle, older in zip(
            [None, *falling[:-1]], falling, [*falling[1:], None], strict=True
        ):
            pages.reset_usage()
            found = pages.neighbours(StoredResult(middle, items[middle]))
            assert ids(found) == [newer, older]
            assert (pages.usage().queries, pages.usage().documents) == (2, 2)


def test_usage_is_that_of_the_same_thread(pages: ResultPages) -> None:
    pages.page(ResultFilter(), 10)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(pages.usage).result().queries == 0
        other.submit(pages.count, ResultFilter()).result()
        assert other.submit(pages.usage).result().queries == 1
    assert pages.usage().queries == 1


@pytest.mark.parametrize(
    "changed",
    [{"created_at": "yesterday"}, {"source": {"id": 5}}, {"source": {"id": "x" * 1500}}],
)
def test_edited_result_has_no_neighbours(pages: ResultPages, changed: dict[str, Any]) -> None:
    [(key, item)] = documents(1).items()
    assert pages.neighbours(StoredResult(key, item | changed)) == (None, None)


def test_generations_are_the_newest_first(pages: ResultPages, write: Callable[..., None]) -> None:
    write({f"{n:040x}": {"uri": "gs://b/a.jpg", "generation": n} for n in range(4)})
    assert ids(pages.generations("gs://b/a.jpg", 3)) == [f"{n:040x}" for n in (3, 2, 1)]


def test_edited_address_has_no_other_generations(pages: ResultPages) -> None:
    assert ids(pages.generations("gs://b/" + "x" * 1480)) == []
    assert ids(pages.generations("gs://b/" + "x" * 1493)) == []  # Firestore would refuse it


def test_result_is_found_by_its_id(pages: ResultPages, write: Callable[..., None]) -> None:
    write({"a" * 40: {"name": "x"}})
    assert pages.result("a" * 40) == StoredResult("a" * 40, {"name": "x"})
    assert pages.result("b" * 40) is None


IMPOSSIBLE_IDS = ["", ".", "..", "a/b", "__x__", "x" * 1501, "\ud800"]


@pytest.mark.parametrize("document_id", IMPOSSIBLE_IDS)
def test_impossible_id_has_no_result(pages: ResultPages, document_id: str) -> None:
    assert pages.result(document_id) is None


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize(
    "text",
    ["`", "\\", "\0", ".", "..", "__x__", "a/b", " ", "\u202e", "x" * 1400, "é" * 700, "`" * 1400],
)
def test_every_text_of_a_filter_can_be_queried(pages: ResultPages, text: str, order: Order) -> None:
    bucket = "uploads" if order is Order.NAME else None
    prefix = text if order is Order.NAME else None
    chosen = ResultFilter(order=order, label=text, bucket=bucket, prefix=prefix)
    if chosen.conflicts():
        assert text == "__x__"  # Firestore has no such field
        return
    assert pages.page(chosen, 10).results == ()
    assert pages.count(chosen) == 0


def test_longest_label_of_a_zone_can_be_queried(pages: ResultPages) -> None:
    chosen = ResultFilter(label="x" * 1336, zone="z" * 63, source="gate", error_code="x" * 1400)
    assert pages.page(chosen, 10).results == ()


def test_cursor_of_another_filter_is_refused(
    pages: ResultPages, write: Callable[..., None]
) -> None:
    write(documents(60))
    cursors = {chosen: pages.page(chosen, 1).following for chosen in ORDERS}
    assert all(cursors.values())
    for chosen in ORDERS:
        for other, cursor in cursors.items():
            if other != chosen:
                with pytest.raises(FilterError, match="first page"):
                    pages.page(chosen, 1, cursor)


TIME = (START + timedelta(minutes=1)).isoformat()
NEWEST = ResultFilter(until=START + timedelta(hours=1))
BY_NAME = ResultFilter(order=Order.NAME, bucket="uploads", prefix="cam2/")
CONFIDENT = ResultFilter(order=Order.CONFIDENT)


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    ("chosen", "value", "document_id"),
    [
        *((NEWEST, TIME, document_id) for document_id in (*IMPOSSIBLE_IDS, None, 5, ["a"])),
        (NEWEST, (START + timedelta(days=1)).isoformat(), "a"),  # not before `until`
        (NEWEST, "yesterday", "a"),
        (NEWEST, "0001-01-01T00:00:00+14:00", "a"),
        (NEWEST, 5, "a"),
        (NEWEST, None, "a"),
        (NEWEST, {"time": TIME}, "a"),
        (BY_NAME, "cam1/7", "a"),  # not of the prefix
        (BY_NAME, "cam2/\ud800", "a"),
        (BY_NAME, "cam2/" + "x" * 2000, "a"),
        (BY_NAME, 5, "a"),
        (CONFIDENT, -1, "a"),
        (CONFIDENT, 10**400, "a"),
        (CONFIDENT, float("nan"), "a"),
        (CONFIDENT, "0.5", "a"),
        (CONFIDENT, [[0.5]], "a"),
    ],
)
def test_changed_cursor_is_refused(
    pages: ResultPages,
    write: Callable[..., None],
    chosen: ResultFilter,
    value: Any,
    document_id: Any,
) -> None:
    write(documents(60))
    cursor = pages.page(chosen, 1).following
    key, known_value, known_id = json.loads(base64.urlsafe_b64decode(f"{cursor}==="))
    assert pages.page(chosen, 1, encoded([key, known_value, known_id])).results
    with pytest.raises(FilterError, match="first page"):
        pages.page(chosen, 1, encoded([key, value, document_id]))


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "%%%",
        "Ä",
        "A" * 10_000,
        encoded(5),
        encoded([]),
        encoded([1, 2, 3, 4]),
        "W1tb" * 9000,
    ],
)
def test_damaged_cursor_is_refused(pages: ResultPages, cursor: str) -> None:
    with pytest.raises(FilterError, match="first page"):
        pages.page(ResultFilter(), 3, cursor)


def test_impossible_combination_says_what_to_do(pages: ResultPages) -> None:
    with pytest.raises(FilterError, match="choose the source"):
        pages.page(ResultFilter(zone="door"), 10)
