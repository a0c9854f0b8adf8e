"""The grid of results, in a real browser."""

from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.gallery import HOSTILE, Gallery, detection


def cards(page: Page) -> list[str]:
    expect(page.locator("#grid[aria-busy]")).to_have_count(0)
    return page.locator(".caption .name").all_text_contents()


def test_first_page_has_the_newest_with_their_boxes(opened: Page) -> None:
    names = cards(opened)
    assert len(names) == 60
    assert names[0].endswith("gate/mask.jpg")
    first = opened.locator(".card").first
    expect(first.locator(".overlay .mask")).to_have_count(1)
    expect(opened.locator(".card").nth(1).locator(".keypoint")).to_have_count(3)
    expect(opened.locator(".card").nth(2).locator("polygon.box")).to_have_count(1)
    assert first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)")


def test_pages_follow_each_other_and_back_works(opened: Page) -> None:
    first = cards(opened)
    opened.get_by_role("button", name="Next page").click()
    expect(opened.locator(".card")).to_have_count(15)
    assert not set(first) & set(cards(opened))
    opened.go_back()
    expect(opened.locator(".card")).to_have_count(60)
    assert cards(opened) == first


@pytest.mark.parametrize(
    ("field", "value", "chip", "count"),
    [
        ("shown", "failed", "Status: failed", 2),
        ("shown", "parked", "Status: parked", 1),
        ("shown", "nothing_found", "Status: nothing found", 1),
        ("source", "gate", "Source: gate", 5),
    ],
)
def test_filter_is_in_the_address_and_survives_it(
    opened: Page, gallery: Gallery, field: str, value: str, chip: str, count: int
) -> None:
    cards(opened)
    opened.goto(f"{gallery.address}/?{field}={value}")
    expect(opened.locator(".card")).to_have_count(count)
    opened.reload()
    expect(opened.locator(".card")).to_have_count(count)
    opened.get_by_role("button", name=f"Remove the filter {chip}").click()
    expect(opened.locator(".card")).to_have_count(60)
    assert field not in opened.url


def test_choosing_an_outcome_changes_the_page(opened: Page) -> None:
    cards(opened)
    opened.get_by_label("Status").select_option("failed")
    expect(opened.locator(".card")).to_have_count(2)
    assert "shown=failed" in opened.url
    assert "corrupt_image" in opened.locator("#grid").inner_text()


def test_impossible_filter_says_what_to_do(opened: Page, gallery: Gallery) -> None:
    opened.goto(f"{gallery.address}/?source=gate")
    expect(opened.locator(".card")).to_have_count(5)
    response = opened.request.get(f"{gallery.address}/api/results?zone=door")
    assert response.status == 400
    assert "choose the source" in response.json()["error"]


def test_slider_shows_faint_detections_and_counts_the_others(
    opened: Page, gallery: Gallery
) -> None:
    opened.goto(f"{gallery.address}/?source=yard&label=heart")
    expect(opened.locator(".card")).to_have_count(31)
    shown = opened.locator(".detection:not(.hidden)")
    expect(shown).to_have_count(62)
    expect(opened.locator("#below")).to_have_text("62 detections below the threshold.")
    opened.locator("#threshold").fill("0.1")
    expect(shown).to_have_count(93)
    opened.locator("#threshold").fill("1")
    expect(shown).to_have_count(0)
    opened.locator("#threshold").dispatch_event("change")
    assert "threshold=1" in opened.url
    opened.get_by_role("button", name="Reset threshold").click()
    expect(shown).to_have_count(62)


def test_label_keeps_its_color(opened: Page, gallery: Gallery) -> None:
    def color() -> str:
        star = opened.locator('.detection[data-label="star"]').first
        return str(star.evaluate("node => node.style.getPropertyValue('--label')"))

    cards(opened)
    first = color()
    opened.goto(f"{gallery.address}/?source=yard&label=star")
    cards(opened)
    assert color() == first


def test_label_without_a_count_shows_none(page: Page, own_gallery: Gallery) -> None:
    labels = ["constructor", "toString", *(f"a{number:02}" for number in range(20))]
    found = [detection(label, 0.9) for label in labels]
    own_gallery.add_image("a.jpg", *found)
    page.route("**/api/counts?*", lambda route: route.fulfill(json={"counts": {}, "reads": 1}))
    page.goto(own_gallery.url)
    page.locator("#label-panel summary").click()
    expect(page.locator("#count-cost")).to_contain_text("reads")
    assert set(page.locator(".count").all_text_contents()) == {""}


def test_counts_come_when_asked_and_say_what_they_cost(opened: Page) -> None:
    cards(opened)
    opened.locator("#label-panel summary").click()
    expect(opened.locator('.count[data-label="heart"]')).to_have_text("31")
    expect(opened.locator("#count-cost")).to_contain_text("reads")


