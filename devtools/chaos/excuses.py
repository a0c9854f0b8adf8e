"""Which log lines and responses a fault explains. All others are unexpected."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from devtools.chaos.plan import FaultKind

#: A setting of the services, in seconds: liveness fails if an image is in flight for longer.
HANG_TIMEOUT_SECONDS = 20
# Share of deliveries that may time out without a process fault, because the machine may be slow.
# Network faults explain no time-out: a delivery must end by its deadline, whatever it waits for.
MAX_LATE = 0.01

_ERROR_SEVERITIES = ("ERROR", "CRITICAL")
_USUAL_STATUSES = (204, 429, 503)
# What gunicorn logs about a worker that ended: it was killed from outside, gunicorn killed it after
# the graceful time-out, or it exited by itself.
_ENDED = re.compile(r"Worker \(pid:\d+\) (was sent SIG[A-Z]+|exited with code)")
_KILLED_BY = (
    FaultKind.KILL_WORKER,
    FaultKind.KILL_UPLOADED,
    FaultKind.KILL_COMMITTED,
    FaultKind.TERM,
    FaultKind.SLOW_START,
)
# Faults that raise exceptions in the service: it logs errors and returns 500.
_RAISING = (FaultKind.MEMORY, FaultKind.MODEL_FAILS)
_LATER_SECONDS = 15.0  # how long after such a fault its errors may be logged
# Faults after which liveness may fail: the model is broken, a thread has hung since memory was
# short, or a new worker is slow.
_BREAKS_LIVENESS = (
    FaultKind.MODEL_HANGS,
    FaultKind.MODEL_FAILS,
    FaultKind.MEMORY,
    FaultKind.KILL_WORKER,
    FaultKind.KILL_UPLOADED,
    FaultKind.KILL_COMMITTED,
)
# The instance may be detected as hanging, and replaced, until this long after the fault.
_DETECTED_SECONDS = _LATER_SECONDS + HANG_TIMEOUT_SECONDS + 30.0
# Faults that break the connections of deliveries.
_BREAKING = (
    FaultKind.KILL,
    FaultKind.KILL_WORKER,
    FaultKind.KILL_UPLOADED,
    FaultKind.KILL_COMMITTED,
    FaultKind.TERM,
    FaultKind.SLOW_START,
    FaultKind.MEMORY,
)
# Faults after which a delivery may have no response.
_SILENCING = (*_BREAKING, FaultKind.STOP)
# A delivery is late after this share of its ack deadline. It is below 1 because clocks differ.
_DEADLINE_SHARE = 0.95


@dataclass(frozen=True)
class LogLine:
    """A line of a service's log."""

    service: str
    seconds: float  # since the epoch, like all times here
    severity: str
    message: str
    inferring: int = 0
    done: int = 0  # outcomes since the previous line
    superseded: int = 0
    is_poisoned: bool = False  # a decoder reports that it is about to fail on a poisonous file


@dataclass(frozen=True)
class Response:
    """The response to a delivery. `status` is None if there was none, or too late."""

    service: str
    began: float
    ended: float
    status: int | None


@dataclass(frozen=True)
class Excuse:
    """The time in which a fault affected a service."""

    service: str
    kind: FaultKind
    started: float
    over: float  # the cause ended: memory is free again, or a paused process continues
    ended: float  # the service is ready again


@dataclass(frozen=True)
class Replacement:
    """An instance that was replaced after its liveness failed."""

    service: str
    started: float  # it was killed
    ended: float  # its successor is ready


class Silence(StrEnum):
    """Why a delivery had no response."""

    PROCESS = "process faults"
    SLOW = "slowness"  # no fault, and the ack deadline had passed
    BROKEN = "nothing"  # no fault, and the ack deadline had not passed


