"""Work that hangs ends the process; work that is merely slow, stopped or many does not."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable

from service.watchdog import Watchdog
from tests.fakes import PATIENCE_SECONDS

QUICK_SECONDS = 0.05


def stuck_event() -> tuple[threading.Event, Callable[[], None]]:
    stuck = threading.Event()
    return stuck, stuck.set


def test_work_that_does_not_end_is_stuck() -> None:
    stuck, on_stuck = stuck_event()
    watchdog = Watchdog(QUICK_SECONDS, on_stuck)
    watchdog.start()
    with watchdog.watch():
        assert stuck.wait(PATIENCE_SECONDS)
    watchdog.close()


def test_work_that_ends_is_not_however_much_there_is() -> None:
    stuck, on_stuck = stuck_event()
    watchdog = Watchdog(QUICK_SECONDS, on_stuck)
    for _ in range(100):
        with watchdog.watch():
            assert not watchdog._tick()
    assert not stuck.is_set()


def test_work_may_last_the_limit_counted_in_ticks() -> None:
    """A process that was stopped does not tick."""
    watchdog = Watchdog(QUICK_SECONDS)
    with watchdog.watch():
        assert [watchdog._tick() for _ in range(11)] == [False] * 10 + [True]


def test_an_error_does_not_end_the_watch() -> None:
    calls = threading.Semaphore(0)

    def fail() -> None:
        calls.release()
        raise MemoryError

    watchdog = Watchdog(QUICK_SECONDS, fail)
    watchdog.start()
    with watchdog.watch():
        for _ in range(2):
            assert calls.acquire(timeout=PATIENCE_SECONDS)
    watchdog.close()


def test_stuck_process_says_where_its_threads_are_and_ends() -> None:
    program = """
import logging.config, threading
from service import logs
from service.watchdog import Watchdog

def hang():
    with watchdog.watch():
        threading.Event().wait()

logging.config.dictConfig(logs.config("INFO"))
watchdog = Watchdog(0.1)
watchdog.start()
threading.Thread(target=hang, name="picture").start()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads(done.stdout)
    assert (said["severity"], said["logger"]) == ("CRITICAL", "service.watchdog")
    (stack,) = [stack for name, stack in said["threads"].items() if name.startswith("picture ")]
    assert any(call.endswith(" hang") for call in stack)
