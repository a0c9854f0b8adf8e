"""The review of results, in a real browser."""

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from axe_playwright_python.sync_playwright import Axe
from google.api_core import exceptions
from playwright.sync_api import Browser, Page, expect

from service.domain import SourceVersion
from service.errors import FirestoreUnavailableError
from service.gcp.verdict_store import VerdictStore
from tests.fakes import PATIENCE_SECONDS
from tests.gallery import HOSTILE, NEWEST, Gallery, detection, running_gallery

MINUTE = timedelta(minutes=1)
expect.set_options(timeout=PATIENCE_SECONDS * 1000)


@pytest.fixture
def review() -> Iterator[Gallery]:
    """A gallery with a database of verdicts of its own, and no results."""
    with running_gallery(verdicts_database=f"v{uuid.uuid4().hex[:12]}") as running:
        yield running


def seed(review: Gallery) -> list[str]:
    """Store three images with two detections each, the least certain first. Return their ids."""
    return [
        review.add_image(
            f"gate/{number}.jpg",
            detection("star", 0.9),
            detection("heart", 0.3 + number / 10, 150.0),
            age=number * MINUTE,
            source=SourceVersion("gate", NEWEST),
            faint=(detection("circle", 0.1, 250.0),),
        )
        for number in range(3)
    ]


def name(page: Page) -> str:
    """Return the name of the image under review, when it can be judged."""
    expect(page.locator("#image")).to_be_visible()
    page.wait_for_function(
        "() => { const work = document.getElementById('work');"
        " return work.dataset.shown && document.getElementById('details').href"
        ".includes(work.dataset.shown); }"
    )
    return str(page.locator("#name").inner_text()).rpartition("/")[2]


def open_review(page: Page, review: Gallery, path: str = "/review") -> None:
    """Open a page with the token: not by the grid, whose thumbnails take a while."""
    token = review.url.partition("?")[2]
    page.goto(f"{review.address}{path}{'&' if '?' in path else '?'}{token}")


def verdicts(review: Gallery, ids: list[str]) -> dict[str, dict[str, object]]:
    store = review.parts.verdicts
    assert isinstance(store, VerdictStore)
    return store.read(ids)


def test_keys_judge_images_and_the_next_one_follows(page: Page, review: Gallery) -> None:
    ids = seed(review)
    open_review(page, review)
    assert name(page) == "0.jpg"
    page.keyboard.press("c")
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/1.jpg")
    assert name(page) == "1.jpg"
    page.keyboard.press("w")
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/2.jpg")
    assert name(page) == "2.jpg"
    page.keyboard.press("m")
    expect(page.locator("#verdict")).to_contain_text("missed")
    page.keyboard.press("c")
    expect(page.locator("#message")).to_contain_text("Every image of this filter has a verdict")
    found = verdicts(review, ids)
    assert [found[each]["image"] for each in ids] == ["correct", "wrong", "wrong"]
    assert [found[each]["missed"] for each in ids] == [False, False, True]
    items = found[ids[0]]["detections"]
    assert isinstance(items, list)
    assert [(item["label"], item["verdict"]) for item in items] == [
        ("star", "correct"),
        ("heart", "correct"),
    ]
    assert found[ids[0]]["reviewer"] == "local"


def test_number_key_judges_one_detection(page: Page, review: Gallery) -> None:
    ids = seed(review)
    open_review(page, review)
    name(page)
    page.keyboard.press("2")
    expect(page.locator("#overlay .picked")).to_have_count(1)
    page.keyboard.press("w")
    expect(page.locator("#detections button").nth(1)).to_contain_text("heart 0.30: wrong")
    page.keyboard.press("c")
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/1.jpg")
    items = verdicts(review, ids)[ids[0]]["detections"]
    assert isinstance(items, list)
    assert [item["verdict"] for item in items] == ["correct", "wrong"]


def test_tab_reaches_and_chooses_a_detection(page: Page, review: Gallery) -> None:
    seed(review)
    open_review(page, review)
    name(page)
    first = page.locator("#detections button").first
    for _ in range(20):
        if first.evaluate("button => button === document.activeElement"):
            break
        page.keyboard.press("Tab")
    expect(first).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(first).to_have_attribute("aria-pressed", "false")


def test_undo_shows_the_image_again_without_verdict(page: Page, review: Gallery) -> None:
    ids = seed(review)
    open_review(page, review)
    name(page)
    page.keyboard.press("c")
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/1.jpg")
    page.keyboard.press("u")
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/0.jpg")
    expect(page.locator("#verdict")).to_have_text("No verdict yet.")
    assert verdicts(review, ids) == {}


