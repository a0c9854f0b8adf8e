"""A short chaos run: every fault strikes once, and nothing is lost."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from devtools.chaos.plan import FaultKind
from devtools.chaos.services import impossible_faults
from tests.fakes import wait_until
from tests.system.test_local_stack import is_running

YOLO_BATCH_DEV = Path(sys.executable).with_name("yolo-batch-dev")
PATIENCE_SECONDS = 120
RUN_SECONDS = 1200  # ten times what a run takes


def test_uploads_under_every_fault_end_as_expected(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            YOLO_BATCH_DEV, "chaos", "--uploads", "60", "--seed", "1",
            "--answer-seconds", "5", "--patience", str(PATIENCE_SECONDS), "--keep", tmp_path,
        ],
        capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
    )  # fmt: skip
    # On a busy machine, more responses than usual may be late. Nothing else may be unexpected.
    late = re.findall("^unexpected: .* had no response in time", done.stdout, re.MULTILINE)
    assert done.returncode == len(late), done.stdout + done.stderr
    figures = dict(re.findall(r"(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    assert figures["uploads"] == "60"
    assert figures["unexpected"] == str(len(late))
    problems = ("lost", "duplicated", "crossed", "wrong", "stuck", "killed")
    for problem in (*problems, "messages", "alerts", "objects"):
        assert figures[problem] == "0", problem
    struck = set(re.findall(r"\d+ x ([a-z0-9 ]+)", done.stdout.partition("faults injected")[2]))
    assert struck == set(FaultKind) - impossible_faults()


def test_interrupted_run_stops_everything_it_started() -> None:
    command: list[str | Path] = [YOLO_BATCH_DEV, "chaos", "--uploads", "60", "--services", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        while "Uploading" not in run.stdout.readline():
            assert run.poll() is None
        # Two reapers, three emulators and three services. A service may just be starting again.
        wait_until(
            lambda: len(psutil.Process(run.pid).children()) >= 8, "not everything is started"
        )
        children = psutil.Process(run.pid).children()
        run.send_signal(signal.SIGINT)
        assert run.wait(PATIENCE_SECONDS) == 130
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(map(is_running, children)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_unknown_fault_is_an_error_that_lists_all_faults() -> None:
    done = subprocess.run(
        [YOLO_BATCH_DEV, "chaos", "--without", "flood"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "flood: it must be one of storage 429" in done.stderr
