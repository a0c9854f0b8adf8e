"""Faults explain some errors and missing responses. Any other is unexpected."""

from collections import Counter
from dataclasses import replace

import pytest

from devtools.chaos.excuses import (
    Excuse,
    Faults,
    LogLine,
    Replacement,
    Response,
    Silence,
    killed_services,
    unexpected_lines,
    unexpected_responses,
    unexpected_silences,
)
from devtools.chaos.plan import FaultKind

# The shortage lasts from 100 to 103; the service takes until 160 to be ready again.
MEMORY = Excuse("service-0", FaultKind.MEMORY, started=100, over=103, ended=160)
KILLED = Excuse("service-0", FaultKind.KILL_WORKER, started=49, over=51, ended=53)


def error(
    seconds: float, message: str = "Failed to handle a message", service: str = "service-0"
) -> LogLine:
    return LogLine(service, seconds, "ERROR", message)


def no_response(began: float, seconds: float = 10.0, service: str = "service-0") -> Response:
    return Response(service, began, began + seconds, None)


@pytest.mark.parametrize(
    ("service", "seconds", "is_explained"),
    [
        ("service-0", 101, True),
        ("service-0", 117, True),
        ("service-0", 99, False),
        ("service-0", 119, False),
        ("service-1", 101, False),
    ],
    ids=["during", "soon-after", "before", "long-after", "other-service"],
)
def test_errors_are_explained_only_while_memory_is_short(
    service: str, seconds: float, is_explained: bool
) -> None:
    faults = Faults([MEMORY])
    line, response = error(seconds, service=service), Response(service, seconds - 1, seconds, 500)
    unexpected = [*unexpected_lines([line], faults), *unexpected_responses([response], faults)]
    assert len(unexpected) == (0 if is_explained else 2)


def test_warnings_need_no_explanation() -> None:
    assert not unexpected_lines([replace(error(1), severity="WARNING")], Faults())


def test_broken_model_may_raise_until_the_instance_is_replaced() -> None:
    faults = Faults([replace(MEMORY, kind=FaultKind.MODEL_FAILS)])
    assert not unexpected_lines([error(101), error(117)], faults)
    assert unexpected_lines([error(99), error(119)], faults)
    assert unexpected_lines([error(101)], Faults([replace(MEMORY, kind=FaultKind.MODEL_HANGS)]))


ENDS = ["Worker (pid:17) was sent SIGKILL!", "Worker (pid:17) exited with code 1."]


@pytest.mark.parametrize("kind", [FaultKind.KILL_WORKER, FaultKind.TERM, FaultKind.STOP])
@pytest.mark.parametrize("message", ENDS, ids=["killed", "exited"])
def test_worker_may_end_only_when_it_was_killed(message: str, kind: FaultKind) -> None:
    faults = Faults([replace(KILLED, kind=kind)])
    assert bool(killed_services([error(50, message)], faults)) == (kind is FaultKind.STOP)
    assert killed_services([error(70, message)], faults) == [f"service-0 logged: {message}"]
    assert killed_services([error(50, message, "service-1")], faults)
    assert not unexpected_lines([error(70, message)], faults)  # `killed_services` lists it
    assert unexpected_lines([error(50, "Failed to handle a message")], faults)


@pytest.mark.parametrize(
    ("kind", "service", "started", "is_explained"),
    [
        (FaultKind.MODEL_HANGS, "service-0", 150, True),
        (FaultKind.MODEL_FAILS, "service-0", 150, True),
        (FaultKind.MEMORY, "service-0", 150, True),
        (FaultKind.MEMORY, "service-0", 167, True),
        (FaultKind.MEMORY, "service-0", 169, False),
        (FaultKind.MEMORY, "service-0", 99, False),
        (FaultKind.MEMORY, "service-1", 150, False),
        (FaultKind.DECODERS, "service-0", 150, False),
        (FaultKind.DISK, "service-0", 150, False),
    ],
    ids=[
        "hang",
        "failure",
        "memory",
        "detected-late",
        "too-late",
        "before",
        "other-service",
        "decoders",
        "disk",
    ],
)
def test_liveness_may_fail_only_after_certain_faults(
    kind: FaultKind, service: str, started: float, is_explained: bool
) -> None:
    replaced = Replacement(service, started, started + 5)
    faults = Faults([replace(MEMORY, kind=kind)], [replaced])
    assert killed_services([], faults) == (
        [] if is_explained else [f"{service} failed its liveness"]
    )


