"""Compares a bucket with its documents, and publishes jobs for the difference.

The bucket is read page by page, so memory use does not depend on its size. It is safe to run this
twice, or beside live traffic. If an image gets its document meanwhile, the job for it does nothing.

    page ─▶ young enough? ─▶ documents ─▶ tally ─▶ jobs published ─▶ checkpoint
                                                   killed here: these jobs are published again

All objects are listed, because Cloud Storage cannot list by age. But the documents of objects older
than `since` are not read. So results that were deleted are not created again. If results expire,
objects older than the results' lifetime are not compared either: a result is younger than its
object, so only the results of these objects can have expired.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from service.document import STATUS_FAILED, STATUS_PARKED
from service.domain import ImageRef, Replace, StoredDocument, StoredDocuments, is_current
from service.errors import YoloBatchError
from service.object_metadata import is_marked

LOOKUP_SIZE = 250  # documents read in one call
_CHECKPOINT_PAGES = 10  # the most pages that a killed run reads again
# A run after a successful run looks back at least this far, because an event can be delivered a day
# late.
MIN_LOOKBACK = timedelta(days=2)
# A result counts as expired this much earlier. It covers the time from the listing of an object to
# the read of its document, and differences between the clocks of Google's services.
_EXPIRY_MARGIN = timedelta(hours=1)
_AGE = re.compile(r"([0-9]{1,6})([dh])")


class ResumeError(YoloBatchError):
    """The saved state belongs to a different run, or is malformed."""


class Objects(Protocol):
    """Lists a bucket. `service.gcp.listing.ObjectLister` implements it."""

    def pages(self, bucket: str, prefix: str, *, after: str = "") -> Iterator[Sequence[ImageRef]]:
        """List the live objects with a prefix whose names sort after `after`, by name."""


class Store(Protocol):
    """Reads documents. `service.gcp.result_reader.ResultReader` implements it."""

    def stored_documents(self, refs: Sequence[ImageRef]) -> StoredDocuments:
        """Return the documents that exist for these images."""


class State(StrEnum):
    """The state of an object. Every object has exactly one."""

    DONE = "done"
    STALE = "stale"  # done, but not by the deployed model, or in another schema
    FAILED = "failed"
    PARKED = "parked"  # not processed, because a day's limit was reached
    MISSING = "missing"  # no document
    DISABLED = "disabled"  # its source is disabled, so it needs no document
    IGNORED = "ignored"  # a folder marker or a part of a composite upload
    OLDER = "older"  # older than `since` or than the results' lifetime, so not compared


class Enqueue(StrEnum):
    """Which objects get a job."""

    MISSING = "missing"
    FAILED = "failed"
    STALE = "stale"
    ALL = "all"  # these three, and parked images

    @property
    def states(self) -> frozenset[State]:
        """The states whose objects get a job."""
        if self is Enqueue.ALL:
            return frozenset({State.MISSING, State.FAILED, State.STALE})
        return frozenset({State(self)})

    @property
    def needs_model(self) -> bool:
        """Whether the deployed model must be known, because documents of others are stale."""
        return State.STALE in self.states


@dataclass(frozen=True)
class Scope:
    """Which objects are compared with which model, and which of them get a job."""

    bucket: str
    prefix: str = ""
    model: str | None = None  # sha256 of the deployed model. None: nothing counts as stale
    enqueue: Enqueue | None = None
    parked: bool = False  # whether parked images get a job too (service.operate.parked)
    since: str | None = None  # what the user gave. None: every object is compared

    @property
    def uri(self) -> str:
        """`gs://bucket/prefix`."""
        return f"gs://{self.bucket}/{self.prefix}"

    @property
    def is_compared(self) -> bool:
        """Whether objects are compared: not if only parked images get a job."""
        return bool(self.enqueue or not self.parked)

    @property
    def enqueued(self) -> str | None:
        """What gets a job, for a report, for example `missing,parked`. None: nothing."""
        parked = "parked" if self.parked and self.enqueue is not Enqueue.ALL else None
        return ",".join(filter(None, (self.enqueue, parked))) or None


@dataclass
class Tally:
    """The counts of a run, up to the object named `after`."""

    after: str = ""
    done: int = 0  # including stale objects
    stale: int = 0
    failed: int = 0
    parked: int = 0
    missing: int = 0
    disabled: int = 0
    ignored: int = 0
    older: int = 0
    selected: int = 0  # objects that get a job

    @property
    def objects(self) -> int:
        """How many objects were counted."""
        compared = self.done + self.failed + self.parked + self.missing
        return compared + self.disabled + self.ignored + self.older

    def add(self, state: State) -> None:
        """Count one object."""
        if state is State.STALE:
            self.done += 1
        setattr(self, state, getattr(self, state) + 1)


# Publishes a job for each URI, and returns when Pub/Sub has confirmed all.
Publish = Callable[[Sequence[str], Replace | None], None]


def reconcile(
    scope: Scope,
    objects: Objects,
    store: Store,
    *,
    since: datetime | None = None,
    results_ttl: timedelta | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    tally: Tally | None = None,
    is_enabled: Callable[[ImageRef], bool] = lambda ref: True,
    publish: Publish | None = None,
    progressed: Callable[[Tally], None] = lambda tally: None,
    checkpoint: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Compare a bucket with its documents.

    Args:
        scope: what to compare, and which objects get a job.
        objects: the bucket.
        store: the documents.
        since: objects that were created earlier are counted as older, and not compared.
        results_ttl: when results expire after their creation. Objects that are as old are counted
            as older, and not compared. None: results do not expire.
        now: the clock, for `results_ttl`.
        tally: the last checkpoint of the run to continue. None: a new run.
        is_enabled: returns whether the image's source is enabled. Other images are not compared.
        publish: publishes jobs. None: jobs are only counted.
        progressed: called after each page.
        checkpoint: called when everything up to `Tally.after` is counted and published.

    Returns:
        The counts, including those of the continued run.

    Raises:
        YoloBatchError: a service did not respond. Continue from the last checkpoint.
    """
    tally = tally or Tally()
    enqueued = scope.enqueue.states if scope.enqueue else frozenset()
    pages = objects.pages(scope.bucket, scope.prefix, after=tally.after)
    for number, page in enumerate(pages, 1):
        oldest = since
        if results_ttl is not None:
            unexpired = now() - results_ttl + _EXPIRY_MARGIN
            oldest = max(since or unexpired, unexpired)
        states, read_at = _states(page, store, scope.model, oldest, is_enabled)
        for _, state in states:
            tally.add(state)
        uris = [f"{ref.uri}#{ref.generation}" for ref, state in states if state in enqueued]
        tally.selected += len(uris)
        tally.after = page[-1].name
        if publish and uris and read_at:
            publish(uris, _permission(scope, read_at))
        if uris or number % _CHECKPOINT_PAGES == 0:
            checkpoint(tally)
        progressed(tally)
    checkpoint(tally)
    return tally


