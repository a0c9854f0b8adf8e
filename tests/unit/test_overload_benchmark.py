"""The overload benchmark: its deliveries, its arithmetic, its verdict and its plot."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import cv2
import pytest

from devtools.bench.load import Request, Response
from devtools.bench.overload import (
    Capacity,
    Pusher,
    Run,
    Sample,
    delay_seconds,
    draw,
    errors_logged,
    per_second,
    problems,
    response_seconds,
    section,
)
from devtools.local_stack.eventarc import EventarcOptions
from tests.fakes import PATIENCE_SECONDS

AT_ONCE = EventarcOptions(min_delay_seconds=0)
HANG_UP = 0

GOOD = Response(due=0.0, sent=0.5, completed=3.5, status=204)
REFUSED = Response(due=0.2, sent=0.2, completed=0.3, status=429)
BEFORE = Sample(elapsed_seconds=0.0, pid=7, memory_mb=300, peak_mb=400, threads=40)
RUN = Run(
    capacity=Capacity(per_second=0.5, cpu_ms=900),
    seconds=1.0,
    images=1,
    deadline_seconds=10,
    responses=[REFUSED, GOOD],
    samples=[BEFORE, replace(BEFORE, elapsed_seconds=1.0, peak_mb=500, threads=60)],
    before=BEFORE,
    service_cpu=2.0,
    load_cpu=0.1,
    most_deliveries=2,
)


@contextmanager
def answering(status_of: Callable[[int], int]) -> Iterator[str]:
    """Start a server. The status depends on how often a body was delivered, counted from 1."""
    seen: defaultdict[bytes, int] = defaultdict(int)
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                seen[body] += 1
                status = status_of(seen[body])
            if status == HANG_UP:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # of the 5 by default, a burst of connections would be reset

    with Server(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pushed(url: str, count: int, *, patience_seconds: float = PATIENCE_SECONDS) -> Pusher:
    requests = [Request({}, str(number).encode()) for number in range(count)]
    pusher = Pusher(url, deadline_seconds=PATIENCE_SECONDS, options=AT_ONCE)
    pusher.push(requests, rate=1000, every_second=lambda: None, patience_seconds=patience_seconds)
    return pusher


def test_pusher_redelivers_rejected_and_lost_messages() -> None:
    with answering(lambda delivery: [429, 503, HANG_UP, 204][delivery - 1]) as url:
        pusher = pushed(url, 20)
    statuses = Counter(response.status for response in pusher.responses)
    assert statuses == {429: 20, 503: 20, 0: 20, 204: 20}
    assert (pusher.left, pusher.most_deliveries) == (0, 4)


def test_pusher_delivers_once_what_is_accepted() -> None:
    with answering(lambda delivery: 204) as url:
        pusher = pushed(url, 5)
    assert [response.status for response in pusher.responses] == [204] * 5
    assert all(response.due <= response.sent <= response.completed for response in pusher.responses)


def test_pusher_gives_up_when_nothing_is_accepted_any_more() -> None:
    with answering(lambda delivery: 429) as url:
        pusher = pushed(url, 2, patience_seconds=0.2)
    assert pusher.left == 2


def test_pusher_samples_memory_every_second() -> None:
    looks: list[float] = []
    with answering(lambda delivery: 429 if len(looks) < 3 else 204) as url:
        pusher = Pusher(url, deadline_seconds=PATIENCE_SECONDS, options=AT_ONCE)
        pusher.push(
            [Request({}, b"")],
            rate=1000,
            every_second=lambda: looks.append(pusher.now()),
            patience_seconds=PATIENCE_SECONDS,
        )
    assert len(looks) >= 3
    assert pusher.left == 0


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (6, 32), (7, 60), (50, 60)])
def test_delay_doubles_up_to_a_minute_with_jitter(failures: int, seconds: int) -> None:
    generator = random.Random(1)
    delays = [delay_seconds(failures, EventarcOptions(), generator) for _ in range(200)]
    assert 0.75 * seconds <= min(delays) < 0.8 * seconds
    assert 1.2 * seconds < max(delays) <= 1.25 * seconds


def test_per_second_counts_each_second() -> None:
    assert per_second([0.0, 0.9, 2.5, 2.6, 2.7], 4) == [2, 0, 3, 0]


def test_took_counts_from_the_delivery_not_from_when_it_was_due() -> None:
    assert response_seconds([GOOD]) == [3.0]


def test_run_that_kept_its_promises_has_no_problems() -> None:
    assert problems(RUN) == []


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (replace(RUN, images=3), "2 images were not delivered"),
        (replace(RUN, deadline_seconds=2.5), "1 accepted images took longer than 2.5 s"),
        (
            replace(RUN, responses=[GOOD, replace(REFUSED, status=0)]),
            "1 deliveries had no response",
        ),
        (
            replace(RUN, responses=[GOOD, replace(REFUSED, status=500)]),
            "unexpected responses: {500: 1}",
        ),
        (
            replace(RUN, samples=[replace(BEFORE, pid=8)]),
            "the service restarted its worker 1 times",
        ),
    ],
    ids=["lost", "late", "unanswered", "unexpected", "restarted"],
)
def test_problems_names_what_was_broken(broken: Run, problem: str) -> None:
    assert problems(broken) == [problem]


def test_section_has_the_figures() -> None:
    rows = {row[0]: row[1] for row in section(RUN).rows}
    assert rows["responses 204; 429; 503; none"] == "1, 1, 0, 0"
    assert rows["deliveries/s meanwhile, with redeliveries"] == "2.00"
    assert rows["deliveries; most deliveries of one image"] == "2, 2"
    assert rows["slowest; the deadline is 10 s"] == "3.00"
    assert rows["slowest 429, s"] == "0.10"
    assert rows["peak memory during the overload, MB"] == "500"
    assert rows["CPU-ms per accepted image, rejections included"] == "2000"
    assert rows["threads before; most"] == "40, 60"
    assert rows["all delivered after, s"] == "4"


def test_section_of_a_run_without_success_is_written() -> None:
    rows = {row[0]: row[1] for row in section(replace(RUN, responses=[REFUSED])).rows}
    assert rows["time of an accepted image, s: median"] == "nan"


def test_errors_logged_leaves_out_what_is_no_error() -> None:
    lines = [("WARNING", "rejected"), ("ERROR", "broken"), ("CRITICAL", "crashed")]
    log = "\n".join(json.dumps({"severity": severity, "message": m}) for severity, m in lines)
    assert errors_logged(log) == ["broken", "crashed"]


def test_plot_is_a_png_as_wide_as_those_of_the_bench(tmp_path: Path) -> None:
    file = tmp_path / "new" / "overload.png"
    draw(RUN, "a title", file)
    image = cv2.imread(str(file))
    assert image is not None
    assert image.shape == (1200, 960, 3)
