"""What a chaos run reads and expects."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from service.chaos.audit import LogLine, Wanted
from service.chaos.plan import Fate, Kind, Upload
from service.chaos.run import read_log, wanted
from service.chaos.services import _limited

TIME = "2026-11-21T17:00:00+00:00"
SECONDS = 1795280400.0


def line(**fields: object) -> str:
    return json.dumps({"severity": "INFO", "message": "m", "time": TIME} | fields)


def test_log_is_read_with_its_inferences_and_printed_traces(tmp_path: Path) -> None:
    path = tmp_path / "service-0.log"
    lines = [
        line(inferring=3),
        '{"severity": "INF',
        "Traceback (most recent call last):",
        "  x",
        "3",
    ]
    path.write_text("\n".join([*lines, line(severity="ERROR")]))
    assert list(read_log(path)) == [
        LogLine("service-0", SECONDS, "INFO", "m", 3),
        LogLine("service-0", SECONDS, "ERROR", "Traceback (most recent call last):"),
        LogLine("service-0", SECONDS, "ERROR", "m"),
    ]


@pytest.mark.parametrize(
    ("kind", "fate", "expected"),
    [
        (Kind.GOOD, Fate.KEPT, Wanted.DONE),
        (Kind.TEXT, Fate.KEPT, Wanted.FAILED),
        (Kind.GOOD, Fate.REPLACED, Wanted.NOTHING),
        (Kind.TEXT, Fate.DELETED, Wanted.NOTHING),
        (Kind.GOOD, Fate.DELETED_AT_ONCE, Wanted.DONE_OR_NOTHING),
        (Kind.TEXT, Fate.REPLACED_AT_ONCE, Wanted.FAILED_OR_NOTHING),
    ],
)
def test_upload_should_end_by_its_kind_and_fate(kind: Kind, fate: Fate, expected: Wanted) -> None:
    assert wanted(Upload(0, "a.jpg", kind, 0, fate)) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets limits of other processes")
def test_limit_of_another_process_is_lowered_for_a_while() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        before = resource.prlimit(child.pid, resource.RLIMIT_FSIZE)
        with _limited(child.pid, resource.RLIMIT_FSIZE, 0):
            assert resource.prlimit(child.pid, resource.RLIMIT_FSIZE) == (0, before[1])
        assert resource.prlimit(child.pid, resource.RLIMIT_FSIZE) == before
        child.communicate(b"\n")
    with _limited(child.pid, resource.RLIMIT_FSIZE, 0):
        pass  # it has ended
