"""The page of one image in a real browser."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from service.domain import Box, ClassScore, Keypoint, Task
from tests.gallery import Gallery
from tests.gallery_pages import HOSTILE, MODEL, Pages, failed, found, person

pytestmark = pytest.mark.emulator


@pytest.fixture
def pages() -> Pages:
    return Pages(f"test-{uuid.uuid4().hex}")


@pytest.fixture
def opened(pages: Pages, page: Page) -> Iterator[Page]:
    """Return a page that has the cookie of a gallery with the documents of `pages`."""
    with pages.served() as url:
        page.goto(url)
        page.goto(f"{base(page)}/problems")  # the grid stores what it lists
        yield page


def open_image(page: Page, document_id: str, query: str = "") -> None:
    page.goto(f"{base(page)}/image/{document_id}{query}")


def base(page: Page) -> str:
    return "/".join(page.url.split("/")[:3])


def two(name: str = "a.png", **fields: Any) -> Any:
    """Return a result with a person, a small dog on the person, and a faint cat."""
    dog = replace(person(0.6), label="dog", box=Box(150.0, 100.0, 200.0, 150.0), zones=())
    cat = replace(person(0.1), label="cat", box=Box(400.0, 10.0, 500.0, 60.0), zones=())
    return found(name, person(), dog, **({"faint": (cat,)} | fields))


def press(page: Page, key: str) -> None:
    """Press a key, once the page's script listens to it."""
    page.wait_for_load_state()
    page.keyboard.press(key)


def shown_rows(page: Page) -> list[str]:
    return [row.split()[0] for row in page.locator("#rows tbody tr:visible").all_inner_texts()]


def test_row_and_box_light_each_other(pages: Pages, opened: Page) -> None:
    open_image(opened, pages.put(two()))
    row = opened.locator("#rows tr[data-index='1']")
    box = opened.locator("#overlay g[data-index='1']")
    row.hover()
    expect(box).to_have_class("detection lit")
    opened.locator("h1").hover()
    expect(box).to_have_class("detection")
    frame = opened.locator("#overlay").bounding_box()
    assert frame
    # The dog is in front of the person, because it is smaller.
    opened.mouse.move(
        frame["x"] + frame["width"] * 175 / 640, frame["y"] + frame["height"] * 125 / 480
    )
    expect(row).to_have_class("lit")
    row.focus()
    expect(box).to_have_class("detection lit")


def test_threshold_acts_on_table_and_boxes(pages: Pages, opened: Page) -> None:
    open_image(opened, pages.put(two()))
    assert shown_rows(opened) == ["person", "dog"]
    expect(opened.locator("#count")).to_have_text("2 shown, 1 not kept by the settings")
    opened.locator("#threshold").fill("0.05")
    assert shown_rows(opened) == ["person", "dog", "cat"]
    opened.locator("#threshold").fill("0.7")
    assert shown_rows(opened) == ["person"]
    expect(opened.locator("#count")).to_have_text("1 shown, 2 below the threshold")
    assert opened.locator("#overlay g.detection:visible").count() == 1
    opened.reload()
    assert shown_rows(opened) == ["person"]
    opened.get_by_role("button", name="Reset threshold").click()
    assert shown_rows(opened) == ["person", "dog"]
    assert "threshold" not in opened.url


def test_thresholds_of_labels_come_from_the_grid(pages: Pages, opened: Page) -> None:
    query = "?threshold=0.5&threshold_of=person:0.95&threshold_of=cat:0.05"
    open_image(opened, pages.put(two()), query)
    assert shown_rows(opened) == ["dog", "cat"]
    expect(opened.locator("#threshold-value")).to_have_text("0.50, person 0.95, cat 0.05")
    opened.get_by_role("button", name="Reset threshold").click()
    assert shown_rows(opened) == ["person", "dog"]


def test_image_is_zoomed_and_moved_by_keys(pages: Pages, opened: Page) -> None:
    open_image(opened, pages.put(two()))
    zoom = opened.locator("#zoom")
    opened.keyboard.press("+")
    opened.keyboard.press("+")
    expect(zoom).to_have_text("156 %")
    sheet = opened.locator("#sheet")
    before = sheet.evaluate("node => node.style.transform")
    opened.keyboard.press("Shift+ArrowRight")
    assert sheet.evaluate("node => node.style.transform") != before
    opened.keyboard.press("-")
    expect(zoom).to_have_text("125 %")
    opened.keyboard.press("0")
    expect(zoom).to_have_text("100 %")
    assert sheet.evaluate("node => node.style.transform") == "translate(0px, 0px) scale(1)"


def test_image_is_zoomed_by_the_wheel_and_dragged(pages: Pages, opened: Page) -> None:
    open_image(opened, pages.put(two()))
    frame = opened.locator("#stage").bounding_box()
    assert frame
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    opened.mouse.move(x, y)
    opened.mouse.wheel(0, -100)
    expect(opened.locator("#zoom")).to_have_text("125 %")
    sheet = opened.locator("#sheet")
    before = sheet.bounding_box()
    opened.mouse.down()
    opened.mouse.move(x + 20, y + 10)
    opened.mouse.up()
    after = sheet.bounding_box()
    assert before and after
    assert (round(after["x"] - before["x"]), round(after["y"] - before["y"])) == (20, 10)
    opened.get_by_role("button", name="Whole image").click()
    expect(opened.locator("#zoom")).to_have_text("100 %")


