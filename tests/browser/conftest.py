"""A real browser: the system's Chromium, driven by Playwright. Nothing is downloaded."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from devtools.local_stack.stack import Stack, StackOptions
from tests.fakes import PATIENCE_SECONDS
from tests.gallery import Gallery, running_gallery, seed

INSTALL = "sudo apt-get install chromium"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

expect.set_options(timeout=PATIENCE_SECONDS * 1000)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.fail(f"The tests of the gallery need Chromium. On Debian and Ubuntu: {INSTALL}")
    # Chromium's sandbox does not work for root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture(scope="session")
def emulators() -> Iterator[Stack]:
    nobody = "http://127.0.0.1:9"  # the discard port
    options = StackOptions(with_service=False, with_eventarc=False, service_url=nobody)
    with Stack(options) as stack:
        yield stack


@pytest.fixture(autouse=True)
def emulator_environment(emulators: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in emulators.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def gallery(emulators: Stack) -> Iterator[Gallery]:
    """The gallery with the results of `seed`. Tests must not change them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulators.environment.items():
            patch.setenv(name, value)
        with running_gallery() as running:
            seed(running)
            yield running


@pytest.fixture
def own_gallery() -> Iterator[Gallery]:
    """A gallery without results, for a test that changes them."""
    with running_gallery(jobs_topic="jobs") as running:
        yield running


@pytest.fixture
def opened(page: Page, gallery: Gallery) -> Iterator[Page]:
    """A page of the seeded gallery, whose problems in the browser fail the test."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" else None,
    )
    page.goto(gallery.url)
    yield page
    assert not problems
