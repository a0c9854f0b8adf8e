"""Waits until every image has a result.

Each pass lists all images, and reads the documents of those whose state is not final yet. So it
notices images that are uploaded, overwritten or deleted meanwhile. Of an image with a final
document, only 9 bytes stay in memory.

    list a page ─▶ known to be final? ─▶ disabled? ─▶ read documents ─▶ count
                                                  the next pass begins if some are missing

A parked image is not final, but nobody waits for another day. So it counts as finished.
"""

import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain import ImageRef
from service.object_metadata import is_marked
from service.operate.reconcile import LOOKUP_SIZE, State, Store, state_of

_SHOWN = 5  # missing images that a report names
_STATES = (State.DONE, State.FAILED, State.PARKED)
_ID_DIGITS = 16  # hexadecimal digits of a document's id that fit into 8 bytes

Pages = Callable[[], Iterable[Sequence[ImageRef]]]


@dataclass
class Counts:
    """How many images are in each state."""

    done: int = 0
    failed: int = 0
    parked: int = 0
    disabled: int = 0
    missing: int = 0
    gone: int = 0  # submitted, but deleted or overwritten before they had a document
    missing_uris: list[str] = field(default_factory=list)  # a few of them

    @property
    def uploaded(self) -> int:
        """How many images there are."""
        return self.finished + self.missing

    @property
    def finished(self) -> int:
        """How many images nobody waits for any more."""
        return self.done + self.failed + self.parked + self.disabled

    def add(self, state: State, ref: ImageRef) -> None:
        """Count one image."""
        setattr(self, state, getattr(self, state) + 1)
        if state is State.MISSING and len(self.missing_uris) < _SHOWN:
            self.missing_uris.append(f"{ref.uri}#{ref.generation}")

    def report(self) -> dict[str, Any]:
        """Return the counts for JSON."""
        return {"uploaded": self.uploaded} | asdict(self)


def watch(
    pages: Pages,
    store: Store,
    *,
    is_enabled: Callable[[ImageRef], bool] = lambda ref: True,
    are_live: Callable[[Sequence[ImageRef]], Iterable[bool]] | None = None,
    interval_seconds: float = 5.0,
    timeout_seconds: float | None = None,
    progressed: Callable[[Counts], None] = lambda counts: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Counts:
    """Count images again and again until none is missing, or until the time is over.

    Args:
        pages: lists the images that exist, in pages.
        store: the documents.
        is_enabled: returns whether an image's source is enabled. Other images need no document.
        are_live: returns whether images without a document still exist. None: `pages` lists only
            those that exist.
        interval_seconds: time between two passes.
        timeout_seconds: how long to wait at most. None: without a limit. There is at least one
            pass.
        progressed: called with the counts of the first pass after each page, and with those of
            each later pass at its end.
        clock: returns seconds.
        sleep: waits for seconds.

    Returns:
        The counts of the last pass. Images are missing only if the time is over.

    Raises:
        YoloBatchError: Cloud Storage or Firestore did not respond.
    """
    ends_at = None if timeout_seconds is None else clock() + timeout_seconds
    known = _Known(np.empty(0, np.uint64), np.empty(0, np.uint8))
    is_first = True
    while True:
        one_pass = _Pass(store, known, is_enabled, are_live)
        for page in pages():
            one_pass.look(page)
            if is_first:
                progressed(one_pass.counts)
        is_first = False
        counts, known = one_pass.counts, one_pass.known()
        progressed(counts)
        if not counts.missing:
            if not one_pass.has_recalled(State.PARKED):
                return counts
            # Another day may have begun since these images were found parked.
            known = known.without(State.PARKED)
            continue
        now = clock()
        if ends_at is not None and now >= ends_at:
            return counts
        sleep(interval_seconds if ends_at is None else min(interval_seconds, ends_at - now))


class _Known:
    """The states of images that earlier passes found, by the first 8 bytes of the document's id.

    Among a million images, two have the same 8 bytes with a probability of 3 in 100 million. Then
    one of them may be counted in the state of the other.
    """

    def __init__(self, ids: NDArray[np.uint64], states: NDArray[np.uint8]) -> None:
        """Take ids, and the positions of their states in `_STATES`."""
        order = np.argsort(ids)
        self._ids = ids[order]
        self._states = states[order]

    def states(self, ids: Sequence[int]) -> list[State | None]:
        """Return the states of images. None: not known."""
        if not len(self._ids):
            return [None] * len(ids)
        wanted = np.asarray(ids, np.uint64)
        places = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        is_known = self._ids[places] == wanted
        return [
            _STATES[state] if known else None
            for state, known in zip(self._states[places], is_known, strict=True)
        ]

    def without(self, state: State) -> "_Known":
        """Return the states of the other images."""
        kept = self._states != _STATES.index(state)
        return _Known(self._ids[kept], self._states[kept])


class _Pass:
    """One pass over all images."""

    def __init__(
        self,
        store: Store,
        known: _Known,
        is_enabled: Callable[[ImageRef], bool],
        are_live: Callable[[Sequence[ImageRef]], Iterable[bool]] | None,
    ) -> None:
        self.counts = Counts()
        self._store = store
        self._before = known
        self._is_enabled = is_enabled
        self._are_live = are_live
        self._ids = array("Q")
        self._states = array("B")
        self._recalled: set[State] = set()

    def known(self) -> _Known:
        """Return the states of the images that the next pass need not read."""
        return _Known(np.asarray(self._ids, np.uint64), np.asarray(self._states, np.uint8))

    def has_recalled(self, state: State) -> bool:
        """Return whether an image was counted in this state without reading its document."""
        return state in self._recalled

    def look(self, page: Sequence[ImageRef]) -> None:
        """Count the images of a page."""
        images = [ref for ref in page if not (ref.is_ignorable or is_marked(ref.metadata.custom))]
        ids = [int(ref.document_id[:_ID_DIGITS], 16) for ref in images]
        waiting = []
        for ref, key, state in zip(images, ids, self._before.states(ids), strict=True):
            if state:
                self._recalled.add(state)
                self._count(ref, key, state)
            elif self._is_enabled(ref):
                waiting.append((ref, key))
            else:
                self.counts.add(State.DISABLED, ref)
        for start in range(0, len(waiting), LOOKUP_SIZE):
            self._read(waiting[start : start + LOOKUP_SIZE])

    def _read(self, group: Sequence[tuple[ImageRef, int]]) -> None:
        documents = self._store.stored_documents([ref for ref, _ in group]).by_id
        missing = []
        for ref, key in group:
            state = state_of(documents.get(ref.document_id))
            if state is State.MISSING:
                missing.append(ref)
            else:
                self._count(ref, key, state)
        are_live = self._are_live(missing) if self._are_live else [True] * len(missing)
        for ref, is_live in zip(missing, are_live, strict=True):
            if is_live:
                self.counts.add(State.MISSING, ref)
            else:
                self.counts.gone += 1

    def _count(self, ref: ImageRef, key: int, state: State) -> None:
        self.counts.add(state, ref)
        self._ids.append(key)
        self._states.append(_STATES.index(state))
