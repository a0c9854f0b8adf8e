"""What faults explain of what the services logged and answered; what they do not is unexpected."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from devtools.chaos.plan import FaultKind

#: A setting of the services: liveness fails when work lasts longer.
HANG_TIMEOUT_SECONDS = 20
# Deliveries without an answer in time, though no process was struck: the machine may be slow. The
# network is no excuse: a delivery ends with its deadline, whatever it waits for.
MAX_LATE = 0.01

_ERROR_SEVERITIES = ("ERROR", "CRITICAL")
_USUAL_ANSWERS = (204, 429, 503)
# What gunicorn logs of a worker that has ended: killed by somebody else, by itself when the time
# after SIGTERM was up, or ended by its own doing.
_ENDED = re.compile(r"Worker \(pid:\d+\) (was sent SIG[A-Z]+|exited with code)")
_KILLED_BY = (FaultKind.KILL_WORKER, FaultKind.TERM, FaultKind.SLOW_START)
# Faults that raise in the service itself, and so log errors and answer 500.
_RAISING = (FaultKind.MEMORY, FaultKind.MODEL_FAILS)
_LATER_SECONDS = 15.0  # how long after its fault an error may be logged: work goes on meanwhile
# Faults after which liveness may fail: the model is broken, memory was short and left something
# that hangs, a new worker is slow to answer.
_DEADLY = (
    FaultKind.MODEL_HANGS,
    FaultKind.MODEL_FAILS,
    FaultKind.MEMORY,
    FaultKind.KILL_WORKER,
)
# How long after its fault an instance may be found to hang, and be killed.
_FOUND_SECONDS = _LATER_SECONDS + HANG_TIMEOUT_SECONDS + 30.0
# What leaves deliveries without an answer, and what breaks their connections, too.
_BREAKING = (
    FaultKind.KILL,
    FaultKind.KILL_WORKER,
    FaultKind.TERM,
    FaultKind.SLOW_START,
    FaultKind.MEMORY,
)
_SILENCING = (*_BREAKING, FaultKind.STOP)
_CLOCKS = 0.95  # what counts as all of the time for an answer: two clocks tell it


@dataclass(frozen=True)
class LogLine:
    """A line of a service's log."""

    service: str
    seconds: float  # of the epoch, as all times here
    severity: str
    message: str
    inferring: int = 0
    done: int = 0  # outcomes since the line before
    superseded: int = 0
    is_poisoned: bool = False  # by a decoder that is about to misbehave


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
class Replacement:
    """An instance whose liveness failed: when it was killed, and when the next one was ready."""

    service: str
    started: float
    ended: float


class Silence(StrEnum):
    """Why a delivery had no answer."""

    PROCESS = "process faults"
    SLOW = "slowness"  # nothing struck
    BROKEN = "nothing"  # nothing struck, and the time was not up either


@dataclass(frozen=True)
class Faults:
    """All that struck, as far as it explains something."""

    excuses: Sequence[Excuse] = ()
    replacements: Sequence[Replacement] = ()
    answer_seconds: float = 10.0  # after which a delivery ends without an answer

    def explain_line(self, line: LogLine) -> bool:
        """Whether an error may be some fault's doing."""
        return any(_explains(excuse, line) for excuse in self.excuses)

    def explain_answer(self, answer: Answer) -> bool:
        """Whether an answer other than the usual may be some fault's doing."""
        line = LogLine(answer.service, answer.ended, "ERROR", "")
        return self.explain_line(line)

    def explain_replacement(self, replacement: Replacement) -> bool:
        """Whether an instance may have failed its liveness."""
        return any(
            excuse.service == replacement.service
            and excuse.kind in _DEADLY
            and excuse.started <= replacement.started <= _found_until(excuse)
            for excuse in self.excuses
        )

    def explain_silence(self, answer: Answer) -> Silence:
        """Say why a delivery had no answer."""
        is_late = answer.ended - answer.began >= _CLOCKS * self.answer_seconds
        kinds = _SILENCING if is_late else _BREAKING
        struck = [excuse for excuse in self.excuses if excuse.kind in kinds]
        spans: list[Excuse | Replacement] = [*struck, *self.replacements]
        if any(_spans(span, answer) for span in spans):
            return Silence.PROCESS
        return Silence.SLOW if is_late else Silence.BROKEN


def unexpected_lines(log: Iterable[LogLine], faults: Faults) -> list[str]:
    """Errors that no fault explains, but for ended processes, as sentences."""
    return [
        f"{line.service} logged: {line.message}"
        for line in _unexplained(log, faults)
        if not _ENDED.match(line.message)
    ]


def killed_services(log: Iterable[LogLine], faults: Faults) -> list[str]:
    """Service processes that ended or had to be replaced, and no fault explains it: by an image."""
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
    late, broken = silences[Silence.SLOW], silences[Silence.BROKEN]
    others = deliveries - silences[Silence.PROCESS]
    sentences = []
    if broken:
        sentences.append(f"{broken} connections broke, and no fault explains it")
    if late > MAX_LATE * others:
        sentences.append(
            f"{late} of {others} deliveries had no answer in time, with no process hit"
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


def _found_until(excuse: Excuse) -> float:
    """Until when an instance that a fault has broken may be found and killed."""
    return max(excuse.ended, excuse.over + _FOUND_SECONDS)


def _spans(span: Excuse | Replacement, answer: Answer) -> bool:
    return (
        span.service == answer.service
        and answer.began <= span.ended
        and answer.ended >= span.started
    )
