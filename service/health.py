"""Decides whether the platform should replace this process, for its liveness probe."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from service.errors import BadImageError, DecoderUnavailableError, DetectorError

_MODEL, _DECODERS, _DERIVING = "The model", "The decoders", "Making derived images"


class Health:
    """Detects work that hangs, and a model or decoders that fail on every image.

    Between two probes, at most `max_probe_seconds` count as running time. A process can be stopped
    for an hour (by SIGSTOP, or without CPU between requests on Cloud Run). That hour must not count
    as an hour of hanging work.
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
            hang_timeout_seconds: work that takes longer makes the process unhealthy.
            max_failures: how many different images in a row must fail in the model, or find no
                decoder, to make the process unhealthy.
            max_probe_seconds: how much of the time between two probes counts. Must be at least the
                period of the platform's probe, or hangs are detected late.
        """
        self._hang_timeout_seconds = hang_timeout_seconds
        self._max_failures = max_failures
        self._max_probe_seconds = max_probe_seconds
        self._lock = threading.Lock()
        self._probed_at = time.monotonic()
        self._probed_seconds = 0.0  # running time until the last probe
        # By piece of work: the running time at which it began, oldest first.
        self._began: dict[object, float] = {}
        # By part: ids of the documents whose images failed since the last success.
        self._failed: dict[str, set[str]] = {_MODEL: set(), _DECODERS: set(), _DERIVING: set()}

    @contextmanager
    def work(self) -> Iterator[None]:
        """Watch the block: it must end within the hang timeout.

        Watch requests, and also batches and commits. A request stops waiting for its batch or
        commit at its deadline, but the batch or commit may still hang.
        """
        work = object()
        with self._lock:
            self._began[work] = self._running_seconds()
        try:
            yield
        finally:
            with self._lock:
                del self._began[work]

    def model_call(self, document_id: str) -> AbstractContextManager[None]:
        """Count a DetectorError in the block as a failure of the model on this document's image."""
        return self._call(_MODEL, DetectorError, document_id)

    def decoder_call(self, document_id: str) -> AbstractContextManager[None]:
        """Count a DecoderUnavailableError in the block as a failure of the decoders."""
        return self._call(_DECODERS, DecoderUnavailableError, document_id)

    def derive_call(self, document_id: str) -> AbstractContextManager[None]:
        """Count a DecoderUnavailableError in the block as a failure to make derived images."""
        return self._call(_DERIVING, DecoderUnavailableError, document_id)

    def probe(self) -> str | None:
        """Return why the process should be replaced, as a sentence, or None if it is healthy."""
        with self._lock:
            self._probed_seconds = self._running_seconds()
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

    def _running_seconds(self) -> float:
        """Return the running time in seconds. Call it with the lock."""
        since_probe = time.monotonic() - self._probed_at
        return self._probed_seconds + min(since_probe, self._max_probe_seconds)
