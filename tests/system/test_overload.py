"""Overload, and SIGTERM under load."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests

from devtools.bench.accounting import peak_resident_mb
from devtools.demo_model.shapes import Scene
from devtools.local_stack.processes import Child
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from service.images.decoders import DecodeLimits
from service.images.pixels import Pixels
from tests.fakes import PATIENCE_SECONDS
from tests.processes import LIBRARIES_MB, decoders_of, peaks_of
from tests.system.conftest import Service, document, held_storage, put_aside, responds_200
from tests.system.test_service import count_documents

Samples = list[tuple[Path, Scene]]
StartService = Callable[..., Service]

SIGTERM_ROUNDS = int(os.environ.get("SIGTERM_ROUNDS", "3"))
ROUND_IMAGES = 64  # more than the server's threads: some are rejected, some wait to be read
REJECTED = {429, 503}
GRACEFUL_SECONDS = 60  # for a slow machine; a request without a response by then is an error


class Load:
    """Callers that deliver images repeatedly, and the status of each delivery."""

    def __init__(self, service: Service, refs: list[ImageRef]) -> None:
        self.statuses: list[tuple[ImageRef, int]] = []
        self._service = service
        self._responded = threading.Semaphore(0)
        self._callers = ThreadPoolExecutor(len(refs))
        self._futures = [self._callers.submit(self._deliver, ref) for ref in refs]

    def _deliver(self, ref: ImageRef) -> None:
        """Deliver until the server does not listen any more."""
        while True:
            try:
                status = self._service.post(ref).status_code
            except requests.ConnectionError:  # no response, so not acknowledged
                return
            finally:
                self._responded.release()
            self.statuses.append((ref, status))

    def wait_for_responses(self, count: int) -> None:
        for _ in range(count):
            assert self._responded.acquire(timeout=PATIENCE_SECONDS)

    def join(self) -> None:
        for future in self._futures:
            future.result(PATIENCE_SECONDS)
        self._callers.shutdown()


def stop(child: Child) -> float:
    """Send SIGTERM, as Cloud Run does. Return the seconds until the process ended."""
    started = time.monotonic()
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.process.wait(GRACEFUL_SECONDS + PATIENCE_SECONDS) == 0
    return time.monotonic() - started


@pytest.mark.timeout(120 * SIGTERM_ROUNDS + 300)
def test_sigterm_acknowledges_only_images_with_a_document(
    start_service: StartService, service: Service, stack: Stack, samples: Samples
) -> None:
    """Each round stops the service at another moment. SIGTERM_ROUNDS=100 makes 100 rounds."""
    data = samples[0][0].read_bytes()
    took: list[float] = []
    refs: list[ImageRef] = []
    acknowledged: set[ImageRef] = set()
    rejected: set[ImageRef] = set()
    for number in range(SIGTERM_ROUNDS):
        names = [f"rounds/{number}/{i}.jpg" for i in range(ROUND_IMAGES)]
        fresh = [put_aside(stack, name, data) for name in names]
        stopped = start_service(GRACEFUL_TIMEOUT_SECONDS=str(GRACEFUL_SECONDS))
        load = Load(stopped, fresh)
        load.wait_for_responses(random.Random(number).randrange(ROUND_IMAGES))
        took.append(stop(stopped.child))
        load.join()
        assert {status for _, status in load.statuses} <= {204} | REJECTED
        assert [line for line in stopped.log() if line["severity"] == "ERROR"] == []
        done = {ref for ref, status in load.statuses if status == 204}
        assert all(document(ref) for ref in done)
        refs += fresh
        acknowledged |= done
        rejected |= {ref for ref, status in load.statuses if status in REJECTED} - done
    print(
        f"{SIGTERM_ROUNDS} rounds, {len(refs)} images: {len(acknowledged)} acknowledged, "
        f"{len(rejected)} rejected, {len(refs) - len(acknowledged | rejected)} without a response; "
        f"SIGTERM to the end: {sum(took) / len(took):.2f} s on average, {max(took):.2f} s at most"
    )
    assert all(service.post(ref).status_code == 204 for ref in refs)
    assert count_documents("rounds/") == len(refs)


SLOTS = 32  # MAX_IN_FLIGHT by default
DELIVERIES = 44


def test_probes_are_served_while_every_slot_is_taken(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"slots/{i}.jpg", data) for i in range(DELIVERIES)]
    with held_storage() as (url, gate), ThreadPoolExecutor(DELIVERIES) as callers:
        service = start_service(STORAGE_EMULATOR_HOST=url)
        gate.close()
        posted = [callers.submit(service.post, ref) for ref in refs]
        rejected = list(islice(as_completed(posted, PATIENCE_SECONDS), DELIVERIES - SLOTS))
        assert service.is_live()
        assert responds_200(service.url + "/health/ready")
        assert not any(future.done() for future in set(posted).difference(rejected))
        gate.open()
        assert Counter(future.result().status_code for future in posted) == {204: SLOTS, 429: 12}
    responses = [future.result() for future in rejected]
    assert {response.status_code for response in responses} == {429}
    assert all(int(response.headers["Retry-After"]) > 0 for response in responses)


OFFERED = {"MAX_IN_FLIGHT": "8", "REDUCED_DECODE": "false"}
CALLERS = 80  # ten times the slots, each with an image of 36 MB of pixels
MEMORY_MB = 100  # far less than the pixels of all slots


def large_image() -> bytes:
    return encoded(np.full((3000, 4000, 3), 128, np.uint8))


def test_ten_times_the_load_is_delivered_in_bounded_memory(
    start_service: StartService, stack: Stack
) -> None:
    data = large_image()
    refs = [put_aside(stack, f"overload/{i}.jpg", data) for i in range(2 * CALLERS)]
    rejections: list[int] = []
    with held_storage() as (url, gate):
        service = start_service(STORAGE_EMULATOR_HOST=url, **OFFERED)

        def deliver(ref: ImageRef) -> int:
            while (response := service.post(ref)).status_code in REJECTED:
                rejections.append(response.status_code)
                gate.open()
                time.sleep(min(0.5, int(response.headers["Retry-After"])))
            return response.status_code

        assert service.post(refs[0]).status_code == 204
        worker = service.worker
        before = peak_resident_mb(worker)
        gate.close()  # until the slots are taken
        with ThreadPoolExecutor(CALLERS) as callers:
            assert set(callers.map(deliver, refs[1:])) == {204}
        peak, decoders = peak_resident_mb(worker), peaks_of(decoders_of(worker))
    print(f"{len(refs)} images, {len(rejections)} rejected, {before:.0f} MB, then {peak:.0f}")
    assert 429 in rejections
    assert peak < before + MEMORY_MB
    assert max(decoders) < DecodeLimits().small_bytes / 2**20 + LIBRARIES_MB
    assert count_documents("overload/") == len(refs)
    assert [line for line in service.log() if line["severity"] == "ERROR"] == []


def encoded(pixels: Pixels) -> bytes:
    return cv2.imencode(".jpg", pixels)[1].tobytes()
