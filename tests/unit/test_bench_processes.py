"""The benchmark's accounting of processes with known work, its load generator and its plot."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import cv2
import numpy as np
import pytest

from devtools.bench import accounting, curve, machine, profile, worker
from devtools.bench.accounting import ThreadTime
from devtools.bench.errors import BenchError
from devtools.bench.load import Request, Response, send_closed, send_open
from devtools.bench.machine import Cores, choose_cores
from devtools.bench.prices import DEFAULT_PRICES, Prices
from devtools.bench.profile import (
    BETWEEN,
    DECODE,
    GRPC,
    HTTP,
    PythonThread,
    Sample,
    attribute,
    profile_section,
)
from devtools.bench.run import choose_images
from devtools.bench.served import COMMIT, DOWNLOAD, INFERENCE, StageClock
from devtools.bench.subjects import Process, check_health, service_settings
from devtools.local_stack.processes import free_port
from service.settings import BUNDLED_MODEL, Settings

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="reads /proc")

# Uses 2 s of CPU time in one thread's stage, and 0.5 s in another thread. Prints the times, and
# waits.
_BURNER = """
import json, sys, threading, time

def burn(seconds):
    started = time.thread_time()
    while time.thread_time() - started < seconds:
        pass
    return time.thread_time() - started

stages, done, go = {}, threading.Barrier(3), threading.Event()

def work(stage):
    spent = burn(2.0 if stage else 0.5)
    stages[threading.get_native_id()] = {stage: spent} if stage else {}
    done.wait()
    go.wait()

threads = [
    threading.Thread(target=work, args=("download",), name="runner-0", daemon=True),
    threading.Thread(target=work, args=(None,), name="ThreadPoolExecutor-1_0", daemon=True),
]
for thread in threads:
    thread.start()
done.wait()
print(json.dumps({
    "cpu_seconds": {"download": sum(s.get("download", 0) for s in stages.values())},
    "threads": {
        str(t.native_id): {"name": t.name, "cpu_seconds": stages.get(t.native_id, {})}
        for t in threading.enumerate()
    },
}), flush=True)
sys.stdin.read()
"""
NOTHING = Sample(0.0, 0.0, {}, {}, {})


@linux
def test_profile_adds_up_to_the_accounting_of_the_process() -> None:
    command = [sys.executable, "-c", _BURNER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdin
        line = json.loads(child.stdout.readline())
        sample = profile.sample_of(line, child.pid)
        child.stdin.close()
    result = attribute(NOTHING, sample, images=10)
    assert result.tree_seconds >= 2.45
    assert result.seconds[DOWNLOAD] >= 2.0
    assert result.seconds[HTTP] >= 0.45  # the second thread, and the start of the main thread
    assert abs(result.seconds[BETWEEN]) <= 0.1  # the first thread has no other time
    assert result.agrees


# Uses CPU time in a child, in a grandchild that ends, and in a grandchild that waits.
_FAMILY = """
import os, sys, time

def burn(seconds):
    while time.process_time() < seconds:
        pass

if not os.fork():
    if not os.fork():
        burn(0.5)
        os._exit(0)
    os.wait()
    if not os.fork():
        burn(0.5)
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    burn(0.5)
    time.sleep(1)
    os.close(1)
    os.wait()
    os._exit(0)
