"""Ends a process in which work hangs. Knows nothing of pictures.

Everything that work waits for has a limit of its own. What lasts far longer than all of them hangs,
as after memory was short: a native library may then wait for a thread that it could not start.
Nothing within the process can mend that; the server starts another one, and what was not answered
comes again.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

_TICKS = 10  # within the limit
_LAST_WORDS_SECONDS = 10


def end_process() -> NoReturn:
    """Say what every thread waits for, and end at once: whatever is waited for might not come."""
    try:
        with suppress(RuntimeError, MemoryError):  # no thread can be started: the log may do
            faulthandler.dump_traceback_later(_LAST_WORDS_SECONDS, exit=True)  # if it hangs, too
        logger.critical(
            "Work is stuck: the process ends, to be started again", extra={"threads": _stacks()}
        )
        logging.shutdown()
    finally:
        os._exit(1)


class Watchdog:
    """Acts when some work lasts longer than any may.

    Time is counted in the watchdog's own ticks: a process that was stopped meanwhile, or had no
    CPU, is not taken for one that hangs.
    """

    def __init__(
        self, limit_seconds: float = 300.0, on_stuck: Callable[[], None] = end_process
    ) -> None:
        """Watch nothing before `start`.

        Args:
            limit_seconds: that no work may last.
            on_stuck: called when some does, in a thread of its own.
        """
        self._tick_seconds = limit_seconds / _TICKS
        self._on_stuck = on_stuck
        self._lock = threading.Lock()
        self._ticks = 0
        self._began: dict[object, int] = {}
        self._closed = threading.Event()

    def start(self, after: "Future[Any]", *, start_seconds: float = 600.0) -> None:
        """Start the thread, which counts the time of work from when `after` is done.

        Args:
            after: what all work waits for.
            start_seconds: that this may last.
        """
        ticks = round(start_seconds / self._tick_seconds)
        threading.Thread(
            target=self._run, args=(after, ticks), name="watchdog", daemon=True
        ).start()

    def close(self) -> None:
        """Count no more."""
        self._closed.set()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Take what happens inside as work."""
        work = object()
        with self._lock:
            self._began[work] = self._ticks
        try:
            yield
        finally:
            with self._lock:
                del self._began[work]

    def _run(self, after: "Future[Any]", start_ticks: int) -> None:
        while not self._closed.is_set():
            try:
                self._closed.wait(self._tick_seconds)
                start_ticks -= not after.done()
                if start_ticks < 0 or (after.done() and self._tick()):
                    self._on_stuck()
            except Exception:  # as where memory is short: it must go on
                with suppress(MemoryError):
                    logger.exception("The watchdog failed")
                time.sleep(self._tick_seconds)

    def _tick(self) -> bool:
        """Count one; say whether some work has seen more ticks than it may."""
        with self._lock:
            self._ticks += 1
            return any(self._ticks - began > _TICKS for began in self._began.values())


def _stacks() -> dict[str, list[str]]:
    """Where each thread is, innermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(number, '?')} {number}": [
            f"{frame.f_globals.get('__name__')}:{line} {frame.f_code.co_name}"
            for frame, line in traceback.walk_stack(stack)
        ]
        for number, stack in sys._current_frames().items()
    }
