"""Speed of the gallery's grid, in a real browser on the emulators.

    python -m devtools.bench.gallery --documents 20000

The Firestore emulator has no indexes: it reads the whole collection for each query. So the time of
its calls is not part of the server's own time.
"""

import argparse
import os
import re
import shutil
import statistics
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from google.cloud import firestore
from tabulate import tabulate

from devtools.bench.errors import BenchError
from devtools.local_stack.stack import Stack, StackOptions
from service.document import to_document
from service.domain import (
    Box,
    Detection,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    SourceVersion,
    Timings,
)
from service.gallery.access import LocalAccess
from service.gallery.app import create_app
from service.gallery.build import build_gallery
from service.gallery.serve import HOST, bind, serve
from service.gallery.settings import GallerySettings
from service.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SMALL = 1_000  # documents of the first measurement
DETECTIONS = 20  # of one image
MOVES = 50  # of the slider
PAGES = 50  # for the memory
_REPEATS = 5
_BATCH = 250  # documents of one commit
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TIMEOUT_SECONDS = 120.0
_JAVA_OPTIONS = "-Xmx2g"  # of the emulators. They keep all documents in memory.
_NEWEST = datetime(2026, 11, 30, tzinfo=UTC)
_LABELS = ("person", "car", "dog", "fox")
_QUERIES = ("", "label=fox", "source=gate", "order=confident", "order=uncertain&label=dog")
_WORK = ("ScriptDuration", "RecalcStyleDuration", "LayoutDuration")  # of CDP's Performance
# A drawn image in place of each thumbnail: making thumbnails is not what is measured.
_THUMBNAIL = b"""<svg xmlns="http://www.w3.org/2000/svg" width="320" height="240"/>"""
# Move the slider, and wait until the frame that shows it is complete.
_SLIDES = {
    "drawn over the whole range": [number / MOVES for number in range(MOVES)],
    # Each jump crosses a third of all detections.
    "jumps": [round(abs((number * 7) % 40 / 20 - 1), 2) for number in range(MOVES)],
}
_MOVE = """value => new Promise(done => {
    const slider = document.getElementById("threshold");
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    requestAnimationFrame(() => requestAnimationFrame(done));
})"""


@dataclass(frozen=True)
class PageCost:
    """What one page of results cost: medians of repeated requests."""

    own_ms: float  # of the server, without the calls of Firestore
    queries: int
    documents: int


@dataclass(frozen=True)
class Memory:
    """What the browser's page occupies after a garbage collection."""

    heap_bytes: float
    nodes: float


