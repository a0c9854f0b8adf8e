"""The plan of a chaos run: uploads, deliveries and faults, all drawn from its seed.

The same seed gives the same steps, but not the same timing: a fault strikes after a number of
uploads.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random
from typing import TypeVar

from devtools.chaos.poison import Poison

SERVICES = (3, 10)  # minimum and maximum number of services

_PAIR = 2  # an upload and its replacement
_BAD_SHARE = 0.15  # share of uploads whose file cannot be decoded
_FATE_SHARE = 0.08  # share of pairs whose object is replaced or deleted
_DELIVERED_OTHERWISE_SHARE = 0.25  # share of uploads that are delivered twice, late or never
_UPLOADS_PER_NETWORK_FAULT = 8
_UPLOADS_PER_PROCESS_FAULT = 25
_DECODER_FAULT_WEIGHT = 3  # more frequent than other faults: a service must survive them
_FAULTY_PART = 0.9  # faults strike in this share of the run. The services recover in the rest.
_MAX_SCENES = 240
_MAX_LATE = 60  # uploads
_UPLOADS_PER_JOB = 40
_DELIVERED_TOO = 8  # images of a job that also have an event
# Object names that a client or an event could get wrong.
_NAMES = ("{0:05d}.jpg", "{0:05d} b.jpg", "{0:05d}#1.jpg", "ü/{0:05d}.jpg", "{0:05d}%2F?.jpg")


class Kind(StrEnum):
    """The kind of file that is uploaded."""

    GOOD = "good"
    EMPTY = "empty"
    TEXT = "text"
    TRUNCATED = "truncated"
    TOO_MANY_PIXELS = "too many pixels"
    TOO_MANY_BYTES = "too many bytes"
    CRASHES = Poison.CRASHES.value
    EXITS = Poison.EXITS.value
    HANGS = Poison.HANGS.value
    SPINS = Poison.SPINS.value
    BLOATS = Poison.BLOATS.value

    @property
    def poison(self) -> Poison | None:
        """How the file breaks its decoder. None: it does not."""
        return Poison(self.value) if self.value in set(Poison) else None


class Fate(StrEnum):
    """What happens to the object."""

    KEPT = "kept"
    REPLACED = "replaced before its event"
    DELETED = "deleted before its event"
    REPLACED_AT_ONCE = "replaced beside its event"
    DELETED_AT_ONCE = "deleted beside its event"


class FaultKind(StrEnum):
    """What goes wrong."""

    STORAGE_429 = "storage 429"
    STORAGE_500 = "storage 500"
    STORAGE_503 = "storage 503"
    STORAGE_RESET = "storage reset"  # connection reset in the middle of the body
    STORAGE_CUT = "storage body cut"  # the connection ends early
    STORAGE_SHORT = "storage body short"  # fewer bytes, with a Content-Length that fits them
    STORAGE_FLIPPED = "storage bytes wrong"
    STORAGE_RESPONSE_LOST = "storage response lost"  # after an object was created
    FIRESTORE_UNAVAILABLE = "firestore unavailable"
    FIRESTORE_DEADLINE = "firestore deadline"
    FIRESTORE_EXHAUSTED = "firestore exhausted"
    FIRESTORE_RESPONSE_LOST = "firestore response lost"  # after the commit was made
    FIRESTORE_RESTART = "firestore restart"  # connections are refused for a while
    PUBSUB_UNAVAILABLE = "pubsub unavailable"
    PUBSUB_EXHAUSTED = "pubsub exhausted"
    PUBSUB_RESPONSE_LOST = "pubsub response lost"  # after the message was published
    KILL = "kill"
    KILL_WORKER = "kill worker"  # like the OOM killer. gunicorn starts a new worker.
    KILL_UPLOADED = "kill after upload"  # the worker, with derived images and before the commit
    KILL_COMMITTED = "kill after commit"  # the worker, before the result is published
    TERM = "term"
    STOP = "stop"  # paused for longer than the ack deadline, then continued
    SLOW_START = "slow start"
    MEMORY = "memory short"
    DISK = "disk full"  # the log is all that the service writes
    DECODERS = "decoders killed"  # all decoder processes of a service
    DECODER_ROOT = "decoder root killed"  # the decoders' parent process. They end with it.
    MODEL_HANGS = "model hangs"  # until failed liveness replaces the process
    MODEL_FAILS = "model fails"  # on every image, until failed liveness replaces the process


STORAGE_FAULTS = tuple(kind for kind in FaultKind if kind.startswith("storage"))
FIRESTORE_FAULTS = tuple(kind for kind in FaultKind if kind.startswith("firestore"))
PUBSUB_FAULTS = tuple(kind for kind in FaultKind if kind.startswith("pubsub"))
_NETWORK_FAULTS = STORAGE_FAULTS + FIRESTORE_FAULTS + PUBSUB_FAULTS
PROCESS_FAULTS = tuple(kind for kind in FaultKind if kind not in _NETWORK_FAULTS)
DECODER_FAULTS = (FaultKind.DECODERS, FaultKind.DECODER_ROOT)
_CALLS = (1, 2, 4, 12, 40)  # how many calls one network fault affects


@dataclass(frozen=True)
class Upload:
    """One generation of one object."""

    index: int
    name: str
    kind: Kind
    scene: int  # number of the drawn image, before any corruption
    fate: Fate = Fate.KEPT
    #: One message for each number, published after this many further uploads. If it is empty, the
    #: event is lost, and a job names the image.
    deliveries: tuple[int, ...] = (0,)
    #: Number of the upload whose object this upload overwrites.
    replaces: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether its event is held back until the object is replaced or deleted."""
        return self.fate in (Fate.REPLACED, Fate.DELETED)


