"""Reports with hostile names, and a server for their pages."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Locator

from service.comparison import compare
from service.domain import Box, Detection, Download, ImageInfo, ModelInfo, ObjectMetadata
from service.gallery.access import LocalAccess
from service.gallery.report import ReportImages, ReportParts, create_report_app
from service.gallery.serve import HOST, bind, serve
from service.operate.compare import Compared, Image, Report
from tests.fakes import PATIENCE_SECONDS, bmp_image, color_of

HOSTILE = '"><script>window.hacked = 1</script>.jpg'
HOSTILE_LABEL = "<img src=x onerror='window.hacked=1'>"
RIGHT_TO_LEFT = "\u202ecat.jpg"
LONG = "n" * 1000
WIDTH, HEIGHT = 640, 480
A = ModelInfo("float_model", "a" * 64, 640, "fp32", "openvino")
B = ModelInfo("int8_model", "b" * 64, 640, "int8", "openvino")


def found(label: str, confidence: float, x: float = 40.0, y: float = 60.0) -> Detection:
    return Detection(label, 0, confidence, Box(x, y, x + 200, y + 220))


def compared(name: str, number: int, a: list[Detection], b: list[Detection]) -> Compared:
    data = bmp_image(color_of(number), width=WIDTH, height=HEIGHT)
    image = Image(name, lambda: Download(data, ObjectMetadata()))
    info = ImageInfo(WIDTH, HEIGHT, "BMP")
    return Compared(image, info, compare(a, b), a_ms=54.0, b_ms=28.5)


def sample_report() -> Report:
    """Return a report with each kind of difference, and an image without any."""
    images = [
        compared(
            "lost.jpg", 10, [found("cat", 0.9), found("dog", 0.8, 300)], [found("dog", 0.8, 300)]
        ),
        compared(
            "gained.jpg", 20, [found("dog", 0.7)], [found("dog", 0.7), found("cat", 0.6, 320)]
        ),
        compared("moved.jpg", 30, [found("cat", 0.5)], [found("cat", 0.5, 140)]),
        compared("same.jpg", 40, [found("cat", 0.9)], [found("cat", 0.8)]),
        compared(HOSTILE, 50, [found(HOSTILE_LABEL, 0.4)], []),
        compared(RIGHT_TO_LEFT, 60, [], [found("cat", 0.35)]),
        compared(LONG, 70, [], [found("cat", 0.3)]),
    ]
    images.sort(key=lambda item: -item.comparison.disagreement)
    return Report(A, B, 0.25, images, skipped=[(HOSTILE, "<b>It is damaged.</b>")])


def wait_for_images(images: Locator) -> None:
    """Wait until all of these images are loaded. Fail if one cannot be loaded."""
    images.evaluate_all(
        "images => Promise.all(images.map((i) => { i.loading = 'eager'; return i.decode(); }))"
    )


@contextmanager
def serving(
    kind: str, report: Mapping[str, Any], images: ReportImages | None = None
) -> Iterator[str]:
    """Serve a report, and yield its first URL."""
    listener = bind(0)
    access = LocalAccess(listener.getsockname()[1])
    server = serve(create_report_app(ReportParts(kind, report, access, images)), listener)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{HOST}:{server.port}{access.first_path}"
    finally:
        server.shutdown()
        thread.join(PATIENCE_SECONDS)
        server.server_close()
