"""`yolo-batch-dev simulate --check`, end to end. Figures are not checked: the machine is busy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SECONDS = 900

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="CPU time is read from /proc: it needs Linux"
)


@pytest.mark.timeout(_SECONDS + 60)
def test_check_measures_and_simulates_the_same_uploads() -> None:
    options = ["--rates", "4", "--seconds", "10", "--burst", "30"]
    program = str(Path(sys.executable).with_name("yolo-batch-dev"))
    command = [program, "simulate", "--check", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    # The command fails if an upload has no document.
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if " / " in line]
    names = [row[0].strip() for row in rows if len(row) == 8]
    assert names == ["4/s", "burst of 30"]
    for row in rows[:2]:
        for cell in row[3:7]:
            measured, simulated = (float(number) for number in cell.split("/"))
            assert min(measured, simulated) > 0
