"""The page of `yolo-batch evaluate` in a real browser."""

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.reports import HOSTILE, HOSTILE_LABEL, serving
from tests.fakes import PATIENCE_SECONDS


def estimate(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def row(label: str, ap: dict[str, Any]) -> dict[str, Any]:
    return {
        "label": label,
        "ap50_95": ap,
        "ap50": ap,
        "objects": 1200,
        "images": 100,
        "detections": 3400,
    }


REPORT = {
    "path": f"gs://uploads/{HOSTILE}",
    "labels_file": "labels.json",
    "images": 1000,
    "objects": 2400,
    "map50_95": estimate(0.51, 0.44, 0.577),
    "map50": estimate(0.6587, 0.588, 0.741),
    "labels": [row("cat", estimate(0.7, 0.6, 0.8)), row(HOSTILE_LABEL, estimate(0.3))],
    "failed": [HOSTILE],
    "unmatched_labels": ["a.jpg", "b.jpg"],
    "ambiguous_labels": [],
    "unmatched_results": [HOSTILE],
    "unmatched_results_count": 7,
    "notes": ["Faint detections count too."],
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving("evaluate", REPORT) as url:
        yield url


def test_table_has_values_and_intervals(page: Page, address: str) -> None:
    page.goto(address)
    total = page.locator("tr.total")
    expect(total).to_contain_text("51.00")
    expect(total).to_contain_text("44.0 to 57.7")
    expect(page.locator("tbody tr").nth(2)).to_contain_text("none")
    widths = page.locator("rect.value").evaluate_all(
        "bars => bars.map((bar) => Number(bar.getAttribute('width')))"
    )
    assert widths == [51, 70, 30]


def test_hostile_names_are_text(page: Page, address: str) -> None:
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_contain_text(HOSTILE)
    expect(page.get_by_role("rowheader", name=HOSTILE_LABEL)).to_be_visible()
    page.get_by_text("Failed images").click()
    expect(page.locator("details li").first).to_have_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(browser: Browser, address: str, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    page = context.new_page()
    page.goto(address)
    assert [item["id"] for item in Axe().run(page).response["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()
