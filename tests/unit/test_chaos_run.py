"""What a chaos run reads from logs, expects of uploads, and reports of itself."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.chaos.audit import Ending
from devtools.chaos.excuses import LogLine
from devtools.chaos.plan import Fate, Kind, Upload, make_plan
from devtools.chaos.run import ChaosOptions, Run, expected_ending, read_log
from devtools.chaos.services import _limited

TIME = "2026-11-21T17:00:00+00:00"
SECONDS = 1795280400.0


def line(**fields: object) -> str:
    return json.dumps({"severity": "INFO", "message": "m", "time": TIME} | fields)


def test_log_is_read_with_its_inferences_and_printed_traces(tmp_path: Path) -> None:
    path = tmp_path / "service-0.log"
    lines = [
        line(inferring=3),
        line(images=4, done=3, superseded=1),
        line(poisoned="crashes its decoder"),
        '{"severity": "INF',
        "Traceback (most recent call last):",
        "  x",
        "3",
    ]
    path.write_text("\n".join([*lines, line(severity="ERROR")]))
    assert list(read_log(path)) == [
        LogLine("service-0", SECONDS, "INFO", "m", 3),
        LogLine("service-0", SECONDS, "INFO", "m", done=3, superseded=1),
        LogLine("service-0", SECONDS, "INFO", "m", is_poisoned=True),
        LogLine("service-0", SECONDS, "ERROR", "Traceback (most recent call last):"),
        LogLine("service-0", SECONDS, "ERROR", "m"),
    ]


@pytest.mark.parametrize(
    ("kind", "fate", "expected"),
    [
        (Kind.GOOD, Fate.KEPT, Ending.DONE),
        (Kind.TEXT, Fate.KEPT, Ending.FAILED),
        (Kind.HANGS, Fate.KEPT, Ending.FAILED),
        (Kind.GOOD, Fate.REPLACED, Ending.NOTHING),
        (Kind.TEXT, Fate.DELETED, Ending.NOTHING),
        (Kind.GOOD, Fate.DELETED_AT_ONCE, Ending.DONE_OR_NOTHING),
        (Kind.TEXT, Fate.REPLACED_AT_ONCE, Ending.FAILED_OR_NOTHING),
    ],
)
def test_kind_and_fate_decide_how_an_upload_should_end(
    kind: Kind, fate: Fate, expected: Ending
) -> None:
    assert expected_ending(Upload(0, "a.jpg", kind, 0, fate)) is expected


class Relay:
    """A relay on which a fixed number of messages is outstanding."""

    acknowledgements = 0

    def __init__(self, outstanding: int) -> None:
        self.outstanding = outstanding

    def flush(self) -> None:
        pass

    def uploaded(self, uploads: int) -> None:
        pass


class Stack:
    def raise_if_dead(self) -> None:
        pass


def started_run(outstanding: int, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = Run(make_plan(40, 1), ChaosOptions(patience_seconds=0))
    monkeypatch.setattr(run, "_relay", Relay(outstanding), raising=False)
    monkeypatch.setattr(run, "_stack", Stack(), raising=False)
    monkeypatch.setattr(run, "_upload", lambda upload: run._uploaded.append((upload, b"", 1)))
    for method in ("_publish", "_strike"):
        monkeypatch.setattr(run, method, lambda _: None)
    return run


def upload_and_settle(run: Run) -> None:
    run.upload_all(lambda _: None)
    run.settle(lambda _: None)


def test_complete_run_reports_no_shortfall(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started_run(0, monkeypatch)
    upload_and_settle(run)
    assert run.shortfalls() == []


def test_run_that_ends_early_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started_run(48, monkeypatch)
    upload_and_settle(run)
    assert run.shortfalls() == [
        "Only 0 of 40 uploads were made: nothing was acknowledged for 0 s",
        "48 events are still in flight: nothing was acknowledged for 0 s",
    ]


def test_run_with_an_unacknowledged_event_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started_run(1, monkeypatch)
    upload_and_settle(run)
    (sentence,) = run.shortfalls()
    assert sentence.startswith("1 events are still in flight")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets limits of other processes")
def test_limit_of_another_process_is_lowered_for_a_while() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        before = resource.prlimit(child.pid, resource.RLIMIT_FSIZE)
        with _limited(child.pid, resource.RLIMIT_FSIZE, 0):
            assert resource.prlimit(child.pid, resource.RLIMIT_FSIZE) == (0, before[1])
        assert resource.prlimit(child.pid, resource.RLIMIT_FSIZE) == before
        child.communicate(b"\n")
    with _limited(child.pid, resource.RLIMIT_FSIZE, 0):
        pass  # the process has ended