@dataclass(frozen=True)
class Job:
    """Images that are submitted after a number of uploads, one message for each image."""

    after: int
    uploads: tuple[int, ...]
    copies: int


@dataclass(frozen=True)
class Fault:
    """A fault that strikes after a number of uploads."""

    after: int
    kind: FaultKind
    calls: int = 0  # how many calls a network fault affects
    service: int = 0  # number of the service that a process fault strikes


@dataclass(frozen=True)
class Plan:
    """The whole plan of a run."""

    seed: int
    services: int  # number of service processes
    uploads: tuple[Upload, ...]
    faults: tuple[Fault, ...]
    jobs: tuple[Job, ...] = ()

    @property
    def messages(self) -> int:
        """Number of published messages, copies included."""
        events = sum(len(upload.deliveries) for upload in self.uploads)
        return events + sum(len(job.uploads) * job.copies for job in self.jobs)

    @property
    def scenes(self) -> int:
        """Number of different images to draw."""
        return 1 + max(upload.scene for upload in self.uploads)

    def jobs_after(self, uploads: int) -> list[Job]:
        """Return the jobs to publish after this many uploads."""
        return [job for job in self.jobs if job.after == uploads]

    def faults_after(self, uploads: int) -> list[Fault]:
        """Return the faults that strike after this many uploads."""
        return [fault for fault in self.faults if fault.after == uploads]


def make_plan(
    uploads: int, seed: int, *, without: Collection[FaultKind] = (), services: int | None = None
) -> Plan:
    """Draw the plan of a run.

    Args:
        uploads: number of uploads, at least 40, so that every kind of file and fault occurs.
        seed: the same seed gives the same plan.
        without: faults to leave out.
        services: number of service processes. None: draw it.
    """
    rng = Random(seed)
    drawn = rng.randint(*SERVICES)
    services = services or drawn
    planned = _deliver(rng, _assign_fates(rng, _corrupt(rng, _good(rng, uploads))))
    faults = [
        *_network_faults(rng, uploads, [k for k in _NETWORK_FAULTS if k not in without]),
        *_process_faults(rng, uploads, services, [k for k in PROCESS_FAULTS if k not in without]),
    ]
    faults.sort(key=lambda fault: fault.after)
    return Plan(seed, services, tuple(planned), tuple(faults), tuple(_jobs(rng, planned)))


_T = TypeVar("_T")


def _good(rng: Random, count: int) -> list[Upload]:
    scenes = min(_MAX_SCENES, count)
    return [
        Upload(index, "chaos/" + _NAMES[index % len(_NAMES)].format(index), Kind.GOOD, scene)
        for index, scene in enumerate(_dealt(rng, range(scenes), count))
    ]


def _corrupt(rng: Random, uploads: list[Upload]) -> list[Upload]:
    bad = [kind for kind in Kind if kind is not Kind.GOOD]
    number = _at_least_once(bad, len(uploads) * _BAD_SHARE)
    chosen = rng.sample(range(len(uploads)), number)
    for index, kind in zip(chosen, _dealt(rng, bad, number), strict=True):
        uploads[index] = replace(uploads[index], kind=kind)
    return uploads


