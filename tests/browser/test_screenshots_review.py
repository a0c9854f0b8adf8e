"""Screenshots of the review and its statistics, for the documentation.

`SCREENSHOTS=docs/images pytest tests/browser/test_screenshots_review.py` writes them. Without the
variable, the test only checks that they can be made.
"""

import os
import random
from pathlib import Path

from playwright.sync_api import Page, expect

from service.gcp.verdict_store import VerdictStore
from tests.browser.test_review import name, open_review, review
from tests.gallery import Gallery, seed_scenes

__all__ = ["review"]  # the fixture


def write(page: Page, tmp_path: Path, image: str) -> None:
    path = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{image}.png"
    page.screenshot(path=path)
    assert path.stat().st_size > 0


def test_screenshot_of_the_review(page: Page, review: Gallery, tmp_path: Path) -> None:
    seed_scenes(review, 8)
    open_review(page, review)
    name(page)
    page.keyboard.press("2")
    expect(page.locator("#overlay .picked")).to_have_count(1)
    expect(page.locator("#count")).to_contain_text("About 8")
    write(page, tmp_path, "gallery-review")


def test_screenshot_of_the_statistics(page: Page, review: Gallery, tmp_path: Path) -> None:
    store = review.parts.verdicts
    assert isinstance(store, VerdictStore)
    chosen = random.Random(3)
    for number in range(60):
        detections = []
        for index in range(6):
            confidence = round(chosen.uniform(0.25, 0.99), 4)
            verdict = "correct" if chosen.random() < 0.35 + 0.7 * confidence else "wrong"
            label = chosen.choice(("star", "star", "heart", "circle"))
            item = {"index": index, "label": label, "confidence": confidence, "verdict": verdict}
            detections.append(item)
        fields = {"detections": detections, "source": "gate", "order": "random"}
        model = {"name": "shapes.pt", "sha256": "ab" * 32}
        image = {"image": "wrong", "missed": number % 9 == 0, "model": model}
        store.write(f"{number:040x}", fields | image)
    open_review(page, review, "/review/statistics")
    expect(page.locator(".bar-mark").first).to_be_visible()
    page.get_by_text("Show the lines").first.click()
    write(page, tmp_path, "gallery-review-statistics")
