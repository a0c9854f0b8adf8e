"""Faults in the service's processes. Here the service is a small server with one worker."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from devtools.chaos import services as module
from devtools.chaos.plan import PROCESS_FAULTS, FaultKind
from devtools.chaos.services import PROBE_FAILURES, Service, impossible_faults
from devtools.local_stack.processes import Processes

PATIENCE_SECONDS = 30
# Like gunicorn, it starts its worker again. A worker logs a batch for each request, so that faults
# need not wait.
SERVER = """
import os, signal, socket, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
        print('{"inferring": 1}', os.environ["CHAOS_LOAD_SECONDS"], flush=True)
    def log_message(self, *args): pass
server = HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
while True:
    worker = os.fork()
    if not worker:
        server.serve_forever()
    os.wait()
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", SERVER))
    monkeypatch.setattr(module, "_BATCH_SECONDS", 0.0)
    monkeypatch.setattr(module, "_SHORT_SECONDS", 0.1)
    monkeypatch.setattr(module, "_REPLACED_SECONDS", 0.5)
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.1)
    with Processes(tmp_path) as processes:
        started = Service(
            name="service-0",
            processes=processes,
            log_path=tmp_path / "service-0.log",
            environment={},
            stop_seconds=0.5,
            slow_seconds=3.0,
            leaving=threading.Event(),
        )
        started.start()
        yield started


def server_and_workers(service: Service) -> tuple[int, list[int]]:
    return service._running.process.pid, service._workers()


@pytest.mark.parametrize("kind", [FaultKind.KILL, FaultKind.TERM, FaultKind.SLOW_START])
def test_killed_or_stopped_service_is_a_new_process(service: Service, kind: FaultKind) -> None:
    before = server_and_workers(service)
    service.strike(kind)
    assert server_and_workers(service)[0] != before[0]
    assert service._is_ready()


def test_slow_start_is_passed_to_the_service(service: Service) -> None:
    service.strike(FaultKind.SLOW_START)
    assert service._running.log_text().splitlines()[0].endswith(" 3.0")


def test_killed_worker_is_replaced_by_the_same_server(service: Service) -> None:
    server, workers = server_and_workers(service)
    service.strike(FaultKind.KILL_WORKER)
    assert server_and_workers(service)[0] == server
    assert not set(server_and_workers(service)[1]) & set(workers)
    assert service._is_ready()


def test_paused_service_continues_later(service: Service) -> None:
    service.stop_seconds = 10 * PATIENCE_SECONDS
    server, workers = server_and_workers(service)
    thread = threading.Thread(target=service.strike, args=(FaultKind.STOP,))
    thread.start()
    statuses = set[str]()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while psutil.STATUS_STOPPED not in statuses and time.monotonic() < deadline:
        statuses.add(psutil.Process(workers[0]).status())
    service.leaving.set()
    thread.join()
    service.leaving.clear()
    assert psutil.STATUS_STOPPED in statuses
    assert server_and_workers(service) == (server, workers)
    assert service._is_ready()


@pytest.mark.parametrize("kind", sorted({FaultKind.MEMORY, FaultKind.DISK} - impossible_faults()))
def test_starved_service_gets_its_limits_back(service: Service, kind: FaultKind) -> None:
    limits = Path(f"/proc/{service._workers()[0]}/limits")
    before = limits.read_text()
    service.strike(kind)
    assert limits.read_text() == before
    assert service._is_ready()


@pytest.mark.parametrize("kind", sorted(set(PROCESS_FAULTS) - impossible_faults()))
def test_every_fault_is_recorded_for_the_audit(service: Service, kind: FaultKind) -> None:
    before = time.time()
    service.strike(kind)
    (excuse,) = service.excuses
    assert (excuse.service, excuse.kind) == ("service-0", kind)
    assert before <= excuse.started <= excuse.over <= excuse.ended


def test_fault_is_over_before_the_service_is_ready_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[float] = []

    def is_ready() -> bool:
        probes.append(time.time())
        return len(probes) > 1

    monkeypatch.setattr(service, "_is_ready", is_ready)
    service.strike(FaultKind.STOP)
    (excuse,) = service.excuses
    assert (
        excuse.started + service.stop_seconds / 2 < excuse.over
    )  # the service was paused meanwhile
    assert excuse.over <= probes[0] < probes[1] <= excuse.ended


