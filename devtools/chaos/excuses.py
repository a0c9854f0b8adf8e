"""What faults explain of what the services logged and answered; what they do not is unexpected."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from devtools.chaos.plan import FaultKind

#: A setting of the services: liveness fails when work lasts longer.
HANG_TIMEOUT_SECONDS = 30
# Deliveries without an answer in time, though no process was struck. The network is no excuse: what
# it keeps from being final in time is given back, but for what begins at the last moment.
MAX_LATE = 0.02

_ERROR_SEVERITIES = ("ERROR", "CRITICAL")
_USUAL_ANSWERS = (204, 429, 503)
# What gunicorn and the service say of a worker that was killed: by somebody else, or by gunicorn
# itself when the time after SIGTERM was up.
_KILLED = re.compile(r"Worker \(pid:\d+\) was sent SIG(KILL|ABRT|SEGV)")
_KILLED_BY = (FaultKind.KILL_WORKER, FaultKind.TERM, FaultKind.SLOW_START)
# What the service, gunicorn and the next worker say of one that ended itself.
_STUCK = re.compile(r"Work is stuck|Worker \(pid:\d+\) exited with code 1\b|The process died while")
_LATER_SECONDS = 15.0  # how long after its fault an error may be logged: work goes on meanwhile
_RESTART_SECONDS = 30.0  # until the next worker answers, at most
_READY = "The model is ready"
# What leaves deliveries without an answer, and what breaks their connections, too.
_BREAKING = (
    FaultKind.KILL,
    FaultKind.KILL_WORKER,
    FaultKind.TERM,
    FaultKind.SLOW_START,
    FaultKind.MEMORY,
)
_SILENCING = (*_BREAKING, FaultKind.STOP)
_RETRY_SECONDS = 6.0  # how long the services retry a call at most, by their settings
_CLOCKS = 0.95  # what counts as all of the time for an answer: two clocks tell it


@dataclass(frozen=True)
class LogLine:
    """A line of a service's log."""

    service: str
    seconds: float  # of the epoch, as all times here
    severity: str
    message: str
    inferring: int = 0


@dataclass(frozen=True)
class Answer:
    """What a service answered to a delivery; None: nothing, or too late."""

    service: str
    began: float
    ended: float
    status: int | None


@dataclass(frozen=True)
class Excuse:
    """A time in which a fault was at work on a service."""

    service: str
    kind: FaultKind
    started: float
    over: float  # memory was given back, a stopped process continued
    ended: float  # the service was ready again


@dataclass(frozen=True)
class Strike:
    """A time in which the network failed, for any service: a moment, or while it was away."""

    started: float
    ended: float


class Silence(StrEnum):
    """Why a delivery had no answer."""

    PROCESS = "process faults"
    NETWORK = "network faults"  # perhaps: some call was struck meanwhile, or shortly before
    SLOW = "slowness"  # nothing struck
    BROKEN = "nothing"  # nothing struck, and the time was not up either


@dataclass(frozen=True)
class Faults:
    """All that struck, as far as it explains something."""

    excuses: Sequence[Excuse] = ()
    strikes: Sequence[Strike] = ()
    answer_seconds: float = 10.0  # after which a delivery ends without an answer

    def explain_line(self, line: LogLine) -> bool:
        """Whether an error may be some fault's doing."""
        return any(_explains(excuse, line) for excuse in self.excuses)

    def explain_answer(self, answer: Answer) -> bool:
        """Whether an answer other than the usual may be: only of want of memory."""
        line = LogLine(answer.service, answer.ended, "ERROR", "")
        return self.explain_line(line)

    def explain_silence(self, answer: Answer) -> Silence:
        """Say why a delivery had no answer."""
        is_late = answer.ended - answer.began >= _CLOCKS * self.answer_seconds
        kinds = _SILENCING if is_late else _BREAKING
        if any(excuse.kind in kinds and _spans(excuse, answer) for excuse in self.excuses):
            return Silence.PROCESS
        if not is_late:
            return Silence.BROKEN
        # Somebody else's call, too: commits wait for each other.
        since = answer.began - _RETRY_SECONDS
        if any(s.started <= answer.ended and s.ended >= since for s in self.strikes):
            return Silence.NETWORK
        return Silence.SLOW

    def lengthened(self, log: Sequence[LogLine]) -> "Faults":
        """Count a worker that ended itself for want of memory to that fault."""
        return replace(self, excuses=[_lengthened(excuse, log) for excuse in self.excuses])


def unexpected_lines(log: Iterable[LogLine], faults: Faults) -> list[str]:
    """Errors that no fault explains, as sentences."""
    return [
        f"{line.service} logged: {line.message}"
        for line in log
        if line.severity in _ERROR_SEVERITIES and not faults.explain_line(line)
    ]


def unexpected_answers(answers: Sequence[Answer], faults: Faults) -> list[str]:
    """Answers other than 204, 429, 503 or none that no fault explains, as sentences."""
    return [
        f"{answer.service} answered {answer.status}"
        for answer in answers
        if answer.status not in (*_USUAL_ANSWERS, None) and not faults.explain_answer(answer)
    ]


def count_silences(answers: Iterable[Answer], faults: Faults) -> Counter[Silence]:
    """How many deliveries had no answer, by the reason."""
    return Counter(faults.explain_silence(a) for a in answers if a.status is None)


def unexpected_silences(silences: Counter[Silence], deliveries: int) -> list[str]:
    """Deliveries without an answer that no fault explains, as sentences."""
    late, broken = silences[Silence.SLOW] + silences[Silence.NETWORK], silences[Silence.BROKEN]
    others = deliveries - silences[Silence.PROCESS]
    sentences = []
    if broken:
        sentences.append(f"{broken} connections broke, and no fault explains it")
    if late > MAX_LATE * others:
        sentences.append(
            f"{late} of {others} deliveries had no answer in time, with no process hit"
        )
    return sentences


def _explains(excuse: Excuse, line: LogLine) -> bool:
    if excuse.service != line.service or line.seconds < excuse.started:
        return False
    if excuse.kind is FaultKind.MEMORY:
        # The network may raise, which is an error and a 500; later, only what had hung may end.
        later = HANG_TIMEOUT_SECONDS + _RESTART_SECONDS if _STUCK.match(line.message) else 0
        return line.seconds <= excuse.over + _LATER_SECONDS + later
    is_end = excuse.kind in _KILLED_BY and _KILLED.match(line.message)
    return bool(is_end) and line.seconds <= excuse.ended + _LATER_SECONDS


def _spans(excuse: Excuse, answer: Answer) -> bool:
    return (
        excuse.service == answer.service
        and answer.began <= excuse.ended
        and answer.ended >= excuse.started
    )


def _lengthened(excuse: Excuse, log: Sequence[LogLine]) -> Excuse:
    if excuse.kind is not FaultKind.MEMORY:
        return excuse
    ends = [line for line in log if _STUCK.match(line.message) and _explains(excuse, line)]
    return replace(excuse, ended=max([excuse.ended, *(_ready_after(end, log) for end in ends)]))


def _ready_after(end: LogLine, log: Iterable[LogLine]) -> float:
    """When the worker after one that ended was ready."""
    ready = [
        line.seconds
        for line in log
        if line.service == end.service and line.message == _READY and line.seconds >= end.seconds
    ]
    return min([*ready, end.seconds + _RESTART_SECONDS])