def test_undo_that_fails_can_be_tried_again(
    page: Page, review: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object) -> None:
        raise FirestoreUnavailableError("Firestore did not respond.")

    ids = seed(review)
    open_review(page, review)
    name(page)
    page.keyboard.press("c")
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/1.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(VerdictStore, "undo", unavailable)
        page.keyboard.press("u")
        expect(page.locator("#message")).to_have_text("Firestore did not respond.")
    page.keyboard.press("u")
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/0.jpg")
    assert verdicts(review, ids) == {}


def test_edited_verdict_breaks_no_page(page: Page, review: Gallery) -> None:
    [first, *_] = seed(review)
    store = review.parts.verdicts
    assert isinstance(store, VerdictStore)
    odd = [{"index": 0, "label": "star", "confidence": 1e308, "verdict": "wrong"}]
    judged = {"verdict": ["wrong"], "index": 0}
    store.write(first, {"image": "wrong", "detections": [*odd, judged], "missed_label": [1]})
    open_review(page, review)
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/0.jpg")
    page.goto(f"{review.address}/review/statistics")
    expect(page.locator("h1")).to_have_text("What the verdicts show")


def test_threshold_decides_what_a_verdict_covers(page: Page, review: Gallery) -> None:
    ids = seed(review)
    open_review(page, review, "/review?threshold=0.05")
    name(page)
    expect(page.locator("#detections button")).to_have_count(3)
    page.keyboard.press("c")
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/1.jpg")
    items = verdicts(review, ids)[ids[0]]["detections"]
    assert isinstance(items, list)
    assert [item["label"] for item in items] == ["star", "heart", "circle"]


def test_reviewed_images_are_skipped_and_counted(page: Page, review: Gallery) -> None:
    seed(review)
    open_review(page, review)
    name(page)
    page.keyboard.press("c")
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/1.jpg")
    open_review(page, review)
    assert name(page) == "1.jpg"
    expect(page.locator("#count")).to_contain_text(
        "About 2 images without a verdict, 1 with a verdict"
    )
    page.keyboard.press("ArrowLeft")
    assert name(page) == "0.jpg"
    expect(page.locator("#verdict")).to_have_text("Verdict by local: correct.")


def test_verdict_of_a_replaced_result_is_refused(page: Page, review: Gallery) -> None:
    ids = seed(review)
    open_review(page, review)
    name(page)
    review.add(review.results[ids[0]], age=-MINUTE)  # another run
    page.keyboard.press("c")
    expect(page.locator("#message")).to_contain_text("replaced meanwhile")
    assert verdicts(review, ids) == {}


def test_verdict_of_an_earlier_run_is_named_and_asked_again(page: Page, review: Gallery) -> None:
    ids = seed(review)
    open_review(page, review)
    name(page)
    page.keyboard.press("c")
    expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/1.jpg")
    review.add(review.results[ids[0]], age=-MINUTE)
    open_review(page, review)
    assert name(page) == "0.jpg"
    expect(page.locator("#verdict")).to_contain_text("of an earlier run with shapes.pt")


def test_two_reviewers_the_last_one_counts(page: Page, review: Gallery, browser: Browser) -> None:
    ids = seed(review)
    open_review(page, review)
    name(page)
    with browser.new_context() as other:
        other.set_default_timeout(PATIENCE_SECONDS * 1000)
        second = other.new_page()
        open_review(second, review)
        name(second)
        page.keyboard.press("c")
        expect(page.locator("#name")).to_have_text(f"{review.collection}/gate/1.jpg")
        second.keyboard.press("w")
        expect(second.locator("#name")).to_have_text(f"{review.collection}/gate/1.jpg")
    found = verdicts(review, ids)[ids[0]]
    assert found["image"] == "wrong"
    page.keyboard.press("u")
    expect(page.locator("#message")).to_contain_text("Somebody else has judged")
    assert verdicts(review, ids)[ids[0]] == found


def test_hostile_names_and_labels_are_text(page: Page, review: Gallery) -> None:
    for number, each in enumerate(HOSTILE):
        review.add_image(each, detection("<b>bold</b>", 0.5 + number / 10), age=number * MINUTE)
    open_review(page, review)
    for each in HOSTILE:
        expect(page.locator("#name")).to_have_text(f"{review.collection}/{each}")
        name(page)
        page.keyboard.press("w")
    expect(page.locator("#message")).to_contain_text("Every image")
    page.goto(f"{review.address}/review/statistics")
    expect(page.locator("tbody td").first).to_have_text("<b>bold</b>")
    assert page.evaluate("window.hacked") is None


