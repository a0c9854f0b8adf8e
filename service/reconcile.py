"""What a bucket holds against what is recorded, and jobs for the difference.

The bucket is read page by page; nothing is kept of a page once its jobs are published, so that
memory does not grow with the bucket. Running it twice, or beside live traffic, changes no result:
a job for what is recorded meanwhile finds the document and does nothing.

    page ─▶ records ─▶ tally, pending ─▶ published ─▶ checkpoint
                                         killed here: these jobs are published once more
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from service.document import STATUS_FAILED
from service.domain import ImageRef, Record, Records, Replace
from service.errors import YoloBatchError

_LOOKUP_SIZE = 250  # documents asked for in one call
_CHECKPOINT_PAGES = 10  # pages, at most, that a killed run has to read again


class ResumeError(YoloBatchError):
    """The file to resume from belongs to another run, or is not one of ours."""


class Objects(Protocol):
    """A bucket's listing; see `service.storage.ObjectLister`."""

    def pages(self, bucket: str, prefix: str, *, after: str = "") -> Iterator[Sequence[ImageRef]]:
        """List the live objects, by name, beginning after one."""


class Store(Protocol):
    """What is recorded; see `service.store.ResultStore`."""

    def records(self, refs: Sequence[ImageRef]) -> Records:
        """Read how pictures are recorded."""


class State(StrEnum):
    """What an object is. Every object is exactly one."""

    DONE = "done"
    STALE = "stale"  # done, by another model than the one that is deployed
    FAILED = "failed"
    MISSING = "missing"  # no document
    IGNORED = "ignored"  # folder markers and parts of composite uploads


class Enqueue(StrEnum):
    """Which objects get a job."""

    MISSING = "missing"
    FAILED = "failed"
    STALE = "stale"
    ALL = "all"  # these three

    @property
    def states(self) -> frozenset[State]:
        """The states that are meant."""
        if self is Enqueue.ALL:
            return frozenset({State.MISSING, State.FAILED, State.STALE})
        return frozenset({State(self)})

    @property
    def asks_for_model(self) -> bool:
        """Whether the deployed model must be known."""
        return State.STALE in self.states


@dataclass(frozen=True)
class Scope:
    """Which objects are compared, with which model, and which of them get a job."""

    bucket: str
    prefix: str = ""
    model: str | None = None  # sha256 of the deployed model; None: nothing counts as stale
    enqueue: Enqueue | None = None

    @property
    def uri(self) -> str:
        """`gs://bucket/prefix`."""
        return f"gs://{self.bucket}/{self.prefix}"


@dataclass
class Tally:
    """What was counted, up to the object called `after`."""

    after: str = ""
    done: int = 0  # stale ones among them
    stale: int = 0
    failed: int = 0
    missing: int = 0
    ignored: int = 0
    selected: int = 0  # to be given a job
    messages: int = 0  # published

    @property
    def objects(self) -> int:
        """All that were counted."""
        return self.done + self.failed + self.missing + self.ignored

    def add(self, state: State) -> None:
        """Count one object."""
        if state is State.STALE:
            self.done += 1
        setattr(self, state, getattr(self, state) + 1)


class Publish(Protocol):
    """Publishes jobs, and returns the number of messages when all of them are confirmed."""

    def __call__(self, uris: Sequence[str], rerun: Replace | None) -> int:
        """Publish jobs for uris."""


def reconcile(
    scope: Scope,
    objects: Objects,
    store: Store,
    *,
    tally: Tally | None = None,
    publish: Publish | None = None,
    uris_per_message: int = 1,
    progressed: Callable[[Tally], None] = lambda tally: None,
    checkpoint: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Compare a bucket with its documents.

    Args:
        scope: what to compare, and which objects get a job.
        objects: the bucket.
        store: the documents.
        tally: where an earlier run stopped.
        publish: takes the jobs; without it they are only counted.
        uris_per_message: so many make a message worth publishing.
        progressed: called after each page.
        checkpoint: called when everything up to `Tally.after` is counted and published.

    Returns:
        The counts, those of the earlier run among them.

    Raises:
        YoloBatchError: some service did not answer; the last checkpoint is the place to go on.
    """
    tally = tally or Tally()
    batch = _Batch(scope)
    pages = objects.pages(scope.bucket, scope.prefix, after=tally.after)
    for number, page in enumerate(pages, 1):
        states, read_at = _states(page, store, scope.model)
        for ref, state in states:
            tally.add(state)
            if scope.enqueue and state in scope.enqueue.states:
                tally.selected += 1
                if publish and read_at:
                    batch.add(ref, read_at)
        tally.after = page[-1].name
        if len(batch.uris) >= uris_per_message or number % _CHECKPOINT_PAGES == 0:
            tally.messages += batch.flush(publish)
            checkpoint(tally)
        progressed(tally)
    tally.messages += batch.flush(publish)
    checkpoint(tally)
    return tally


@dataclass
class _Batch:
    """Pictures that wait for their job."""

    scope: Scope
    uris: list[str] = field(default_factory=list)
    seen_at: datetime | None = None  # the earliest time at which one of them was looked up

    def add(self, ref: ImageRef, read_at: datetime) -> None:
        self.uris.append(f"{ref.uri}#{ref.generation}")
        self.seen_at = min(self.seen_at or read_at, read_at)

    def flush(self, publish: Publish | None) -> int:
        if not (publish and self.uris):
            return 0
        rerun = None
        if self.seen_at and self.scope.enqueue is not Enqueue.MISSING:
            asks = self.scope.enqueue is not None and self.scope.enqueue.asks_for_model
            rerun = Replace(self.seen_at, self.scope.model if asks else None)
        messages = publish(self.uris, rerun)
        self.uris, self.seen_at = [], None
        return messages


def _states(
    page: Sequence[ImageRef], store: Store, model: str | None
) -> tuple[list[tuple[ImageRef, State]], datetime | None]:
    """Say what each object is, and since when on Firestore's clock; None: nothing was asked."""
    states = [(ref, State.IGNORED) for ref in page if ref.is_ignorable]
    pictures = [ref for ref in page if not ref.is_ignorable]
    read_at = None
    for start in range(0, len(pictures), _LOOKUP_SIZE):
        group = pictures[start : start + _LOOKUP_SIZE]
        found = store.records(group)
        read_at = min(read_at or found.read_at, found.read_at)
        states += [(ref, _state(found.by_id.get(ref.document_id), model)) for ref in group]
    return states, read_at


def _state(record: Record | None, model: str | None) -> State:
    if record is None:
        return State.MISSING
    if record.status == STATUS_FAILED:
        return State.FAILED
    return State.STALE if model and record.model != model else State.DONE


def save(path: Path, scope: Scope, tally: Tally) -> None:
    """Write where a run is, in one step: a kill leaves the old file or the new one."""
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(json.dumps({"scope": asdict(scope), "tally": asdict(tally)}) + "\n")
    scratch.replace(path)


def load(path: Path, scope: Scope) -> Tally:
    """Read where a run of the same scope was; its beginning when there is no file.

    Raises:
        ResumeError: the file is of another scope, or not one of ours.
    """
    if not path.exists():
        return Tally()
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        tally = Tally(**saved["tally"])
        kinds = {spec.name: type(spec.default) for spec in fields(Tally)}
        if not all(type(getattr(tally, name)) is kind for name, kind in kinds.items()):
            raise TypeError("a wrong type")
        is_same = saved["scope"] == asdict(scope)
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise ResumeError(f"{path} is not a file that --resume has written") from exc
    if not is_same:
        raise ResumeError(f"{path} is of another run: another bucket, prefix, model or --enqueue")
    return tally