@pytest.mark.skipif(
    FaultKind.MEMORY in impossible_faults(), reason="only Linux sets limits of other processes"
)
def test_memory_fault_ignores_a_worker_that_has_just_ended(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    monkeypatch.setattr(service, "_workers", lambda: [ended.pid])
    service.strike(FaultKind.MEMORY)
    assert [excuse.kind for excuse in service.excuses] == [FaultKind.MEMORY]


def test_service_that_does_not_recover_is_restarted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RECOVERY_SECONDS", 0.5)
    server = service._running.process.pid
    monkeypatch.setattr(service, "_is_ready", lambda: service._running.process.pid != server)
    service.strike(FaultKind.STOP)
    assert service.failures == ["service-0 did not recover after: stop"]
    assert service._running.process.pid != server


def keeping_alive(service: Service) -> threading.Thread:
    thread = threading.Thread(target=service.keep_alive)
    thread.start()
    return thread


def test_instance_whose_liveness_fails_is_replaced(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = service._running
    probes: list[object] = []

    def is_live() -> bool:
        probes.append(service._running)
        return service._running is not failed

    monkeypatch.setattr(service, "_is_live", is_live)
    thread = keeping_alive(service)
    service._wait(lambda: bool(service.replacements), PATIENCE_SECONDS)
    service.leaving.set()
    thread.join()
    service.leaving.clear()
    (replacement,) = service.replacements
    assert replacement.started <= replacement.ended
    assert probes.count(failed) == PROBE_FAILURES
    assert service._is_ready()


def test_instance_is_not_probed_during_a_pause_or_start(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[float] = []
    monkeypatch.setattr(service, "_is_live", lambda: probes.append(0.0))
    with service._lock:
        thread = keeping_alive(service)
        time.sleep(10 * module.PROBE_SECONDS)
        service.leaving.set()
        thread.join()
    assert not probes


@pytest.mark.parametrize(
    ("taken", "failed_on", "kind", "is_failure"),
    [
        (True, 0, FaultKind.MODEL_HANGS, True),
        (True, 5, FaultKind.MODEL_FAILS, True),
        (True, 4, FaultKind.MODEL_FAILS, False),
        (False, 0, FaultKind.MODEL_HANGS, False),
    ],
    ids=["hangs", "fails", "fails-on-few", "no-image-arrived"],
)
def test_broken_model_that_is_not_detected_is_a_failure(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    taken: bool,
    failed_on: int,
    kind: FaultKind,
    is_failure: bool,
) -> None:
    def broken(is_over: object, timeout_seconds: float) -> bool:
        if taken:
            service._break_file.unlink(missing_ok=True)
        with service.log_path.open("a") as log:
            log.write(f'{{"failed_on": {failed_on}}}\n')
        return timeout_seconds != module._REPLACED_SECONDS

    monkeypatch.setattr(service, "_wait", broken)
    before = server_and_workers(service)[0]
    service.strike(kind)
    assert bool(service.failures) == is_failure
    assert not service._break_file.exists()
    assert (server_and_workers(service)[0] != before) == taken


def test_decoder_faults_kill_the_decoders_of_the_worker(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker,) = service._workers()
    tree = {worker: [2], 2: [3, 4]}
    killed: list[int] = []
    monkeypatch.setattr(module, "_children", lambda pid: tree.get(pid, [worker]))
    monkeypatch.setattr(module, "_signal", lambda pid, number: killed.append(pid))
    service.strike(FaultKind.DECODERS)
    assert killed == [3, 4]
    service.strike(FaultKind.DECODER_ROOT)
    assert killed == [3, 4, 2]


def test_decoders_that_outlive_their_service_are_reported(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ORPHAN_SECONDS", 0.1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as orphan:
        service._check_ended([orphan.pid])
        orphan.communicate(b"\n")
    service._check_ended([orphan.pid])
    assert service.failures == ["service-0 ended, and its decoder processes did not"]


def test_fault_waits_for_a_batch_before_it_strikes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = service._running.process.pid
    waited: list[int] = []
    monkeypatch.setattr(
        Service, "_wait_for_batch", lambda self: waited.append(self._running.process.pid)
    )
    service.strike(FaultKind.KILL)
    assert waited == [server]


def test_wait_for_a_batch_ends_when_a_batch_runs(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_SECONDS", 10 * PATIENCE_SECONDS)
    thread = threading.Thread(target=service._wait_for_batch)
    thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while thread.is_alive() and time.monotonic() < deadline:
        service._is_ready()  # this server logs a batch for each request
    is_over = not thread.is_alive()
    service.leaving.set()
    thread.join()
    assert is_over
