"""What a bucket holds against what is recorded, and jobs for the difference.

The bucket is read page by page; nothing is kept of a page once its jobs are published, so that
memory does not grow with the bucket. Running it twice, or beside live traffic, changes no result:
a job for what is recorded meanwhile finds the document and does nothing.

    page ─▶ young enough? ─▶ records ─▶ tally ─▶ jobs published ─▶ checkpoint
                                                 killed here: these jobs are published once more

All names are listed, because Cloud Storage cannot list by age. But the documents of objects that
are older than `since` are not read: results that have expired, or that somebody deleted, are not
made again.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from service.document import STATUS_FAILED
from service.domain import ImageRef, Replace, StoredDocument, StoredDocuments
from service.errors import YoloBatchError

_LOOKUP_SIZE = 250  # documents asked for in one call
_CHECKPOINT_PAGES = 10  # pages, at most, that a killed run has to read again
# A run after a successful one looks back at least so far: an event may be on its way for a day.
LEAST_AGE = timedelta(days=2)
_AGE = re.compile(r"([0-9]{1,6})([dh])")


class ResumeError(YoloBatchError):
    """A file or an object that keeps a run's state is of another run, or not one of ours."""


class Objects(Protocol):
    """A bucket's listing; see `service.gcp.listing.ObjectLister`."""

    def pages(self, bucket: str, prefix: str, *, after: str = "") -> Iterator[Sequence[ImageRef]]:
        """List the live objects, by name, beginning after one."""


class Store(Protocol):
    """What is recorded; see `service.gcp.result_reader.ResultReader`."""

    def records(self, refs: Sequence[ImageRef]) -> StoredDocuments:
        """Read how pictures are recorded."""


class State(StrEnum):
    """What an object is. Every object is exactly one."""

    DONE = "done"
    STALE = "stale"  # done, by another model than the one that is deployed
    FAILED = "failed"
    MISSING = "missing"  # no document
    IGNORED = "ignored"  # folder markers and parts of composite uploads
    OLDER = "older"  # than `since`: not compared


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
    since: str | None = None  # as it was given; None: every object is compared

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
    older: int = 0
    selected: int = 0  # given a job, or to be given one

    @property
    def objects(self) -> int:
        """All that were counted."""
        return self.done + self.failed + self.missing + self.ignored + self.older

    def add(self, state: State) -> None:
        """Count one object."""
        if state is State.STALE:
            self.done += 1
        setattr(self, state, getattr(self, state) + 1)


# Publishes a job for each uri, and returns when Pub/Sub has confirmed all of them.
Publish = Callable[[Sequence[str], Replace | None], None]


