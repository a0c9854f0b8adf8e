"""What became of each upload: a pure function of what was expected, found, logged and answered."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from tabulate import tabulate

from service.chaos.plan import FaultKind

MAX_WASTE = 0.20
_PIXELS = 0.5  # boxes of the same picture in another batch
_CONFIDENCE = 0.01
_SHOWN = 5
_ERROR_SEVERITIES = ("ERROR", "CRITICAL")
_USUAL_ANSWERS = (204, 429, 503)
# What gunicorn and the service say of a worker that was killed: by somebody else, or by gunicorn
# itself when the time after SIGTERM was up.
_KILLED = re.compile(
    r"Worker \(pid:\d+\) was sent SIG(KILL|ABRT|SEGV)|The process died while the network ran"
)
_KILLED_BY = (FaultKind.KILL_WORKER, FaultKind.TERM, FaultKind.SLOW_START, FaultKind.MEMORY)
# While memory is short the network may well raise, which is an error and a 500.
_RAISING = FaultKind.MEMORY
_LATER_SECONDS = 15.0  # how long after its fault an error may still be logged


class Wanted(StrEnum):
    """How an upload should end."""

    DONE = "done"
    FAILED = "failed"
    NOTHING = "nothing"  # it was gone before its event
    DONE_OR_NOTHING = "done or nothing"  # it went while its event was delivered
    FAILED_OR_NOTHING = "failed or nothing"


@dataclass(frozen=True)
class Expectation:
    """What an upload's document should say."""

    uri: str
    generation: int
    size: int
    md5: str
    wanted: Wanted
    code: str | None = None
    detections: Sequence[Mapping[str, Any]] = ()
    image: Mapping[str, Any] | None = None

    @property
    def shown(self) -> str:
        """The generation, for a person."""
        return f"{self.uri}#{self.generation}"


@dataclass(frozen=True)
class Found:
    """A document, and when Firestore wrote it."""

    fields: Mapping[str, Any]
    created: datetime
    updated: datetime


@dataclass(frozen=True)
class LogLine:
    """A line of a service's log."""

    service: str
    seconds: float  # of the epoch
    severity: str
    message: str
    inferring: int = 0


@dataclass(frozen=True)
class Answer:
    """What a service answered to a delivery; None: nothing, or too late."""

    service: str
    seconds: float
    status: int | None


@dataclass(frozen=True)
class Excuse:
    """A time in which a fault was at work on a service."""

    service: str
    kind: FaultKind
    started: float
    ended: float

    def covers(self, service: str, seconds: float) -> bool:
        """Whether something that happened may be the fault's doing."""
        return service == self.service and self.started <= seconds <= self.ended + _LATER_SECONDS


@dataclass
class Report:
    """What is wrong, each as a sentence; and figures."""

    uploads: int = 0
    done: int = 0
    failed: int = 0
    superseded: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    crossed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    inferences: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    is_waste_limited: bool = False

    @property
    def waste(self) -> float:
        """Inferences over the minimum, as a part of it."""
        return self.inferences / self.done - 1 if self.done else 0.0

    @property
    def problems(self) -> dict[str, list[str]]:
        """Everything that must be empty."""
        limit = self.is_waste_limited and self.waste > MAX_WASTE
        return {
            "lost": self.lost,
            "duplicated": self.duplicated,
            "crossed": self.crossed,
            "wrong": self.wrong,
            "stuck": self.stuck,
            "unexpected": self.unexpected,
            "wasted": [f"{self.waste:.0%} more inferences than pictures"] if limit else [],
        }

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.problems.values())

    def table(self) -> str:
        """The figures, and the first of each problem."""
        answers = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.answers.items()))
        rows: list[tuple[str, object]] = [
            ("uploads", self.uploads),
            ("done, failed, superseded", f"{self.done}, {self.failed}, {self.superseded}"),
            *[(kind, len(found)) for kind, found in self.problems.items() if kind != "wasted"],
            ("inferences", f"{self.inferences} ({self.waste:+.1%} over the minimum)"),
            ("answers", answers),
        ]
        sentences = [
            f"{kind}: {sentence}"
            for kind, found in self.problems.items()
            for sentence in _first(found)
        ]
        return "\n".join([tabulate(rows, tablefmt="plain"), *sentences])


def audit(
    expectations: Sequence[Expectation],
    documents: Iterable[Found],
    *,
    stuck: Iterable[str] = (),
    log: Iterable[LogLine] = (),
    answers: Iterable[Answer] = (),
    excuses: Sequence[Excuse] = (),
    failures: Iterable[str] = (),
    limit_waste: bool = False,
) -> Report:
    """Compare what should be with what is.

    Args:
        expectations: of each upload.
        documents: all of the collection.
        stuck: uploads of which an event was never acknowledged.
        log: of all services.
        answers: to all deliveries.
        excuses: when faults were at work that make a service log errors.
        failures: services that did not come back after a fault.
        limit_waste: whether more than `MAX_WASTE` is a problem too.
    """
    report = Report(uploads=len(expectations), stuck=list(stuck), is_waste_limited=limit_waste)
    report.unexpected += failures
    found = _by_generation(expectations, documents, report)
    for expectation in expectations:
        _judge(expectation, found[expectation.shown], expectations, report)
    _read_log(log, excuses, report)
    _read_answers(answers, excuses, report)
    return report


