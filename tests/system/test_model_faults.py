"""A model that crashes, hangs, fails on everything, or does not load."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import requests

from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from tests.fakes import PATIENCE_SECONDS, wait_until
from tests.processes import children_of, decoders_of, is_running
from tests.system import hooks
from tests.system.conftest import Service, document, held_storage, put_aside, responds_200

Samples = list[tuple[Path, Scene]]
StartService = Callable[..., Service]

NEIGHBOURS = 7
MODEL_FAILURES = 5  # on different images, in a row


def poison() -> bytes:
    return cv2.imencode(".jpg", np.full(hooks.POISON_SHAPE, 128, np.uint8))[1].tobytes()


def attempt(service: Service, ref: ImageRef) -> int:
    """Deliver once. Return the status, 0 for no response."""
    try:
        return service.post(ref).status_code
    except requests.ConnectionError:
        return 0


def test_crash_of_the_model_costs_one_process_per_delivery(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    """Other images in flight are redelivered and done. The image itself becomes a dead letter."""
    fatal = put_aside(stack, "fatal/poison.jpg", poison())
    data = samples[0][0].read_bytes()
    good = [put_aside(stack, f"fatal/{i}.jpg", data) for i in range(NEIGHBOURS)]
    with held_storage() as (url, gate), ThreadPoolExecutor(NEIGHBOURS) as callers:
        service = start_service(STORAGE_EMULATOR_HOST=url, **hooks.settings(hooks.CrashingWorker))
        workers, processes = [service.worker], {service.worker, *decoders_of(service.worker)}
        gate.close()
        neighbours = callers.map(service.deliver, good)
        wait_until(lambda: gate.waiting >= NEIGHBOURS, "not every image waits for its download")
        gate.open()
        for _ in range(3):
            assert attempt(service, fatal) == 0
            wait_until(
                lambda: has_other_worker(service, workers), "the worker is not started again"
            )
            workers.append(service.worker)
        assert all(statuses[-1] == 204 for statuses in neighbours)
    assert document(fatal) is None
    assert [(document(ref) or {})["status"] for ref in good] == ["done"] * NEIGHBOURS
    assert len(set(workers)) == 4
    assert not any(map(is_running, processes))


def has_other_worker(service: Service, workers: list[int]) -> bool:
    return not {*children_of(service.child.process.pid)} <= {*workers}


SHORT_TIMEOUTS = {
    "HANG_TIMEOUT_SECONDS": "10",
    "STORAGE_TIMEOUT_SECONDS": "5",
    "FIRESTORE_TIMEOUT_SECONDS": "5",
}


def test_model_that_hangs_fails_liveness(
    start_service: StartService, service: Service, stack: Stack
) -> None:
    """The message is rejected first. Then liveness fails, so that the platform replaces it."""
    endless = put_aside(stack, "hangs/poison.jpg", poison())
    hanging = start_service(**SHORT_TIMEOUTS, **hooks.settings(hooks.HangingWorker))
    assert hanging.is_live()
    assert hanging.post(endless).status_code == 503
    assert document(endless) is None
    wait_until(lambda: not hanging.is_live(), "liveness does not fail")
    probe = requests.get(hanging.url + "/health/live", timeout=PATIENCE_SECONDS)
    assert probe.status_code == 503
    assert "hung for more than 10 s" in probe.json()["reason"]
    assert service.deliver(endless) == [204]


def test_model_that_fails_on_every_image_fails_liveness(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"fails/{i}.jpg", data) for i in range(MODEL_FAILURES)]
    service = start_service(**hooks.settings(hooks.FailingWorker))
    for _ in range(MODEL_FAILURES + 1):  # failures on a single image do not count
        assert service.post(refs[0]).status_code == 500
        assert service.is_live()
    assert [service.post(ref).status_code for ref in refs[1:]] == [500] * (MODEL_FAILURES - 1)
    for kind in ("live", "ready"):
        probe = requests.get(f"{service.url}/health/{kind}", timeout=PATIENCE_SECONDS)
        assert probe.status_code == 503
        assert "The model failed on 5 different images" in probe.json()["reason"]
    assert not any(map(document, refs))


def test_model_that_crashes_at_load_is_never_ready(start_service: StartService) -> None:
    service = start_service(ready=False, **hooks.settings(hooks.CrashingAtLoadWorker))
    wait_until(
        lambda: service.child.log_text().count("Booting worker") > 2, "no worker is started again"
    )
    assert not responds_200(service.url + "/health/ready", timeout_seconds=1)
    os.killpg(service.child.process.pid, signal.SIGKILL)