def test_hostile_names_are_text(opened: Page) -> None:
    names = cards(opened)
    for name in HOSTILE:
        assert any(each.endswith(name) for each in names), name
    assert opened.evaluate("window.hacked") is None
    assert any("<b>bold</b>" in text for text in opened.locator(".overlay").all_text_contents())


def test_page_asks_no_other_host(page: Page, gallery: Gallery) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(gallery.url)
    cards(page)
    assert len(asked) > 5
    assert {url for url in asked if not url.startswith(f"{gallery.address}/")} == set()


def test_keys_move_open_and_turn_pages(opened: Page) -> None:
    cards(opened)
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    second = opened.locator(".card").nth(1)
    expect(second).to_be_focused()
    opened.keyboard.press("b")
    expect(opened.locator("#grid.plain")).to_have_count(1)
    opened.keyboard.press("b")
    opened.keyboard.press("]")
    expect(opened.locator(".card")).to_have_count(15)
    opened.keyboard.press("[")
    expect(opened.locator(".card")).to_have_count(60)
    opened.keyboard.press("?")
    expect(opened.get_by_role("dialog")).to_be_visible()


def test_boxes_stay_off_on_the_next_visit(opened: Page) -> None:
    cards(opened)
    opened.get_by_label("Boxes").uncheck()
    opened.reload()
    cards(opened)
    expect(opened.locator("#grid.plain")).to_have_count(1)


def test_missing_image_says_why(page: Page, own_gallery: Gallery) -> None:
    document_id = own_gallery.add_image("a.jpg")
    ref = own_gallery.results[document_id].ref
    own_gallery.add(own_gallery.results[document_id], derived_error="The labels changed.")
    page.goto(own_gallery.url)
    expect(page.locator(".hole")).to_contain_text("The labels changed.")
    assert ref.generation


