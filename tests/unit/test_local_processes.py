"""Child processes: start, readiness, stop, and that they never outlive their parent."""

import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from devtools.local_stack import processes as module
from devtools.local_stack.errors import StartError
from devtools.local_stack.processes import Child, Processes, free_port
from tests.fakes import PATIENCE_SECONDS, wait_until

LOWEST_LOCAL_PORT = 32_768  # Linux's default
LONG = 10 * PATIENCE_SECONDS  # nothing ends by itself during a test
SLEEP = [sys.executable, "-c", f"import time; print('here', flush=True); time.sleep({LONG})"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    f"print('here', flush=True); time.sleep({LONG})",
]
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, time;"
    f"print(subprocess.Popen(['sleep', '{LONG:g}']).pid, 'here', flush=True); time.sleep({LONG})",
]
# A program with two children. One child has a child of its own in its process group.
PROGRAM = f"""
import sys, time
from pathlib import Path
from devtools.local_stack.processes import Processes
directory = Path(sys.argv[1])
(directory / "scratch").mkdir()
processes = Processes(directory)
processes.remove_at_the_end(directory / "scratch")
one = processes.start("one", {STUBBORN!r}, {{}})
two = processes.start("two", {PARENT!r}, {{}})
one.wait_until(lambda: "here" in one.log_text(), timeout_seconds={PATIENCE_SECONDS})
two.wait_until(lambda: "here" in two.log_text(), timeout_seconds={PATIENCE_SECONDS})
print(one.process.pid, two.process.pid, two.log_text().split()[0], flush=True)
time.sleep({LONG})
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as running:
        yield running


def start(processes: Processes, command: list[str]) -> Child:
    child = processes.start("child", command, {})
    child.wait_until(lambda: "here" in child.log_text(), timeout_seconds=PATIENCE_SECONDS)
    return child


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_stop_sends_sigterm(processes: Processes) -> None:
    child = start(processes, SLEEP)
    processes.stop(child, grace_seconds=PATIENCE_SECONDS)
    assert child.process.returncode == -signal.SIGTERM


def test_stop_kills_a_child_that_ignores_sigterm(processes: Processes) -> None:
    child = start(processes, STUBBORN)
    processes.stop(child, grace_seconds=0.2)
    assert child.process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_early_end_reports_exit_code_and_log(processes: Processes) -> None:
    child = processes.start("child", [sys.executable, "-c", "print('no model'); exit(3)"], {})
    with pytest.raises(StartError, match=r"child ended with exit code 3\. .*\n  \| no model"):
        child.wait_until(lambda: False, timeout_seconds=PATIENCE_SECONDS)


def test_timeout_reports_the_log(processes: Processes) -> None:
    child = start(processes, SLEEP)
    with pytest.raises(StartError, match=r"child was not ready after 0\.1 s.*\n  \| here"):
        child.wait_until(lambda: False, timeout_seconds=0.1)


def test_unknown_program_is_a_start_error(processes: Processes) -> None:
    with pytest.raises(StartError, match="child cannot be started"):
        processes.start("child", ["./no-such-program"], {})


def test_crash_is_reported(processes: Processes) -> None:
    child = start(processes, SLEEP)
    processes.raise_if_dead()
    os.killpg(child.process.pid, signal.SIGKILL)
    child.process.wait(PATIENCE_SECONDS)
    with pytest.raises(StartError, match="exit code -9"):
        processes.raise_if_dead()


def test_second_run_reads_only_its_own_log(processes: Processes, tmp_path: Path) -> None:
    processes.kill(start(processes, SLEEP))
    child = processes.start("child", [sys.executable, "-c", "print('again')"], {})
    child.process.wait(PATIENCE_SECONDS)
    assert child.log_text() == "again\n"
    assert (tmp_path / "child.log").read_text() == "here\nagain\n"


def test_killed_program_leaves_no_process_and_no_directory(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path], stdout=subprocess.PIPE, text=True
    )
    with program:
        assert program.stdout
        pids = [int(word) for word in program.stdout.readline().split()]
        assert len(pids) == 3
        assert all(is_running(pid) for pid in pids)
        program.kill()
    wait_until(lambda: not any(map(is_running, pids)), "a process still runs")
    wait_until(lambda: not (tmp_path / "scratch").exists(), "the directory still exists")


def test_free_port_is_free_on_loopback() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
    assert not module.is_answering(f"http://127.0.0.1:{free_port()}/")


def test_free_port_is_never_the_local_port_of_a_connection() -> None:
    """A program that is restarted on a free port must find it free."""
    ports = [free_port() for _ in range(100)]
    assert max(ports) < LOWEST_LOCAL_PORT
    assert len(set(ports)) == len(ports)


def test_taken_port_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = free_port(), free_port()
    monkeypatch.setattr(module, "_PORTS", [taken, free])
    monkeypatch.setattr(module, "_ports", itertools.cycle([taken, free]))
    with socket.create_server(("127.0.0.1", taken)):
        assert free_port() == free
        with socket.create_server(("127.0.0.1", free)), pytest.raises(StartError, match="taken"):
            free_port()
