"""The pages of `yolo-batch compare` and `yolo-batch evaluate` in a real browser."""

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from service.images.decoders import Decoders
from service.operate.compare import FileImages, as_json
from tests.browser.reports import HOSTILE, HOSTILE_LABEL, sample_report, serving, wait_for_images
from tests.fakes import PATIENCE_SECONDS

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of the browser


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    report = sample_report()
    decoders = Decoders(1, max_pixels=10**7, max_decompressed_bytes=10**7)
    try:
        with serving("compare", as_json(report, "photos"), FileImages(report, decoders)) as url:
            yield url
    finally:
        decoders.close()


@pytest.fixture
def compare_page(page: Page, address: str) -> Page:
    page.goto(address)
    return page


def names(page: Page) -> list[str]:
    return page.locator(".name-of-image").all_inner_texts()


def select(page: Page, name: str, value: str) -> None:
    page.locator(f"select[name={name}]").select_option(value)


def violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{item['id']}: {item['nodes'][0]['html']}" for item in found]


def test_images_with_differences_come_sorted(compare_page: Page) -> None:
    assert names(compare_page)[:2] == ["lost.jpg", "gained.jpg"]
    assert "same.jpg" not in names(compare_page)
    assert "1 lost · disagreement 0.90" in compare_page.locator(".what").first.inner_text()


def test_filters_change_the_images_and_the_address(compare_page: Page) -> None:
    select(compare_page, "show", "moved")
    assert names(compare_page) == ["moved.jpg"]
    assert "show=moved" in compare_page.url
    select(compare_page, "show", "all")
    assert "same.jpg" in names(compare_page)
    select(compare_page, "label", "dog")
    assert sorted(names(compare_page)) == ["gained.jpg", "lost.jpg"]
    compare_page.reload()
    assert sorted(names(compare_page)) == ["gained.jpg", "lost.jpg"]
    compare_page.go_back()
    assert "same.jpg" in names(compare_page)


def test_line_of_a_box_shows_its_model(compare_page: Page) -> None:
    select(compare_page, "show", "moved")
    boxes = compare_page.locator("#grid .box")
    dashes = boxes.evaluate_all("boxes => boxes.map((b) => getComputedStyle(b).strokeDasharray)")
    assert [value == "none" for value in dashes] == [False, True]
    compare_page.get_by_label("boxes of A").uncheck()
    expect(compare_page.locator("#grid .detection")).to_have_count(1)


def test_images_load(compare_page: Page) -> None:
    wait_for_images(compare_page.locator("#grid img"))


def test_keys_open_an_image_and_step(compare_page: Page) -> None:
    compare_page.keyboard.press("ArrowRight")
    compare_page.keyboard.press("Enter")
    dialog = compare_page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text("lost.jpg")
    expect(dialog.locator("tbody tr")).to_have_text(["lostcat0.90none"])
    compare_page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("heading")).to_have_text("gained.jpg")
    compare_page.keyboard.press("k")
    expect(dialog.locator("tbody tr")).to_have_count(2)
    compare_page.keyboard.press("Escape")
    expect(compare_page.locator("#grid button").nth(1)).to_be_focused()


def test_pointing_at_a_row_lights_its_box(compare_page: Page) -> None:
    compare_page.locator("#grid button").first.click()
    compare_page.locator("#changes tr").first.hover()
    expect(compare_page.locator("dialog .detection.lit")).to_have_count(1)


def test_hostile_names_and_labels_are_text(compare_page: Page) -> None:
    assert HOSTILE in names(compare_page)
    compare_page.get_by_text("Counts by label").click()
    expect(compare_page.get_by_role("rowheader", name=HOSTILE_LABEL)).to_be_visible()
    compare_page.get_by_role("button", name=HOSTILE).click()
    expect(compare_page.get_by_role("dialog")).to_contain_text(HOSTILE_LABEL)
    assert compare_page.evaluate("window.hacked") is None


def test_page_asks_no_other_host_and_breaks_no_policy(page: Page, address: str) -> None:
    hosts, messages = set(), []
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.on("console", lambda message: messages.append(message.text))
    page.goto(address)
    page.locator("#grid button").first.click()
    wait_for_images(page.locator("dialog img"))
    assert hosts == {address.split("/")[2]}
    assert messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_on_a_phone(browser: Browser, address: str, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    page = context.new_page()
    page.goto(address)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_text("Counts by label").click()
    page.locator("#grid button").first.click()
    assert violations(page) == []
    context.close()


def test_page_without_the_token_is_forbidden(page: Page, address: str) -> None:
    response = page.goto(address.split("?")[0])
    assert response is not None
    assert response.status == 403
    assert "Open the address" in page.inner_text("main")


@pytest.mark.parametrize("path", ["/images/99/large", "/images/0/original", "/images/-1/large"])
def test_only_images_of_the_report_exist(compare_page: Page, path: str) -> None:
    response = compare_page.request.get(compare_page.url.split("/?")[0].rstrip("/") + path)
    assert response.status == 404
