"""The pages of failed and parked images, and of objects without a result, in a real browser."""

import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from google.cloud import storage
from playwright.sync_api import Browser, Page, expect

from service.domain import ErrorCode, ImageRef
from service.errors import PubSubUnavailableError
from tests.browser.test_image_page import axe_violations, base
from tests.gallery_pages import HOSTILE, Pages, failed, found

pytestmark = pytest.mark.emulator


class Jobs:
    """Keeps the jobs, or fails."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self.errors: list[Exception] = []

    def __call__(self, image: ImageRef, created_at: datetime) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.uris.append(image.uri)


@pytest.fixture
def pages() -> Pages:
    return Pages(f"test-{uuid.uuid4().hex}")


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def opened(pages: Pages, jobs: Jobs, page: Page) -> Iterator[Page]:
    with pages.served(try_again=jobs) as url:
        page.goto(url)
        yield page


def test_double_click_publishes_one_job(pages: Pages, jobs: Jobs, opened: Page) -> None:
    pages.put(failed("a.jpg"))
    opened.goto(f"{base(opened)}/problems")
    button = opened.get_by_role("button", name="Try again")
    button.dblclick()
    expect(opened.locator(".again-status")).to_contain_text("The job is published.")
    expect(button).to_be_disabled()
    opened.reload()
    button.click()
    expect(opened.locator(".again-status")).to_contain_text("less than a minute ago")
    assert jobs.uris == ["gs://uploads/a.jpg"]


def test_failed_image_is_tried_again_on_its_page(pages: Pages, jobs: Jobs, opened: Page) -> None:
    opened.goto(f"{base(opened)}/image/{pages.put(failed('a.jpg'))}")
    expect(opened.get_by_text("The file itself is the reason.")).to_be_visible()
    opened.get_by_role("button", name="Try again").click()
    expect(opened.locator(".again-status")).to_contain_text("The job is published.")
    assert jobs.uris == ["gs://uploads/a.jpg"]


def test_outage_leaves_the_button_usable(pages: Pages, jobs: Jobs, opened: Page) -> None:
    pages.put(failed("a.jpg"))
    jobs.errors = [PubSubUnavailableError("Pub/Sub did not respond.")]
    opened.goto(f"{base(opened)}/problems")
    button = opened.get_by_role("button", name="Try again")
    button.click()
    expect(opened.locator(".again-status")).to_have_text("Pub/Sub did not respond.")
    button.click()
    expect(opened.locator(".again-status")).to_contain_text("The job is published.")


def test_counts_appear_with_their_cost(pages: Pages, opened: Page) -> None:
    for number in range(3):
        pages.put(failed(f"{number}.jpg", ErrorCode.EMPTY_OBJECT))
    opened.goto(f"{base(opened)}/problems")
    expect(opened.locator(".count[data-code=empty_object]")).to_have_text("3")
    expect(opened.locator(".count[data-code=parked]")).to_have_text("0")
    expect(opened.locator("#counts-note")).to_contain_text("7 reads of Firestore")
    opened.get_by_role("link", name="empty_object").click()
    expect(opened.get_by_role("heading", name="Failed: empty_object")).to_be_visible()


def test_hostile_texts_of_problems_do_nothing(pages: Pages, opened: Page) -> None:
    problems: list[str] = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    error = {"code": HOSTILE, "message": HOSTILE}
    pages.put(failed("a.jpg"), name=HOSTILE, error=error, source={"id": HOSTILE})
    opened.goto(f"{base(opened)}/problems")
    expect(opened.locator("#counts-note")).to_contain_text("reads of Firestore")
    assert (opened.evaluate("window.hacked"), problems) == (None, [])
    expect(opened.locator(".images a bdi")).to_have_text(HOSTILE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_pages_are_accessible(pages: Pages, browser: Browser, scheme: Any, width: int) -> None:
    bucket = storage.Client().create_bucket(f"images-{uuid.uuid4().hex}")
    bucket.blob(f"cam1/{'a' * 100}.jpg").upload_from_string(b"12345")
    pages.put(failed("a" * 200))
    pages.put(failed("b.jpg", ErrorCode.UNREADABLE_OBJECT))
    pages.put(failed("c.jpg", ErrorCode.DAILY_IMAGE_LIMIT))
    pages.put(found("d.jpg"))
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    with pages.served(try_again=Jobs()) as url:
        page = context.new_page()
        page.goto(url)
        for path in ("/problems", f"/not-run?bucket={bucket.name}", "/not-run?bucket=never-made"):
            page.goto(base(page) + path)
            page.wait_for_load_state("networkidle")
            assert not axe_violations(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