def _by_generation(
    expectations: Sequence[Expectation], documents: Iterable[Found], report: Report
) -> dict[str, list[Found]]:
    known = {expectation.shown for expectation in expectations}
    found: defaultdict[str, list[Found]] = defaultdict(list)
    for document in documents:
        shown = f"{document.fields.get('uri')}#{document.fields.get('generation')}"
        if shown in known:
            found[shown].append(document)
        else:
            report.wrong.append(f"{shown} was never uploaded, and has a document")
    return found


def _judge(
    wanted: Expectation, found: Sequence[Found], others: Sequence[Expectation], report: Report
) -> None:
    if not found:
        _judge_absence(wanted, report)
        return
    if len(found) > 1:
        report.duplicated.append(f"{wanted.shown} has {len(found)} documents")
    if any(document.updated != document.created for document in found):
        report.duplicated.append(f"{wanted.shown} was written more than once")
    if wanted.wanted is Wanted.NOTHING:
        report.wrong.append(f"{wanted.shown} was gone, and has a document")
        return
    for document in found:
        _judge_document(wanted, document.fields, others, report)


def _judge_absence(wanted: Expectation, report: Report) -> None:
    if wanted.wanted in (Wanted.DONE, Wanted.FAILED):
        report.lost.append(f"{wanted.shown} has no document")
    else:
        report.superseded += 1


def _judge_document(
    wanted: Expectation, fields: Mapping[str, Any], others: Sequence[Expectation], report: Report
) -> None:
    status, code = fields.get("status"), (fields.get("error") or {}).get("code")
    should_fail = wanted.wanted in (Wanted.FAILED, Wanted.FAILED_OR_NOTHING)
    if (status, code) != (("failed", wanted.code) if should_fail else ("done", None)):
        expected = wanted.code if should_fail else "done"
        report.wrong.append(f"{wanted.shown} is {status} {code or ''}, not {expected}")
    elif (fields.get("size"), fields.get("md5")) != (wanted.size, wanted.md5):
        report.crossed.append(f"{wanted.shown} has the size or checksum of something else")
    elif not should_fail and not _is_same_picture(wanted, fields):
        report.crossed.append(f"{wanted.shown} has the detections of {_owner(fields, others)}")
    elif should_fail:
        report.failed += 1
    else:
        report.done += 1


def _is_same_picture(wanted: Expectation, fields: Mapping[str, Any]) -> bool:
    if fields.get("image") != wanted.image:
        return False
    found = list(fields.get("detections") or ())
    if len(found) != len(wanted.detections):
        return False
    for expected in wanted.detections:
        match = next((one for one in found if _is_same(expected, one)), None)
        if match is None:
            return False
        found.remove(match)
    return True


def _is_same(expected: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return (
        expected["label"] == found["label"]
        and abs(expected["confidence"] - found["confidence"]) <= _CONFIDENCE
        and all(abs(expected["box"][x] - found["box"][x]) <= _PIXELS for x in expected["box"])
    )


def _owner(fields: Mapping[str, Any], others: Sequence[Expectation]) -> str:
    owners = (
        other.shown for other in others if other.detections and _is_same_picture(other, fields)
    )
    return next(owners, "no picture of this run")


def _read_log(log: Iterable[LogLine], excuses: Sequence[Excuse], report: Report) -> None:
    for line in log:
        report.inferences += line.inferring
        if line.severity in _ERROR_SEVERITIES and not _is_excused(line, excuses):
            report.unexpected.append(f"{line.service} logged: {line.message}")


def _is_excused(line: LogLine, excuses: Sequence[Excuse]) -> bool:
    kinds = (*_KILLED_BY, _RAISING) if _KILLED.match(line.message) else (_RAISING,)
    return any(
        excuse.kind in kinds and excuse.covers(line.service, line.seconds) for excuse in excuses
    )


def _read_answers(answers: Iterable[Answer], excuses: Sequence[Excuse], report: Report) -> None:
    for answer in answers:
        report.answers[str(answer.status or "none")] += 1
        if answer.status is None or answer.status in _USUAL_ANSWERS:
            continue
        if not any(
            excuse.kind is _RAISING and excuse.covers(answer.service, answer.seconds)
            for excuse in excuses
        ):
            report.unexpected.append(f"{answer.service} answered {answer.status}")


def _first(sentences: Sequence[str]) -> list[str]:
    more = len(sentences) - _SHOWN
    return [*sentences[:_SHOWN], *([f"... and {more} more"] if more > 0 else [])]
