"""More than it can take, and stopping in the middle of it."""

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests

from devtools.bench.accounting import peak_resident_mb, worker_of
from devtools.demo_model.shapes import Scene
from devtools.local_stack.processes import Child
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from service.images.pixels import Pixels
from tests.fakes import PATIENCE_SECONDS, wait_until
from tests.system import hooks
from tests.system.conftest import Service, document, held_storage, put_aside
from tests.system.test_service import count_documents

Samples = list[tuple[Path, Scene]]
StartService = Callable[..., Service]

SIGTERM_ROUNDS = int(os.environ.get("SIGTERM_ROUNDS", "3"))
ROUND_PICTURES = 64  # more than there are threads: some are refused, some wait to be read
GIVEN_BACK = {429, 503}
GRACEFUL_SECONDS = 60  # for a slow machine: what is not answered by then is an error


class Load:
    """Callers that deliver pictures over and over, and what each delivery was answered."""

    def __init__(self, service: Service, refs: list[ImageRef]) -> None:
        self.statuses: list[tuple[ImageRef, int]] = []
        self._service = service
        self._answered = threading.Semaphore(0)
        self._callers = ThreadPoolExecutor(len(refs))
        self._futures = [self._callers.submit(self._deliver, ref) for ref in refs]

    def _deliver(self, ref: ImageRef) -> None:
        """Until nobody listens any more."""
        while True:
            try:
                status = self._service.post(ref).status_code
            except requests.ConnectionError:  # not answered is not acknowledged
                return
            finally:
                self._answered.release()
            self.statuses.append((ref, status))

    def wait_for_answers(self, count: int) -> None:
        for _ in range(count):
            assert self._answered.acquire(timeout=PATIENCE_SECONDS)

    def join(self) -> None:
        for future in self._futures:
            future.result(PATIENCE_SECONDS)
        self._callers.shutdown()


def stop(child: Child) -> float:
    """Send SIGTERM, as Cloud Run does; return how long the process took to end."""
    began = time.monotonic()
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.process.wait(GRACEFUL_SECONDS + PATIENCE_SECONDS) == 0
    return time.monotonic() - began


