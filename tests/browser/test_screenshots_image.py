"""Screenshots of the pages of an image and of the problems, for the documentation.

They go to docs/images if the environment variable SCREENSHOTS is set, otherwise to a folder of the
test.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from service.domain import ErrorCode, Failure, ImageResult
from tests.gallery import NEWEST, Gallery, running_gallery, seed_scenes

pytestmark = pytest.mark.emulator

_DOCS = Path(__file__).parents[2] / "docs" / "images"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _DOCS if os.environ.get("SCREENSHOTS") else tmp_path


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    """A gallery in which failed images may be tried again."""
    with running_gallery(jobs_topic="jobs") as running:
        yield running


def test_screenshot_of_an_image(gallery: Gallery, page: Page, folder: Path) -> None:
    document_id = seed_scenes(gallery, 8)[6]
    page.goto(gallery.url)
    page.goto(f"{gallery.address}/image/{document_id}")
    page.locator("#threshold").fill("0.4")
    page.locator("#rows tr[data-index='0']").hover()
    expect(page.locator("#overlay g.lit")).to_be_visible()
    page.wait_for_function("document.getElementById('image').naturalWidth > 0")
    page.screenshot(path=folder / "gallery-image.png")
    assert (folder / "gallery-image.png").stat().st_size > 10_000


def test_screenshot_of_the_problems(gallery: Gallery, page: Page, folder: Path) -> None:
    messages = {
        ErrorCode.CORRUPT_IMAGE: "The JPEG data end before the image is complete.",
        ErrorCode.UNREADABLE_OBJECT: "Cloud Storage denies access: the key of the object is gone.",
        ErrorCode.DAILY_IMAGE_LIMIT: "DAILY_IMAGE_LIMIT=1000 was reached on 2026-11-30.",
    }
    for number, (code, message) in enumerate(messages.items()):
        ref = gallery.upload(f"gate/2026-11-30/{number}.jpg", b"no image")
        result = ImageResult(ref, failure=Failure(code, message), event_time=NEWEST)
        gallery.add(result, age=timedelta(minutes=number))
    page.goto(gallery.url)
    page.goto(f"{gallery.address}/problems")
    expect(page.locator("#counts-note")).to_contain_text("reads of Firestore")
    page.screenshot(path=folder / "gallery-problems.png")
    assert (folder / "gallery-problems.png").stat().st_size > 10_000
