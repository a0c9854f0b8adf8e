"""Screenshots of the reports for the documentation.

They go to docs/images/ only with the environment variable SCREENSHOTS. The images are the drawn
samples, so that everybody can make the screenshots again.
"""

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page

from service.images.decoders import build_decoders
from service.inference.loading import load_detector
from service.operate.compare import FileImages, as_json, compare_models, folder_images
from service.settings import BUNDLED_MODEL, Settings
from tests.browser.reports import serving, wait_for_images
from tests.labelled import write_drawn_samples

DOCS = Path(__file__).parents[2] / "docs" / "images"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return DOCS if os.environ.get("SCREENSHOTS") else tmp_path


def test_screenshot_of_a_comparison(page: Page, tmp_path: Path, target: Path) -> None:
    samples = tmp_path / "samples"
    write_drawn_samples(samples, count=4)
    settings = Settings()
    a = load_detector(BUNDLED_MODEL, min_confidence=0.05)
    b = load_detector(BUNDLED_MODEL, image_size=160, min_confidence=0.05)
    decoders = build_decoders(settings)
    images = folder_images(samples, settings.max_image_bytes)
    report = compare_models(a, b, images, decoders)
    page.set_viewport_size({"width": 1280, "height": 900})
    try:
        with serving("compare", as_json(report, "samples"), FileImages(report, decoders)) as url:
            page.goto(url)
            wait_for_images(page.locator("#grid img"))
            page.screenshot(path=target / "gallery-compare.png", full_page=True)
            page.locator("#grid button").first.click()
            wait_for_images(page.locator("dialog img"))
            page.screenshot(path=tmp_path / "gallery-compare-large.png")
    finally:
        decoders.close()
    assert (target / "gallery-compare.png").stat().st_size > 10_000
