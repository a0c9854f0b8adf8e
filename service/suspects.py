"""Pictures that were worked on when the process died; kept where the next process finds it.

A picture that crashes a native library takes its process along, and comes again. What the network
ran and what was decoded is therefore written down beforehand, and after a death:

- What was being decoded is decoded apart from then on, in the decoder's process, which may die.
- Each picture of the network's batch is a suspect, and runs alone: the innocent are done, and the
  culprit kills once more. Then it is known, and never run again: its message is answered 500, until
  Pub/Sub gives it up to the dead letters. If something was being decoded too, it may be that which
  killed, so nobody is known then.

Two deaths of other causes, as for want of memory, while the same picture runs alone make a culprit
of it, too; its dead letter can be replayed to another server.

It is memory that a server's processes share, as the first makes it before it forks the others. It
ends with the server, and another machine's server has to learn by itself. A delivery's own count
of its attempts would tell every machine, but Eventarc's deliveries have none.
"""

import json
import logging
import mmap
import struct
import threading
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)

_MAX_KNOWN = 1000  # of each kind, of about 50 bytes each; the oldest are forgotten
_KNOWN_BYTES = 128 * 1024
_AT_WORK_BYTES = 64 * 1024  # a batch and a picture a core


class Suspects:
    """What is run now, and what died before; for one process after another, and many threads."""

    def __init__(self) -> None:
        """Suspect nobody."""
        # Apart, as one is written with every picture and the other one hardly ever.
        self._at_work_memory = _Memory(_AT_WORK_BYTES)
        self._known_memory = _Memory(_KNOWN_BYTES)
        self._lock = threading.Lock()
        self._running: list[str] = []
        self._decoding: list[str] = []
        self._is_culprit: dict[str, bool] = {}  # by document id: a culprit, or else a suspect
        self._apart: dict[str, bool] = {}  # document ids, oldest first

    def mourn(self) -> None:
        """Learn from the process before this one, if it died at work."""
        with self._lock:
            self._is_culprit, self._apart = self._known_memory.read([{}, {}])
            ran, decoded = self._at_work_memory.read([[], []])
            for document_id in ran:
                is_certain = len(ran) == 1 and document_id in self._is_culprit and not decoded
                self._is_culprit[document_id] = self.is_culprit(document_id) or is_certain
            self._apart |= dict.fromkeys(decoded, True)
            self._running, self._decoding = [], []
            self._write_known()
            self._write_at_work()
        _log(ran, decoded)

    def must_run_alone(self, document_id: str) -> bool:
        """Say whether a process died of this picture, or of another one in its batch."""
        return document_id in self._is_culprit

    def is_culprit(self, document_id: str) -> bool:
        """Say whether a process died of this picture for certain, as it ran alone."""
        return self._is_culprit.get(document_id, False)

    def must_decode_apart(self, document_id: str) -> bool:
        """Say whether a process died while it decoded this picture.

        It stays so: a picture that comes again may not have its document yet.
        """
        return document_id in self._apart

    def begin(self, document_ids: Sequence[str]) -> None:
        """Write down what the network runs from now on."""
        with self._lock:
            self._running = list(document_ids)
            self._write_at_work()

    def end(self, document_ids: Sequence[str]) -> None:
        """Clear those that were run, however it ended: nobody died."""
        with self._lock:
            self._running = []
            self._write_at_work()
            if self._is_culprit.keys() & set(document_ids):
                for document_id in document_ids:
                    self._is_culprit.pop(document_id, None)
                self._write_known()

    def begin_decode(self, document_id: str) -> None:
        """Write down that this picture, too, is decoded from now on."""
        with self._lock:
            self._decoding.append(document_id)
            self._write_at_work()

    def end_decode(self, document_id: str) -> None:
        """Write down that it is no more, however it ended; or that it could not be begun."""
        with self._lock:
            if document_id in self._decoding:
                self._decoding.remove(document_id)
            self._write_at_work()

    def _write_at_work(self) -> None:
        self._at_work_memory.write([self._running, self._decoding])

    def _write_known(self) -> None:
        for known in (self._is_culprit, self._apart):
            for oldest in list(known)[:-_MAX_KNOWN]:
                del known[oldest]
        self._known_memory.write([self._is_culprit, self._apart])


class _Memory:
    """What one process writes and the next one reads, as JSON behind its length."""

    _LENGTH = struct.Struct("<I")

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size)

    def write(self, value: Any) -> None:
        text = json.dumps(value).encode()
        written = self._LENGTH.pack(len(text)) + text
        self._memory[: len(written)] = written

    def read(self, default: Any) -> Any:
        """Return what was written; the default for nothing, or half of it."""
        [length] = self._LENGTH.unpack_from(self._memory)
        try:
            return json.loads(self._memory[self._LENGTH.size : self._LENGTH.size + length])
        except ValueError:
            return default


def _log(ran: Sequence[str], decoded: Sequence[str]) -> None:
    if ran:
        logger.error(
            "The process died while the network ran; these pictures will run alone",
            extra={"document_ids": ran},
        )
    if decoded:
        logger.error(
            "The process died while it decoded; these pictures will be decoded apart",
            extra={"decoded_ids": decoded},
        )