def _permission(scope: Scope, read_at: datetime) -> Replace | None:
    """Return the permission to replace the documents that were read. None: none is needed."""
    if scope.enqueue is None or scope.enqueue is Enqueue.MISSING:
        return None
    return Replace(read_at, scope.model if scope.enqueue.needs_model else None)


def _states(
    page: Sequence[ImageRef],
    store: Store,
    model: str | None,
    since: datetime | None,
    is_enabled: Callable[[ImageRef], bool],
) -> tuple[list[tuple[ImageRef, State]], datetime | None]:
    """Return each object's state, and when documents were first read, by Firestore's clock.

    The time is None if no document was read.
    """
    states: list[tuple[ImageRef, State]] = []
    images = []
    for ref in page:
        created_at = ref.metadata.created_at
        if ref.is_ignorable or is_marked(ref.metadata.custom):
            states.append((ref, State.IGNORED))
        elif since and created_at and created_at < since:
            states.append((ref, State.OLDER))
        elif not is_enabled(ref):
            states.append((ref, State.DISABLED))
        else:
            images.append(ref)
    read_at = None
    for start in range(0, len(images), LOOKUP_SIZE):
        group = images[start : start + LOOKUP_SIZE]
        documents = store.stored_documents(group)
        read_at = min(read_at or documents.read_at, documents.read_at)
        states += [(ref, state_of(documents.by_id.get(ref.document_id), model)) for ref in group]
    return states, read_at