def _assign_fates(rng: Random, uploads: list[Upload]) -> list[Upload]:
    """Choose uploads to replace or delete. A replacement follows directly."""
    fates = [fate for fate in Fate if fate is not Fate.KEPT]
    pairs = len(uploads) // _PAIR
    number = _at_least_once(fates, pairs * _FATE_SHARE)
    chosen = rng.sample(range(pairs), number)
    for pair, fate in zip(chosen, _dealt(rng, fates, number), strict=True):
        first = pair * _PAIR
        uploads[first] = replace(uploads[first], fate=fate)
        if fate in (Fate.REPLACED, Fate.REPLACED_AT_ONCE):
            uploads[first : first + _PAIR] = _replaced(*uploads[first : first + _PAIR])
    return uploads


def _replaced(first: Upload, second: Upload) -> list[Upload]:
    """Make the second upload overwrite the first one, with other bytes."""
    if first.kind is second.kind is Kind.EMPTY:
        first = replace(first, kind=Kind.GOOD)
    return [first, replace(second, name=first.name, replaces=first.index)]


def _deliver(rng: Random, uploads: list[Upload]) -> list[Upload]:
    """Choose uploads to deliver twice, ten times, late, out of order, or never."""
    number = max(10, int(len(uploads) * _DELIVERED_OTHERWISE_SHARE))
    for position, index in enumerate(rng.sample(range(len(uploads)), number)):
        late, soon = rng.randint(20, _MAX_LATE), rng.randint(1, 9)
        ways: Sequence[tuple[int, ...]] = ((0, 0), (0,) * 10, (late,), (0, late), (soon,), ())
        deliveries = ways[position % len(ways)]
        if deliveries or uploads[index].fate is Fate.KEPT:
            uploads[index] = replace(uploads[index], deliveries=deliveries)
    return uploads


def _jobs(rng: Random, uploads: Sequence[Upload]) -> Iterable[Job]:
    """Make jobs for uploads without an event, and for some uploads with an event.

    Only for objects that are kept: a job names no generation, so it means the live generation.
    """
    for start in range(0, len(uploads), _UPLOADS_PER_JOB):
        stretch = uploads[start : start + _UPLOADS_PER_JOB]
        kept = [upload for upload in stretch if upload.fate is Fate.KEPT]
        lost = [upload.index for upload in kept if not upload.deliveries]
        others = [upload.index for upload in kept if upload.deliveries]
        named = lost + rng.sample(others, min(len(others), _DELIVERED_TOO))
        yield Job(stretch[-1].index, tuple(sorted(named)), copies=rng.choice((1, 2)))


def _network_faults(rng: Random, uploads: int, kinds: Sequence[FaultKind]) -> Iterable[Fault]:
    number = _at_least_once(kinds, uploads / _UPLOADS_PER_NETWORK_FAULT)
    dealt = zip(_spread(rng, uploads, number), _dealt(rng, kinds, number), strict=True)
    return [Fault(after, kind, calls=rng.choice(_CALLS)) for after, kind in dealt]


def _process_faults(
    rng: Random, uploads: int, services: int, kinds: Sequence[FaultKind]
) -> Iterable[Fault]:
    more = [kind for kind in kinds if kind in DECODER_FAULTS] * (_DECODER_FAULT_WEIGHT - 1)
    deck = [*kinds, *more]
    number = _at_least_once(deck, uploads / _UPLOADS_PER_PROCESS_FAULT)
    dealt = zip(
        _spread(rng, uploads, number),
        _dealt(rng, deck, number),
        _dealt(rng, range(services), number),
        strict=True,
    )
    return [Fault(after, kind, service=service) for after, kind, service in dealt]


def _at_least_once(kinds: Sequence[object], number: float) -> int:
    """Return the number, or more if it is too small for every kind to occur."""
    return max(len(kinds), int(number)) if kinds else 0


def _dealt(rng: Random, kinds: Iterable[_T], number: int) -> list[_T]:
    """Deal kinds like cards: every kind occurs once before any occurs twice."""
    deck, dealt = list(kinds), list[_T]()
    while len(dealt) < number:
        rng.shuffle(deck)
        dealt += deck
    return dealt[:number]


def _spread(rng: Random, uploads: int, number: int) -> list[int]:
    """Return upload numbers, spread evenly over the run except its end."""
    stretch = uploads * _FAULTY_PART / max(number, 1)
    return [int(position * stretch + rng.random() * stretch) for position in range(number)]
