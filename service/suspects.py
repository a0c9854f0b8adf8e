"""Pictures that the network worked on when the process died; kept where the next process finds it.

A picture that crashes a native library takes its process and its batch along, and comes again. So
after a death each picture of that batch is a suspect, and runs alone: the innocent are done, and
the culprit kills once more. Then it is known, and never run again: its message is answered 500,
until Pub/Sub gives it up to the dead letters.

It is memory that a server's processes share, as the first makes it before it forks the others. It
ends with the server, and another machine's server has to learn by itself. A delivery's own count
of its attempts would tell every machine, but Eventarc's deliveries have none.
"""

import json
import logging
import mmap
from collections.abc import Sequence

logger = logging.getLogger(__name__)

_BYTES = 64 * 1024
_MAX_KNOWN = 1000  # of about 50 bytes each; the oldest are forgotten


class Suspects:
    """What is run now, and what died before; for one process after another."""

    def __init__(self) -> None:
        """Suspect nobody."""
        self._memory = mmap.mmap(-1, _BYTES)
        self._is_culprit: dict[str, bool] = {}  # by document id: a culprit, or else a suspect

    def mourn(self) -> None:
        """Learn from the process before this one, if it died at work."""
        text = self._memory[:].rstrip(b"\0")
        if not text:
            return
        try:
            died, self._is_culprit = json.loads(text)
        except ValueError:  # it died while it wrote
            return
        for document_id in died:
            was_alone_again = len(died) == 1 and document_id in self._is_culprit
            self._is_culprit[document_id] = was_alone_again
        if died:
            logger.error(
                "The process died while the network ran; these pictures will run alone",
                extra={"document_ids": died},
            )
        self._write([])

    def must_run_alone(self, document_id: str) -> bool:
        """Say whether a process died of this picture, or of another one in its batch."""
        return document_id in self._is_culprit

    def is_culprit(self, document_id: str) -> bool:
        """Say whether a process died of this picture for certain, as it ran alone."""
        return self._is_culprit.get(document_id, False)

    def begin(self, document_ids: Sequence[str]) -> None:
        """Write down what the network runs from now on."""
        self._write(document_ids)

    def end(self, document_ids: Sequence[str]) -> None:
        """Clear those that were run, however it ended: nobody died."""
        for document_id in document_ids:
            self._is_culprit.pop(document_id, None)
        self._write([])

    def _write(self, running: Sequence[str]) -> None:
        for oldest in list(self._is_culprit)[:-_MAX_KNOWN]:
            del self._is_culprit[oldest]
        text = json.dumps([list(running), self._is_culprit]).encode()
        self._memory[:] = text.ljust(_BYTES, b"\0")