def state_of(document: StoredDocument | None, model: str | None = None) -> State:
    """Return the state of an object whose document was read.

    Args:
        document: the document. None: there is none.
        model: sha256 of the deployed model. None: nothing counts as stale.
    """
    if document is None:
        return State.MISSING
    if document.status == STATUS_FAILED:
        return State.FAILED
    if document.status == STATUS_PARKED:
        return State.PARKED
    is_stale = model and not is_current(document.model, document.schema, model)
    return State.STALE if is_stale else State.DONE


def parse_since(text: str) -> timedelta | datetime:
    """Parse an age (`2d`, `12h`) or an RFC 3339 time with a time zone.

    Raises:
        ValueError: it is neither.
    """
    if age := _AGE.fullmatch(text):
        number, unit = age.groups()
        return timedelta(days=int(number)) if unit == "d" else timedelta(hours=int(number))
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time needs a time zone")
    return time.astimezone(UTC)


def since_last(last: datetime | None, started_at: datetime) -> datetime:
    """Return how far a run looks back: to the last successful run's start, at least two days.

    Args:
        last: when the last successful run started. None: there was none.
        started_at: when this run started.
    """
    return min(last or started_at, started_at - MIN_LOOKBACK)


def save(path: Path, scope: Scope, started_at: datetime, tally: Tally) -> None:
    """Write a run's checkpoint to a file, atomically."""
    new_file = path.with_name(path.name + ".new")
    state = {"started_at": started_at.isoformat(), "tally": asdict(tally)}
    new_file.write_text(json.dumps({"scope": asdict(scope)} | state) + "\n")
    new_file.replace(path)


def load(path: Path, scope: Scope, started_at: datetime) -> tuple[datetime, Tally]:
    """Read the checkpoint of a run with the same scope: when the run started, and its tally.

    If there is no file, return `started_at` and an empty tally.

    Raises:
        ResumeError: the file belongs to a run with another scope, or is malformed.
    """
    if not path.exists():
        return started_at, Tally()
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        tally = Tally(**saved["tally"])
        kinds = {spec.name: type(spec.default) for spec in fields(Tally)}
        if not all(type(getattr(tally, name)) is kind for name, kind in kinds.items()):
            raise TypeError("a count has a wrong type")
        started_at = _utc(saved["started_at"])
        is_same = saved["scope"] == asdict(scope)
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise ResumeError(f"{path} was not written by --resume: name another file") from exc
    if not is_same:
        raise ResumeError(
            f"{path} is the state of a run with another bucket, prefix, model, --enqueue or "
            "--since: repeat that command, or name another file"
        )
    return started_at, tally


def last_run(scope: Scope, started_at: datetime) -> bytes:
    """Return the state of a successful run, as JSON, for `last_started_at`."""
    return json.dumps(_identity(scope) | {"started_at": started_at.isoformat()}).encode()


def last_started_at(scope: Scope, state: bytes | None) -> datetime | None:
    """Return when the last successful run started. None: there was none.

    Args:
        scope: the scope of this run.
        state: what `last_run` returned for the last successful run.

    Raises:
        ResumeError: the state belongs to another bucket, prefix or `enqueue`, or is malformed.
    """
    if state is None:
        return None
    try:
        saved = json.loads(state)
        started_at = _utc(saved.pop("started_at"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise ResumeError(
            f"{scope.since} was not written by `reconcile --since`: name another object"
        ) from exc
    if saved != _identity(scope):
        raise ResumeError(
            f"{scope.since} is the state of runs with another bucket, prefix or --enqueue: name "
            "another object with --since"
        )
    return started_at


def _identity(scope: Scope) -> dict[str, str | None]:
    """Return what consecutive runs have in common. The model may change between them."""
    return {"uri": scope.uri, "enqueue": scope.enqueue}


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
