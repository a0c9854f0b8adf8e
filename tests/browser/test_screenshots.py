"""Screenshots of the grid for the docs.

`SCREENSHOTS=docs/images pytest tests/browser/test_screenshots.py` writes them. Without the variable
the test only checks that they can be made.
"""

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.gallery import Gallery, seed_scenes


@pytest.mark.parametrize(
    ("name", "scheme", "width", "height"),
    [
        ("gallery-grid", "light", 1280, 900),
        ("gallery-grid-dark", "dark", 1280, 900),
        ("gallery-grid-phone", "light", 360, 740),
    ],
)
def test_screenshot_of_the_grid(
    page: Page,
    own_gallery: Gallery,
    tmp_path: Path,
    name: str,
    scheme: str,
    width: int,
    height: int,
) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": height})
    seed_scenes(own_gallery, 30)
    page.goto(own_gallery.url)
    page.goto(f"{own_gallery.address}/?source=gate&threshold=0.4")
    expect(page.locator(".card")).to_have_count(30)
    expect(page.locator(".frame.loading:visible").first).not_to_be_in_viewport()
    path = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{name}.png"
    page.screenshot(path=path)
    assert path.stat().st_size > 0