print("forked", flush=True)
os.close(1)
os.wait()
"""


@linux
def test_tree_seconds_include_running_and_ended_children() -> None:
    command = [sys.executable, "-c", _FAMILY]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdin
        assert child.stdout.read() == "forked\n"  # ends when all processes have closed it
        seconds, processes = accounting.tree_seconds(child.pid), accounting.tree_of(child.pid)
        child.stdin.close()
    assert seconds >= 1.45
    assert len(processes) == 3
    assert processes[0] == child.pid


def test_attribution_uses_the_names_of_threads() -> None:
    python = {
        1: PythonThread("MainThread", {}),
        2: PythonThread("ThreadPoolExecutor-0_0", {DOWNLOAD: 1.0, COMMIT: 0.5}),
        3: PythonThread("runner-0", {INFERENCE: 4.0}),
    }
    threads = {
        1: ThreadTime("gunicorn", 0.25),
        2: ThreadTime("gunicorn", 2.0),
        3: ThreadTime("gunicorn", 4.125),
        4: ThreadTime("gunicorn", 3.0),  # of OpenVINO
        5: ThreadTime("event_engine", 0.75),  # of gRPC
    }
    stages = {DOWNLOAD: 1.0, COMMIT: 0.5, INFERENCE: 4.0}
    result = attribute(NOTHING, Sample(12.25, 2.0, threads, python, stages), images=100)
    assert {name: seconds for name, seconds in result.seconds.items() if seconds} == {
        DOWNLOAD: 1.0,
        DECODE: 2.0,
        INFERENCE: 7.0,
        COMMIT: 0.5,
        GRPC: 0.75,
        HTTP: 0.75,
        BETWEEN: 0.125,
    }
    assert result.attributed_seconds == 12.125


def test_clock_counts_each_stage_on_its_thread() -> None:
    clock = StageClock()

    def burn() -> str:
        started = time.thread_time()
        while time.thread_time() - started < 0.05:
            pass
        return "done"

    assert clock.timed(COMMIT, burn)() == "done"
    thread = Thread(target=clock.timed(DOWNLOAD, burn))
    thread.start()
    thread.join()
    report = json.loads(json.dumps(clock.report()))
    assert {part: seconds >= 0.05 for part, seconds in report["cpu_seconds"].items()} == {
        COMMIT: True,
        DOWNLOAD: True,
    }
    [own] = [
        t for t in report["threads"].values() if t["cpu_seconds"]
    ]  # the other thread has ended
    assert list(own["cpu_seconds"]) == [COMMIT]


def profile_of(counted: float) -> profile.Profile:
    """Return the profile of a runner that used 10 s. The clock counted `counted` s as inference."""
    stages = {"inference": counted}
    threads = {1: ThreadTime("gunicorn", 10.0)}
    python = {1: PythonThread("runner-0", stages)}
    return attribute(NOTHING, Sample(10.0, 0.0, threads, python, stages), images=1)


@pytest.mark.parametrize(
    ("counted", "agrees"),
    [(0.0, False), (7.4, False), (7.6, True), (10.0, True), (10.05, True), (10.2, False)],
    ids=["nothing", "too-little", "enough", "all", "rounded", "more-than-spent"],
)
def test_profile_by_a_wrong_clock_does_not_agree(counted: float, agrees: bool) -> None:
    result = profile_of(counted)
    assert result.attributed_seconds == pytest.approx(10.0)  # in any case
    assert result.agrees is agrees


def test_profile_section_separates_rows_by_difference() -> None:
    section = profile_section(profile_of(4.0))
    shares = {row[0]: row[2] for row in section.rows}
    assert shares["sum of the measured parts: by clock, by process, by thread name"] == "40.0%"
    assert shares[f"sum by difference: {HTTP} and {BETWEEN}"] == "60.0%"
    assert section.notes[0].endswith("MISSED.")


def test_attribution_counts_only_time_between_the_samples() -> None:
    python = {1: PythonThread("MainThread", {COMMIT: 1.0})}
    before = Sample(3.0, 0.5, {1: ThreadTime("p", 2.5)}, python, {COMMIT: 1.0})
    after = Sample(
        9.0,
        1.5,
        {1: ThreadTime("p", 6.5), 2: ThreadTime("p", 1.0)},
        {1: PythonThread("MainThread", {COMMIT: 3.0}), 2: PythonThread("committer-0", {})},
        {COMMIT: 3.0},
    )
    result = attribute(before, after, images=1)
    assert (result.seconds[COMMIT], result.seconds[HTTP]) == (2.0, 2.0)
    assert (result.seconds[DECODE], result.seconds[BETWEEN]) == (1.0, 1.0)
    assert result.tree_seconds == result.attributed_seconds == 6.0


@pytest.mark.parametrize(
    ("process", "verdict"), [(10.9, "reached"), (12.0, "MISSED"), (8.0, "MISSED")]
)
def test_profile_section_compares_the_sum_with_accounting(process: float, verdict: str) -> None:
    section = profile_section(profile.Profile(100, {DECODE: 10.0}, process))
    assert section.notes[0].endswith(verdict + ".")
    assert section.rows[0][:2] == (DECODE, "100")
    assert section.rows[-1][0] == "not attributed"


_ALLOCATOR = """
print("ready", flush=True)
input()
data = b"x" * 100_000_000
print("allocated", flush=True)
input()
"""


@linux
def test_memory_is_in_millions_of_bytes() -> None:
    """Measured in another process: threads of other tests allocate memory in this process."""
    command = [sys.executable, "-c", _ALLOCATOR]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin and child.stdout
        assert child.stdout.readline() == "ready\n"
        before = accounting.resident_mb(child.pid), accounting.tree_mb(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "allocated\n"
        after = accounting.resident_mb(child.pid), accounting.tree_mb(child.pid)
        peak = accounting.peak_resident_mb(child.pid)
        child.communicate("\n")
    assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx([100, 100], abs=2)
    assert peak >= after[0] - 1


# Shares 50 MB with a child, and has 20 MB in a file in memory that no process maps.
_SHARER = """
import os
shared = b"x" * 50_000_000
file = os.memfd_create("pixels")
os.write(file, b"x" * 20_000_000)
if not os.fork():
    print("allocated", flush=True)
    input()
    os._exit(0)