def reconcile(
    scope: Scope,
    objects: Objects,
    store: Store,
    *,
    since: datetime | None = None,
    tally: Tally | None = None,
    publish: Publish | None = None,
    progressed: Callable[[Tally], None] = lambda tally: None,
    checkpoint: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Compare a bucket with its documents.

    Args:
        scope: what to compare, and which objects get a job.
        objects: the bucket.
        store: the documents.
        since: objects that were created before are counted, not compared.
        tally: where an earlier run stopped.
        publish: takes the jobs; without it they are only counted.
        progressed: called after each page.
        checkpoint: called when everything up to `Tally.after` is counted and published.

    Returns:
        The counts, those of the earlier run among them.

    Raises:
        YoloBatchError: some service did not answer; the last checkpoint is the place to go on.
    """
    tally = tally or Tally()
    wanted = scope.enqueue.states if scope.enqueue else frozenset()
    pages = objects.pages(scope.bucket, scope.prefix, after=tally.after)
    for number, page in enumerate(pages, 1):
        states, read_at = _states(page, store, scope.model, since)
        for _, state in states:
            tally.add(state)
        uris = [f"{ref.uri}#{ref.generation}" for ref, state in states if state in wanted]
        tally.selected += len(uris)
        tally.after = page[-1].name
        if publish and uris and read_at:
            publish(uris, _replacement(scope, read_at))
        if uris or number % _CHECKPOINT_PAGES == 0:
            checkpoint(tally)
        progressed(tally)
    checkpoint(tally)
    return tally


def _replacement(scope: Scope, read_at: datetime) -> Replace | None:
    """Permit that what was seen is replaced; a missing document needs no permission."""
    if scope.enqueue is None or scope.enqueue is Enqueue.MISSING:
        return None
    return Replace(read_at, scope.model if scope.enqueue.asks_for_model else None)


def _states(
    page: Sequence[ImageRef], store: Store, model: str | None, since: datetime | None
) -> tuple[list[tuple[ImageRef, State]], datetime | None]:
    """Say what each object is, and since when on Firestore's clock; None: nothing was asked."""
    states: list[tuple[ImageRef, State]] = []
    images = []
    for ref in page:
        created_at = ref.metadata.created_at
        if ref.is_ignorable:
            states.append((ref, State.IGNORED))
        elif since and created_at and created_at < since:
            states.append((ref, State.OLDER))
        else:
            images.append(ref)
    read_at = None
    for start in range(0, len(images), _LOOKUP_SIZE):
        group = images[start : start + _LOOKUP_SIZE]
        found = store.records(group)
        read_at = min(read_at or found.read_at, found.read_at)
        states += [(ref, _state(found.by_id.get(ref.document_id), model)) for ref in group]
    return states, read_at


def _state(record: StoredDocument | None, model: str | None) -> State:
    if record is None:
        return State.MISSING
    if record.status == STATUS_FAILED:
        return State.FAILED
    return State.STALE if model and record.model != model else State.DONE


def parse_since(text: str) -> timedelta | datetime:
    """Read an age (`2d`, `12h`) or a time with its zone (RFC 3339).

    Raises:
        ValueError: it is neither.
    """
    if age := _AGE.fullmatch(text):
        number, unit = age.groups()
        return timedelta(days=int(number)) if unit == "d" else timedelta(hours=int(number))
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time needs its zone")
    return time.astimezone(UTC)


def since_last(last: datetime | None, started_at: datetime) -> datetime:
    """Say how far a run looks back: to the last successful one's start, but at least two days.

    Args:
        last: when the last successful run started; None: there was none.
        started_at: when this run started.
    """
    return min(last or started_at, started_at - LEAST_AGE)


def save(path: Path, scope: Scope, started_at: datetime, tally: Tally) -> None:
    """Write where a run is, in one step: a kill leaves the old file or the new one."""
    scratch = path.with_name(path.name + ".new")
    state = {"started_at": started_at.isoformat(), "tally": asdict(tally)}
    scratch.write_text(json.dumps({"scope": asdict(scope)} | state) + "\n")
    scratch.replace(path)


def load(path: Path, scope: Scope, started_at: datetime) -> tuple[datetime, Tally]:
    """Read when a run of the same scope started, and where it was.

    Without a file, a run begins: it returns the time that it was given.

    Raises:
        ResumeError: the file is of another scope, or not one of ours.
    """
    if not path.exists():
        return started_at, Tally()
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        tally = Tally(**saved["tally"])
        kinds = {spec.name: type(spec.default) for spec in fields(Tally)}
        if not all(type(getattr(tally, name)) is kind for name, kind in kinds.items()):
            raise TypeError("a wrong type")
        started_at = _utc(saved["started_at"])
        is_same = saved["scope"] == asdict(scope)
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise ResumeError(f"{path} is not a file that --resume has written") from exc
    if not is_same:
        raise ResumeError(
            f"{path} is of another run: another bucket, prefix, model, --enqueue or --since"
        )
    return started_at, tally


def last_run(scope: Scope, started_at: datetime) -> bytes:
    """Write what is kept of a successful run."""
    return json.dumps(_identity(scope) | {"started_at": started_at.isoformat()}).encode()


def last_started_at(scope: Scope, kept: bytes | None) -> datetime | None:
    """Read when the last successful run started; None: there was none.

    Raises:
        ResumeError: what is kept is of another bucket, prefix or `enqueue`, or not one of ours.
    """
    if kept is None:
        return None
    try:
        saved = json.loads(kept)
        started_at = _utc(saved.pop("started_at"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise ResumeError(f"{scope.since} was not written by an earlier run") from exc
    if saved != _identity(scope):
        raise ResumeError(f"{scope.since} is of another run: another bucket, prefix or --enqueue")
    return started_at


def _identity(scope: Scope) -> dict[str, str | None]:
    """Say which runs follow each other. Not the model: a new one is deployed between them."""
    return {"uri": scope.uri, "enqueue": scope.enqueue}


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