def test_overlay_covers_the_image_exactly(pages: Pages, opened: Page) -> None:
    open_image(opened, pages.put(two()))
    opened.get_by_role("button", name="Zoom in").click()
    image = opened.locator("#image").bounding_box()
    assert image == opened.locator("#overlay").bounding_box()
    assert image and abs(image["width"] / image["height"] - 640 / 480) < 0.01


def test_arrow_keys_open_the_neighbours_in_time(pages: Pages, opened: Page) -> None:
    ids = [pages.put(found(f"{number}.png")) for number in range(3)]
    open_image(opened, ids[1], "?label=person")
    press(opened, "ArrowLeft")
    expect(opened.locator("h1")).to_have_text("2.png")
    press(opened, "ArrowRight")
    expect(opened.locator("h1")).to_have_text("1.png")
    press(opened, "ArrowRight")
    expect(opened.locator("h1")).to_have_text("0.png")
    assert opened.url.endswith("?label=person")


def test_arrow_keys_follow_the_page_of_the_grid(pages: Pages, opened: Page) -> None:
    ids = [pages.put(found(f"{number}.png")) for number in range(3)]
    listed = [ids[1], ids[0], ids[2]]
    opened.evaluate(
        "ids => sessionStorage.setItem('yolo-batch-list', JSON.stringify({ids}))", listed
    )
    open_image(opened, ids[1])
    expect(opened.locator("#previous")).to_be_hidden()
    for name in ("0.png", "2.png"):
        press(opened, "ArrowRight")
        expect(opened.locator("h1")).to_have_text(name)
    opened.get_by_role("link", name="Previous").click()
    expect(opened.locator("h1")).to_have_text("0.png")


def test_hidden_boxes_stay_hidden(pages: Pages, opened: Page) -> None:
    open_image(opened, pages.put(two()))
    expect(opened.locator("#overlay")).to_be_visible()
    opened.keyboard.press("b")
    expect(opened.locator("#overlay")).to_be_hidden()
    opened.reload()
    expect(opened.locator("#overlay")).to_be_hidden()
    expect(opened.locator("#boxes")).not_to_be_checked()


def test_missing_image_is_said_in_place_of_a_hole(pages: Pages, opened: Page) -> None:
    document_id = pages.put(two())
    pages.images.missing.add(document_id)
    open_image(opened, document_id)
    expect(opened.locator("#broken")).to_be_visible()
    pages.images.missing.clear()
    opened.get_by_role("button", name="load it again").click()
    expect(opened.locator("#broken")).to_be_hidden()
    expect(opened.locator("#image")).to_be_visible()


def test_document_is_copied_as_json(pages: Pages, opened: Page) -> None:
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_image(opened, pages.put(two()))
    opened.get_by_text("The document as JSON").click()
    opened.get_by_role("button", name="Copy").click()
    expect(opened.locator("#status")).to_have_text("Copied")
    assert '"schema": 2' in opened.evaluate("navigator.clipboard.readText()")


def test_hostile_texts_do_nothing(pages: Pages, opened: Page) -> None:
    problems: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    evil = replace(person(), label=HOSTILE, zones=(HOSTILE,))
    document_id = pages.put(
        found("a.png", evil, classes=(ClassScore(HOSTILE, 0, 0.5),)),
        name=HOSTILE,
        metadata={HOSTILE[:100]: HOSTILE},
        derived_error=HOSTILE,
        captured_at_source=HOSTILE,
    )
    open_image(opened, document_id)
    expect(opened.locator("#rows bdi").first).to_have_text(HOSTILE)
    assert opened.evaluate("window.hacked") is None
    assert (problems, [url for url in requests if not url.startswith(base(opened))]) == ([], [])


def axe_violations(page: Page) -> str:
    results = Axe().run(page)
    return "" if results.violations_count == 0 else str(results.generate_report())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_page_is_accessible(pages: Pages, browser: Browser, scheme: Any, width: int) -> None:
    points = (Keypoint("nose", 200.0, 100.0, 0.9),)
    classes = (ClassScore("fox", 0, 0.7),)
    metadata = {"survey": "autumn" * 50}
    ids = [
        pages.put(two(classes=classes), metadata=metadata),
        pages.put(found("b.png", person(keypoints=points), model=replace(MODEL, task=Task.POSE))),
        pages.put(failed("c.png")),
        pages.put_raw("odd", {"x": "y" * 500}),
    ]
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    with pages.served(try_again=lambda image, created_at: None) as url:
        page = context.new_page()
        page.goto(url)
        for document_id in ids:
            open_image(page, document_id)
            page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert not axe_violations(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_grid_and_image_have_the_same_order(gallery: Gallery, page: Page) -> None:
    page.goto(gallery.url)
    page.goto(f"{gallery.address}/?source=yard")
    expect(page.locator(".caption .name").nth(2)).to_be_visible()
    names = page.locator(".caption .name").all_inner_texts()
    page.locator(".card").nth(1).click()
    expect(page.locator("h1")).to_have_text(names[1])
    press(page, "ArrowRight")
    expect(page.locator("h1")).to_have_text(names[2])
    assert page.url.endswith("?source=yard")
    page.get_by_role("link", name="All results").click()
    expect(page.locator(".caption .name").first).to_have_text(names[0])