os.wait()
"""


@linux
def test_shared_memory_counts_once_and_unmapped_files_count() -> None:
    command = [sys.executable, "-c", _SHARER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == "allocated\n"
        total = accounting.tree_mb(child.pid)
        peak = accounting.peak_tree_mb(child.pid)
        child.communicate("\n")
    assert 70 < total < 95
    assert peak >= total


def test_health_with_the_requested_model_is_accepted() -> None:
    check_health({"status": "ready", "model": "m.pt", "precision": "int8"}, "int8")


@pytest.mark.parametrize(
    ("health", "sentence"),
    [
        ({"precision": "fp32", "fallback": "The canary differs"}, "The canary differs"),
        ({"precision": "fp32"}, "of precision fp32, not int8"),
        ({}, "of precision None, not int8"),
    ],
    ids=["fallback", "other", "none"],
)
def test_health_with_another_model_is_an_error(health: dict[str, str], sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        check_health(health, "int8")


def test_pinned_settings_override_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FIRESTORE_DATABASE", "other")
    monkeypatch.setenv("ALLOWED_BUCKETS", "mine")
    monkeypatch.setenv("DEVICE", "cuda:0")
    pinned = service_settings(BUNDLED_MODEL, 8)
    settings = Settings.from_env({**os.environ, **pinned})
    assert settings.firestore_database == "(default)"
    assert (settings.allowed_buckets, settings.device) == ((), "cpu")


def test_engine_has_the_settings_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_SIZE", "96")
    assert worker.describe(BUNDLED_MODEL)["image_size"] == 96


def test_failed_export_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics", reason="extra export is not installed")
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(BenchError, match=r"ultralytics cannot export .*broken\.pt"):
        worker.export_alternative(tmp_path / "broken.pt", tmp_path)


@linux
def test_process_has_its_cores_and_the_parent_keeps_its_own() -> None:
    before = os.sched_getaffinity(0)
    first_core = frozenset({min(before)})
    with Process(first_core) as process:
        assert process.call(os.sched_getaffinity, 0) == first_core
        assert process.call(os.getpid) != os.getpid()
    assert os.sched_getaffinity(0) == before


@linux
def test_crashed_process_is_reported() -> None:
    cores = frozenset(os.sched_getaffinity(0))
    with Process(cores) as process, pytest.raises(BenchError, match="crashed"):
        process.call(os._exit, 3)


_PARENT = """
import os
from devtools.bench.run import choose_images
from devtools.bench.subjects import Process

if __name__ == "__main__":
    with Process(frozenset(os.sched_getaffinity(0))) as process:
        print(process.call(os.getpid), flush=True)
        input()
"""


@linux
def test_process_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
    deadline = time.monotonic() + 120
    while is_alive(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # its new parent may not have waited for it yet


@linux
def test_cores_default_to_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert choose_cores(None) == Cores(frozenset({2}), frozenset({0, 1}))
    assert choose_cores("0-1") == Cores(frozenset({0, 1}), frozenset({2}))
    assert choose_cores("0-2").others == {0, 1, 2}


@linux
@pytest.mark.parametrize("text", ["7", "a", "1-", "2-1", "1,,2"])
def test_wrong_cores_are_reported(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    with pytest.raises(BenchError, match=f"--cores {text}"):
        choose_cores(text)


@linux
def test_header_names_machine_versions_date_and_model() -> None:
    model = {
        "name": "m.pt", "sha256": "0123456789", "precision": "int8", "image_size": 640,
        "runtime": "openvino 1",
    }  # fmt: skip
    lines = machine.header(model, Cores(frozenset({1}), frozenset({0})), {"rounds": "5"})
    assert list(lines) == ["machine", "versions", "date", "model", "rounds"]
    assert lines["model"] == "m.pt (01234567), int8, 640 pixels, openvino 1"
    assert "measured process on core 1, emulators and load on core 0" in lines["machine"]
    assert "openvino" in lines["versions"]


class _Echo(BaseHTTPRequestHandler):
    """Responds with the status that is the request's body."""

    received: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        status = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.received.append(status)
        self.send_response(int(status))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    _Echo.received.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_closed_load_sends_everything_once(echo: str) -> None:
    statuses = ["204", "429", "500", "204"]
    responses = send_closed(echo, [Request({}, s.encode()) for s in statuses], clients=2)
    assert [response.status for response in responses] == [204, 429, 500, 204]
    assert [response.is_good for response in responses] == [True, False, False, True]
    assert sorted(_Echo.received) == sorted(statuses)


