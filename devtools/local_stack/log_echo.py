"""Passes each new line of a log file to a function, like `tail -f`."""

import threading
from collections.abc import Callable
from pathlib import Path

_POLL_SECONDS = 0.2


class LogEcho:
    """Follows a file, which may not exist yet, in a thread of its own."""

    def __init__(self, path: Path, sink: Callable[[str], None]) -> None:
        """Start at the current end of the file. `sink` gets each line without its line end."""
        self._path = path
        self._sink = sink
        self._position = path.stat().st_size if path.exists() else 0
        self._stopping = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._follow, name="log-echo")
        self._thread.start()

    def raise_if_broken(self) -> None:
        """Raise the OSError that the function raised, for example because its pipe is closed."""
        if self._error:
            raise self._error

    def stop(self) -> None:
        """Pass the remaining lines, then stop."""
        self._stopping.set()
        self._thread.join()

    def _follow(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(_POLL_SECONDS)
            try:
                self._copy()
            except OSError as exc:
                self._error = exc
                return

    def _copy(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as log:
            log.seek(self._position)
            for line in log:
                if not line.endswith(b"\n") and not self._stopping.is_set():
                    return  # still being written
                self._position += len(line)
                self._sink(line.decode(errors="replace").rstrip("\n"))