def test_image_that_is_not_shown_cannot_be_judged(page: Page, review: Gallery) -> None:
    [first, *_] = ids = seed(review)
    review.add(review.results[first], derived_error="The labels changed.")
    open_review(page, review)
    expect(page.locator("#no-image")).to_contain_text("failed to load")
    page.keyboard.press("c")
    expect(page.locator("#message")).to_contain_text("cannot be judged")
    assert verdicts(review, ids) == {}


def test_statistics_show_the_numbers_of_the_verdicts(page: Page, review: Gallery) -> None:
    store = review.parts.verdicts
    assert isinstance(store, VerdictStore)
    for number in range(40):
        item = {"index": 0, "label": "star", "confidence": 0.25 if number < 4 else 0.75}
        verdict = "wrong" if number < 4 else "correct"
        store.write(
            f"{number:040x}",
            {
                "image": verdict,
                "missed": number == 0,
                "detections": [item | {"verdict": verdict}],
                "model": {"name": "shapes.pt", "sha256": "ab" * 32},
                "source": "gate",
                "order": "random",
            },
        )
    open_review(page, review, "/review/statistics?wanted=0.95")
    cells = page.locator("tbody").first.locator("td").all_inner_texts()
    assert cells[:5] == ["star", "gate", "40", "90.0 %", "76.9 % to 96.0 %"]
    assert cells[5] == "0.75: 100.0 % (90.4 % to 100.0 %), keeps 36 of 40"
    page.get_by_text("Show the lines").click()
    lines = page.locator("pre").inner_text()
    yaml = "sources: - id: gate min_confidence_by_label: star: 0.75"
    assert " ".join(lines.split()) == yaml
    expect(page.locator(".bar-mark")).to_have_count(2)
    response = page.request.get(f"{review.address}/api/review/statistics")
    assert response.json()["rows"][0]["precision"]["share"] == 0.9
    assert response.json()["reads"] == 0  # kept for a minute


@pytest.mark.parametrize("path", ["/review", "/review/statistics"])
def test_missing_database_says_how_to_create_it(
    page: Page, review: Gallery, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The emulator has every database."""

    def missing(*_: object, **__: object) -> None:
        raise exceptions.NotFound("The database does not exist")

    seed(review)
    store = review.parts.verdicts
    assert isinstance(store, VerdictStore)
    monkeypatch.setattr(store._client, "get_all", missing)
    monkeypatch.setattr(store, "_page", missing_page(store, missing))
    open_review(page, review, path)
    expect(page.locator(".message:visible")).to_contain_text("gcloud firestore databases create")


def missing_page(store: VerdictStore, missing: Callable[..., None]) -> Callable[..., None]:
    """Return a query that finds no database."""

    def read(*_: object) -> None:
        with store._reading():
            missing()

    return read


def test_page_of_reviews_states_its_reads(page: Page, review: Gallery) -> None:
    seed(review)
    open_review(page, review, "/review/statistics")
    response = page.request.get(f"{review.address}/api/review?order=uncertain")
    assert response.headers["x-firestore-usage"] == "queries=2, documents=6"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "[" * 60_000,
        "{}",
        '{"correct": [9], "wrong": [], "order": "x"}',
        '{"correct": "x"}',
    ],
)
def test_broken_verdict_is_refused(page: Page, review: Gallery, body: str) -> None:
    [first, *_] = ids = seed(review)
    open_review(page, review)
    token = page.locator('meta[name="csrf-token"]').get_attribute("content") or ""
    response = page.request.put(
        f"{review.address}/api/verdicts/{first}",
        data=body.encode(),
        headers={"X-CSRF-Token": token, "Content-Type": "application/json"},
    )
    assert response.status in (400, 409)
    assert verdicts(review, ids) == {}


def test_verdict_without_csrf_token_is_refused(page: Page, review: Gallery) -> None:
    [first, *_] = seed(review)
    open_review(page, review, "/review/statistics")
    assert page.request.put(f"{review.address}/api/verdicts/{first}", data="{}").status == 403
    assert page.request.delete(f"{review.address}/api/verdicts/{first}").status == 403


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_no_violation(page: Page, review: Gallery, scheme: str, width: int) -> None:
    seed(review)
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    open_review(page, review)
    name(page)
    page.keyboard.press("2")
    page.keyboard.press("w")
    expect(page.locator("#detections button").nth(1)).to_contain_text("wrong")
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.goto(f"{review.address}/review/statistics")
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