def test_open_load_is_spread_over_time(echo: str) -> None:
    responses = send_open(echo, [Request({}, b"204")] * 20, rate=100.0)
    due = [response.due for response in responses]
    assert due == sorted(due)
    assert 0.05 < due[-1] < 1.0  # 20 requests at 100 per second, drawn from a seed
    assert all(response.due <= response.sent <= response.completed for response in responses)


def test_refused_connection_counts_as_no_response() -> None:
    unused_url = f"http://127.0.0.1:{free_port()}"
    responses = send_closed(unused_url, [Request({}, b"204")], clients=1)
    assert responses[0].status == 0


def test_images_are_sampled_evenly_and_other_files_skipped(tmp_path: Path) -> None:
    for number in range(13):
        size = 32 if number < 6 else 48
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), np.zeros((size, 64, 3), np.uint8))
    (tmp_path / "06.png").write_bytes(b"")
    messages: list[str] = []
    chosen, sizes = choose_images(tmp_path, messages.append, is_quick=True)
    assert [file.name for file in chosen] == ["00.png", "03.png", "09.png", "12.png"]
    assert sizes == 2
    assert len(messages) == 1
    assert "06.png" in messages[0]


def test_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="There are no images in"):
        choose_images(tmp_path, print, is_quick=False)


PRICES = Prices.read(DEFAULT_PRICES)


def test_point_summarises_served_and_rejected_requests() -> None:
    responses = [Response(i, i + 0.1, i + 0.5, 204) for i in range(9)]
    responses.append(Response(9, 9.1, 9.2, 429))
    point = curve.point_of(responses, cpu_seconds=1.8, prices=PRICES)
    assert point.offered_per_second == pytest.approx(10 / 9)
    assert point.p50_ms == pytest.approx(500)
    assert point.rejected_share == pytest.approx(0.1)
    assert point.served_per_second == pytest.approx(9 / 9.2)
    assert point.cpu_seconds_per_million == pytest.approx(200_000)
    billed = (9 * 0.4 + 0.1) / 9
    assert point.usd_per_million == pytest.approx(PRICES.usd_per_million(billed))


def test_load_without_a_success_is_an_error() -> None:
    with pytest.raises(BenchError, match="no request succeeded"):
        curve.point_of([Response(1, 1, 2, 503)], 1.0, PRICES)


def test_plot_is_a_png_of_all_axes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="extra bench is not installed")
    points = [curve.Point(r, min(r, 8), 0, 40 * r, 90 * r, 5e4, 2.0) for r in (1.0, 4.0, 9.0)]
    levels = [curve.Level("alternative", 3.0, 1e5, 6.0)]
    file = tmp_path / "new" / "plot.png"
    curve.draw(points, levels, "a title", file)
    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    drawn = cv2.imread(str(file))
    assert drawn is not None and drawn.shape[0] > drawn.shape[1] > 500
    assert drawn.std() > 5  # it is not blank


def test_curve_section_has_a_row_per_load_and_the_prices() -> None:
    points = [curve.Point(1.0, 1.0, 0, 40, 90, 5e4, 2.0), curve.Point(2.0, 2.0, 0.5, 1, 2, 3, 4)]
    section = curve.curve_section(points, [curve.Level("alternative", 3, 1e5, 6)], PRICES)
    assert section.rows[1][:3] == ("2.00", "2.00", "50%")
    assert PRICES.name in section.notes[0]
    assert "'alternative'" in section.notes[1]
    json.dumps(section.data)