def documents(count: int, start: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the id and the fields of drawn-up results, the newest first."""
    model = ModelInfo("model.pt", "0" * 64, 640, "fp32", "openvino")
    for number in range(start, start + count):
        found = [_detection(number, index) for index in range(DETECTIONS)]
        result = ImageResult(
            ImageRef("uploads", f"cam/{number:07}.jpg", 1),
            image_info=ImageInfo(640, 480, "JPEG"),
            model=model,
            detections=tuple(each for each in found if each.confidence >= 0.25),
            faint=tuple(each for each in found if each.confidence < 0.25),
            timings=Timings(1.0, 1.0, 1.0, 1.0),
            source=SourceVersion("gate" if number % 2 else "yard", _NEWEST),
        )
        created_at = _NEWEST - timedelta(seconds=number)
        yield result.ref.document_id, to_document(result) | {"created_at": created_at}


def _detection(number: int, index: int) -> Detection:
    label = (number + index) % len(_LABELS)
    left, top = 30.0 * index, 20.0 * index
    confidence = round(0.98 - 0.04 * index - 0.0001 * (number % 100), 4)
    return Detection(_LABELS[label], label, confidence, Box(left, top, left + 40, top + 60))


def seed(collection: str, count: int, start: int = 0) -> None:
    """Write documents of results to the emulator."""
    client = firestore.Client()
    pending = client.batch()
    for number, (document_id, fields) in enumerate(documents(count, start), start=1):
        pending.set(client.collection(collection).document(document_id), dict(fields))
        if number % _BATCH == 0 or number == count:
            pending.commit(timeout=_TIMEOUT_SECONDS)
            pending = client.batch()


@contextmanager
def served(collection: str) -> Iterator[str]:
    """Serve the gallery from a thread. Yield the first URL, with its token."""
    settings = replace(
        Settings.from_env(),
        firestore_collection=collection,
        firestore_timeout_seconds=_TIMEOUT_SECONDS,
    )
    listener = bind(0)
    access = LocalAccess(listener.getsockname()[1])
    parts = build_gallery(settings, GallerySettings(), access, is_emulator=True)
    url = f"http://{HOST}:{listener.getsockname()[1]}{access.first_path}"
    server = serve(create_app(parts), listener)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        thread.join(_TIMEOUT_SECONDS)
        server.server_close()
        parts.images.close()


def opened(browser: "Browser", url: str) -> "Page":
    """Return the browser's page of the grid, with all of its cards."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * _TIMEOUT_SECONDS)
    page.route(
        "**/images/**",
        lambda route: route.fulfill(body=_THUMBNAIL, content_type="image/svg+xml"),
    )
    page.goto(url)
    _wait_for_cards(page)
    return page


def page_cost(page: "Page", query: str) -> PageCost:
    """Return what a page of results costs the server."""
    costs = [_request(page, query) for _ in range(_REPEATS)]
    own = statistics.median(each.own_ms for each in costs)
    return replace(costs[0], own_ms=own)


def _request(page: "Page", query: str) -> PageCost:
    address = page.url.partition("?")[0]
    response = page.request.get(f"{address}api/results?{query}", timeout=1000 * _TIMEOUT_SECONDS)
    if not response.ok:
        raise BenchError(f"The gallery responded with {response.status}: {response.text()}")
    firestore_ms, total_ms = map(
        float, re.findall(r"dur=([\d.]+)", response.headers["server-timing"])
    )
    queries, read = map(int, re.findall(r"\d+", response.headers["x-firestore-usage"]))
    return PageCost(total_ms - firestore_ms, queries, read)


def slider_ms(page: "Page", values: Iterable[float]) -> list[float]:
    """Return what each move of the threshold slider costs: script, style and layout.

    The unit is ms of CPU time, so that other programs on the machine do not count.

    Args:
        page: the grid.
        values: where the slider is moved to.
    """
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    found = []
    for value in values:
        before = _metrics(session)
        page.evaluate(_MOVE, value)
        after = _metrics(session)
        found.append(1000 * sum(after[name] - before[name] for name in _WORK))
    session.detach()
    return found


def memory(page: "Page") -> Memory:
    """Return the memory of the browser's page."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    session.send("HeapProfiler.collectGarbage")
    metrics = _metrics(session)
    session.detach()
    return Memory(metrics["JSHeapUsedSize"], metrics["Nodes"])


def turn(page: "Page", key: str) -> None:
    """Show the next page (`]`) or the previous one (`[`)."""
    first = page.locator(".card").first.get_attribute("href")
    page.keyboard.press(key)
    page.wait_for_function(
        "first => document.querySelector('.card') && "
        "document.querySelector('.card').getAttribute('href') !== first",
        arg=first,
    )
    _wait_for_cards(page)


def _wait_for_cards(page: "Page") -> None:
    page.locator(".card").first.wait_for()
    page.locator("#grid:not([aria-busy])").wait_for()


def _metrics(session: Any) -> dict[str, float]:
    listed = session.send("Performance.getMetrics")["metrics"]
    return {each["name"]: each["value"] for each in listed}


def measure(browser: "Browser", count: int, pages: int) -> Iterator[str]:
    """Yield tables: of pages, of the slider, and of the memory."""
    collection = "gallery-bench"
    costs: dict[int, list[PageCost]] = {}
    with served(collection) as url:
        seeded = 0
        for size in sorted({min(SMALL, count), count}):
            seed(collection, size - seeded, seeded)
            seeded = size
            page = opened(browser, url)
            costs[size] = [page_cost(page, query) for query in _QUERIES]
            page.close()
        yield pages_table(costs)
        page = opened(browser, url)
        drawn = page.locator(".detection").count()
        for name, values in _SLIDES.items():
            moves = slider_ms(page, values)
            yield (
                f"Slider, {name}, {drawn:,} detections: {statistics.median(moves):.1f} CPU-ms a "
                f"frame (median of {len(moves)}), at most {max(moves):.1f}"
            )
        turn(page, "]")
        first = memory(page)
        for _ in range(pages - 1):
            turn(page, "]")
        last = memory(page)
        yield (
            f"Memory after 1 page: {first.heap_bytes / 1e6:.1f} MB and {first.nodes:,.0f} nodes; "
            f"after {pages}: {last.heap_bytes / 1e6:.1f} MB and {last.nodes:,.0f} nodes"
        )


def pages_table(costs: Mapping[int, Sequence[PageCost]]) -> str:
    """Return the table of pages, one row for each query and number of documents."""
    rows = [
        [query or "all", size, each.own_ms, each.queries, each.documents]
        for size, listed in costs.items()
        for query, each in zip(_QUERIES, listed, strict=True)
    ]
    headers = ["filter", "documents", "server, ms", "queries", "documents read"]
    return tabulate(rows, headers, tablefmt="github", floatfmt=".1f", intfmt=",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--pages", type=int, default=PAGES)
    options = parser.parse_args()
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        sys.exit("error: Chromium is not installed")
    from playwright.sync_api import sync_playwright

    os.environ["_JAVA_OPTIONS"] = _JAVA_OPTIONS
    nobody = "http://127.0.0.1:9"  # the discard port: no service is needed
    stack_options = StackOptions(with_service=False, with_eventarc=False, service_url=nobody)
    try:
        with Stack(stack_options) as stack, sync_playwright() as playwright:
            os.environ.update(stack.environment)
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            for text in measure(browser, options.documents, options.pages):
                print(text, flush=True)
            browser.close()
    except BenchError as exc:
        sys.exit(f"error: {exc}")


if __name__ == "__main__":
    main()
