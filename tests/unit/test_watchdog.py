"""Work that hangs ends the process; work that is merely slow, stopped or many does not."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from service.watchdog import Watchdog
from tests.fakes import PATIENCE_SECONDS

QUICK_SECONDS = 0.05
LOADED: "Future[None]" = Future()
LOADED.set_result(None)


def stuck_event() -> tuple[threading.Event, Callable[[], None]]:
    stuck = threading.Event()
    return stuck, stuck.set


def test_work_that_does_not_end_is_stuck() -> None:
    stuck, on_stuck = stuck_event()
    watchdog = Watchdog(QUICK_SECONDS, on_stuck)
    watchdog.start(after=LOADED)
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
    watchdog.start(after=LOADED)
    with watchdog.watch():
        for _ in range(2):
            assert calls.acquire(timeout=PATIENCE_SECONDS)
    watchdog.close()


def test_a_wait_that_raises_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no memory for a lock to wait on."""
    stuck, on_stuck = stuck_event()
    watchdog = Watchdog(QUICK_SECONDS, on_stuck)
    tries = iter(range(3))

    def wait(_: float) -> None:
        if next(tries, None) is not None:
            raise MemoryError

    monkeypatch.setattr(watchdog._closed, "wait", wait)
    watchdog.start(after=LOADED)
    with watchdog.watch():
        assert stuck.wait(PATIENCE_SECONDS)
    watchdog.close()


def test_start_that_does_not_end_is_stuck() -> None:
    stuck, on_stuck = stuck_event()
    watchdog = Watchdog(QUICK_SECONDS, on_stuck)
    watchdog.start(after=Future(), start_seconds=2 * QUICK_SECONDS)
    assert stuck.wait(PATIENCE_SECONDS)
    watchdog.close()


NO_THREAD = """
def no_thread(*_, **__):
    raise RuntimeError("unable to start watchdog thread")

faulthandler.dump_traceback_later = no_thread
"""


@pytest.mark.parametrize("before", ["", NO_THREAD], ids=["usual", "no-thread"])
def test_stuck_process_says_where_its_threads_are_and_ends(before: str) -> None:
    program = """
import faulthandler, logging.config, threading
from concurrent.futures import Future
from service.server import logs
from service.watchdog import Watchdog

# before
def hang():
    with watchdog.watch():
        threading.Event().wait()

logging.config.dictConfig(logs.config("INFO"))
watchdog = Watchdog(0.1)
loaded = Future()
loaded.set_result(None)
watchdog.start(after=loaded)
threading.Thread(target=hang, name="picture").start()
"""
    done = subprocess.run(
        [sys.executable, "-c", program.replace("# before", before)],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads(done.stdout)
    assert (said["severity"], said["logger"]) == ("CRITICAL", "service.watchdog")
    (stack,) = [stack for name, stack in said["threads"].items() if name.startswith("picture ")]
    assert any(call.endswith(" hang") for call in stack)