@pytest.mark.parametrize("status", [204, 429, 503, None])
def test_usual_responses_are_expected(status: int | None) -> None:
    assert not unexpected_responses([Response("service-0", 1, 2, status)], Faults())


@pytest.mark.parametrize("status", [200, 400, 413, 500])
def test_other_responses_are_unexpected(status: int) -> None:
    unexpected = unexpected_responses([Response("service-0", 1, 2, status)], Faults([KILLED]))
    assert unexpected == [f"service-0 returned {status}"]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (no_response(45), Silence.PROCESS),
        (no_response(52), Silence.PROCESS),
        (no_response(50, seconds=0.1), Silence.PROCESS),
        (no_response(54), Silence.SLOW),
        (no_response(38), Silence.SLOW),
        (no_response(45, service="service-1"), Silence.SLOW),
        (no_response(54, seconds=0.1), Silence.BROKEN),
    ],
    ids=["across", "not-ready", "broken", "after", "before", "other-service", "broken-after"],
)
def test_fault_explains_missing_responses_only_while_it_lasts(
    response: Response, reason: Silence
) -> None:
    assert Faults([KILLED]).explain_silence(response) is reason


@pytest.mark.parametrize(
    ("kind", "seconds", "reason"),
    [
        (FaultKind.STOP, 10, Silence.PROCESS),
        (FaultKind.STOP, 1, Silence.BROKEN),
        (FaultKind.KILL, 1, Silence.PROCESS),
        (FaultKind.DISK, 10, Silence.SLOW),
    ],
)
def test_pause_and_full_disk_explain_no_broken_connection(
    kind: FaultKind, seconds: float, reason: Silence
) -> None:
    faults = Faults([replace(KILLED, kind=kind)])
    assert faults.explain_silence(no_response(50, seconds)) is reason


def test_replacement_explains_a_missing_response() -> None:
    faults = Faults(replacements=[Replacement("service-0", 49, 53)])
    assert faults.explain_silence(no_response(50, seconds=0.1)) is Silence.PROCESS
    assert faults.explain_silence(no_response(54, seconds=0.1)) is Silence.BROKEN


def test_response_is_late_after_the_ack_deadline_of_the_run() -> None:
    assert Faults(ack_deadline_seconds=5).explain_silence(no_response(1, 5)) is Silence.SLOW
    assert Faults(ack_deadline_seconds=10).explain_silence(no_response(1, 5)) is Silence.BROKEN


@pytest.mark.parametrize(
    ("silences", "deliveries", "problems"),
    [
        ({Silence.PROCESS: 1000}, 1000, 0),
        ({Silence.SLOW: 10}, 1000, 0),
        ({Silence.SLOW: 11}, 1000, 1),
        ({Silence.SLOW: 1, Silence.PROCESS: 900}, 1000, 0),
        ({Silence.SLOW: 2, Silence.PROCESS: 900}, 1000, 1),
        ({Silence.BROKEN: 1}, 1000, 1),
        ({Silence.SLOW: 1000}, 1000, 1),
    ],
    ids=[
        "explained",
        "few",
        "many",
        "few-without-a-fault",
        "many-without-a-fault",
        "broken",
        "all",
    ],
)
def test_few_deliveries_may_be_late_and_none_broken(
    silences: dict[Silence, int], deliveries: int, problems: int
) -> None:
    assert len(unexpected_silences(Counter(silences), deliveries)) == problems