@dataclass(frozen=True)
class Faults:
    """The faults and replacements that can explain log lines and responses."""

    excuses: Sequence[Excuse] = ()
    replacements: Sequence[Replacement] = ()
    ack_deadline_seconds: float = 10.0

    def explain_line(self, line: LogLine) -> bool:
        """Return whether a fault explains an error in the log."""
        return any(_explains(excuse, line) for excuse in self.excuses)

    def explain_response(self, response: Response) -> bool:
        """Return whether a fault explains an unusual response."""
        line = LogLine(response.service, response.ended, "ERROR", "")
        return self.explain_line(line)

    def explain_replacement(self, replacement: Replacement) -> bool:
        """Return whether a fault explains failed liveness."""
        return any(
            excuse.service == replacement.service
            and excuse.kind in _BREAKS_LIVENESS
            and excuse.started <= replacement.started <= _replacement_explained_until(excuse)
            for excuse in self.excuses
        )

    def explain_silence(self, response: Response) -> Silence:
        """Return why a delivery had no response."""
        is_late = response.ended - response.began >= _DEADLINE_SHARE * self.ack_deadline_seconds
        kinds = _SILENCING if is_late else _BREAKING
        struck = [excuse for excuse in self.excuses if excuse.kind in kinds]
        spans: list[Excuse | Replacement] = [*struck, *self.replacements]
        if any(_spans(span, response) for span in spans):
            return Silence.PROCESS
        return Silence.SLOW if is_late else Silence.BROKEN


def unexpected_lines(log: Iterable[LogLine], faults: Faults) -> list[str]:
    """Return sentences on errors that no fault explains, except those of `killed_services`."""
    return [
        f"{line.service} logged: {line.message}"
        for line in _unexplained(log, faults)
        if not _ENDED.match(line.message)
    ]


def killed_services(log: Iterable[LogLine], faults: Faults) -> list[str]:
    """Return sentences on processes that ended with no fault. An image must have killed them."""
    return [
        *(
            f"{line.service} logged: {line.message}"
            for line in _unexplained(log, faults)
            if _ENDED.match(line.message)
        ),
        *(
            f"{replacement.service} failed its liveness"
            for replacement in faults.replacements
            if not faults.explain_replacement(replacement)
        ),
    ]


def unexpected_responses(responses: Sequence[Response], faults: Faults) -> list[str]:
    """Return sentences on responses other than 204, 429 and 503 that no fault explains."""
    return [
        f"{response.service} returned {response.status}"
        for response in responses
        if response.status not in (*_USUAL_STATUSES, None) and not faults.explain_response(response)
    ]


def count_silences(responses: Iterable[Response], faults: Faults) -> Counter[Silence]:
    """Count deliveries without a response, by reason."""
    return Counter(faults.explain_silence(a) for a in responses if a.status is None)


def unexpected_silences(silences: Counter[Silence], deliveries: int) -> list[str]:
    """Return sentences on deliveries without a response that no fault explains."""
    late, broken = silences[Silence.SLOW], silences[Silence.BROKEN]
    others = deliveries - silences[Silence.PROCESS]
    sentences = []
    if broken:
        sentences.append(f"{broken} connections broke, and no fault explains it")
    if late > MAX_LATE * others:
        sentences.append(
            f"{late} of {others} deliveries had no response in time, with no process fault"
        )
    return sentences


def _unexplained(log: Iterable[LogLine], faults: Faults) -> list[LogLine]:
    return [
        line for line in log if line.severity in _ERROR_SEVERITIES and not faults.explain_line(line)
    ]


def _explains(excuse: Excuse, line: LogLine) -> bool:
    if excuse.service != line.service or line.seconds < excuse.started:
        return False
    if excuse.kind in _RAISING:
        return line.seconds <= excuse.over + _LATER_SECONDS
    is_end = excuse.kind in _KILLED_BY and _ENDED.match(line.message)
    return bool(is_end) and line.seconds <= excuse.ended + _LATER_SECONDS


def _replacement_explained_until(excuse: Excuse) -> float:
    """Return until when an instance may be replaced because of a fault."""
    return max(excuse.ended, excuse.over + _DETECTED_SECONDS)


def _spans(span: Excuse | Replacement, response: Response) -> bool:
    return (
        span.service == response.service
        and response.began <= span.ended
        and response.ended >= span.started
    )