def test_empty_gallery_says_what_to_do(page: Page, own_gallery: Gallery) -> None:
    page.goto(own_gallery.url)
    expect(page.locator("#message")).to_contain_text("Upload images")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_no_violation(page: Page, gallery: Gallery, scheme: "str", width: int) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(gallery.url)
    cards(page)
    page.locator("#label-panel summary").click()
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_phone_has_no_horizontal_scrolling(page: Page, gallery: Gallery) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(gallery.url)
    cards(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_impossible_fields_are_off_with_the_reason(opened: Page) -> None:
    cards(opened)
    zone = opened.get_by_label("Zone")
    expect(zone).to_be_disabled()
    expect(opened.locator("#why-zone")).to_contain_text("choose the source")
    opened.get_by_label("Order").select_option("confident")
    day = opened.get_by_label("Day of capture")
    expect(day).to_be_disabled()
    expect(opened.locator("#why-day")).to_contain_text("A day is not possible")
    expect(day).to_have_attribute("aria-describedby", "why-day")


def test_all_filters_are_cleared_at_once(opened: Page, gallery: Gallery) -> None:
    opened.goto(f"{gallery.address}/?source=yard&label=heart&day=2026-11-30&threshold=0.5")
    expect(opened.locator(".card")).to_have_count(31)
    opened.get_by_role("button", name="Clear all filters").click()
    expect(opened.locator(".card")).to_have_count(60)
    assert opened.url == f"{gallery.address}/?threshold=0.5"


def test_time_of_the_filter_is_the_local_time(browser: Browser, gallery: Gallery) -> None:
    with browser.new_context(timezone_id="Asia/Tokyo", locale="en") as context:
        page = context.new_page()
        page.goto(gallery.url)
        page.goto(f"{gallery.address}/?until=2026-11-30T11:50:00.000Z")
        expect(page.locator(".caption .name").first).to_contain_text("cam1/")
        expect(page.locator('input[name="until"]')).to_have_value("2026-11-30T20:50")
        page.get_by_label("Status").select_option("found")
        expect(page.get_by_role("button", name="Remove the filter Status")).to_be_visible()
        assert "until=2026-11-30T11%3A50%3A00.000Z" in page.url


def test_prefix_brings_its_bucket_and_order(opened: Page) -> None:
    first = cards(opened)[0]
    prefix = first.partition("/")[0] + "/gate/"
    opened.get_by_label("Prefix").fill(prefix)
    opened.keyboard.press("Enter")
    expect(opened.locator(".card")).to_have_count(8)
    assert "bucket=uploads" in opened.url
    assert "order=name" in opened.url
    names = cards(opened)
    assert names == sorted(names)


def test_bookmarked_page_leads_to_the_first_one(opened: Page, gallery: Gallery) -> None:
    newest = cards(opened)
    opened.get_by_role("button", name="Next page").click()
    expect(opened.locator(".card")).to_have_count(15)
    bookmark = opened.url
    opened.goto("about:blank")
    opened.goto(bookmark)
    expect(opened.locator(".card")).to_have_count(15)
    opened.get_by_role("button", name="First page").click()
    expect(opened.locator(".card")).to_have_count(60)
    assert cards(opened) == newest


def test_label_has_a_threshold_of_its_own(opened: Page, gallery: Gallery) -> None:
    opened.goto(f"{gallery.address}/?source=yard&label=heart")
    hearts = opened.locator('.detection[data-label="heart"]:not(.hidden)')
    circles = opened.locator('.detection[data-label="circle"]:not(.hidden)')
    expect(hearts).to_have_count(31)
    opened.locator("#label-panel summary").click()
    own = opened.get_by_label("Threshold of heart")
    own.fill("1")
    own.dispatch_event("change")
    expect(hearts).to_have_count(0)
    expect(circles).to_have_count(31)
    opened.reload()
    expect(circles).to_have_count(31)
    expect(hearts).to_have_count(0)


def test_label_is_searched_and_chosen_by_keys(opened: Page) -> None:
    cards(opened)
    opened.keyboard.press("/")
    search = opened.get_by_label("Search")
    expect(search).to_be_focused()
    opened.keyboard.type("shi")
    expect(opened.locator(".label-row:visible")).to_have_count(1)
    opened.keyboard.press("Enter")
    expect(opened.locator(".card")).to_have_count(1)
    expect(opened.locator("#label-chosen")).to_have_text("ship")
    assert "label=ship" in opened.url


def test_export_has_the_filter_and_the_thresholds(opened: Page, gallery: Gallery) -> None:
    state = "source=yard&threshold=0.1&threshold_of=a%3Ab%3A0.4"
    opened.goto(f"{gallery.address}/?{state}")
    cards(opened)
    opened.locator(".export summary").click()
    link = opened.get_by_role("link", name="csv", exact=True)
    address = urlsplit(link.get_attribute("href") or "")
    assert address.path == "/export"
    assert parse_qs(address.query) == parse_qs(state) | {"format": ["csv"]}


def test_failed_page_can_be_loaded_again(page: Page, gallery: Gallery) -> None:
    page.goto(gallery.url)
    expect(page.locator(".card")).to_have_count(60)
    page.route("**/api/results*", lambda route: route.abort())
    page.reload()
    expect(page.locator("#message")).to_contain_text("failed to load")
    page.unroute("**/api/results*")
    page.get_by_role("button", name="Load again").click()
    expect(page.locator(".card")).to_have_count(60)


def test_missing_thumbnail_can_be_loaded_again(page: Page, gallery: Gallery) -> None:
    page.route("**/images/**", lambda route: route.abort())
    page.goto(gallery.url)
    hole = page.locator(".item").first.locator(".hole")
    expect(hole).to_have_text("The image failed to load.")
    page.unroute("**/images/**")
    page.locator(".item").first.get_by_role("button", name="Load again").click()
    expect(hole).to_have_count(0)
    expect(page.locator(".card img").first).to_be_visible()


def test_damaged_address_leads_to_the_first_page(page: Page, gallery: Gallery) -> None:
    page.goto(gallery.url)
    page.goto(f"{gallery.address}/?cursor=damaged&threshold=high&threshold_of=%3A&order=newest")
    expect(page.locator("#message")).to_contain_text("damaged")
    page.get_by_role("button", name="First page").click()
    expect(page.locator(".card")).to_have_count(60)


def test_back_from_an_image_shows_the_same_page(opened: Page) -> None:
    cards(opened)
    opened.keyboard.press("]")
    expect(opened.locator(".card")).to_have_count(15)
    names, address = cards(opened), opened.url
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("Enter")
    opened.wait_for_url("**/image/**")
    assert urlsplit(opened.url).query == urlsplit(address).query
    opened.go_back()
    expect(opened.locator(".card")).to_have_count(15)
    assert cards(opened) == names


def test_image_without_a_size_has_no_boxes(page: Page, own_gallery: Gallery) -> None:
    document_id = own_gallery.add_image("a.jpg", detection("heart", 0.9))
    own_gallery.add(own_gallery.results[document_id], image={"width": "wide"})
    page.goto(own_gallery.url)
    expect(page.locator(".detection")).to_have_count(1)
    expect(page.locator(".overlay")).to_be_hidden()


def test_threshold_below_the_record_says_so(page: Page, own_gallery: Gallery) -> None:
    document_id = own_gallery.add_image("a.jpg", detection("heart", 0.9))
    own_gallery.add(own_gallery.results[document_id], faint_cut=0.2)
    page.goto(own_gallery.url)
    below = page.locator("#below")
    expect(below).to_have_text("0 detections below the threshold.")
    page.locator("#threshold").fill("0.1")
    expect(below).to_contain_text("Less confident detections of 1 image were not recorded.")


def test_arrows_of_an_image_follow_the_grid(opened: Page, gallery: Gallery) -> None:
    opened.goto(f"{gallery.address}/?order=confident")
    expect(opened.locator(".card").nth(1)).to_be_visible()
    second = opened.locator(".caption .name").nth(1).text_content()
    opened.locator(".card").first.click()
    opened.get_by_role("link", name="Next →").click()
    expect(opened.locator("h1")).to_have_text(second or "")
