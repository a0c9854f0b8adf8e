"""Whether the platform should replace this process: its liveness probe is the watchdog."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from service.errors import BadImageError, DecoderUnavailableError, DetectorError

_MODEL, _DECODERS = "The model", "The decoders"


class Health:
    """Finds work that hangs, and a model or decoders that fail on every image.

    Probes are the clock: time counts only as far as probes see it, and at most `max_probe_seconds`
    from one to the next. So a process that was stopped for an hour (SIGSTOP, no CPU between
    requests on Cloud Run) is not taken for one whose work hung for an hour.
    """

    def __init__(
        self,
        *,
        hang_timeout_seconds: float,
        max_failures: int = 5,
        max_probe_seconds: float = 60.0,
    ) -> None:
        """Start healthy.

        Args:
            hang_timeout_seconds: that no work may last.
            max_failures: so many different images on which the model failed, or for which there was
                no decoder, with no success between, make the process unhealthy.
            max_probe_seconds: the longest time between two probes that counts. At least the
                period of the platform's probe, or time seems to pass more slowly than it does.
        """
        self._hang_timeout_seconds = hang_timeout_seconds
        self._max_failures = max_failures
        self._max_probe_seconds = max_probe_seconds
        self._lock = threading.Lock()
        self._probed_at = time.monotonic()
        self._probed_seconds = 0.0  # that counted, until the last probe
        self._began: dict[object, float] = {}  # of the work in flight, oldest first
        # The different documents on which each part failed since its last success.
        self._failed: dict[str, set[str]] = {_MODEL: set(), _DECODERS: set()}

    @contextmanager
    def work(self) -> Iterator[None]:
        """Watch what happens inside: it must end within the hang timeout.

        For requests, and for batches and commits too: a request leaves them at its deadline.
        """
        work = object()
        with self._lock:
            self._began[work] = self._seconds()
        try:
            yield
        finally:
            with self._lock:
                del self._began[work]

    def model_call(self, document_id: str) -> AbstractContextManager[None]:
        """Count a DetectorError inside as a failure of the model on this document's image."""
        return self._call(_MODEL, DetectorError, document_id)

    def decoder_call(self, document_id: str) -> AbstractContextManager[None]:
        """Count a DecoderUnavailableError inside as a failure of the decoders."""
        return self._call(_DECODERS, DecoderUnavailableError, document_id)

    def probe(self) -> str | None:
        """Return why the process should be replaced, as a sentence; None while it should not."""
        with self._lock:
            self._probed_seconds = self._seconds()
            self._probed_at = time.monotonic()
            oldest = next(iter(self._began.values()), self._probed_seconds)
            if self._probed_seconds - oldest > self._hang_timeout_seconds:
                return f"Work has hung for more than {self._hang_timeout_seconds:g} s."
            for part, failed in self._failed.items():
                if len(failed) >= self._max_failures:
                    return f"{part} failed on {len(failed)} different images in a row."
            return None

    @contextmanager
    def _call(self, part: str, failure: type[Exception], document_id: str) -> Iterator[None]:
        failed = self._failed[part]
        try:
            yield
        except failure:
            with self._lock:
                if len(failed) < self._max_failures:
                    failed.add(document_id)
            raise
        except BadImageError:  # the file is at fault, not the decoders
            with self._lock:
                failed.clear()
            raise
        with self._lock:
            failed.clear()

    def _seconds(self) -> float:
        """Return the seconds that count so far. The caller holds the lock."""
        since_probe = time.monotonic() - self._probed_at
        return self._probed_seconds + min(since_probe, self._max_probe_seconds)