@pytest.mark.timeout(120 * SIGTERM_ROUNDS + 300)
def test_sigterm_under_load_many_times_acknowledges_nothing_without_its_document(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    """SIGTERM_ROUNDS=100 for more rounds; each stops the service at another moment of its work."""
    data = samples[0][0].read_bytes()
    took: list[float] = []
    refs: list[ImageRef] = []
    acknowledged: set[ImageRef] = set()
    given_back: set[ImageRef] = set()
    for number in range(SIGTERM_ROUNDS):
        names = [f"rounds/{number}/{i}.jpg" for i in range(ROUND_PICTURES)]
        fresh = [put_aside(stack, name, data) for name in names]
        service = start_service(GRACEFUL_TIMEOUT_SECONDS=str(GRACEFUL_SECONDS))
        load = Load(service, fresh)
        load.wait_for_answers(random.Random(number).randrange(ROUND_PICTURES))
        took.append(stop(service.child))
        load.join()
        assert {status for _, status in load.statuses} <= {204} | GIVEN_BACK
        assert [line for line in service.log() if line["severity"] == "ERROR"] == []
        done = {ref for ref, status in load.statuses if status == 204}
        assert all(document(ref) for ref in done)
        refs += fresh
        acknowledged |= done
        given_back |= {ref for ref, status in load.statuses if status in GIVEN_BACK} - done
    print(
        f"{SIGTERM_ROUNDS} rounds, {len(refs)} pictures: {len(acknowledged)} acknowledged, "
        f"{len(given_back)} given back, {len(refs) - len(acknowledged | given_back)} unanswered; "
        f"SIGTERM to the end: {sum(took) / len(took):.2f} s on average, {max(took):.2f} s at most"
    )
    successor = start_service()
    assert all(successor.post(ref).status_code == 204 for ref in refs)
    assert count_documents("rounds/") == len(refs)


@contextmanager
def silent_server() -> Iterator[tuple[str, Callable[[int], None]]]:
    """A Cloud Storage that takes requests and answers none; and a way to wait for some."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_SECONDS)
        held: list[socket.socket] = []
        yield (
            f"http://127.0.0.1:{server.getsockname()[1]}",
            lambda count: held.extend(server.accept()[0] for _ in range(count)),
        )
        for one in held:
            one.close()


def test_full_queue_is_told_at_once_while_those_admitted_still_wait(
    start_service: StartService,
) -> None:
    refs = [ImageRef("aside", f"waits/{i}.jpg", 1) for i in range(10)]
    with silent_server() as (url, wait_for_requests), ThreadPoolExecutor(2) as callers:
        service = start_service(
            STORAGE_EMULATOR_HOST=url,
            STORAGE_TIMEOUT_SECONDS="600",
            STUCK_SECONDS="3600",
            MAX_QUEUE="2",
            MAX_BATCH_SIZE="2",
            CONCURRENCY="3",
        )
        admitted = [callers.submit(service.post, ref, 600) for ref in refs[:2]]
        wait_for_requests(2)
        answers = [service.post(ref, timeout=PATIENCE_SECONDS) for ref in refs[2:]]
        health = requests.get(service.url + "/health/ready", timeout=PATIENCE_SECONDS)
        assert not any(future.done() for future in admitted)
        os.killpg(service.child.process.pid, signal.SIGKILL)  # they would wait for ten minutes
    assert {answer.status_code for answer in answers} == {429}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
    assert health.status_code == 200


OFFERED = {"MAX_QUEUE": "8", "MAX_BATCH_SIZE": "4", "CONCURRENCY": "12", "REDUCED_DECODE": "false"}
CALLERS = 80  # ten times the queue, each with a picture of 36 MB in memory
MEMORY_MB = 500  # those of one queue, by far


def large_picture() -> bytes:
    return encoded(np.full((3000, 4000, 3), 128, np.uint8))


def test_ten_times_the_load_is_delivered_by_retries_in_bounded_memory(
    start_service: StartService, stack: Stack
) -> None:
    data = large_picture()
    refs = [put_aside(stack, f"overload/{i}.jpg", data) for i in range(2 * CALLERS)]
    refused: list[int] = []
    with held_storage() as (url, gate):
        service = start_service(STORAGE_EMULATOR_HOST=url, **OFFERED)

        def deliver(ref: ImageRef) -> int:
            while (answer := service.post(ref)).status_code in GIVEN_BACK:
                refused.append(answer.status_code)
                gate.open()
                time.sleep(min(0.5, int(answer.headers["Retry-After"])))
            return answer.status_code

        assert service.post(refs[0]).status_code == 204
        worker = worker_of(service.child.process.pid)
        before = peak_resident_mb(worker)
        gate.close()  # until the queue is full
        with ThreadPoolExecutor(CALLERS) as callers:
            assert set(callers.map(deliver, refs[1:])) == {204}
        peak = peak_resident_mb(worker)
    print(f"{len(refs)} pictures, {len(refused)} given back, {before:.0f} MB and then {peak:.0f}")
    assert 429 in refused
    assert peak < before + MEMORY_MB
    assert count_documents("overload/") == len(refs)
    assert [line for line in service.log() if line["severity"] == "ERROR"] == []


ATTEMPTS = 10  # of Pub/Sub, before a message becomes a dead letter


def test_picture_that_kills_the_process_takes_its_batch_along_once_and_ends_as_a_dead_letter(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    height, width, _ = hooks.POISON_SHAPE
    poison = put_aside(stack, "poison/0.jpg", encoded(np.full((height, width, 3), 128, np.uint8)))
    data = samples[0][0].read_bytes()
    good = [put_aside(stack, f"poison/{i}.jpg", data) for i in range(1, 8)]

    def attempt(ref: ImageRef) -> int:
        """Deliver it as Pub/Sub does; the answer, 0 for none."""
        try:
            return service.post(ref).status_code
        except requests.ConnectionError:
            return 0

    def attempt_together(refs: list[ImageRef]) -> list[int]:
        """All are on the way before the first can be in a batch."""
        gate.close()
        answers = callers.map(attempt, refs)
        wait_until(lambda: gate.waiting == len(refs), "they do not all come to their download")
        gate.open()
        return list(answers)

    with held_storage() as (url, gate), ThreadPoolExecutor(len(good) + 1) as callers:
        service = start_service(
            STORAGE_EMULATOR_HOST=url,
            MAX_BATCH_DELAY_MS="5000",
            **hooks.settings(hooks.PoisonedWorker),
        )
        first = attempt_together([poison, *good])
        taken_along = [ref for ref, status in zip(good, first[1:], strict=True) if not status]
        second = attempt_together([poison, *taken_along])
        assert [attempt(ref) for ref in good] == [204] * len(good)
        poisoned = [first[0], second[0], *(attempt(poison) for _ in range(ATTEMPTS - 2))]
    deaths = [line["document_ids"] for line in service.log() if "document_ids" in line]
    assert len(deaths[0]) > 1
    assert deaths[1:] == [[poison.document_id]] * (len(deaths) - 1)
    assert len(deaths) in (2, 3)  # on a busy machine something is still decoded at the second
    assert poisoned == [0] * len(deaths) + [500] * (ATTEMPTS - len(deaths))
    assert document(poison) is None


def encoded(pixels: Pixels) -> bytes:
    return cv2.imencode(".jpg", pixels)[1].tobytes()
