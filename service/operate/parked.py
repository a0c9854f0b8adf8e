"""Finds the parked images that can be continued, the oldest first."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice

from service.domain import ImageRef

LOOKUPS = 32  # objects looked up at once


def continuable(
    parked: Iterable[tuple[datetime, ImageRef]],
    exists: Callable[[ImageRef], bool],
    *,
    bucket: str,
    prefix: str = "",
    limit: int | None = None,
) -> list[ImageRef]:
    """Return the parked images of a bucket whose objects still exist, the oldest first.

    Args:
        parked: every parked image, and when it was parked.
        exists: returns whether an object exists. Called from several threads.
        bucket: the bucket's name.
        prefix: prefix of the objects' names.
        limit: return at most this many images. None: all.

    Raises:
        YoloBatchError: Cloud Storage or Firestore did not respond.
    """
    waiting = [
        (parked_at, ref)
        for parked_at, ref in parked
        if ref.bucket == bucket and ref.name.startswith(prefix)
    ]
    waiting.sort(key=lambda pair: pair[0])
    return list(islice(_existing([ref for _, ref in waiting], exists), limit))


def _existing(refs: list[ImageRef], exists: Callable[[ImageRef], bool]) -> Iterator[ImageRef]:
    with ThreadPoolExecutor(LOOKUPS) as threads:
        for start in range(0, len(refs), LOOKUPS):
            group = refs[start : start + LOOKUPS]
            for ref, is_existing in zip(group, threads.map(exists, group), strict=True):
                if is_existing:
                    yield ref
